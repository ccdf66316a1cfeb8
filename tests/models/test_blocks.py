"""Building blocks: shapes, what the pooling windows see, folding the normalisation into the convolution."""

import pytest
import torch
from torch.nn import functional

from models.blocks import Bottleneck, ConvBNAct, CSPBlock, PyramidPool
from models.detector import build_detector
from utils.config import ModelConfig


def randomise_norms(module, seed=0):
    """Statistics and gains as after training: a fresh normalisation would hide what folding gets wrong."""
    generator = torch.Generator().manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.5, generator=generator)
            norm.running_var.uniform_(0.3, 2, generator=generator)
            norm.weight.data.uniform_(0.5, 1.5, generator=generator)
            norm.bias.data.normal_(0, 0.5, generator=generator)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize(("stride", "expected"), [(1, (10, 14)), (2, (5, 7))])
def test_convolution_keeps_or_halves_the_size(kernel, stride, expected):
    y = ConvBNAct(3, 8, kernel, stride=stride)(torch.randn(2, 3, 10, 14))
    assert y.shape == (2, 8, *expected)


def test_convolution_by_hand():
    block = ConvBNAct(1, 1, 1).eval()
    block.conv.weight.data.fill_(2)
    block.norm.running_mean.fill_(1)
    block.norm.running_var.fill_(4 - 1e-3)
    block.norm.weight.data.fill_(3)
    block.norm.bias.data.fill_(0.5)
    # 2 * 1.5 = 3; (3 - 1) / sqrt(4) * 3 + .5 = 3.5; SiLU: 3.5 / (1 + exp(-3.5)) = 3.397407
    assert block(torch.full((1, 1, 1, 1), 1.5)).item() == pytest.approx(3.397407, abs=1e-5)
    block.fuse()
    assert block.conv.weight.item() == pytest.approx(3) and block.conv.bias.item() == pytest.approx(-1)
    assert block(torch.full((1, 1, 1, 1), 1.5)).item() == pytest.approx(3.397407, abs=1e-5)


def test_fusing_twice_is_fusing_once():
    block = ConvBNAct(4, 6, 3).eval()
    randomise_norms(block)
    x = torch.randn(2, 4, 9, 7)
    with torch.no_grad():
        expected = block(x)
        block.fuse()
        block.fuse()
        torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in block.modules())


@pytest.mark.parametrize("shortcut", [False, True])
def test_bottleneck_adds_its_input_where_asked(shortcut):
    block = Bottleneck(4, shortcut=shortcut).eval()
    block.second.conv.weight.data.zero_()  # the convolutions give SiLU(0) = 0
    x = torch.randn(1, 4, 5, 5)
    assert torch.equal(block(x), x if shortcut else torch.zeros_like(x))


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("shortcut", [False, True])
def test_csp_block(depth, shortcut):
    block = CSPBlock(6, 16, depth, shortcut=shortcut)
    x = torch.randn(2, 6, 8, 10, requires_grad=True)
    y = block(x)
    assert y.shape == (2, 16, 8, 10)
    assert len(block.steps) == depth
    y.square().sum().backward()
    assert all(parameter.grad.ne(0).any() for parameter in block.parameters())


def test_pyramid_pool_sees_windows_of_5_9_and_13():
    block = PyramidPool(8).eval()
    randomise_norms(block)
    x = torch.randn(2, 8, 17, 15)
    with torch.no_grad():
        reduced = block.reduce(x)
        windows = [functional.max_pool2d(reduced, size, 1, size // 2) for size in (5, 9, 13)]
        expected = block.join(torch.cat([reduced, *windows], 1))
        assert torch.equal(block(x), expected)
        assert block(x).shape == x.shape


def test_one_value_a_channel_is_normalised_by_the_running_statistics():
    """As in evaluation, with a gradient, and without entering them; several values are as ever."""
    block = ConvBNAct(3, 8, 3, stride=2)
    randomise_norms(block)
    before = [buffer.clone() for buffer in block.buffers()]
    picture = torch.randn(1, 3, 1, 1)
    trained = block(picture)
    torch.testing.assert_close(trained, block.eval()(picture))
    trained.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in block.parameters())
    assert all(torch.equal(*pair) for pair in zip(before, block.buffers(), strict=True))
    block.train()(torch.randn(2, 3, 1, 1))
    assert not torch.equal(before[0], block.norm.running_mean)


@pytest.mark.parametrize("levels", [(3, 4, 5), (2, 3, 4, 5), (3, 4, 5, 6)])
def test_the_smallest_picture_trains_by_itself(levels):
    side = max(32, 2 ** max(levels))
    model = build_detector(ModelConfig(levels=levels), 2).train()
    pred = model(torch.randn(1, 3, side, side))
    (pred.cls_logits.sum() + pred.ltrb_logits.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
