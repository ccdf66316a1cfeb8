"""Looking inside the loss: the numbers by hand and by autograd, and that looking changes nothing."""

import json
import math

import pytest
import torch

from models.detector import build_detector
from utils.assigners.task_aligned import TaskAlignedAssigner
from utils.config import LossConfig, ModelConfig
from utils.losses.anatomy import LossAnatomy, anatomy_columns, dissect
from utils.losses.compute import compute_loss
from utils.structures import Targets

TRUTH = Targets(
    torch.tensor([[[4.0, 6, 40, 50]], [[10, 10, 20, 20]]]),
    torch.tensor([[1], [0]]),
    torch.ones(2, 1, dtype=torch.bool),
    torch.zeros(2, 1, dtype=torch.bool),
)
SCALER = torch.amp.GradScaler("cpu", enabled=False)


def step(model, anatomy, number, truth=TRUTH, scaler=SCALER):
    """Forward, measure, backward; the loss."""
    images = torch.linspace(0, 1, 2 * 3 * 64 * 64).view(2, 3, 64, 64)
    with anatomy.watch(model.head, number) as features:
        pred = model(images)
    loss = compute_loss(pred, truth, TaskAlignedAssigner(), LossConfig())
    anatomy.add(number, loss, pred, features, scaler=scaler)
    loss.total.backward()
    return loss, pred, features


def make_model(**settings):
    torch.manual_seed(0)
    return build_detector(ModelConfig(width=0.125, **settings), 3)


def test_gradient_norms_are_those_at_the_heads_input():
    model, anatomy = make_model(), LossAnatomy(1, (8, 16, 32))
    images = torch.linspace(0, 1, 2 * 3 * 64 * 64).view(2, 3, 64, 64)
    model.eval()  # the same features twice
    features = [x.detach().requires_grad_() for x in model.neck(model.backbone(images))]
    step(model, anatomy, 0)
    (row,) = anatomy.rows(1)
    for term in ("quality", "box", "dfl"):
        cls, sides = model.head(features)
        pred = model(images)._replace(cls_logits=cls, ltrb_logits=sides)
        loss = compute_loss(pred, TRUTH, TaskAlignedAssigner(), LossConfig())
        gradients = torch.autograd.grad(loss.terms[term], features, allow_unused=True)
        square = sum(g.square().sum() for g in gradients if g is not None)
        assert row[f"gradient/{term}"] == pytest.approx(math.sqrt(square), rel=1e-4), term
        assert square > 0


