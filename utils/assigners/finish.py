"""What all assigners share, second half: a point for whoever was left over, and the record.

B images, M padded truths, A anchor points, P truths without a point, K points near a truth. Boxes are xyxy
px. No value is read back to the host.
"""

import torch
from torch import Tensor

from utils.assigners.candidates import Levels, cells_around, level_starts, outer, rank_key, settle
from utils.structures import Assignment, Targets

_WINDOW = 8  # cells a side: where a truth without a candidate looks for a free point
_ROUNDS = 8  # in each, all truths still without a point bid for their nearest free one


def finish(owner: Tensor, truth: Targets, levels: Levels, reach: int) -> Assignment:
    """From (B, A) the truth that owns each point, -1 for none, to the ``Assignment``.

    A truth without a point gets the free point nearest its centre on the finest level that can express it,
    else on the coarsest. Where several want the same point the first truth wins and the others bid again;
    those still without one after the last round take the remaining free points in order. Only when there are
    more truths than points does a truth go without.
    """
    left = without_point(owner, truth)
    owner = _give_leftovers(_bid_for_free_points(owner, truth, levels, reach), truth)
    positive, index = owner >= 0, owner.clamp(min=0)
    boxes = truth.boxes.gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
    filler = (torch.arange(4, device=boxes.device) >= 2).to(boxes.dtype)  # 0, 0, 1, 1
    return Assignment(
        positive=positive,
        ignored=_covered(truth.boxes, truth.valid & truth.ignore, levels),
        truth=index,
        labels=truth.labels.gather(1, index),
        boxes=torch.where(positive.unsqueeze(-1), boxes, filler),
        fallback=left & ~without_point(owner, truth),
    )


def without_point(owner: Tensor, truth: Targets) -> Tensor:
    """(B, M) bool: truths that should own a point and do not."""
    held = torch.zeros(truth.labels.shape, dtype=torch.int64, device=owner.device)
    held.scatter_add_(1, owner.clamp(min=0), (owner >= 0).long())
    return truth.valid & ~truth.ignore & (held == 0)


def _bid_for_free_points(owner: Tensor, truth: Targets, levels: Levels, reach: int) -> Tensor:
    """The owners after up to 8 rounds of bidding; P truths without a point, in order, bid at once."""
    missing = without_point(owner, truth)
    if missing.device.type == "cpu" and not missing.any():
        return owner
    number, left = places_of(missing, missing.shape[1])  # (B, P)
    wishes = _nearest_points(truth.boxes.gather(1, number.unsqueeze(-1).expand(-1, -1, 4)), levels, reach)
    most = number.shape[1]
    order = most - 1 - torch.arange(most, device=owner.device)
    for _ in range(_ROUNDS):
        if left.device.type == "cpu" and not left.any():
            break
        free = (owner < 0).gather(1, wishes.flatten(1)).view_as(wishes)
        rank = free.cumsum(-1)  # of a free point among the truth's free ones, from 1
        first = wishes.gather(-1, free.int().argmax(-1, keepdim=True)).squeeze(-1)
        turn = _turns(first.where(left, owner.shape[1])).unsqueeze(-1)
        wanted = free & (rank == turn + 1)
        point = wishes.gather(-1, wanted.int().argmax(-1, keepdim=True)).squeeze(-1)
        bid = order.where(left & wanted.any(-1), -1)
        won = settle(point, bid, owner.shape[1])
        owner = number.gather(1, (most - 1 - won).clamp(max=most - 1)).where(won >= 0, owner)
        left = left & ((bid < 0) | (won.gather(1, point) != bid))
    return owner


