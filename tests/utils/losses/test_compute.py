"""The loss of a batch: numbers by hand, laws, batches without boxes, the normaliser over two processes."""

import math
import time
from contextlib import nullcontext
from datetime import timedelta

import pytest
import torch
from torch import distributed, multiprocessing
from torchvision import ops

from models.detector import build_detector
from utils.assigners.statistics import AssignmentStatistics
from utils.assigners.task_aligned import TaskAlignedAssigner
from utils.config import LossConfig, ModelConfig
from utils.config_files import ROOT, load_config
from utils.geometry.anchor_points import make_anchor_points
from utils.geometry.boxes import aligned_iou
from utils.geometry.ltrb import integral, ltrb_to_boxes
from utils.losses.compute import aligned_quality, compute_loss
from utils.structures import Assignment, Predictions, Targets

ASSIGN = TaskAlignedAssigner(top_k=5)
SIZE = (64, 96)  # height, width
STRIDES = (8, 16, 32)
CONFIGS = {
    "positives": LossConfig(normaliser="positives", box_weight="one"),
    "balanced": LossConfig(beta=1.5, alpha=0.25),
    "smoothed": LossConfig(quality_loss="bce", label_smoothing=0.1, box_loss="eiou"),
}
CONFIGS |= {path.stem: load_config(loss=path).config.loss for path in ROOT.glob("configs/losses/*.yaml")}
QFL = ("positives", "balanced", "gfl")  # what the slow reference knows


