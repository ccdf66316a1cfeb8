"""What all assigners share, first half: which anchor points may answer for a truth, and how they rank.

B images, M padded truths, A anchor points, C classes, K candidates of a truth on a level. Boxes are xyxy px.
Cells are found by arithmetic on the levels' sizes: a point can express a box only if its four distances are
at most ``reach`` (= reg_max) strides, so the candidates of one truth lie in a window of (reach + 1)^2 cells
on each level, however many points there are. No value is read back to the host.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from utils.geometry.boxes import aligned_iou
from utils.structures import Predictions, Targets

Levels = tuple[tuple[int, int, int], ...]  # (height, width, stride), finest first

_ROWS_CPU, _ROWS_GPU = 2048, 32768  # pictures x truths of a block


class Candidates(NamedTuple):
    """K cells of one level for each truth, of which ``allowed`` ones may answer for it."""

    index: Tensor  # (B, M, K) int64 anchor point
    allowed: Tensor  # (B, M, K) bool
    distance: Tensor  # (B, M, K) squared distance to the box's centre, px^2


def find_candidates(
    truth: Targets, levels: Levels, reach: int, *, window: int | None = None
) -> list[Candidates]:
    """On each level, points inside their truth whose largest distance to a side is at most ``reach`` strides.

    A side below the smallest stride counts as that long (about the same centre), so that no box slips between
    the points. Padding and ignore regions have no candidates. With ``window``, the K cells are those of a
    square of so many cells a side about the truth's centre, moved into the picture where it sticks out: for
    rules that also look at points that may not answer.
    """
    boxes, wanted = _enlarge(truth.boxes, levels[0][2]), (truth.valid & ~truth.ignore).unsqueeze(-1)
    found = []
    for start, (height, width, stride) in level_starts(levels):
        size = {"stride": stride, "reach": reach, "window": window}
        columns, x_gap, x_reach = _span(boxes[..., 0], boxes[..., 2], width, **size)
        rows, y_gap, y_reach = _span(boxes[..., 1], boxes[..., 3], height, **size)
        index = outer(rows * width + start, columns, torch.add)
        allowed = outer(y_reach & wanted, x_reach, torch.logical_and)
        found.append(Candidates(index, allowed, outer(y_gap, x_gap, torch.add)))
    return found


def reach_of(pred: Predictions, reach: int | None) -> int:
    """The candidates' largest distance in strides: as given, or that of the last bin."""
    return pred.ltrb_logits.shape[-1] - 1 if reach is None else reach


def rate_candidates(
    candidates: Candidates, scores: Tensor, boxes: Tensor, truth: Targets
) -> tuple[Tensor, Tensor]:
    """(B, M, K) at the candidates: score of the truth's class, IoU of the decoded box with the truth.

    From scores (B, A, C) and boxes (B, A, 4) xyxy px.
    """
    batch, num_points, num_classes = scores.shape
    # Rows of the batch's points laid end to end; in place, as fresh memory is what costs time here.
    first = torch.arange(batch, device=boxes.device).view(-1, 1, 1) * num_points
    row = (candidates.index + first).flatten()
    near = boxes.flatten(0, 1).index_select(0, row).view(*candidates.index.shape, 4)
    iou = aligned_iou(near, truth.boxes.unsqueeze(2))
    labels = truth.labels.unsqueeze(-1).expand_as(candidates.index).flatten()
    score = scores.flatten().index_select(0, row.mul_(num_classes).add_(labels))
    return score.view_as(candidates.index).float(), iou


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