def test_looking_changes_nothing():
    looked, plain = make_model(), make_model()
    for number in range(2):
        step(looked, LossAnatomy(1, looked.strides), number)
        step(plain, LossAnatomy(0, plain.strides), number)
    for (name, one), other in zip(looked.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name
    for (name, one), other in zip(looked.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(one, other), name


def test_a_frozen_neck_is_no_obstacle():
    model, anatomy = make_model(), LossAnatomy(1, (8, 16, 32))
    for parameter in (*model.backbone.parameters(), *model.neck.parameters()):
        parameter.requires_grad_(False)
    step(model, anatomy, 0)
    (row,) = anatomy.rows(1)
    assert row["gradient/quality"] > 0 and row["gradient/box"] > 0 and row["gradient/dfl"] > 0


def test_only_every_nth_step_is_measured_and_the_hook_goes_away():
    model = make_model()
    anatomy = LossAnatomy(3, model.strides)
    kept = [len(step(model, anatomy, number)[2]) for number in range(3, 8)]
    assert kept == [3, 0, 0, 3, 0] and not model.head._forward_pre_hooks
    rows = anatomy.rows(2)
    assert [(row["epoch"], row["step"]) for row in rows] == [(2, 3), (2, 6)]
    assert tuple(rows[0]) == anatomy.columns == anatomy_columns((8, 16, 32))
    assert anatomy.rows(3) == []


def test_shares_iou_and_entropy_by_hand():
    """Flat bins everywhere: entropy log 16; one level has no positive."""
    model, anatomy = make_model(), LossAnatomy(1, (8, 16, 32))
    for layer in model.head.box_outputs:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    loss, *_ = step(model, anatomy, 0)
    (row,) = anatomy.rows(1)
    paid = loss.class_loss[loss.match.positive].sum() / loss.class_loss.sum()
    assert row["share/positives"] == pytest.approx(paid.item(), rel=1e-5)
    assert row["share/positives"] + row["share/negatives"] == pytest.approx(1)
    assert row["iou"] == pytest.approx((loss.iou.sum() / loss.match.positive.sum()).item())
    held = [part.any().item() for part in loss.match.positive.split([64, 16, 4], 1)]
    assert held[0] and row["entropy/stride8"] == pytest.approx(math.log(16), abs=1e-5)
    for stride, some in zip((8, 16, 32), held, strict=True):
        assert math.isnan(row[f"entropy/stride{stride}"]) != some


def test_without_truths_and_without_bins_what_cannot_be_said_is_nan():
    model, anatomy = make_model(reg_max=0), LossAnatomy(1, (8, 16, 32))
    step(model, anatomy, 0, TRUTH._replace(valid=torch.zeros(2, 1, dtype=torch.bool)))
    step(model, anatomy, 1)
    empty, row = anatomy.rows(1)
    assert math.isnan(empty["iou"]) and empty["share/positives"] == 0 and empty["gradient/box"] == 0
    assert row["gradient/box"] > 0 and row["gradient/dfl"] == 0
    assert all(math.isnan(row[f"entropy/stride{stride}"]) for stride in (8, 16, 32))


def test_the_scale_of_fp16_is_divided_out():
    model = make_model()
    anatomy = LossAnatomy(1, model.strides)
    with anatomy.watch(model.head, 0) as features:
        pred = model(torch.rand(2, 3, 64, 64))
    loss = compute_loss(pred, TRUTH, TaskAlignedAssigner(), LossConfig())
    plain, scaled = (dissect(loss, pred, features, scale=torch.tensor(s)) for s in (1.0, 1024.0))
    torch.testing.assert_close(plain, scaled, equal_nan=True)


def test_a_part_without_a_number_is_not_measured():
    model = make_model()
    anatomy = LossAnatomy(1, model.strides)
    assert step(model, anatomy, None)[2] == [] and anatomy.rows(1) == []


def test_a_step_that_is_taken_anew_counts_once():
    model = make_model()
    anatomy, again = LossAnatomy(1, model.strides), LossAnatomy(1, model.strides)
    model.eval()  # the same numbers whenever it is measured
    nobody = TRUTH._replace(valid=torch.zeros_like(TRUTH.valid))
    for number in range(4):
        step(model, again, number)
        step(model, anatomy, number, TRUTH if number < 2 else nobody)
    anatomy.forget(2)
    for number in (2, 3):
        step(model, anatomy, number)
    rows = anatomy.rows(1)
    assert str(rows) == str(again.rows(1)) and [row["step"] for row in rows] == [0, 1, 2, 3]


def test_what_was_collected_goes_into_a_checkpoint_and_comes_back():
    """Also nan: without truths there is no mean IoU."""
    model = make_model()
    straight, stopped, resumed = (LossAnatomy(1, model.strides) for _ in range(3))
    model.eval()
    nobody = TRUTH._replace(valid=torch.zeros_like(TRUTH.valid))
    for number, truth in enumerate((TRUTH, nobody, TRUTH)):
        step(model, straight, number, truth)
        step(model, stopped if number < 2 else resumed, number, truth)
        if number == 1:
            content = json.loads(json.dumps(stopped.to_plain()))  # nothing but numbers
            resumed.restore(content)
    rows = straight.rows(1)
    assert str(resumed.rows(1)) == str(rows) and math.isnan(rows[1]["iou"])
    assert resumed.rows(2) == []