def make_pred(batch, classes=3, *, size=SIZE, reg_max=15, seed=0, dtype=torch.float64) -> Predictions:
    """Random logits with gradients: scores near 0.05, sides of a few strides."""
    generator = torch.Generator().manual_seed(seed)
    levels = tuple((size[0] // stride, size[1] // stride, stride) for stride in STRIDES)
    points, strides = make_anchor_points([level[:2] for level in levels], STRIDES)
    cls = torch.randn(batch, len(points), classes, generator=generator, dtype=torch.float64) - 3
    sides = torch.randn(batch, len(points), 4, reg_max + 1, generator=generator, dtype=torch.float64)
    sides -= 0.3 * torch.arange(reg_max + 1)
    cls, sides = cls.to(dtype).requires_grad_(), sides.to(dtype).requires_grad_()
    return Predictions(cls, sides, points, strides, levels)


def make_truth(counts, classes=3, *, size=SIZE, seed=0, padded=None) -> Targets:
    """Random boxes, ``counts[b]`` in picture b; the last of a picture with 3 or more is an ignore region."""
    generator = torch.Generator().manual_seed(seed)
    most = padded or max(1, *counts)
    corner = torch.rand(len(counts), most, 2, generator=generator) * torch.tensor(size[::-1]) * 0.7
    boxes = torch.cat((corner, corner + 4 + torch.rand(len(counts), most, 2, generator=generator) * 40), -1)
    labels = torch.randint(classes, (len(counts), most), generator=generator)
    number, count = torch.arange(most), torch.tensor(counts).unsqueeze(1)
    ignore = (number == count - 1) & (count >= 3)
    return Targets(boxes, labels, number < count, ignore)


def gradients_of(pred, truth, cfg=CONFIGS["gfl"], assign=ASSIGN):
    total, terms, *_ = compute_loss(pred, truth, assign, cfg)
    return total.detach(), terms, torch.autograd.grad(total, (pred.cls_logits, pred.ltrb_logits))


class Fixed:
    """An assigner that has made up its mind: one point per truth."""

    most_per_truth = 1

    def __init__(self, match: Assignment):
        self.match = match

    def __call__(self, *_) -> Assignment:
        return self.match


def hand_worked(*, batch=1, ignored=(False, False)):
    """Two cells of 16 px side by side, bins 0, 1, 2, two classes; one truth of class 1 over both.

    Every side's distribution is (.6, .3, .1), integral .5: point (8, 8) decodes to (0, 0, 16, 16), the left
    half of the truth (0, 0, 32, 16), so its quality is .5. Point (24, 8) is background. Class logits are 0.
    """
    points, strides = make_anchor_points([(1, 2)], [16])
    bins = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64).log()
    pred = Predictions(
        torch.zeros(batch, 2, 2, dtype=torch.float64).requires_grad_(),
        bins.expand(batch, 2, 4, 3).clone().requires_grad_(),
        points,
        strides,
        ((1, 2, 16),),
    )
    truth = Targets(
        torch.tensor([[0.0, 0, 32, 16]]).expand(batch, 1, 4),
        torch.ones(batch, 1, dtype=torch.int64),
        torch.ones(batch, 1, dtype=torch.bool),
        torch.zeros(batch, 1, dtype=torch.bool),
    )
    match = Assignment(
        positive=torch.tensor([[True, False]]).expand(batch, 2),
        ignored=torch.tensor([ignored]).expand(batch, 2),
        truth=torch.zeros(batch, 2, dtype=torch.int64),
        labels=torch.ones(batch, 2, dtype=torch.int64),
        boxes=torch.tensor([[0.0, 0, 32, 16], [0, 0, 1, 1]]).expand(batch, 2, 4),
        fallback=torch.zeros(batch, 1, dtype=torch.bool),
    )
    return pred, truth, Fixed(match)


# Quality: class 1 of the positive has score .5 and target .5, so 0; the three other logits .5^2 ln 2 each.
QUALITY = 3 * 0.25 * math.log(2)
# Box: centres (8, 8) and (16, 8), enclosing box 32 x 16, so d^2 / c^2 = 64 / 1280. Angles atan 2 and atan 1:
# v = 4/pi^2 * 0.3217506^2 = 0.0419565, alpha = v / (.5 + v) = 0.0774168. CIoU = .5 - .05 - .0032482.
BOX = 1 - 0.4467518
# DFL: targets l = t = b = .5, half in bin 0 and half in bin 1; r = 1.5, half in bin 1 and half in bin 2.
DFL = (3 * -(math.log(0.6) + math.log(0.3)) / 2 - (math.log(0.3) + math.log(0.1)) / 2) / 4


def test_loss_by_hand():
    pred, truth, assign = hand_worked()
    total, terms, *_ = compute_loss(pred, truth, assign, LossConfig(quality=1, box=2, dfl=0.25))
    # The sum of the qualities is .5, which is raised to 1; the box terms weigh .5.
    assert list(terms) == ["quality", "box", "dfl"]
    assert terms["quality"].item() == pytest.approx(QUALITY, abs=1e-6)
    assert terms["box"].item() == pytest.approx(2 * BOX * 0.5, abs=1e-6)
    assert terms["dfl"].item() == pytest.approx(0.25 * DFL * 0.5, abs=1e-6)
    assert total.item() == pytest.approx(sum(term.item() for term in terms.values()))
    assert total.shape == () and total.requires_grad


@pytest.mark.parametrize(
    ("normaliser", "box_weight", "divisor", "weight"),
    [
        ("quality", "quality", 1.5, 0.5),
        ("quality", "one", 1.5, 1),
        ("positives", "quality", 3, 0.5),
        ("positives", "one", 3, 1),
    ],
)
def test_normaliser_and_box_weight_by_hand(normaliser, box_weight, divisor, weight):
    pred, truth, assign = hand_worked(batch=3)  # three times the same picture: qualities 1.5, positives 3
    cfg = LossConfig(quality=3, box=1, dfl=1, normaliser=normaliser, box_weight=box_weight)
    _, terms, *_ = compute_loss(pred, truth, assign, cfg)
    assert terms["quality"].item() == pytest.approx(3 * 3 * QUALITY / divisor, abs=1e-5)
    assert terms["box"].item() == pytest.approx(3 * BOX * weight / divisor, abs=1e-5)
    assert terms["dfl"].item() == pytest.approx(3 * DFL * weight / divisor, abs=1e-5)


@pytest.mark.parametrize(
    ("target", "quality"), [("iou", 0.5), ("hard", 1), ("aligned", 0.5)], ids=lambda value: str(value)
)
def test_targets_by_hand(target, quality):
    """All logits are 0, so a binary cross entropy is log 2 whatever the target: the gradient shows it.

    Its slope at the positive's true class is .5 - y, over the normaliser max(y, 1) = 1.
    """
    pred, truth, assign = hand_worked()
    cfg = LossConfig(quality_loss="bce", target=target)
    loss = compute_loss(pred, truth, assign, cfg)
    (slope,) = torch.autograd.grad(loss.terms["quality"], pred.cls_logits, retain_graph=True)
    torch.testing.assert_close(slope[0], torch.tensor([[0.5, 0.5 - quality], [0.5, 0.5]]).double())
    assert loss.terms["quality"].item() == pytest.approx(4 * math.log(2))
    assert loss.terms["box"].item() == pytest.approx(2 * BOX * quality, abs=1e-5)  # it weighs the box, too


def test_aligned_quality_by_hand():
    """Truth 0: metrics .5 * .8 and .9 * .4, best IoU .8: .4/.4 * .8, .36/.4 * .8. Truth 1: alone, its IoU."""
    cfg = LossConfig(target="aligned", aligned_alpha=1, aligned_beta=1)
    scores = torch.tensor([[0.5, 0.9, 0.001, 0.7]])
    iou = torch.tensor([[0.8, 0.4, 0.3, 0.0]])  # the last row is no positive
    found = aligned_quality(scores, iou, torch.tensor([[0, 0, 1, 0]]), cfg, 3)
    torch.testing.assert_close(found, torch.tensor([[0.8, 0.72, 0.3, 0.0]]))
    flat = LossConfig(target="aligned", aligned_alpha=0, aligned_beta=0)
    found = aligned_quality(scores, iou, torch.tensor([[0, 0, 1, 0]]), flat, 3)
    torch.testing.assert_close(found, torch.tensor([[0.8, 0.8, 0.3, 0.0]]))


@pytest.mark.parametrize("seed", range(3))
def test_the_aligned_target_as_the_paper_writes_it(seed):
    cfg = LossConfig(quality=1, quality_loss="bce", target="aligned", aligned_alpha=0.5, aligned_beta=1.5)
    pred, truth = make_pred(2, seed=seed), make_truth((5, 2), seed=seed)
    boxes, scores = decoded(pred), pred.cls_logits.detach().sigmoid()
    match, target = ASSIGN(scores, boxes, pred, truth), torch.zeros_like(scores)
    for b, m in truth.valid.nonzero().tolist():
        points = (match.positive[b] & (match.truth[b] == m)).nonzero()[:, 0]
        iou = aligned_iou(boxes[b, points], truth.boxes[b, m].double())
        metric = scores[b, points, truth.labels[b, m]] ** 0.5 * iou**1.5
        if len(points):  # of which the best gets the largest IoU, and the others their share of it
            target[b, points, truth.labels[b, m]] = metric / metric.max() * iou.max()
    counted = (match.positive | ~match.ignored).unsqueeze(-1)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(pred.cls_logits, target, reduction="none")
    expected = (loss * counted).sum() / target.sum().clamp(min=1)
    found = compute_loss(pred, truth, ASSIGN, cfg).terms["quality"]
    slopes = [torch.autograd.grad(value, pred.cls_logits)[0] for value in (found, expected)]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*slopes)


