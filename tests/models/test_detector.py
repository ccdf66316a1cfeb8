"""The whole model: sizes, shapes, the state before training, and what must not change its outputs."""

import copy

import pytest
import torch
from torch import nn

from models.detector import build_detector, count_flops, count_parameters
from models.neck import PANNeck
from utils.config import ModelConfig
from utils.config_files import load_config
from utils.geometry.anchor_points import make_anchor_points
from utils.geometry.ltrb import integral
from utils.structures import Predictions

SMALL = ModelConfig(width=0.125)


def make_detector(cfg=SMALL, num_classes=3, seed=0):
    torch.manual_seed(seed)
    return build_detector(cfg, num_classes)


def make_images(*size, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, *size), generator=generator, dtype=torch.uint8)


def randomise(model, seed=0):
    """Statistics and gains as after training, and output layers large enough that outputs differ visibly."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.weight.data.uniform_(0.8, 1.2, generator=generator)
            module.bias.data.normal_(0, 0.3, generator=generator)
    for layer in (*model.head.cls_outputs, *model.head.box_outputs):
        layer.weight.data.normal_(0, 0.2, generator=generator)
    return model


def outputs_of(pred: Predictions):
    return pred.cls_logits, pred.ltrb_logits


def spread_of(outputs):
    """Standard deviation over the points: what a comparison of outputs must be measured against."""
    return min(output.std(1).mean().item() for output in outputs)


@pytest.mark.parametrize(("name", "most"), [("n", 3.2e6), ("demo", 0.5e6)])
def test_number_of_parameters(name, most):
    model = build_detector(load_config(cfg=name).config.model, 80)
    assert count_parameters(model) <= most
    assert count_parameters(model) == sum(tensor.numel() for _, tensor in model.named_parameters())


def convolution_flops(model, size):
    """Two operations per multiply-add of every convolution, from the shapes alone."""
    total, handles = 0, []

    def add(module, _, output):
        nonlocal total
        total += 2 * module.weight[0].numel() * output[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(add))
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, *size))
    for handle in handles:
        handle.remove()
    return total


def test_flops():
    model = make_detector()
    flops = count_flops(model, (64, 64))
    assert model.training  # as it was
    assert flops == convolution_flops(copy.deepcopy(model), (64, 64)) > 0
    assert count_flops(model, (64, 128)) == count_flops(model, (128, 64)) == 2 * flops  # scales with the area
    assert count_flops(model.eval(), (128, 128)) == 4 * flops
    assert not model.training


@pytest.mark.parametrize("levels", [(3, 4, 5), (2, 3, 4, 5), (3, 4, 5, 6), (2, 3, 4, 5, 6)])
@pytest.mark.parametrize("size", [(64, 64), (64, 192), (128, 64)])
@pytest.mark.parametrize("reg_max", [3, 15])
def test_shapes(levels, size, reg_max):
    model = make_detector(ModelConfig(width=0.05, levels=levels, reg_max=reg_max), 5).eval()
    with torch.no_grad():
        pred = model(make_images(*size))
    strides = [2**level for level in levels]
    sizes = [(size[0] // stride, size[1] // stride) for stride in strides]
    num_points = sum(height * width for height, width in sizes)
    assert pred.cls_logits.shape == (2, num_points, 5)
    assert pred.ltrb_logits.shape == (2, num_points, 4, reg_max + 1)
    assert pred.levels == tuple((*level, stride) for level, stride in zip(sizes, strides, strict=True))
    points, cells = make_anchor_points(sizes, strides)
    assert torch.equal(pred.points, points) and torch.equal(pred.strides, cells)
    assert model.strides == tuple(strides)


@pytest.mark.parametrize("name", ["demo", "n", "s"])
def test_the_shipped_models_run(name):
    model = make_detector(load_config(cfg=name).config.model).eval()
    with torch.no_grad():
        pred = model(make_images(64, 96, batch=1))
    assert pred.cls_logits.shape == (1, 96 + 24 + 6, 3)
    assert pred.cls_logits.isfinite().all() and pred.ltrb_logits.isfinite().all()


def test_larger_models_are_larger():
    with torch.device("meta"):
        counts = [
            count_parameters(build_detector(load_config(cfg=name).config.model, 80))
            for name in ("n", "s", "m", "l")
        ]
    assert counts == sorted(counts) and counts[0] * 2 < counts[1] and counts[1] * 2 < counts[2]


@pytest.mark.parametrize("levels", [(3, 4, 5), (2, 3, 4, 5, 6)])
def test_every_neck_output_sees_every_level(levels):
    channels = [8 + 8 * number for number in range(len(levels))]
    features = [
        torch.randn(1, c, 2 ** (7 - level), 2 ** (8 - level), requires_grad=True)
        for c, level in zip(channels, levels, strict=True)
    ]
    outputs = PANNeck(channels, 1)(features)
    assert [output.shape for output in outputs] == [feature.shape for feature in features]
    for output in outputs:
        gradients = torch.autograd.grad(output.square().sum(), features, retain_graph=True)
        assert all(gradient.ne(0).any() for gradient in gradients)


def test_without_the_way_up_a_neck_output_sees_its_own_and_coarser_levels():
    neck = PANNeck([8, 16, 24], 1).eval()
    for layer in neck.shrink:
        layer.conv.weight.data.zero_()
    features = [torch.randn(1, c, side, side, requires_grad=True) for c, side in ((8, 16), (16, 8), (24, 4))]
    for level, output in enumerate(neck(features)):
        gradients = torch.autograd.grad(output.square().sum(), features, retain_graph=True)
        assert [gradient.ne(0).any().item() for gradient in gradients] == [n >= level for n in range(3)]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("num_classes", [1, 80])
def test_start_of_training(num_classes, training):
    model = make_detector(num_classes=num_classes).train(training)
    with torch.no_grad():
        pred = model(make_images(128, 192))
    assert pred.cls_logits.sigmoid().mean().item() == pytest.approx(0.01, abs=0.005)
    sides = integral(pred.ltrb_logits)
    # The mean of exp(-0.3 i) over 0..15 is 2.73 strides; uniform bins would start at 7.5.
    for stride in (8, 16, 32):
        level = sides[:, pred.strides[:, 0] == stride]
        assert level.mean().item() == pytest.approx(2.73, abs=0.2)


def test_every_parameter_is_used():
    model = make_detector(ModelConfig(width=0.05, levels=(2, 3, 4, 5, 6)))
    pred = model(make_images(64, 128))
    (pred.cls_logits.sum() + pred.ltrb_logits.square().sum()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@torch.no_grad()
def test_uint8_and_float_pictures_agree():
    model, images = randomise(make_detector()).eval(), make_images(64, 96)
    first, second = model(images), model(images.float() / 255)
    for mine, theirs in zip(outputs_of(first), outputs_of(second), strict=True):
        assert torch.equal(mine, theirs)
    doubled = model.double()(images)
    assert doubled.cls_logits.dtype == torch.float64
    torch.testing.assert_close(doubled.cls_logits.float(), first.cls_logits, atol=1e-3, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("levels", [(3, 4, 5), (2, 3, 4, 5, 6)])
def test_fusing_changes_outputs_by_less_than_1e_4(levels):
    model = randomise(make_detector(ModelConfig(width=0.125, levels=levels))).eval()
    images = make_images(64, 128)
    before = outputs_of(model(images))
    assert spread_of(before) > 0.1
    fused = model.fuse()
    assert fused is model and not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    for mine, theirs in zip(outputs_of(model(images)), before, strict=True):
        assert (mine - theirs).abs().max() < 1e-4


@torch.no_grad()
def test_training_and_evaluation_give_the_same_record():
    model = randomise(make_detector())
    images = make_images(64, 96)
    train = model.train()(images)
    evaluated = model.eval()(images)
    assert type(train) is type(evaluated) is Predictions
    for mine, theirs in zip(train[:4], evaluated[:4], strict=True):
        assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
    assert train.levels == evaluated.levels
    # With the normalisation held in evaluation mode, nothing but the flag differs.
    frozen = copy.deepcopy(model).train()
    for module in frozen.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    for mine, theirs in zip(outputs_of(frozen(images)), outputs_of(model(images)), strict=True):
        torch.testing.assert_close(mine, theirs)


@torch.no_grad()
def test_channels_last_gives_the_same_outputs():
    model, images = randomise(make_detector()).eval(), make_images(64, 96)
    expected = outputs_of(model(images))
    assert spread_of(expected) > 0.1
    model = model.to(memory_format=torch.channels_last)
    for mine, theirs in zip(
        outputs_of(model(images.contiguous(memory_format=torch.channels_last))), expected, strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_pictures_of_a_batch_do_not_mix():
    model, images = randomise(make_detector()).eval(), make_images(64, 96, batch=3)
    together = outputs_of(model(images))
    for b in range(3):
        for mine, theirs in zip(outputs_of(model(images[b : b + 1])), together, strict=True):
            torch.testing.assert_close(mine[0], theirs[b], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_height_and_width_are_not_mixed_up():
    # A transposed picture, through a model with transposed kernels: the outputs of transposed cells.
    model = randomise(make_detector()).eval()
    mirrored = copy.deepcopy(model)
    for module in mirrored.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.transpose(2, 3).contiguous()
    images = make_images(64, 160)
    pred, turned = model(images), mirrored(images.transpose(2, 3).contiguous())
    place = {tuple(point): number for number, point in enumerate(turned.points.tolist())}
    assert len(place) == len(
        turned.points
    )  # no two levels share a point: centres of 8 px cells are odd multiples of 4
    order = torch.tensor([place[y, x] for x, y in pred.points.tolist()])
    torch.testing.assert_close(turned.cls_logits[:, order], pred.cls_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(turned.ltrb_logits[:, order], pred.ltrb_logits, atol=1e-4, rtol=1e-4)


def test_weights_load_into_a_second_model():
    first, second = randomise(make_detector(seed=0)).eval(), make_detector(seed=1).eval()
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        for mine, theirs in zip(
            *(outputs_of(model(make_images(64, 64))) for model in (first, second)), strict=True
        ):
            assert torch.equal(mine, theirs)
