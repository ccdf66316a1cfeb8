"""What all assigners share: which anchor points may answer for a truth, how they rank, and who is left over.

B images, M padded truths, A anchor points, K candidates of a truth. Boxes are xyxy px. Cells are found by
arithmetic on the levels' sizes: a point can express a box only if its four distances are at most ``reach``
(= reg_max) strides, so the candidates of one truth lie in a window of (reach + 1)^2 cells on each level,
however many points there are. No value is read back to the host.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from utils.structures import Assignment, Targets

Levels = tuple[tuple[int, int, int], ...]  # (height, width, stride), finest first

_FALLBACK_WINDOW = 8  # cells a side: where a truth without a candidate looks for a free point
_FALLBACK_ROUNDS = 8  # in each, all truths still without a point bid for their nearest free one


class Candidates(NamedTuple):
    """K cells for each truth, of which ``allowed`` ones may answer for it."""

    index: Tensor  # (B, M, K) int64 anchor point
    allowed: Tensor  # (B, M, K) bool
    distance: Tensor  # (B, M, K) squared distance to the box's centre, px^2


def find_candidates(truth: Targets, levels: Levels, reach: int) -> Candidates:
    """Points inside their truth whose largest distance to a side is at most ``reach`` strides.

    A side below the smallest stride counts as that long (about the same centre), so that no box slips between
    the points. Padding and ignore regions have no candidates.
    """
    boxes = _enlarge(truth.boxes, levels[0][2])
    parts = []
    for start, (height, width, stride) in _starts(levels):
        columns, x_gap, x_reach = _span(boxes[..., 0], boxes[..., 2], width, stride, reach)
        rows, y_gap, y_reach = _span(boxes[..., 1], boxes[..., 3], height, stride, reach)
        parts.append(
            (
                _outer(rows * width + start, columns, torch.add),
                _outer(y_reach, x_reach, torch.logical_and),
                _outer(y_gap, x_gap, torch.add),
            )
        )
    index, allowed, distance = (torch.cat(part, -1) for part in zip(*parts, strict=True))
    return Candidates(index, allowed & (truth.valid & ~truth.ignore).unsqueeze(-1), distance)


def rank_key(metric: Tensor, distance: Tensor, index: Tensor, num_indices: int) -> Tensor:
    """One int64 that sorts by metric (larger first), then distance, then index (smaller first for both).

    ``metric`` and ``distance`` are float32 and not negative, so their bits sort as their values do. All 31
    bits of the metric count; the distance keeps the leading bits that the index leaves, at least 16 for
    65,536 indices.
    """
    index_bits = max(num_indices - 1, 1).bit_length()
    distance_bits = min(32 - index_bits, 31)
    near = _bits(distance).bitwise_right_shift_(31 - distance_bits).neg_().add_((1 << distance_bits) - 1)
    key = _bits(metric).bitwise_left_shift_(32).bitwise_or_(near.bitwise_left_shift_(index_bits))
    return key.bitwise_or_(num_indices - 1 - index)  # in place: fresh memory is what costs time here


def key_index(key: Tensor, num_indices: int) -> Tensor:
    """The index inside a ``rank_key``."""
    index_bits = max(num_indices - 1, 1).bit_length()
    return num_indices - 1 - (key & ((1 << index_bits) - 1))


def settle(point: Tensor, bid: Tensor, num_points: int) -> Tensor:
    """Give each point to its best bidder: (B, N) points and ``rank_key`` bids -> (B, A) best bid or -1.

    A bid below 0 does not count.
    """
    best = torch.full((point.shape[0], num_points), -1, dtype=torch.int64, device=point.device)
    return best.scatter_reduce_(1, point, bid, "amax")


def finish(owner: Tensor, truth: Targets, levels: Levels, reach: int) -> Assignment:
    """From (B, A) the truth that owns each point, -1 for none, to the ``Assignment``.

    A truth without a point gets the free point nearest its centre on the finest level that can express it,
    else on the coarsest. Where several want the same point the first truth wins and the others bid again;
    those still without one after the last round take the remaining free points in order. Only when there are
    more truths than points does a truth go without.
    """
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
    )


def without_point(owner: Tensor, truth: Targets) -> Tensor:
    """(B, M) bool: truths that should own a point and do not."""
    held = torch.zeros(truth.labels.shape, dtype=torch.int64, device=owner.device)
    held.scatter_add_(1, owner.clamp(min=0), (owner >= 0).long())
    return truth.valid & ~truth.ignore & (held == 0)


def _bid_for_free_points(owner: Tensor, truth: Targets, levels: Levels, reach: int) -> Tensor:
    on_cpu = owner.device.type == "cpu"  # where it costs nothing to ask whether anybody is missing
    if on_cpu and not without_point(owner, truth).any():
        return owner
    wishes = _nearest_points(truth.boxes, levels, reach)
    num_truths, num_points = truth.labels.shape[1], owner.shape[1]
    order = num_truths - 1 - torch.arange(num_truths, device=owner.device)
    for _ in range(_FALLBACK_ROUNDS):
        missing = without_point(owner, truth)
        if on_cpu and not missing.any():
            break
        free = (owner < 0).gather(1, wishes.flatten(1)).view_as(wishes)
        rank = free.cumsum(-1)  # of a free point among the truth's free ones, from 1
        first = wishes.gather(-1, free.int().argmax(-1, keepdim=True)).squeeze(-1)
        turn = _turns(first.where(missing, num_points)).unsqueeze(-1)
        wanted = free & (rank == turn + 1)
        point = wishes.gather(-1, wanted.int().argmax(-1, keepdim=True)).squeeze(-1)
        won = settle(point, order.where(missing & wanted.any(-1), -1), num_points)
        owner = torch.where(won >= 0, num_truths - 1 - won, owner)
    return owner


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
    for number, (start, (height, width, stride)) in enumerate(_starts(levels)):
        columns, dx = _around(centre[..., 0], width, stride)
        rows, dy = _around(centre[..., 1], height, stride)
        far = _outer(dy + longest[..., 1:], dx + longest[..., :1], torch.maximum)
        expressible = far <= reach * stride
        # Levels that can express the box come first, finest first; then the others, coarsest first.
        wish = torch.where(expressible, 2 * len(levels) - number, number + 1).float()
        index = _outer(rows * width + start, columns, torch.add)
        indices.append(index)
        keys.append(rank_key(wish, _outer(dy**2, dx**2, torch.add), index, sum(h * w for h, w, _ in levels)))
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


def _enlarge(boxes: Tensor, shortest: float) -> Tensor:
    centre, size = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    half = size.clamp(min=shortest) / 2
    enlarged = torch.cat((centre - half, centre + half), -1)
    return torch.where((size < shortest).repeat(1, 1, 2), enlarged, boxes)


def _span(low: Tensor, high: Tensor, cells: int, stride: int, reach: int) -> tuple[Tensor, Tensor, Tensor]:
    """One axis of a window: cells (B, M, n), squared gap to the centre px^2, which can express both sides."""
    count = min(reach + 1, cells)
    first = torch.maximum(low, high - reach * stride) / stride - 0.5
    numbers = first.ceil().clamp(0, cells - count).long().unsqueeze(-1) + torch.arange(
        count, device=low.device
    )
    before = numbers + 0.5 - low.unsqueeze(-1) / stride
    after = high.unsqueeze(-1) / stride - numbers - 0.5
    allowed = (torch.minimum(before, after) >= 0) & (torch.maximum(before, after) <= reach)
    return numbers, ((before - after) * (stride / 2)).square(), allowed


def _around(centre: Tensor, cells: int, stride: int) -> tuple[Tensor, Tensor]:
    """One axis of the fallback's window: cell numbers (B, M, n) and their distance to the centre in px."""
    count = min(_FALLBACK_WINDOW, cells)
    first = (centre / stride - count / 2).round().clamp(0, cells - count).long()
    numbers = first.unsqueeze(-1) + torch.arange(count, device=centre.device)
    return numbers, ((numbers + 0.5) * stride - centre.unsqueeze(-1)).abs()


def _outer(rows: Tensor, columns: Tensor, operation) -> Tensor:
    """(..., h), (..., w) -> (..., h w) by a broadcasting operation."""
    return operation(rows.unsqueeze(-1), columns.unsqueeze(-2)).flatten(-2)


def _starts(levels: Levels):
    start = 0
    for height, width, stride in levels:
        yield start, (height, width, stride)
        start += height * width


def _bits(values: Tensor) -> Tensor:
    """The bits of float32 values >= 0 (or -0.0), as int64: they sort as the values do."""
    return values.float().contiguous().view(torch.int32).long().bitwise_and_(0x7FFFFFFF)