def test_aligned_quality_of_points_that_miss_is_zero_and_finite():
    tiny = torch.tensor([[1e-30, 0.0]], dtype=torch.float32)
    found = aligned_quality(tiny, tiny, torch.zeros(1, 2, dtype=torch.int64), LossConfig(), 1)
    assert found.isfinite().all() and found.max() <= 1e-6


def test_every_box_loss_is_used():
    pred, truth = make_pred(2), make_truth((2, 3))
    found = {
        name: compute_loss(pred, truth, ASSIGN, LossConfig(box_loss=name)).terms["box"].item()
        for name in ("iou", "giou", "diou", "ciou", "eiou", "siou")
    }
    assert len({round(value, 9) for value in found.values()}) == 6
    assert found["iou"] < min(found["giou"], found["diou"])  # those add a penalty


def test_plain_sides_have_a_box_loss_and_no_dfl():
    """softplus(z) = .5 stride each side: the prediction, quality and box loss of the hand-worked bins."""
    pred, truth, assign = hand_worked()
    plain = torch.full((1, 2, 4, 1), math.log(math.expm1(0.5)), dtype=torch.float64).requires_grad_()
    loss = compute_loss(pred._replace(ltrb_logits=plain), truth, assign, LossConfig(quality=1, box=1, dfl=1))
    assert loss.terms["quality"].item() == pytest.approx(QUALITY, abs=1e-6)
    assert loss.terms["box"].item() == pytest.approx(0.5 * BOX, abs=1e-6)
    assert loss.terms["dfl"].item() == 0
    (slope,) = torch.autograd.grad(loss.total, plain)
    assert slope[0, 0].ne(0).any() and slope[0, 1].eq(0).all()