def places_of(mask: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """(B, N) mask -> the places where it holds, in order, and which of them are real: (B, P) int64 and bool.

    P is ``most``, or N if that is less: a size known beforehand, so a GPU is not asked how many there are. No
    row may hold more. The rest of a row is place 0, not real.
    """
    most = _room(mask, min(most, mask.shape[1]))
    slot = (mask.cumsum(1) - 1).where(mask, most)
    place = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    index = torch.zeros(len(mask), most + 1, dtype=torch.int64, device=mask.device).scatter_(1, slot, place)
    return index[:, :most], torch.arange(most, device=mask.device) < mask.sum(1, keepdim=True)


def _room(mask: Tensor, most: int) -> int:
    """P; on a CPU, where it costs nothing to ask, no more than the fullest row needs, at least 1."""
    return min(most, max(1, int(mask.sum(1).max()))) if mask.device.type == "cpu" else most


def _turns(point: Tensor) -> Tensor:
    """(B, M) -> how many earlier truths of the row name the same point."""
    ordered, place = point.sort(dim=1, stable=True)
    number = torch.arange(point.shape[1], device=point.device).expand_as(point)
    fresh = torch.ones_like(ordered, dtype=torch.bool)
    fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    start = number.where(fresh, 0).cummax(1).values
    return torch.zeros_like(point).scatter_(1, place, number - start)


def _nearest_points(boxes: Tensor, levels: Levels, reach: int) -> Tensor:
    """Points about each truth's centre (B, M, K), most wanted first: by level, then by distance."""
    centre, longest = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]) / 2
    indices, keys = [], []
    for number, (start, (height, width, stride)) in enumerate(level_starts(levels)):
        columns, rows = (
            cells_around(centre[..., axis], cells, stride, _WINDOW)
            for axis, cells in enumerate((width, height))
        )
        dx, dy = (
            ((numbers + 0.5) * stride - centre[..., axis, None]).abs()
            for axis, numbers in enumerate((columns, rows))
        )
        far = outer(dy + longest[..., 1:], dx + longest[..., :1], torch.maximum)
        expressible = far <= reach * stride
        # Levels that can express the box come first, finest first; then the others, coarsest first.
        wish = torch.where(expressible, 2 * len(levels) - number, number + 1).float()
        index = outer(rows * width + start, columns, torch.add)
        indices.append(index)
        keys.append(rank_key(wish, outer(dy**2, dx**2, torch.add), index, sum(h * w for h, w, _ in levels)))
    return torch.cat(indices, -1).gather(-1, torch.cat(keys, -1).argsort(-1, descending=True))


def _give_leftovers(owner: Tensor, truth: Targets) -> Tensor:
    """The j-th truth still without a point takes the j-th free point; no change where none is without."""
    missing, free = without_point(owner, truth), owner < 0
    turn_of_truth, turn_of_point = missing.cumsum(1) - 1, free.cumsum(1) - 1
    num_truths = missing.shape[1]
    takers = torch.full((owner.shape[0], num_truths + 1), -1, dtype=torch.int64, device=owner.device)
    truths = torch.arange(num_truths, device=owner.device).expand_as(missing)
    takers.scatter_(1, turn_of_truth.where(missing, num_truths), truths.where(missing, -1))
    taker = takers.gather(1, turn_of_point.clamp(0, num_truths))
    return torch.where(free & (turn_of_point < num_truths), taker, owner)


def _covered(boxes: Tensor, ignore: Tensor, levels: Levels) -> Tensor:
    """(B, A) bool: points inside an ignore region.

    Corners are marked and summed twice, so no (B, M, A) is built.
    """
    parts = []
    for height, width, stride in levels:
        first, end = (boxes[..., :2] / stride - 0.5).ceil(), (boxes[..., 2:] / stride - 0.5).floor() + 1
        cells = torch.stack((first, torch.maximum(first, end)), -1).long()
        (x1, x2), (y1, y2) = (
            cells[..., axis, :].clamp(0, n).unbind(-1) for axis, n in enumerate((width, height))
        )
        corners = torch.cat([y * (width + 1) + x for y in (y1, y2) for x in (x1, x2)], 1)
        signs = torch.cat([ignore.int() * sign for sign in (1, -1, -1, 1)], 1)
        grid = torch.zeros(boxes.shape[0], (height + 1) * (width + 1), dtype=torch.int32, device=boxes.device)
        grid.scatter_add_(1, corners, signs)
        depth = grid.view(-1, height + 1, width + 1).cumsum(1).cumsum(2)
        parts.append(depth[:, :height, :width].flatten(1) > 0)
    return torch.cat(parts, 1)
