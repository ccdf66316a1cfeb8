"""Anchor points: the centres of the cells of every level's feature map, xy in input pixels."""

from collections.abc import Sequence

import torch
from torch import Tensor


def make_anchor_points(
    sizes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Feature-map sizes (height, width) and strides of each level -> points (A, 2) px and strides (A, 1) px.

    Row-major within a level, levels in the order given: the point of cell (row, column) is
    ``((column + 0.5) * stride, (row + 0.5) * stride)``. Always float32: bf16 cannot hold 1004.0.
    """
    points, cells = [], []
    for (height, width), stride in zip(sizes, strides, strict=True):
        y, x = torch.meshgrid(
            torch.arange(height, device=device, dtype=torch.float32),
            torch.arange(width, device=device, dtype=torch.float32),
            indexing="ij",
        )
        points.append((torch.stack((x, y), -1).view(-1, 2) + 0.5) * stride)
        cells.append(torch.full((height * width, 1), float(stride), device=device))
    return torch.cat(points), torch.cat(cells)
