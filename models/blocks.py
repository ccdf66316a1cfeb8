"""Building blocks. All take and return (B, channels, height, width)."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class ConvBNAct(nn.Module):
    """Convolution, batch normalisation, SiLU; 'same' padding for odd kernels."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 1, *, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(channels_out, eps=1e-3, momentum=0.1)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.training and self.norm.training and x.numel() == x.shape[1]:
            # One value a channel, as one picture of 32 px has at stride 32, is no sample to take a mean and a
            # variance of: it is normalised by the running ones, as in evaluation, and does not enter them.
            norm = self.norm
            statistics = (norm.running_mean, norm.running_var)
            return self.act(functional.batch_norm(x, *statistics, norm.weight, norm.bias, eps=norm.eps))
        return self.act(self.norm(x))

    def fuse(self) -> None:
        """Fold the normalisation's running statistics into the convolution, in float64; inference only."""
        if isinstance(self.norm, nn.Identity):
            return
        norm = self.norm
        gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        weight = self.conv.weight.double() * gain.view(-1, 1, 1, 1)
        self.conv.bias = nn.Parameter(
            (norm.bias.double() - norm.running_mean.double() * gain).to(self.conv.weight.dtype)
        )
        self.conv.weight = nn.Parameter(weight.to(self.conv.weight.dtype))
        self.norm = nn.Identity()


class Bottleneck(nn.Module):
    """Two 3x3 convolutions, added to the input where ``shortcut``."""

    def __init__(self, channels: int, *, shortcut: bool):
        super().__init__()
        self.first, self.second = ConvBNAct(channels, channels, 3), ConvBNAct(channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x))
        return x + y if self.shortcut else y


class CSPBlock(nn.Module):
    """Cross-stage partial block (arXiv:1911.11929, section 3; aggregation as in arXiv:2211.04800).

    Half the channels pass through ``depth`` bottlenecks in a row, and the outputs of all of them are joined
    with both halves.
    """

    def __init__(self, channels_in: int, channels_out: int, depth: int, *, shortcut: bool):
        super().__init__()
        hidden = channels_out // 2
        self.split = ConvBNAct(channels_in, 2 * hidden)
        self.steps = nn.ModuleList(Bottleneck(hidden, shortcut=shortcut) for _ in range(depth))
        self.join = ConvBNAct((2 + depth) * hidden, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        outputs = list(self.split(x).chunk(2, 1))
        for step in self.steps:
            outputs.append(step(outputs[-1]))
        return self.join(torch.cat(outputs, 1))


class PyramidPool(nn.Module):
    """Spatial pyramid pooling (arXiv:1406.4729) over windows 5, 9 and 13, by three 5x5 max-pools in a row."""

    def __init__(self, channels: int):
        super().__init__()
        self.reduce = ConvBNAct(channels, channels // 2)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.join = ConvBNAct(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        outputs = [self.reduce(x)]
        for _ in range(3):
            outputs.append(self.pool(outputs[-1]))
        return self.join(torch.cat(outputs, 1))
