"""Validation on several ranks: whole batches each, no picture twice, one process's metrics to the bit."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import data.loader
from data.index import load_split
from data.loader import ValSampler, make_val_loader
from data.run_data import ground_truth_of
from data.shapes import make_shapes
from data.spec import load_data_spec
from models.detector import Detector, build_detector
from tests.ranks import run_text
from utils.config import Config, DataConfig, ModelConfig, ValConfig, config_to_plain
from utils.metrics.coco import KEYS
from utils.training import distributed
from utils.training.checkpoint import save_checkpoint
from val import evaluate

NUM_PICTURES = 33
BATCHES = {5: False, 17: True}  # pictures a batch -> rect; of two batches a third rank gets none
MODEL = ModelConfig(depth=0.33, width=0.125, max_channels=64)
CHILD = """
import sys
import torch
from tests.test_val_sharded import measure_all
from utils.training import distributed

torch.set_num_threads(1)
with distributed.session(torch.device("cpu")):
    measure_all(sys.argv[1], sys.argv[2], weights_seed=distributed.rank())
"""
VAL = """
import torch, val
from utils.errors import run_main

torch.set_num_threads(1)
run_main(val.main)
"""


def make_model(seed: int, num_classes: int) -> Detector:
    """Boxes and scores that depend on the picture: last layers 20 times as strong as at the start."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_detector(MODEL, num_classes)
    for name, tensor in model.state_dict().items():
        if name.startswith(("head.cls_outputs", "head.box_outputs")) and name.endswith("weight"):
            tensor *= 20
    return model.eval()


def config(batch: int, rect: bool = False) -> Config:
    data = DataConfig(workers=0, imgsz=64, rect=rect)
    return Config(model=MODEL, data=data, val=ValConfig(batch_size=batch, max_det=50))


def measure_all(yaml: str, folder: str, *, weights_seed: int) -> None:
    """Evaluate at each batch size; this rank's rows and metrics go to a file each."""
    spec = load_data_spec(yaml)
    index, _ = load_split(spec, "val")
    model, truth = make_model(weights_seed, len(spec.names)), ground_truth_of(index, spec)
    for batch, rect in BATCHES.items():
        cfg = config(batch, rect)
        loader = make_val_loader(index, cfg, pin=False)
        result = evaluate(model, loader, truth, cfg=cfg.val, device=torch.device("cpu"))
        name = f"{folder}/{distributed.rank()}-{batch}"
        np.save(f"{name}.npy", result.rows)
        exact = {**result.metrics.values, "P": result.metrics.precision, "R": result.metrics.recall}
        Path(f"{name}.json").write_text(json.dumps({**exact, "per_class": result.metrics.per_class}))


@pytest.fixture(scope="module")
def shapes_33(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("set") / "shapes"
    make_shapes(root, num_train=2, num_val=NUM_PICTURES, sides=(48, 96))
    return root / "data.yaml"


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as the ranks have
    yield
    torch.set_num_threads(before)


@pytest.fixture
def in_one_process(shapes_33, tmp_path, one_thread) -> Path:
    folder = tmp_path / "1"
    folder.mkdir()
    measure_all(str(shapes_33), str(folder), weights_seed=0)
    return folder


@pytest.mark.parametrize("world", [2, 3, 5])
@pytest.mark.parametrize("rect", [False, True])
def test_ranks_share_the_batches_of_one_process(monkeypatch, world, rect):
    sizes = np.random.default_rng(0).integers(20, 900, (NUM_PICTURES, 2))
    for size in (1, 5, 17, 40):
        sampler = ValSampler(sizes, size, (640, 640), stride=32, rect=rect)
        whole, shares = list(sampler), []
        with monkeypatch.context() as patch:
            patch.setattr(data.loader, "world_size", lambda: world)
            for rank in range(world):
                patch.setattr(data.loader, "rank", lambda rank=rank: rank)
                shares.append(list(sampler))
                assert len(shares[-1]) == len(sampler)
        assert shares == [whole[rank::world] for rank in range(world)]


@pytest.mark.parametrize("world", [2, 3])
def test_metrics_and_rows_are_those_of_one_process(shapes_33, in_one_process, tmp_path, world):
    """All ranks but the first begin with other weights: those of rank 0 count."""
    for ended in run_text(CHILD, world, arguments=[str(shapes_33), str(tmp_path)], timeout=120):
        assert ended.code == 0, ended.err
    for batch in BATCHES:
        alone = np.load(in_one_process / f"0-{batch}.npy")
        assert alone.shape == (50 * NUM_PICTURES, 7)
        assert (np.diff(alone[:, 0]) >= 0).all()
        assert len(np.unique(alone[:, 0])) == NUM_PICTURES
        assert np.array_equal(np.load(tmp_path / f"0-{batch}.npy"), alone)
        metrics = json.loads((in_one_process / f"0-{batch}.json").read_text())
        assert set(KEYS) < set(metrics) and metrics["AP50"] > 0 < metrics["AR100"]  # not one of zeros
        for rank in range(world):
            assert json.loads((tmp_path / f"{rank}-{batch}.json").read_text()) == metrics
        assert all(np.load(tmp_path / f"{rank}-{batch}.npy").shape == (0, 7) for rank in range(1, world))


def test_rows_of_a_picture_stay_in_their_order(in_one_process):
    """Sorted by picture, stably: within one, best first, as postprocessing leaves them."""
    rows = np.load(in_one_process / "0-17.npy")
    scores = rows[:, 5].reshape(NUM_PICTURES, -1)
    assert (np.diff(scores, axis=1) <= 0).all()


@pytest.fixture
def weights(shapes_33, tmp_path) -> Path:
    names = list(load_data_spec(shapes_33).names)
    cfg, model = config(5), make_model(0, len(names))
    content = {"config": config_to_plain(cfg), "origins": {}, "strides": list(model.strides)}
    path = tmp_path / "weights.pt"
    save_checkpoint(path, content | {"names": names, "ema": model.state_dict()})
    return path


def test_val_py_prints_and_writes_once(shapes_33, weights, tmp_path, command, one_thread):
    arguments = ["--weights", weights, "--data", shapes_33, "--workers", 0, "--noplots", "--save-json"]
    arguments += ["--project", tmp_path / "runs", "--device", "cpu"]
    alone = command("val", *arguments, "--name", "alone")
    assert alone.code == 0, alone.err
    first, second = run_text(VAL, 2, arguments=[*map(str, arguments), "--name", "two"])
    assert first.code == second.code == 0, second.err
    assert second.out == "" and first.out.count("AP50") == alone.out.count("AP50") > 0
    folders = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert folders == ["alone", "two"]
    found, expected = (tmp_path / "runs" / name / "predictions.json" for name in ("two", "alone"))
    assert found.read_bytes() == expected.read_bytes()
    ours, theirs = (json.loads((tmp_path / "runs" / name / "metrics.json").read_text()) for name in folders)
    assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def test_val_py_tells_a_mistake_once(weights, tmp_path):
    arguments = ["--weights", weights, "--data", tmp_path / "missing.yaml", "--device", "cpu"]
    first, second = run_text(VAL, 2, arguments=[*map(str, arguments)])
    assert first.code == second.code != 0
    assert "missing.yaml" in first.err and "Traceback" not in first.err
    assert second.err == second.out == ""
