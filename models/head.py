"""The decoupled ltrb head. B images, A anchor points, C classes, R = reg_max + 1 bins."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.blocks import ConvBNAct
from utils.config import DGQP_BINS, ModelConfig

_BIN_SLOPE = 0.3  # bias of bin i is -0.3 i: first sides of about 2.7 strides; uniform bins: 7.5
_PLAIN_START = 2.7  # strides, the first sides without bins
_QUALITY_WIDTH = 64  # hidden units of the quality branch


class LTRBHead(nn.Module):
    """At each level two towers of 3x3 convolutions: one for the class logits, one for the distributions.

    With ``reg_max`` 0 each side has one plain value instead; the towers are those of the default bins.
    """

    def __init__(self, channels: list[int], num_classes: int, cfg: ModelConfig):
        super().__init__()
        self.bins = cfg.reg_max + 1
        box_width = min(channels[0], max(4 * (cfg.reach + 1), channels[0] // 4))
        cls_width = channels[0]
        self.box_towers = nn.ModuleList(_tower(c, box_width) for c in channels)
        self.cls_towers = nn.ModuleList(_tower(c, cls_width) for c in channels)
        self.box_outputs = nn.ModuleList(nn.Conv2d(box_width, 4 * self.bins, 1) for _ in channels)
        self.cls_outputs = nn.ModuleList(nn.Conv2d(cls_width, num_classes, 1) for _ in channels)
        self.quality_branch = QualityBranch() if cfg.quality_branch == "dgqp" else None
        self._start(cfg.class_prior)

    @torch.no_grad()
    def _start(self, class_prior: float) -> None:
        """Scores start at the prior (arXiv:1708.02002, section 4.1), sides at about 2.7 strides."""
        for box, cls in zip(self.box_outputs, self.cls_outputs, strict=True):
            nn.init.normal_(box.weight, std=0.01)
            if self.bins > 1:
                box.bias.copy_(torch.arange(self.bins).repeat(4) * -_BIN_SLOPE)
            else:
                box.bias.fill_(math.log(math.expm1(_PLAIN_START)))  # softplus of it is _PLAIN_START
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
        cls_logits, ltrb_logits = torch.cat(cls_logits, 1), torch.cat(ltrb_logits, 1)
        if self.quality_branch is not None:
            cls_logits = cls_logits + self.quality_branch(ltrb_logits)
        return cls_logits, ltrb_logits


class QualityBranch(nn.Module):
    """DGQP: the shape of the four distributions says how good the box is (arXiv:2011.12885, section 3.2).

    A sharp distribution has large top probabilities, whatever the distance. Instead of a factor in [0, 1] on
    the class score, as in the paper, it is a logit added to the class logits, 0 at the start: training begins
    as without it, and losses from logits stay exact. One branch serves all levels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(4 * (DGQP_BINS + 1), _QUALITY_WIDTH)
        self.output = nn.Linear(_QUALITY_WIDTH, 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, ltrb_logits: Tensor) -> Tensor:
        """(B, A, 4, R) -> (B, A, 1): per side the 4 largest bin probabilities and their mean -> one logit."""
        largest = ltrb_logits.softmax(-1).topk(DGQP_BINS, -1).values
        statistics = torch.cat((largest, largest.mean(-1, keepdim=True)), -1).flatten(2)
        return self.output(functional.relu(self.hidden(statistics.to(self.hidden.weight.dtype))))


def _tower(channels_in: int, width: int) -> nn.Sequential:
    return nn.Sequential(ConvBNAct(channels_in, width, 3), ConvBNAct(width, width, 3))