@pytest.mark.parametrize("config", CONFIGS)
def test_room_for_more_positives_changes_nothing(monkeypatch, config):
    """As on a GPU, which is not asked how many there are."""
    pred, truth = make_pred(3), make_truth((5, 0, 1))
    expected = gradients_of(pred, truth, CONFIGS[config])
    monkeypatch.setattr("utils.assigners.finish._room", lambda mask, most: most)
    assert compute_loss(pred, truth, ASSIGN, CONFIGS[config]).iou.shape == (3, 5 * ASSIGN.most_per_truth)
    check_same(expected, gradients_of(pred, truth, CONFIGS[config]))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("reg_max", [0, 15])
def test_nothing_is_read_from_the_device(monkeypatch, config, reg_max):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # there is none for "meta"
    pred, truth = make_pred(2, reg_max=reg_max), make_truth((3, 1))
    there = [tensor.detach().to("meta").requires_grad_() for tensor in pred[:2]]  # no values to read
    pred = Predictions(*there, *(tensor.to("meta") for tensor in pred[2:4]), pred.levels)
    truth = Targets(*(tensor.to("meta") for tensor in truth))
    loss = compute_loss(pred, truth, TaskAlignedAssigner(top_k=5, reach=15), CONFIGS[config])
    AssignmentStatistics("meta").add(loss.match, truth, pred, 15)
    loss.total.backward()
    assert pred.ltrb_logits.grad.shape == pred.ltrb_logits.shape


def test_what_a_loss_shows_of_its_inside():
    pred, truth = make_pred(2), make_truth((2, 4))
    loss = compute_loss(pred, truth, ASSIGN, LossConfig(normaliser="positives", quality=3))
    assert not loss.class_loss.requires_grad and not loss.iou.requires_grad
    assert loss.class_loss.shape == loss.match.positive.shape
    spread = 3 * loss.class_loss.sum() / loss.match.positive.sum()
    assert loss.terms["quality"].item() == pytest.approx(spread.item())
    boxes, chosen = decoded(pred), loss.match.positive
    expected = aligned_iou(boxes[chosen], loss.match.boxes[chosen].double()).sum()
    assert loss.iou.sum().item() == pytest.approx(expected.item())


def test_ignored_points_have_no_class_loss_unless_positive():
    cfg = LossConfig(quality=1)
    pred, truth, assign = hand_worked(ignored=(False, True))
    _, terms, (cls, _) = gradients_of(pred, truth, cfg, assign)
    assert terms["quality"].item() == pytest.approx(0.25 * math.log(2), abs=1e-6)  # class 0 of the positive
    assert cls[0, 1].eq(0).all()
    pred, truth, assign = hand_worked(ignored=(True, False))
    _, terms, _ = gradients_of(pred, truth, cfg, assign)
    assert terms["quality"].item() == pytest.approx(QUALITY, abs=1e-6)
    assert terms["box"].item() > 0


def test_weight_zero_switches_a_term_off():
    pred, truth = make_pred(2), make_truth((2, 3))
    _, full, *_ = compute_loss(pred, truth, ASSIGN, LossConfig(quality=1, box=1, dfl=1))
    _, terms, *_ = compute_loss(pred, truth, ASSIGN, LossConfig(quality=2, box=0, dfl=5))
    assert terms["box"].item() == 0
    torch.testing.assert_close(terms["quality"], 2 * full["quality"])
    torch.testing.assert_close(terms["dfl"], 5 * full["dfl"])


