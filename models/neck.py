"""The PAN neck (arXiv:1803.01534, section 3.1, on arXiv:1612.03144's pyramid): top-down, then bottom-up."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.blocks import ConvBNAct, CSPBlock


class PANNeck(nn.Module):
    """L levels of features, finest first -> as many, of the same sizes and channels, each having seen all."""

    def __init__(self, channels: list[int], blocks: int):
        super().__init__()
        steps = list(pairwise(channels))  # (finer, coarser)
        self.down = nn.ModuleList(
            CSPBlock(fine + coarse, fine, blocks, shortcut=False) for fine, coarse in steps
        )
        self.shrink = nn.ModuleList(ConvBNAct(fine, fine, 3, stride=2) for fine, _ in steps)
        self.up = nn.ModuleList(
            CSPBlock(fine + coarse, coarse, blocks, shortcut=False) for fine, coarse in steps
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        merged = list(features)
        for level in range(len(features) - 2, -1, -1):
            finer = functional.interpolate(merged[level + 1], scale_factor=2.0, mode="nearest")
            merged[level] = self.down[level](torch.cat((finer, merged[level]), 1))
        for level in range(len(features) - 1):
            coarser = self.shrink[level](merged[level])
            merged[level + 1] = self.up[level](torch.cat((coarser, merged[level + 1]), 1))
        return merged
