"""Objects counted against what COCO counts, what max_det keeps, and what the head has points for."""

import numpy as np
import pytest

from data.doctor.crowding import check_crowding
from data.index import Index
from utils.config import Config
from utils.settings import override

SHAPE = (64, 64)  # 64 + 16 + 4 = 84 anchor points


def index_of(counts, labels=None, ignore=None) -> Index:
    """``counts`` objects in each picture."""
    total = sum(counts)
    return Index(
        paths=np.array([b"x"] * len(counts)),
        sizes=np.full((len(counts), 2), 64, np.int32),
        offsets=np.concatenate(([0], np.cumsum(counts))),
        boxes=np.tile([0.0, 0, 8, 8], (total, 1)),
        labels=np.zeros(total, np.int64) if labels is None else np.array(labels),
        ignore=np.zeros(total, bool) if ignore is None else np.array(ignore),
        areas=np.full(total, 64.0),
        picture_ids=np.arange(len(counts)),
    )


@pytest.mark.parametrize(
    ("index", "split", "codes"),
    [
        (index_of([84, 3]), "val", {}),
        (index_of([0, 0]), "val", {}),
        (index_of([85, 90]), "train", {"crowded-points": 2}),
        (index_of([120, 3]), "train", {"crowded-points": 1}),
        (index_of([120, 3]), "val", {"crowded-points": 1, "crowded": 1}),
        (index_of([120], labels=[n % 2 for n in range(120)]), "test", {"crowded-points": 1}),
        (index_of([400, 150]), "test", {"crowded-points": 2, "crowded": 2, "crowded-max-det": 1}),
        (index_of([400], ignore=[True] * 320 + [False] * 80), "val", {}),
    ],
)
def test_what_is_found(index, split, codes):
    found = check_crowding(index, split, Config(), SHAPE)
    assert {finding.code: finding.count for finding in found} == codes
    assert {finding.split for finding in found} <= {split}


def test_words_and_weight():
    config = override(Config(), {"val.max_det": ("x", 350)})
    points, coco, kept = check_crowding(index_of([400, 10]), "val", config, SHAPE)
    assert "more objects than the 84 anchor points at 64x64 (one holds 400): 1" in points.text
    assert "COCO's AP counts 100 detections (one holds 400): 1" in coco.text and "max_det" in coco.remedy
    assert "--set val.max_det=400" in kept.remedy
    assert {finding.severity for finding in (points, coco, kept)} == {"warning"}
    rare = index_of([102, *[40] * 50])  # 2 of 2,102 objects are lost, below 1 %
    assert [f.severity for f in check_crowding(rare, "val", Config(), (640, 640))] == ["note"]