def reference_loss(pred, truth, cfg):
    """The three terms with torchvision's CIoU and plain formulas, at all points, masked."""
    boxes = ltrb_to_boxes(integral(pred.ltrb_logits), pred.points, pred.strides)
    match = ASSIGN(pred.cls_logits.detach().sigmoid(), boxes.detach(), pred, truth)
    overlap = ops.box_iou(boxes.detach().flatten(0, 1), match.boxes.double().flatten(0, 1)).diagonal()
    quality = overlap.view_as(match.positive) * match.positive
    positives = match.positive.double()

    target = torch.nn.functional.one_hot(match.labels, 3) * quality.unsqueeze(-1)
    score = pred.cls_logits.sigmoid()
    entropy = -(target * score.log() + (1 - target) * (1 - score).log())
    classes = (target - score).abs() ** cfg.beta * entropy
    if cfg.alpha is not None:
        classes = classes * (target * cfg.alpha + (1 - target) * (1 - cfg.alpha))
    counted = (~match.ignored | match.positive).unsqueeze(-1)

    sides = torch.cat((pred.points - match.boxes[..., :2], match.boxes[..., 2:] - pred.points), -1)
    bins = pred.ltrb_logits.shape[-1]
    ltrb = (sides / pred.strides).double().clamp(0, bins - 1).unsqueeze(-1)
    two_hot = (1 - (ltrb - torch.arange(bins)).abs()).clamp(min=0)
    dfl = -(two_hot * pred.ltrb_logits.log_softmax(-1)).sum(-1).mean(-1)
    ciou = ops.complete_box_iou_loss(boxes, match.boxes.double())

    weight = quality if cfg.box_weight == "quality" else positives
    divisor = (quality if cfg.normaliser == "quality" else positives).sum().clamp(min=1)
    summed = {"quality": (classes * counted).sum(), "box": (ciou * weight).sum(), "dfl": (dfl * weight).sum()}
    return {name: getattr(cfg, name) * value / divisor for name, value in summed.items()}


@pytest.mark.parametrize("config", QFL)
@pytest.mark.parametrize("seed", range(3))
def test_the_reference_has_the_same_loss_and_gradients(config, seed):
    pred, truth = make_pred(3, seed=seed), make_truth((4, 0, 9), seed=seed)
    _, terms, gradients = gradients_of(pred, truth, CONFIGS[config])
    expected = reference_loss(pred, truth, CONFIGS[config])
    torch.testing.assert_close(terms, expected, atol=0, rtol=1e-5)
    theirs = torch.autograd.grad(sum(expected.values()), (pred.cls_logits, pred.ltrb_logits))
    torch.testing.assert_close(gradients, theirs, atol=1e-6, rtol=1e-4)


def test_where_gradients_flow():
    pred, truth = make_pred(2), make_truth((2, 4))
    match = ASSIGN(pred.cls_logits.detach().sigmoid(), decoded(pred), pred, truth)
    assert match.positive.any(1).all() and match.ignored.any()
    _, terms, *_ = compute_loss(pred, truth, ASSIGN, LossConfig())
    wanted = {"quality": pred.cls_logits, "box": pred.ltrb_logits, "dfl": pred.ltrb_logits}
    for name, logits in wanted.items():
        (gradient,) = torch.autograd.grad(terms[name], logits, retain_graph=True)
        moved = gradient.flatten(2).ne(0).any(-1)
        counted = ~match.ignored | match.positive if name == "quality" else match.positive
        assert torch.equal(moved, counted), name
    # Targets and normaliser are constants: the class term does not move the boxes, nor they the classes.
    for name, logits in (("quality", pred.ltrb_logits), ("box", pred.cls_logits), ("dfl", pred.cls_logits)):
        (gradient,) = torch.autograd.grad(terms[name], logits, retain_graph=True, allow_unused=True)
        assert gradient is None or gradient.eq(0).all(), name


