"""The CSP backbone: a picture -> feature maps of strides 2^level."""

from torch import Tensor, nn

from models.blocks import ConvBNAct, CSPBlock, PyramidPool

_CHANNELS = {1: 64, 2: 128, 3: 256, 4: 512, 5: 1024, 6: 1024}  # at width 1, by level (log2 of the stride)
_BLOCKS = {2: 3, 3: 6, 4: 6, 5: 3, 6: 3}  # bottlenecks at depth 1


def scale_channels(channels: int, width: float) -> int:
    """``channels * width`` to the nearest multiple of 8, at least 8."""
    return max(8, 8 * round(channels * width / 8))


def scale_depth(blocks: int, depth: float) -> int:
    """``blocks * depth``, rounded, at least 1."""
    return max(1, round(blocks * depth))


class CSPBackbone(nn.Module):
    """Each stage a 3x3 convolution of stride 2, then a CSP block; spatial pyramid pooling after the last."""

    def __init__(self, *, depth: float, width: float, max_channels: int, levels: tuple[int, ...]):
        super().__init__()
        self.levels = levels
        channels = {
            level: scale_channels(min(base, max_channels), width) for level, base in _CHANNELS.items()
        }
        self.stem = ConvBNAct(3, channels[1], 3, stride=2)
        self.stages = nn.ModuleList()
        for level in range(2, max(levels) + 1):
            stage = [
                ConvBNAct(channels[level - 1], channels[level], 3, stride=2),
                CSPBlock(channels[level], channels[level], scale_depth(_BLOCKS[level], depth), shortcut=True),
            ]
            if level == max(levels):
                stage.append(PyramidPool(channels[level]))
            self.stages.append(nn.Sequential(*stage))
        self.channels = [channels[level] for level in levels]

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> features of ``levels``, finest first."""
        x, features = self.stem(images), []
        for level, stage in enumerate(self.stages, 2):
            x = stage(x)
            if level in self.levels:
                features.append(x)
        return features
