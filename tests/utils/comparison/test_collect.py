"""From files of finished runs to comparison.json: 6 pictures of 100 x 100 px, each with one box of 40 px.

Loss "good" finds every box exactly; "base" finds them shifted, so that their IoU is about 0.6.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from utils.comparison.collect import (
    check_data,
    collect,
    complete_seeds,
    missing_runs,
    pick_pictures,
    read_curves,
    read_runs,
    seconds_per_step,
    without_nan,
)
from utils.comparison.pictures import draw_differences, draw_side
from utils.comparison.plan import Group, Plan, make_run
from utils.config import Config, LossConfig
from utils.errors import DATA, UserError
from utils.metrics.coco import KEYS, evaluate_detections, make_ground_truth

N, MARK = 6, "f" * 64
IDS, CATEGORIES = [10 * (n + 1) for n in range(N)], (7, 3)
NAMES = [f"{n}.jpg" for n in range(N)]
PROTOCOL = {"imgsz": 96, "rect": False, "conf": 0.001, "iou": 0.65, "max_det": 300, "evaluator": "hotcoco"}
CSV = """epoch,train/quality,metrics/AP,seconds,memory_gb,step
1,2.5,,9.0,0.5,3
2,1.5,0.25,6.0,0.75,6
3,,-1.0,9.0,,8
"""


def make_truth() -> dict:
    corners = np.array([[20 + n, 30, 60 + n, 70] for n in range(N)], float)
    return make_ground_truth(
        picture_ids=IDS,
        sizes=np.full((N, 2), 100),
        offsets=np.arange(N + 1),
        boxes=corners,
        labels=np.arange(N) % 2,
        ignore=np.zeros(N, bool),
        areas=np.full(N, 1600.0),
        category_ids=CATEGORIES,
        names=("cat", "dog"),
    )


def make_rows(shift: float) -> np.ndarray:
    """A detection a picture, ``shift`` px to the right of its truth: IoU (40 - shift) / (40 + shift)."""
    boxes = [[IDS[n], 20 + n + shift, 30, 40, 40, 0.9 - 0.1 * n, CATEGORIES[n % 2]] for n in range(N)]
    return np.array(boxes, float)


def write_run(run, rows: np.ndarray, *, fingerprint: str = MARK, nothing: float | None = None) -> None:
    """The files that train.py and val.py leave; ``nothing`` stands where there is nothing to measure."""
    (run.folder / "weights").mkdir(parents=True)
    run.measured.mkdir(parents=True)
    run.weights.touch()
    (run.folder / "metrics.json").write_text("{}")
    (run.folder / "results.csv").write_text(CSV)
    found = evaluate_detections(make_truth(), rows)
    data = {"path": "d.yaml", "fingerprint": fingerprint, "num_pictures": N, "num_boxes": N}
    values = {key: nothing if value is None else value for key, value in found.values.items()}
    content = {**values, "per_class": found.per_class, "data": data}
    content["protocol"] = PROTOCOL | {"weights": str(run.weights)}
    (run.measured / "metrics.json").write_text(json.dumps(content))
    predictions = [
        {"image_id": int(r[0]), "bbox": list(r[1:5]), "score": r[5], "category_id": int(r[6])} for r in rows
    ]
    (run.measured / "predictions.json").write_text(json.dumps(predictions))


def make_plan(folder: Path, seeds=(0, 1, 2)) -> Plan:
    configs = {"base": Config(), "good": Config(loss=LossConfig(dfl=0.5))}
    groups = {x: Group(Path(x), c, {s: make_run(folder, x, s) for s in seeds}) for x, c in configs.items()}
    return Plan(folder, "base", groups, [], device="", download=False, weights="")


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> Plan:
    """Both losses with the seeds 0, 1, 2: base shifts by 9, 10, 11 px, good not at all."""
    plan = make_plan(tmp_path_factory.mktemp("out") / "pair")
    for run in plan.runs:
        old = {} if run.loss == "good" else {"nothing": -1.0}  # as it stood there before null did
        write_run(run, make_rows(0 if run.loss == "good" else 9 + run.seed), **old)
    return plan


@pytest.fixture(scope="module")
def measured(plan):
    return read_runs(plan, [0, 1, 2], make_truth())


@pytest.fixture(scope="module")
def content(plan, measured) -> dict:
    return collect(plan, measured, [0, 1, 2], truth=make_truth(), names=NAMES)


def test_head_and_runs(content):
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["schema"] == 2 and content["name"] == "pair" and content["baseline"] == "base"
    good = content["losses"]["good"]
    assert good["changes"] == {"loss.dfl": [0.25, 0.5]} and content["losses"]["base"]["changes"] == {}
    assert [run["seed"] for run in good["runs"]] == content["seeds"] == [0, 1, 2]
    run = good["runs"][0]
    assert run["values"].keys() == set(KEYS) and run["values"]["AP"] == pytest.approx(1)
    assert run["per_class"]["dog"]["boxes"] == 3 and run["folder"].endswith("runs/good-seed0")


def test_time_memory_and_curves(content):
    run = content["losses"]["base"]["runs"][0]
    assert run["seconds_per_step"] == 3  # median of 9 s / 3, 6 s / 3, 9 s / 2 steps
    assert run["memory_gb"] == 0.75 and run["epochs"] == [1, 2, 3]
    assert run["curves"]["metrics/AP"] == [None, 0.25, None] and run["curves"]["train/quality"][:2] == [
        2.5,
        1.5,
    ]
    assert "epoch" not in run["curves"]
    assert seconds_per_step({"seconds": [1.0]}) is None  # of a run before the steps were counted


def test_mean_and_deviation(content):
    base = content["losses"]["base"]
    values = [run["values"]["AP"] for run in base["runs"]]
    assert base["mean"]["AP"] == pytest.approx(np.mean(values))
    assert base["sd"]["AP"] == pytest.approx(np.std(values, ddof=1))
    assert base["mean"]["APs"] is None and base["sd"]["APs"] is None  # no box below 32 x 32 px


def test_differences(content):
    (name,) = content["differences"]
    assert name == "good"
    for key in ("AP", "AP50", "AP75"):
        pairs = [(run["values"][key]) for run in content["losses"]["good"]["runs"]]
        base = [(run["values"][key]) for run in content["losses"]["base"]["runs"]]
        assert content["differences"]["good"][key]["mean"] == pytest.approx(np.mean(pairs) - np.mean(base)), (
            key
        )
    found = content["differences"]["good"]["AP"]
    assert found["mean"] > 0.4 and found["verdict"] == "better" and found["p_holm"] == found["p"]
    assert found["p_sign_flip"] is None and found["low"] < found["mean"] < found["high"]
    assert content["differences"]["good"]["AP50"]["mean"] == pytest.approx(0)
    classes = content["differences"]["good"]["per_class"]
    assert classes.keys() == {"cat", "dog"} and not {"verdict", "p_holm"} & classes["cat"].keys()
    assert classes["cat"]["mean"] > 0.4


def test_protocol(content):
    protocol = content["protocol"]
    assert (protocol["data"], protocol["fingerprint"]) == ("d.yaml", MARK)
    assert (protocol["imgsz"], protocol["weights"], protocol["max_det"]) == (96, "last EMA", 300)
    assert protocol["commit"] == "unknown" and protocol["versions"] == {}  # older runs: they do not say


def test_protocol_says_what_the_runs_were_trained_with(plan, measured):
    first = {"versions": {"torch": "2.10"}, "commit": "abc", "hardware": "a GPU"}
    second = {"versions": {"torch": "2.11", "numpy": "2.1"}, "commit": "abc", "hardware": "a GPU"}
    content = {
        name: run._replace(environment=second if name == "good-seed2" else first)
        for name, run in measured.items()
    }
    protocol = collect(plan, content, [0, 1, 2], truth=make_truth(), names=NAMES)["protocol"]
    assert (protocol["commit"], protocol["hardware"]) == ("abc", "a GPU")
    assert protocol["versions"] == {"torch": "2.10 / 2.11", "numpy": "unknown / 2.1"}


def test_the_smallest_difference_counts_all_comparisons(tmp_path):
    three = make_plan(tmp_path / "three")
    runs = {seed: make_run(three.folder, "other", seed) for seed in (0, 1, 2)}
    three = three._replace(groups=three.groups | {"other": three.groups["good"]._replace(runs=runs)})
    for run in three.runs:
        write_run(run, make_rows(9 + run.seed if run.loss == "base" else 0))
    two = three._replace(groups={name: three.groups[name] for name in ("base", "good")})
    measured = read_runs(three, [0, 1, 2], make_truth())
    found = [collect(p, measured, [0, 1, 2], truth=make_truth(), names=NAMES) for p in (two, three)]
    alone, beside = (content["differences"]["good"]["AP"] for content in found)
    assert beside["smallest"] > 1.1 * alone["smallest"] and beside["p_holm"] == pytest.approx(2 * alone["p"])


def test_fewer_seeds_give_no_verdict(plan, measured):
    content = collect(plan, measured, [1], truth=make_truth(), names=NAMES)
    found = content["differences"]["good"]["AP"]
    assert found["verdict"] is None and found["low"] is None and found["mean"] > 0.4
    assert content["losses"]["base"]["sd"]["AP"] is None
    json.dumps(content, allow_nan=False)


def test_pictures_differ_most_first(plan, measured):
    base = [measured[f"base-seed{s}"] for s in (0, 1, 2)]

    def with_scores(*scores):
        return [run._replace(scores=run.scores + np.array(scores)) for run in base]

    of = {"x": with_scores(0, 0.5, -0.6, 0.1, 0.2, 0.3), "y": with_scores(0, 0, 0, np.nan, 0, 0.4)}
    found = pick_pictures(of, base, IDS, NAMES)
    assert [(p["loss"], p["name"]) for p in found] == [
        ("x", "2.jpg"),
        ("x", "1.jpg"),
        ("y", "5.jpg"),
        ("x", "5.jpg"),
        ("x", "4.jpg"),
    ]
    assert found[0] == {"picture_id": 30, "name": "2.jpg", "difference": pytest.approx(-0.6), "loss": "x"}
    many = {f"loss{i}": of["x"] for i in range(9)}
    assert len(pick_pictures(many, base, IDS, NAMES)) == 12


def test_pictures_are_drawn_side_by_side(content, measured):
    rows = {name: measured[f"{name}-seed0"].rows for name in ("base", "good")}
    canvas = np.full((100, 100, 3), 128, np.uint8)
    drawn = draw_differences(content, rows, make_truth(), conf=0.25, open_picture=lambda number: canvas)
    assert len(drawn) == len(content["pictures"]) == 4
    assert all(side[1].startswith(b"\xff\xd8") for pair in drawn for side in (pair.left, pair.right))
    assert "base" in drawn[0].left[0] and "good" in drawn[0].right[0] and "good against base" in drawn[0].name
    picture = draw_side(canvas, rows["base"][:1], make_truth(), 10)
    assert (picture[30, 20:29] == 0).all()  # the truth's upper side, left of where the detection begins
    assert not (picture[30:60, 29] == picture[30:60, 28]).all()  # the detection's left side, 9 px further
    wide = draw_side(np.zeros((100, 2000, 3), np.uint8), rows["base"][:0], make_truth(), 10)
    assert wide.shape == (32, 640, 3)


def test_other_validation_data_is_refused_saying_which(tmp_path):
    plan = make_plan(tmp_path, seeds=(0,))
    for run in plan.runs:
        write_run(run, make_rows(0), fingerprint="e" * 64 if run.loss == "good" else MARK)
    with pytest.raises(UserError) as error:
        check_data(plan, MARK)
    assert error.value.code == DATA
    good, base = plan.groups["good"].runs[0], plan.groups["base"].runs[0]
    for word in (
        "good-seed0 was measured with other validation data",
        "d.yaml",
        "6 pictures",
        "e" * 12,
        "f" * 12,
        f"Remove {good.measured}",
    ):
        assert word in str(error.value), word
    (good.measured / "metrics.json").write_text((base.measured / "metrics.json").read_text())
    check_data(plan, MARK)  # what was measured of other weights is not looked at: it is measured again
    before = {"path": "old.yaml", "fingerprint": "a" * 64, "num_pictures": 1, "num_boxes": 2}
    (good.folder / "metrics.json").write_text(json.dumps({"data": before}))
    with pytest.raises(
        UserError, match=r"was trained with other validation data than there is now: old\.yaml"
    ):
        check_data(plan, MARK)


def test_only_seeds_of_all_losses_count(tmp_path):
    plan = make_plan(tmp_path)
    for run in plan.runs:
        if run.name not in ("base-seed1", "good-seed2"):
            write_run(run, make_rows(0))
    assert complete_seeds(plan) == [0] and missing_runs(plan) == ["base-seed1", "good-seed2"]
    del plan.groups["base"].runs[2]  # as among finished runs, where nobody asked for it
    assert missing_runs(plan) == ["base-seed1", "base-seed2", "good-seed2"]
    (plan.groups["base"].runs[0].measured / "predictions.json").unlink()
    assert complete_seeds(plan) == []


def test_an_empty_results_file(tmp_path):
    run = make_run(tmp_path, "a", 0)
    run.folder.mkdir(parents=True)
    (run.folder / "results.csv").write_text("epoch,seconds\n")
    assert read_curves(run.folder) == {"epoch": [], "seconds": []}


def test_numbers_that_json_lacks_become_null():
    assert without_nan({"a": [float("nan"), 1, (2.5, float("inf"))], "b": "x"}) == {
        "a": [None, 1, [2.5, None]],
        "b": "x",
    }


def test_runs_that_learned_from_different_pictures_are_refused(tmp_path):
    plan = make_plan(tmp_path)
    for run in plan.runs:
        write_run(run, make_rows(0))
    for run, training in zip(plan.runs, ("a" * 64, "a" * 64, "b" * 64), strict=False):
        metrics = json.loads((run.folder / "metrics.json").read_text())
        (run.folder / "metrics.json").write_text(json.dumps(metrics | {"training": training}))
    with pytest.raises(UserError, match="learned from different training pictures") as error:
        check_data(plan, MARK)
    assert all(str(run.folder) in str(error.value) for run in (plan.runs[0], plan.runs[2]))
    (plan.runs[2].folder / "metrics.json").write_text((plan.runs[1].folder / "metrics.json").read_text())
    check_data(plan, MARK)