def decoded(pred):
    return ltrb_to_boxes(integral(pred.ltrb_logits.detach()), pred.points, pred.strides)


@pytest.mark.parametrize("config", CONFIGS)
def test_logits_of_plus_and_minus_1e4(config):
    pred, truth = make_pred(2, dtype=torch.float32), make_truth((3, 4))
    signs = torch.randint(0, 2, pred.cls_logits.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    pred.cls_logits.data.copy_(1e4 * signs)
    pred.ltrb_logits.data.mul_(1e4)
    total, _, gradients = gradients_of(pred, truth, CONFIGS[config])
    assert total.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("far", [-1e4, 1e4])
def test_boxes_of_size_zero_and_of_full_reach(far):
    # All sides certain to be 0 (predicted boxes are points), or certain to be 15 strides.
    pred, truth = make_pred(1, dtype=torch.float32), make_truth((4,))
    pred.ltrb_logits.data.copy_(torch.arange(16) * far)
    for cfg in CONFIGS.values():
        total, _, gradients = gradients_of(pred, truth, cfg)
        assert total.isfinite()
        assert all(gradient.isfinite().all() for gradient in gradients)


def check_same(first, second, *, order=slice(None)):
    (total, terms, gradients), (other, other_terms, other_gradients) = first, second
    torch.testing.assert_close(total, other)
    torch.testing.assert_close(terms, other_terms)
    for mine, theirs in zip(gradients, other_gradients, strict=True):
        torch.testing.assert_close(mine[order], theirs)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("seed", range(3))
def test_order_of_the_pictures_changes_nothing(config, seed):
    pred, truth = make_pred(4, seed=seed), make_truth((3, 0, 6, 1), seed=seed)
    order = torch.tensor([2, 0, 3, 1])
    mixed = pred._replace(
        cls_logits=pred.cls_logits.detach()[order].requires_grad_(),
        ltrb_logits=pred.ltrb_logits.detach()[order].requires_grad_(),
    )
    moved = Targets(*(tensor[order] for tensor in truth))
    cfg = CONFIGS[config]
    check_same(gradients_of(pred, truth, cfg), gradients_of(mixed, moved, cfg), order=order)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("seed", range(3))
def test_order_of_the_truths_changes_nothing(config, seed):
    pred, truth = make_pred(3, seed=seed), make_truth((5, 8, 2), seed=seed)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
    moved = Targets(*(tensor[:, order] for tensor in truth))  # the padding comes to lie between them
    cfg = CONFIGS[config]
    check_same(gradients_of(pred, truth, cfg), gradients_of(pred, moved, cfg))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("counts", [(2, 5, 1), (0, 0, 0), (0, 3, 0)])
def test_padding_changes_nothing(config, counts):
    pred, truth = make_pred(3), make_truth(counts)
    junk = torch.tensor([[-50.0, 3, 900, 4], [7, 7, 7, 7], [0, 0, 0, 0]])
    padded = Targets(
        torch.cat((truth.boxes, junk.expand(3, 3, 4)), 1),
        torch.cat((truth.labels, torch.tensor([[2, 0, 1]]).expand(3, 3)), 1),
        torch.cat((truth.valid, torch.zeros(3, 3, dtype=torch.bool)), 1),
        torch.cat((truth.ignore, torch.tensor([[True, False, False]]).expand(3, 3)), 1),
    )
    cfg = CONFIGS[config]
    check_same(gradients_of(pred, truth, cfg), gradients_of(pred, padded, cfg))


def test_a_batch_is_its_pictures_under_one_normaliser():
    counts = (3, 0, 6, 1)
    pred, truth, cfg = make_pred(4), make_truth(counts), LossConfig(normaliser="positives")
    total, _, *_ = compute_loss(pred, truth, ASSIGN, cfg)
    parts, positives = [], []
    for b in range(4):
        one = pred._replace(cls_logits=pred.cls_logits[b : b + 1], ltrb_logits=pred.ltrb_logits[b : b + 1])
        its_truth = Targets(*(tensor[b : b + 1] for tensor in truth))
        match = ASSIGN(one.cls_logits.detach().sigmoid(), decoded(one), one, its_truth)
        positives.append(match.positive.sum())
        parts.append(compute_loss(one, its_truth, ASSIGN, cfg)[0] * positives[-1].clamp(min=1))
    torch.testing.assert_close(total, sum(parts) / sum(positives))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("classes", [1, 3])
def test_no_boxes(config, batch, classes):
    pred, truth = make_pred(batch, classes), make_truth((0,) * batch, classes)
    assert truth.boxes.shape == (batch, 1, 4)
    total, terms, (cls, sides) = gradients_of(pred, truth, CONFIGS[config])
    assert total.isfinite() and terms["quality"] > 0
    assert terms["box"].item() == terms["dfl"].item() == 0
    assert terms["box"].requires_grad and terms["dfl"].requires_grad  # zero, but still in the graph
    assert cls.ne(0).all() and sides.eq(0).all()


@pytest.mark.parametrize("size", [(64, 64), (32, 128), (160, 32)])
@pytest.mark.parametrize("reg_max", [1, 3, 15])
def test_one_class_non_square(size, reg_max):
    pred = make_pred(1, 1, size=size, reg_max=reg_max, dtype=torch.float32)
    total, terms, gradients = gradients_of(pred, make_truth((4,), 1, size=size))
    assert total.isfinite() and all(term > 0 for term in terms.values())
    assert all(gradient.isfinite().all() and gradient.ne(0).any() for gradient in gradients)


def test_degenerate_and_far_truths():
    # Zero width, zero height, a point, larger than any level can express, outside the picture.
    boxes = [
        [20, 20, 20, 40],
        [20, 20, 40, 20],
        [50, 50, 50, 50],
        [-5000, -5000, 5000, 5000],
        [200, 200, 210, 210],
    ]
    many = torch.ones(1, len(boxes), dtype=torch.bool)
    truth = Targets(torch.tensor([boxes]).float(), torch.zeros(1, len(boxes)).long(), many, ~many)
    for cfg in CONFIGS.values():
        total, _, gradients = gradients_of(make_pred(1, dtype=torch.float32), truth, cfg)
        assert total.isfinite()
        assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_types_are_promoted_on_entry(half):
    pred, truth = make_pred(2, dtype=half), make_truth((2, 3))
    total, terms, *_ = compute_loss(pred, truth, ASSIGN, LossConfig())
    promoted = pred._replace(cls_logits=pred.cls_logits.float(), ltrb_logits=pred.ltrb_logits.float())
    expected, _, *_ = compute_loss(promoted, truth, ASSIGN, LossConfig())
    assert total.dtype == torch.float32 and all(term.dtype == torch.float32 for term in terms.values())
    torch.testing.assert_close(total, expected, atol=0, rtol=0)


def test_float64_stays_float64():
    total, _, gradients = gradients_of(make_pred(2), make_truth((2, 3)))
    assert total.dtype == torch.float64
    assert all(gradient.dtype == torch.float64 for gradient in gradients)
    single = compute_loss(make_pred(2, dtype=torch.float32), make_truth((2, 3)), ASSIGN, LossConfig())[0]
    assert single.item() == pytest.approx(total.item(), rel=1e-5)


def test_autocast_around_the_loss_changes_nothing():
    pred, truth = make_pred(2, dtype=torch.float32), make_truth((2, 3))
    outside, _, *_ = compute_loss(pred, truth, ASSIGN, LossConfig())
    with torch.autocast("cpu", torch.bfloat16):
        inside, _, *_ = compute_loss(pred, truth, ASSIGN, LossConfig())
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, outside, atol=0, rtol=1e-5)


