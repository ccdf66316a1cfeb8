"""Raw predictions become final boxes: against a naive reference in float64, and at the edges."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from utils.postprocess import MAX_CANDIDATES, postprocess
from utils.structures import Predictions

BINS = 16


def logit(scores) -> Tensor:
    scores = torch.as_tensor(np.asarray(scores), dtype=torch.float64)
    return torch.log(scores / (1 - scores)).float()


def make_predictions(scores, points, ltrb, *, stride=8.0, size=(640, 640)) -> Predictions:
    """One picture: ``scores`` (A, C), ``points`` (A, 2), sides ``ltrb`` (A, 4) in whole strides."""
    ltrb_logits = torch.full((len(points), 4, BINS), -60.0)
    ltrb_logits.scatter_(2, torch.as_tensor(ltrb, dtype=torch.int64)[..., None], 60.0)
    strides = torch.full((len(points), 1), stride)
    levels = ((int(size[0] / stride), int(size[1] / stride), int(stride)),)
    points = torch.as_tensor(points, dtype=torch.float32)
    return Predictions(logit(scores)[None], ltrb_logits[None], points, strides, levels)


def random_predictions(seed, *, points=300, classes=3, pictures=2, spread=8.0, middle=0.0) -> Predictions:
    """Points in a 320 x 320 input, sides of several strides, so that many boxes overlap."""
    rng = torch.Generator().manual_seed(seed)
    xy = torch.rand(points, 2, generator=rng) * 240 + 40
    logits = torch.randn(pictures, points, 4, BINS, generator=rng) * spread
    logits = logits - 2.0 * (torch.arange(BINS) - 2).abs()  # sides about 2 strides: inside the input
    cls = torch.randn(pictures, points, classes, generator=rng) * 2 + middle
    strides = torch.tensor([8.0, 16.0])[torch.randint(0, 2, (points,), generator=rng)][:, None]
    return Predictions(cls, logits, xy, strides, ((40, 40, 8), (20, 20, 16)))


def candidates(pred, picture, *, conf, classes=None):
    """Score, point, label and box of every candidate in float64, best first, by the definition alone."""
    scores = 1 / (1 + np.exp(-pred.cls_logits[picture].double().numpy()))
    logits = pred.ltrb_logits[picture].double().numpy()
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    sides = (
        (weights / weights.sum(-1, keepdims=True))
        @ np.arange(logits.shape[-1])
        * pred.strides.double().numpy()
    )
    points = pred.points.double().numpy()
    boxes = np.concatenate((points - sides[:, :2], points + sides[:, 2:]), 1)
    point, label = np.nonzero(scores > conf)
    if classes is not None:
        point, label = point[np.isin(label, classes)], label[np.isin(label, classes)]
    order = np.argsort(-scores[point, label], kind="stable")
    return scores[point, label][order], point[order], label[order], boxes[point[order]]


def naive(pred, picture, *, conf, iou, max_det, classes=None, agnostic=False):
    """Non-maximum suppression as it is told: take the best, drop what overlaps it, again."""
    scores, _, labels, boxes = candidates(pred, picture, conf=conf, classes=classes)
    alive, kept = np.ones(len(scores), bool), []
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    for n in range(len(scores)):
        if not alive[n]:
            continue
        kept.append(n)
        low, high = np.maximum(boxes[n, :2], boxes[:, :2]), np.minimum(boxes[n, 2:], boxes[:, 2:])
        inter = (high - low).clip(0).prod(1)
        overlaps = inter / (areas[n] + areas - inter) > iou
        alive &= ~(overlaps & (agnostic | (labels == labels[n])))
    kept = kept[:max_det]
    return boxes[kept], scores[kept], labels[kept]


def check(pred, **options):
    """``postprocess`` finds what the naive reference finds; returns how many boxes that were."""
    found, total = postprocess(pred, **options), 0
    assert len(found) == len(pred.cls_logits)
    for picture, detections in enumerate(found):
        boxes, scores, labels = naive(pred, picture, **options)
        assert detections.labels.tolist() == labels.tolist()
        assert np.allclose(detections.scores.numpy(), scores, rtol=0, atol=1e-6)
        assert np.allclose(detections.boxes.numpy(), boxes, rtol=0, atol=2e-3)
        total += len(labels)
    return total


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize(("conf", "iou"), [(0.001, 0.65), (0.25, 0.6), (0.5, 0.3)])
def test_equals_a_naive_implementation(agnostic, conf, iou):
    counts = [
        check(random_predictions(seed), conf=conf, iou=iou, max_det=300, agnostic=agnostic)
        for seed in range(3)
    ]
    assert min(counts) > 100


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(0, 60), st.booleans())
@settings(max_examples=40, deadline=None)
def test_equals_a_naive_implementation_on_small_scenes(seed, classes, points, agnostic):
    pred = random_predictions(seed, points=points, classes=classes, pictures=1)
    check(pred, conf=0.3, iou=0.5, max_det=20, agnostic=agnostic)


def test_batch_size_plays_no_part():
    pred = random_predictions(0, pictures=3)
    options = {"conf": 0.1, "iou": 0.6, "max_det": 100}
    together = postprocess(pred, **options)
    for picture in range(3):
        one = pred._replace(
            cls_logits=pred.cls_logits[picture : picture + 1],
            ltrb_logits=pred.ltrb_logits[picture : picture + 1],
        )
        (alone,) = postprocess(one, **options)
        assert all(torch.equal(a, b) for a, b in zip(alone[:4], together[picture][:4], strict=True))


# how many


def grid_predictions(points, classes, seed=0) -> Predictions:
    """``points`` boxes of 16 x 16 px that touch no other, all of them scored for every class."""
    columns = int(np.ceil(np.sqrt(points)))
    n = np.arange(points)
    xy = np.stack((n % columns, n // columns), 1) * 20.0 + 10
    scores = np.random.default_rng(seed).permutation(points * classes).reshape(points, classes)
    scores = 0.002 + 0.9 * scores / (points * classes)
    return make_predictions(scores, xy, np.ones((points, 4), int), size=(columns * 24, columns * 24))


def test_none_of_30_000_candidates_is_lost():
    pred = grid_predictions(3000, 10)
    (found,) = postprocess(pred, conf=0.001, iou=0.65, max_det=100_000)
    assert len(found.scores) == MAX_CANDIDATES == 30_000
    scores, point, labels, boxes = candidates(pred, 0, conf=0.001)
    assert np.allclose(found.scores.numpy(), scores, rtol=0, atol=1e-6)
    assert found.labels.tolist() == labels.tolist()
    assert np.allclose(found.boxes.numpy(), boxes, atol=1e-3)
    assert len(set(zip(point.tolist(), labels.tolist(), strict=True))) == 30_000


def test_of_more_candidates_the_30_000_best_are_taken():
    pred = grid_predictions(3010, 10)
    (found,) = postprocess(pred, conf=0.001, iou=0.65, max_det=100_000)
    scores, _, _, _ = candidates(pred, 0, conf=0.001)
    assert len(scores) == 30_100 and len(found.scores) == 30_000
    assert np.allclose(found.scores.numpy(), scores[:30_000], rtol=0, atol=1e-6)


def test_many_overlapping_candidates_equal_the_naive_implementation():
    """1,200 points of 8 classes in 50 heaps: 9,600 candidates, few left."""
    rng = np.random.default_rng(1)
    heaps = rng.uniform(60, 580, (50, 2)).repeat(24, 0)
    points = heaps + rng.normal(0, 2, heaps.shape)
    scores = 0.002 + 0.9 * rng.permutation(1200 * 8).reshape(1200, 8) / (1200 * 8)
    pred = make_predictions(scores, points, rng.integers(2, 4, (1200, 4)))
    assert check(pred, conf=0.001, iou=0.65, max_det=5000) > 500


@pytest.mark.parametrize("most", [1, 7, 300])
def test_max_det_keeps_the_best(most):
    pred = grid_predictions(100, 3)
    (found,) = postprocess(pred, conf=0.001, iou=0.65, max_det=most)
    scores, _, _, _ = candidates(pred, 0, conf=0.001)
    assert np.allclose(found.scores.numpy(), scores[:most], atol=1e-6)


def test_best_first():
    for detections in postprocess(random_predictions(4), conf=0.01, iou=0.6, max_det=300):
        assert (detections.scores.diff() <= 0).all() and len(detections.scores) > 50


# which


def test_a_point_may_name_several_classes():
    pred = make_predictions([[0.9, 0.4, 0.05]], [[100, 100]], [[2, 2, 2, 2]])
    (found,) = postprocess(pred, conf=0.1, iou=0.6, max_det=10)
    assert found.labels.tolist() == [0, 1]
    assert found.boxes.tolist() == [[84, 84, 116, 116]] * 2
    (found,) = postprocess(pred, conf=0.1, iou=0.6, max_det=10, agnostic=True)
    assert found.labels.tolist() == [0]


def test_threshold_is_exclusive():
    pred = make_predictions([[0.5]], [[100, 100]], [[2, 2, 2, 2]])
    assert len(postprocess(pred, conf=0.5, iou=0.6, max_det=10)[0].scores) == 0
    assert len(postprocess(pred, conf=0.49, iou=0.6, max_det=10)[0].scores) == 1


def test_suppression_by_hand():
    # 32 x 32 boxes, the second 8 px to the right: inter 24 x 32, union 40 x 32, IoU 0.6.
    pred = make_predictions([[0.9, 0.1], [0.8, 0.1]], [[100, 100], [108, 100]], [[2, 2, 2, 2]] * 2)
    for iou, count in ((0.59, 1), (0.61, 2)):
        assert len(postprocess(pred, conf=0.2, iou=iou, max_det=10)[0].scores) == count
    other = make_predictions([[0.9, 0.1], [0.1, 0.8]], [[100, 100], [108, 100]], [[2, 2, 2, 2]] * 2)
    assert len(postprocess(other, conf=0.2, iou=0.59, max_det=10)[0].scores) == 2
    assert len(postprocess(other, conf=0.2, iou=0.59, max_det=10, agnostic=True)[0].scores) == 1


def test_plain_sides_decode_by_softplus_and_have_no_sigma():
    pred = make_predictions([[0.9, 0.1]], [[100, 100]], [[2, 2, 2, 2]])
    plain = torch.tensor([1.0, 2.0, 3.0, 0.5]).expm1().log().view(1, 1, 4, 1)  # softplus of it: 1, 2, 3, .5
    (found,) = postprocess(pred._replace(ltrb_logits=plain), conf=0.2, iou=0.5, max_det=10)
    torch.testing.assert_close(found.boxes, torch.tensor([[92.0, 84, 124, 104]]))
    assert found.sigma is None


def test_classes_stay_apart_where_boxes_reach_out_of_the_picture():
    # Class 0: (160, 160, 640, 640). Class 1: (-476, -476, 4, 4), which shares no pixel with it. Shifted by
    # the largest coordinate + 1 = 641 it lies at (165, 165, 645, 645): IoU 0.96.
    pred = make_predictions(
        [[0.9, 0.1], [0.1, 0.8]], [[400, 400], [4, 4]], [[15] * 4, [15, 15, 0, 0]], stride=32
    )
    pred.ltrb_logits[0, 0] = torch.full((4, BINS), -60.0)
    pred.ltrb_logits[0, 0, :, 7:9] = 60.0  # 7.5 strides: 240 px each way
    (found,) = postprocess(pred, conf=0.3, iou=0.6, max_det=10)
    assert found.labels.tolist() == [0, 1]


def test_classes_filter():
    for classes in ([0], [2, 0], [1, 1]):
        assert check(random_predictions(6), conf=0.1, iou=0.6, max_det=300, classes=classes) > 50
    for agnostic in (False, True):
        found = postprocess(
            random_predictions(6), conf=0.1, iou=0.6, max_det=9, classes=[1], agnostic=agnostic
        )
        assert all(set(detections.labels.tolist()) == {1} for detections in found)


def test_classes_are_filtered_before_suppression():
    """A stronger box of another class does not hide a wanted one, across classes either."""
    pred = make_predictions([[0.9, 0.5]], [[100, 100]], [[2, 2, 2, 2]])
    (found,) = postprocess(pred, conf=0.2, iou=0.6, max_det=10, classes=[1], agnostic=True)
    assert found.labels.tolist() == [1]


def test_no_class_wanted_finds_nothing():
    assert len(postprocess(random_predictions(0), conf=0.0, iou=0.6, max_det=10, classes=[])[0].scores) == 0


def test_unwanted_classes_stay_out_at_threshold_zero():
    (found,) = postprocess(random_predictions(0, pictures=1), conf=0.0, iou=1.0, max_det=10_000, classes=[1])
    assert len(found.scores) == 300 and set(found.labels.tolist()) == {1}


# what


def test_nothing_found():
    for found in postprocess(random_predictions(0), conf=0.999999, iou=0.6, max_det=300):
        assert found.boxes.shape == found.sigma.shape == (0, 4)
        assert found.scores.shape == found.labels.shape == (0,)
        assert found.labels.dtype == torch.int64
        assert found.size == (320, 320)


def test_types_and_shapes():
    pred = random_predictions(1)
    for detections in postprocess(pred, conf=0.1, iou=0.6, max_det=300):
        count = len(detections.scores)
        assert detections.boxes.shape == detections.sigma.shape == (count, 4)
        assert detections.boxes.dtype == detections.scores.dtype == detections.sigma.dtype == torch.float32
        assert detections.labels.dtype == torch.int64
        assert (detections.sigma > 0).all() and detections.sigma.isfinite().all()


def test_sigma_is_that_of_the_box_in_pixels():
    # Two equal boxes, strides 8 and 32: the same distribution, mass 1/2 in bins 1 and 5, is 4 times as wide.
    pred = make_predictions([[0.9], [0.8]], [[200, 200], [600, 600]], [[2, 2, 2, 2]] * 2)
    pred.ltrb_logits[0, :, 1] = -60
    pred.ltrb_logits[0, :, 1, 1] = pred.ltrb_logits[0, :, 1, 5] = 60
    pred.strides[1] = 32
    (found,) = postprocess(pred, conf=0.1, iou=0.6, max_det=10)
    assert found.sigma[1] == pytest.approx(4 * found.sigma[0].numpy())
    # Variance 2^2 in bins, less what coding adds, at most 1/4: between sqrt(3.75) and 2 strides of 8 px.
    assert 8 * 3.75**0.5 <= found.sigma[0, 1] <= 8 * 2.0
    assert (found.sigma[0, [0, 2, 3]] < 8 * 0.2).all()


def test_size_is_that_of_the_input():
    (found,) = postprocess(
        make_predictions([[0.9]], [[100, 100]], [[2, 2, 2, 2]], size=(96, 160)), conf=0.1, iou=0.6, max_det=9
    )
    assert found.size == (96, 160)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_promoted(dtype):
    pred = random_predictions(2, pictures=1)
    half = pred._replace(cls_logits=pred.cls_logits.to(dtype), ltrb_logits=pred.ltrb_logits.to(dtype))
    single = half._replace(cls_logits=half.cls_logits.float(), ltrb_logits=half.ltrb_logits.float())
    (found,), (expected,) = (postprocess(pred, conf=0.1, iou=0.6, max_det=300) for pred in (half, single))
    assert all(torch.equal(a, b) for a, b in zip(found[:4], expected[:4], strict=True))


def test_no_gradient_and_inputs_left_alone():
    pred = random_predictions(3)
    pred.cls_logits.requires_grad_()
    copies = pred.cls_logits.detach().clone(), pred.ltrb_logits.clone()
    (found, _) = postprocess(pred, conf=0.1, iou=0.6, max_det=300, classes=[0])
    assert not found.scores.requires_grad
    assert torch.equal(pred.cls_logits, copies[0]) and torch.equal(pred.ltrb_logits, copies[1])
