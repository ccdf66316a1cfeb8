"""The bin audit by arithmetic against all anchor points, against the assigner, and by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.doctor.bins import MAX_REG_MAX, audit_bins, find_remedies, format_audit, needed_reg_max
from data.index import Index
from utils.assigners.candidates import find_candidates
from utils.config import ModelConfig
from utils.structures import Targets


def index_of(boxes, size=(64, 64), ignore=None):
    """One picture with these boxes."""
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    count = len(boxes)
    return Index(
        paths=np.array([b"a.jpg"]),
        sizes=np.array([size], np.int32),
        offsets=np.array([0, count]),
        boxes=boxes,
        labels=np.zeros(count, np.int64),
        ignore=np.zeros(count, bool) if ignore is None else np.array(ignore),
        areas=np.ones(count),
        picture_ids=np.array([1]),
    )


def brute_force(box, shape, level, shortest):
    """The least largest distance, in strides, over all points of the level inside the (enlarged) box."""
    stride = 2**level
    low, high = np.array(box[:2], float), np.array(box[2:], float)
    half = np.maximum(high - low, shortest) / 2
    low, high = (low + high) / 2 - half, (low + high) / 2 + half
    best = np.inf
    for row in range(shape[0] // stride):
        for column in range(shape[1] // stride):
            point = (np.array((column, row)) + 0.5) * stride
            distances = np.concatenate([point - low, high - point])
            if distances.min() >= 0:
                best = min(best, distances.max() / stride)
    return best


@st.composite
def boxes_in(draw, width, height):
    quarter = st.integers(0, 4 * width), st.integers(0, 4 * height)
    x, y = (sorted((draw(axis), draw(axis))) for axis in quarter)
    return x[0] / 4, y[0] / 4, x[1] / 4, y[1] / 4


@settings(deadline=None, max_examples=150)
@given(st.lists(boxes_in(96, 64), min_size=1, max_size=4), st.sampled_from([(3, 4, 5), (2, 3, 4, 5)]))
def test_the_nearest_cell_centre_is_as_good_as_all_points(boxes, levels):
    shape, shortest = (64, 96), 2 ** levels[0]
    needs = needed_reg_max(np.array(boxes), shape, levels)
    expected = [[brute_force(box, shape, level, shortest) for box in boxes] for level in levels]
    np.testing.assert_allclose(needs, expected, atol=2e-5)


@settings(deadline=None, max_examples=100)
@given(st.lists(boxes_in(96, 64), min_size=1, max_size=4), st.integers(1, 6))
def test_it_agrees_with_the_assigner(boxes, reg_max):
    tensor = torch.tensor([boxes], dtype=torch.float64)
    flags = torch.ones(tensor.shape[:2], dtype=torch.bool)
    levels = tuple((64 // 2**level, 96 // 2**level, 2**level) for level in (3, 4, 5))
    truth = Targets(tensor, flags.long(), flags, ~flags)
    found = [level.allowed.any(-1)[0] for level in find_candidates(truth, levels, reg_max)]
    able = (needed_reg_max(np.array(boxes), (64, 96), (3, 4, 5)) <= reg_max).any(0)
    assert torch.stack(found).any(0).tolist() == able.tolist()


def test_counts_by_hand():
    # 64x64, strides 8 16 32, reg_max 1. 8x8 at a cell: 0.5 strides of level 3. 16x16 at a cell of level 4:
    # the points of level 3 lie 4 and 12 px from its sides, 1.5 strides; level 4: 0.5. The whole picture:
    # level 5's points lie 16 and 48 px from the sides, 1.5 strides: none.
    audit = audit_bins(
        index_of([(0, 0, 8, 8), (0, 0, 16, 16), (0, 0, 64, 64)]), 64, levels=(3, 4, 5), reg_max=1
    )
    assert (audit.shape, audit.num_boxes, audit.finest, audit.none) == ((64, 64), 3, (1, 1, 0), 1)
    # A corner is inside: level 4's first point is one of 8x8, level 5's of 16x16.
    assert audit.able == (1, 2, 1)
    assert (audit.least, audit.least_nearly, audit.none_with_level) == (2, 2, 0)  # stride 64: 0.5
    assert [remedy.setting for remedy in find_remedies(audit)] == [
        "model.levels=[3,4,5,6]",
        "model.reg_max=2",
    ]


def test_boxes_are_letterboxed_and_ignored_ones_left_out():
    # 32 x 128 (h x w) into 64x64: scale 0.5, 24 px down. 0,0,128,32 -> 0,24,64,40
    whole = index_of([(0, 0, 128, 32)] * 2, size=(32, 128), ignore=[False, True])
    audit = audit_bins(whole, 64, levels=(3, 4, 5), reg_max=2)
    # level 3: 28 and 36 px to the sides, 4.5 strides; level 4: from 24 to the sides 24 and 40 px, 2.5
    # strides, and its y = 24 and 40 are on the edges; level 5: y = 16 and 48 lie outside of 24..40
    assert (audit.num_boxes, audit.none, audit.least) == (1, 1, 3)


def test_no_boxes():
    audit = audit_bins(index_of([]), (64, 96), levels=(3, 4, 5), reg_max=15)
    assert (audit.num_boxes, audit.none, audit.least) == (0, 0, 1) and find_remedies(audit) == []
    assert format_audit(audit) == "bins: 0.0% of 0 boxes cannot be expressed at 64x96 with reg_max 15"


def test_the_remedies_work():
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, 1280, (4000, 2, 2)), axis=1)
    index = index_of(corners.reshape(-1, 4), size=(1280, 1280))
    audit = audit_bins(index, 1280, levels=(3, 4, 5), reg_max=15)
    remedies = find_remedies(audit)
    assert audit.none and remedies
    for remedy in remedies:
        value = int(remedy.setting.removeprefix("model.reg_max="))
        left = audit_bins(index, 1280, levels=(3, 4, 5), reg_max=value).none
        below = audit_bins(index, 1280, levels=(3, 4, 5), reg_max=value - 1).none
        limit = 0 if remedy.effect == "expresses all" else 4
        assert left <= limit < below


def test_the_limit_of_reg_max_is_that_of_the_configuration():
    ModelConfig(reg_max=MAX_REG_MAX)
    with pytest.raises(ValueError):
        ModelConfig(reg_max=MAX_REG_MAX + 1)