def pick(
    candidates: Sequence[Candidates], metrics: Iterable[Tensor], top_k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the candidates on all levels those of largest metric, for each truth: up to ``top_k``, best first.

    ``metrics`` gives (B, M, K) for each level; if it makes them one by one, only one is held at a time.
    Equal metrics are ranked by distance, then by index. Returns (B, M, N) whether there is one, its point,
    metric and squared distance.
    """
    total, start, kept = sum(level.index.shape[-1] for level in candidates), 0, []
    for level, metric in zip(candidates, metrics, strict=True):
        count = metric.shape[-1]
        place = torch.arange(start, start + count, device=metric.device)
        key = rank_key(metric, level.distance, place, total).masked_fill_(~level.allowed, -1)
        best, place = key.topk(min(top_k, count), sorted=False)
        kept.append((best, *(values.gather(-1, place) for values in (level.index, metric, level.distance))))
        start += count
    key, *rest = (torch.cat(parts, -1) for parts in zip(*kept, strict=True))
    best, place = key.topk(min(top_k, key.shape[-1]))
    point, metric, distance = (values.gather(-1, place) for values in rest)
    return best >= 0, point, metric, distance


def in_blocks(choose: Callable[[Targets], tuple[Tensor, ...]], truth: Targets) -> tuple[Tensor, ...]:
    """``choose`` for so many of the truths at a time as fit the cache (a GPU: its memory), put together.

    A batch of the usual size is one block; with more truths the cost of each stays the same.
    """
    rows = _ROWS_CPU if truth.boxes.device.type == "cpu" else _ROWS_GPU
    size = max(1, rows // len(truth.boxes))
    parts = [choose(Targets(*block)) for block in zip(*(part.split(size, 1) for part in truth), strict=True)]
    return tuple(torch.cat(part, 1) for part in zip(*parts, strict=True)) if len(parts) > 1 else parts[0]


def award(wanted: Tensor, point: Tensor, metric: Tensor, distance: Tensor, *, num_points: int) -> Tensor:
    """(B, A) the truth that owns each point, -1 for none, from what each of the M truths wants: (B, M, N).

    A point goes to the truth of the largest metric there; then to the one of the nearer centre, then to the
    first.
    """
    num_truths = point.shape[1]
    number = torch.arange(num_truths, device=point.device).unsqueeze(-1)
    bid = rank_key(metric, distance, number, num_truths).where(wanted, -1)
    won = settle(point.flatten(1), bid.flatten(1), num_points)
    return key_index(won, num_truths).where(won >= 0, -1)


def _enlarge(boxes: Tensor, shortest: float) -> Tensor:
    centre, size = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    half = size.clamp(min=shortest) / 2
    enlarged = torch.cat((centre - half, centre + half), -1)
    return torch.where((size < shortest).repeat(1, 1, 2), enlarged, boxes)


def _span(
    low: Tensor, high: Tensor, cells: int, *, stride: int, reach: int, window: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """One axis of a window: cells (B, M, n), squared gap to the centre px^2, which can express both sides."""
    if window is None:
        count = min(reach + 1, cells)
        first = (torch.maximum(low, high - reach * stride) / stride - 0.5).ceil().clamp(0, cells - count)
        numbers = first.long().unsqueeze(-1) + torch.arange(count, device=low.device)
    else:
        numbers = cells_around((low + high) / 2, cells, stride, window)
    before = numbers + 0.5 - low.unsqueeze(-1) / stride
    after = high.unsqueeze(-1) / stride - numbers - 0.5
    allowed = (torch.minimum(before, after) >= 0) & (torch.maximum(before, after) <= reach)
    return numbers, ((before - after) * (stride / 2)).square(), allowed


def cells_around(centre: Tensor, cells: int, stride: int, window: int) -> Tensor:
    """(B, M) px -> (B, M, n) the numbers of up to ``window`` cells in a row, those nearest the centre.

    Whatever is left out lies at least ``window`` / 2 cells from a centre inside the picture.
    """
    count = min(window, cells)
    first = (centre / stride - count / 2).round().clamp(0, cells - count).long()
    return first.unsqueeze(-1) + torch.arange(count, device=centre.device)


def outer(rows: Tensor, columns: Tensor, operation) -> Tensor:
    """(..., h), (..., w) -> (..., h w) by a broadcasting operation."""
    return operation(rows.unsqueeze(-1), columns.unsqueeze(-2)).flatten(-2)


def level_starts(levels: Levels) -> Iterator[tuple[int, tuple[int, int, int]]]:
    """Each level with the number of its first point."""
    start = 0
    for height, width, stride in levels:
        yield start, (height, width, stride)
        start += height * width


def _bits(values: Tensor) -> Tensor:
    """The bits of float32 values >= 0 (or -0.0), as int64: they sort as the values do."""
    return values.float().contiguous().view(torch.int32).long().bitwise_and_(0x7FFFFFFF)