@pytest.mark.parametrize("counts", [(0, 0), (3, 0), (2, 4)])
def test_one_step_in_bf16_touches_every_parameter(counts):
    torch.manual_seed(0)
    model = build_detector(ModelConfig(width=0.125), 3)
    images = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        pred = model(images)
    assert pred.cls_logits.dtype == torch.bfloat16
    total, terms, *_ = compute_loss(pred, make_truth(counts), ASSIGN, LossConfig())
    assert total.dtype == torch.float32 and total.isfinite()
    assert (terms["box"] > 0) == (terms["dfl"] > 0) == (sum(counts) > 0)
    total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all(), name


RANK_COUNTS = {
    "many boxes": ((3, 1, 6, 2), (2, 4, 1, 5)),
    "uneven": ((6, 8, 7, 6), (0, 1, 0, 0)),
    "one rank without": ((2, 3, 1, 2), (0, 0, 0, 0)),
    "none at all": ((0, 0, 0, 0), (0, 0, 0, 0)),
}


def whole_batch(name, *, poor):
    """Eight pictures; ``poor`` sides decode to tiny boxes, so that all qualities together stay below 1."""
    counts = RANK_COUNTS[name][0] + RANK_COUNTS[name][1]
    pred = make_pred(8, seed=3)
    if poor:
        pred.ltrb_logits.data -= 3.0 * torch.arange(16)
    return pred, make_truth(counts, seed=3)


