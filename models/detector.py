"""The detector: pictures -> ``Predictions``. It knows nothing of labels, losses or files."""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.backbone import CSPBackbone, scale_depth
from models.blocks import ConvBNAct
from models.head import LTRBHead
from models.neck import PANNeck
from utils.config import ModelConfig
from utils.geometry.anchor_points import make_anchor_points
from utils.structures import Predictions


class Detector(nn.Module):
    """Backbone, neck and head; the same output in training and in evaluation."""

    def __init__(self, cfg: ModelConfig, num_classes: int):
        super().__init__()
        self.strides = tuple(2**level for level in cfg.levels)
        self.backbone = CSPBackbone(
            depth=cfg.depth, width=cfg.width, max_channels=cfg.max_channels, levels=tuple(cfg.levels)
        )
        self.neck = PANNeck(self.backbone.channels, scale_depth(3, cfg.depth))
        self.head = LTRBHead(self.backbone.channels, num_classes, cfg)

    def forward(self, images: Tensor) -> Predictions:
        """(B, 3, H, W) RGB, uint8 or float in [0, 1]; H and W multiples of the coarsest stride."""
        if images.dtype == torch.uint8:
            images = images.to(self.backbone.stem.conv.weight.dtype) / 255
        features = self.neck(self.backbone(images))
        cls_logits, ltrb_logits = self.head(features)
        levels = tuple((*x.shape[2:], stride) for x, stride in zip(features, self.strides, strict=True))
        points, strides = make_anchor_points([level[:2] for level in levels], self.strides, images.device)
        return Predictions(cls_logits, ltrb_logits, points, strides, levels)

    def fuse(self) -> "Detector":
        """Fold every batch normalisation into its convolution, in place; for inference only."""
        for module in self.modules():
            if isinstance(module, ConvBNAct):
                module.fuse()
        return self


def build_detector(cfg: ModelConfig, num_classes: int) -> Detector:
    """A detector with fresh weights, in training mode."""
    return Detector(cfg, num_classes)


def count_parameters(model: nn.Module) -> int:
    """Number of trainable and frozen parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def count_flops(model: Detector, size: tuple[int, int]) -> int:
    """Floating point operations of one (height, width) picture; a multiply-add is two (torch's counter)."""
    device, training = next(model.parameters()).device, model.training
    model.eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, *size, device=device))
    model.train(training)
    return counter.get_total_flops()
