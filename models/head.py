"""The decoupled ltrb head. B images, A anchor points, C classes, R = reg_max + 1 bins."""

import math

import torch
from torch import Tensor, nn

from models.blocks import ConvBNAct

_BIN_SLOPE = (
    0.3  # bias of bin i is -0.3 i: the first sides are about 2.7 strides, not 7.5 as with uniform bins
)


class LTRBHead(nn.Module):
    """At each level two towers of 3x3 convolutions: one for the class logits, one for the distributions."""

    def __init__(self, channels: list[int], num_classes: int, *, reg_max: int, class_prior: float):
        super().__init__()
        self.bins = reg_max + 1
        box_width = min(channels[0], max(4 * self.bins, channels[0] // 4))
        cls_width = channels[0]
        self.box_towers = nn.ModuleList(_tower(c, box_width) for c in channels)
        self.cls_towers = nn.ModuleList(_tower(c, cls_width) for c in channels)
        self.box_outputs = nn.ModuleList(nn.Conv2d(box_width, 4 * self.bins, 1) for _ in channels)
        self.cls_outputs = nn.ModuleList(nn.Conv2d(cls_width, num_classes, 1) for _ in channels)
        self._start(class_prior)

    @torch.no_grad()
    def _start(self, class_prior: float) -> None:
        """Scores start at the prior (arXiv:1708.02002, section 4.1), sides at about 2.7 strides."""
        for box, cls in zip(self.box_outputs, self.cls_outputs, strict=True):
            nn.init.normal_(box.weight, std=0.01)
            box.bias.copy_(torch.arange(self.bins).repeat(4) * -_BIN_SLOPE)
            nn.init.normal_(cls.weight, std=0.01)
            nn.init.constant_(cls.bias, -math.log((1 - class_prior) / class_prior))

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Features, finest first -> class logits (B, A, C) and ltrb logits (B, A, 4, R)."""
        cls_logits, ltrb_logits = [], []
        for level, x in enumerate(features):
            cls = self.cls_outputs[level](self.cls_towers[level](x))
            box = self.box_outputs[level](self.box_towers[level](x))
            cls_logits.append(cls.flatten(2).transpose(1, 2))
            ltrb_logits.append(box.flatten(2).transpose(1, 2).unflatten(2, (4, self.bins)))
        return torch.cat(cls_logits, 1), torch.cat(ltrb_logits, 1)


def _tower(channels_in: int, width: int) -> nn.Sequential:
    return nn.Sequential(ConvBNAct(channels_in, width, 3), ConvBNAct(width, width, 3))