def share_of(pred, truth, rank):
    rows = slice(4 * rank, 4 * rank + 4)
    share = pred._replace(
        cls_logits=pred.cls_logits.detach()[rows].requires_grad_(),
        ltrb_logits=pred.ltrb_logits.detach()[rows].requires_grad_(),
    )
    return share, Targets(*(tensor[rows] for tensor in truth))


def two_rank_worker(rank, folder):
    """One of two ranks: its share of every batch, then 50 steps in which rank 1 mostly sees background."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=30)
    )
    results = {}
    for name in RANK_COUNTS:
        for poor in (False, True):
            for config, cfg in CONFIGS.items():
                total, terms, gradients = gradients_of(*share_of(*whole_batch(name, poor=poor), rank), cfg)
                results[name, poor, config] = total, {k: v.detach() for k, v in terms.items()}, gradients
    steps = []
    for step in range(50):
        counts = (2, 1) if rank == 0 or step % 10 == 9 else (0, 0)
        total, _, _ = gradients_of(make_pred(2, seed=step), make_truth(counts, seed=step))
        steps.append(total.item())
    results["steps"] = steps
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What both ranks found; a failure after a minute, as a collective that one of them misses would hang."""
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.spawn(two_rank_worker, (str(folder),), nprocs=2, join=False)
    end = time.monotonic() + 60
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < end, "two ranks did not finish in 60 s"
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_a_rank_without_boxes_does_not_hang(ranks):
    assert [len(rank["steps"]) for rank in ranks] == [50, 50]
    assert all(math.isfinite(loss) for rank in ranks for loss in rank["steps"])


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("poor", [False, True])
@pytest.mark.parametrize("name", RANK_COUNTS)
def test_two_ranks_of_four_equal_one_of_eight(ranks, name, poor, config):
    pred, truth = whole_batch(name, poor=poor)
    total, terms, gradients = gradients_of(pred, truth, CONFIGS[config])
    shares = [rank[name, poor, config] for rank in ranks]
    # Gradients are averaged over the ranks by DistributedDataParallel, and so is the loss that is shown.
    torch.testing.assert_close(sum(share[0] for share in shares) / 2, total, atol=1e-5, rtol=1e-5)
    for term in terms:
        torch.testing.assert_close(sum(share[1][term] for share in shares) / 2, terms[term].detach())
    for both, alone in zip(zip(*(share[2] for share in shares), strict=True), gradients, strict=True):
        torch.testing.assert_close(torch.cat(both) / 2, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["many boxes", "uneven", "one rank without"])
def test_the_poor_batches_stay_below_the_limit_of_the_normaliser(name):
    # Else "the sum over both ranks is below 1" (.3 + .2 must give .5 a rank, not .25) would go untested.
    pred, truth = whole_batch(name, poor=True)
    boxes = decoded(pred)
    match = ASSIGN(pred.cls_logits.detach().sigmoid(), boxes, pred, truth)
    assert 0.05 < (aligned_iou(boxes, match.boxes) * match.positive).sum() < 0.95
