"""compare.py from the command line: a whole comparison, going on, finished runs, refusals, pairing."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import compare
from data.index import fingerprint, load_split
from data.loader import make_train_loader
from data.spec import load_data_spec
from utils.config import config_to_plain
from utils.config_files import config_from_plain, load_config
from utils.errors import DATA, USAGE
from utils.metrics.coco import KEYS
from utils.training.checkpoint import load_checkpoint, save_checkpoint

FLAGS = ("--epochs", 1, "--noplots", "--device", "cpu")


@pytest.fixture
def _one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def read_content(folder: str) -> dict:
    return json.loads(Path(folder, "comparison.json").read_text())


def copy_run(trained: Path, name: str, *, sets=(), origins=None) -> Path:
    """A finished run as if it had been trained with other settings."""
    folder = Path("finished", name)
    shutil.copytree(trained, folder)
    path = folder / "weights" / "last.pt"
    content = load_checkpoint(path)
    config = config_to_plain(config_from_plain(content["config"]))
    for key, value in sets:
        section, setting = key.split(".")
        config[section][setting] = value
    content |= {"config": config, "origins": content["origins"] | (origins or {})}
    save_checkpoint(path, {key: value for key, value in content.items() if key != "schema"})
    return folder


def test_without_arguments_it_shows_how_to_use_it(command):
    result = command("compare")
    assert result.code == USAGE
    assert "python compare.py [YAML]" in result.out and "--losses gfl vfl" in result.out
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["--losses", "gfl", "nothing"], "Shipped in configs/losses", USAGE),
        (["--losses", "gfl", "vfl", "--data", "nowhere.yaml"], "nowhere.yaml", DATA),
        (["--losses", "gfl", "vfl", "--seed", "3"], "--seeds", USAGE),
        (["--losses", "gfl", "vfl", "--jobs", "0"], "--jobs: '0'", USAGE),
        (["nothing.yaml"], "Shipped in configs/compare: ", USAGE),
        (["--from", "nowhere"], "no finished run", USAGE),
        (["--from", "a", "--losses", "b", "c"], "--losses: --from reports on finished runs", USAGE),
        (["--from", "a", "--epochs", "3"], "--epochs: --from", USAGE),
        (["bins", "--from", "a"], "bins: --from", USAGE),
    ],
)
def test_mistakes_end_before_anything_runs(command, arguments, words, code):
    result = command("compare", *arguments)
    assert result.code == code and words in result.err and "Traceback" not in result.err
    assert not Path("runs").exists()


def test_other_settings_than_those_of_a_finished_run_are_refused(command, shapes, tiny, trained):
    shutil.copytree(trained, "runs/compare/gfl-vfl/runs/gfl-seed0")
    result = command("compare", "--losses", "gfl", "vfl", "--data", shapes, *tiny, *FLAGS)
    assert result.code == USAGE
    assert "runs/compare/gfl-vfl/runs/gfl-seed0 was begun with other settings" in result.err
    assert "train.epochs: there 4, asked 1" in result.err


def test_failed_runs_decide_the_exit_code_and_are_named(command, shapes, tiny, monkeypatch):
    monkeypatch.setattr(compare, "run_all", lambda plan, slots: {"vfl-seed1": 3})
    arguments = ["--losses", "gfl", "vfl", "--seeds", 2, "--data", shapes, *tiny, *FLAGS]
    result = command("compare", *arguments)
    assert result.code == 3
    for text in (
        "losses: gfl, vfl; baseline: gfl",
        "seeds: 0, 1; 1 epochs at 96 px",
        "runs: 4, 0 of them done; 1 at a time",
        "results: runs/compare/gfl-vfl",
        "ready to train",
        "the comparison is not made: no seed has all of its runs; missing: gfl-seed0, vfl-seed0",
        "failed with code 3: vfl-seed1",
        "give the same command again",
    ):
        assert text in result.out, text
    assert not Path("runs/compare/gfl-vfl/comparison.json").exists()


def test_what_changes_between_two_calls_or_during_one_is_noticed(command, shapes, tiny, trained, monkeypatch):
    shutil.copytree(shapes.parent, "copy")
    run = Path("runs/compare/gfl-vfl/runs/gfl-seed0")
    arguments = ["--losses", "gfl", "vfl", "--seeds", 1, "--data", "copy/data.yaml", *tiny, *FLAGS]
    monkeypatch.setattr(compare, "run_all", lambda plan, slots: shutil.copytree(trained, run) and {})
    edited = command("compare", *arguments)  # as if a file had been edited while it waited
    assert edited.code == USAGE and "gfl-seed0 was begun with other settings" in edited.err
    shutil.rmtree(run)

    def no_run(plan, slots):
        raise AssertionError("nothing may start")

    monkeypatch.setattr(compare, "run_all", no_run)
    text = Path("copy/labels/train/000001.txt").read_text()
    Path("copy/labels/train/000001.txt").write_text(text + "0 0.5 0.5 0.3 0.3\n")
    assert "there training data: " in command("compare", *arguments).err
    shutil.copytree(trained, run)
    (run / "weights" / "last.pt").touch()
    Path(run, "config.yaml").unlink()  # its settings are not the question here
    Path("copy/labels/val/000001.txt").write_text("")
    changed = command("compare", *arguments)
    assert changed.code == DATA and "gfl-seed0 was trained with other validation data" in changed.err


@pytest.mark.usefixtures("_one_thread")
def test_finished_runs_are_reported_on(command, shapes, trained, monkeypatch):
    same, own = ("train.seed", 5), ("loss.dfl", 0.5)
    copy_run(trained, "b", sets=[same])
    copy_run(trained, "a", sets=[same, own], origins={"loss.dfl": "my/dfl_half.yaml"})
    shutil.copytree(shapes.parent, "moved")
    data = ["--data", "moved/data.yaml"]
    result = command("compare", "--from", "finished", "--device", "cpu", "--name", "both", *data)
    assert result.code == 0, result.err
    for text in ("losses: dfl_half, gfl; baseline: gfl", "seeds: 5; 4 epochs at 96 px", "2, 0 of them done"):
        assert text in result.out, text
    content = read_content("runs/compare/both")
    assert content["losses"].keys() == {"gfl", "dfl_half"} and content["seeds"] == [5]
    difference = content["differences"]["dfl_half"]
    assert difference["AP"]["mean"] == 0 and difference["AP"]["verdict"] is None  # the same weights
    assert content["losses"]["dfl_half"]["changes"] == {"loss.dfl": [0.25, 0.5]}
    run = content["losses"]["gfl"]["runs"][0]
    measured = json.loads(Path("runs/compare/both/val/gfl-seed5/metrics.json").read_text())
    assert run["values"] == {key: measured[key] for key in KEYS} and run["folder"] == "finished/b"
    protocol = content["protocol"]
    assert protocol["fingerprint"] == measured["data"]["fingerprint"] and content["missing"] == []
    assert protocol["data"].endswith("moved/data.yaml") and "torch" in protocol["versions"]
    with open("runs/compare/both/comparison.csv", newline="") as file:
        assert [row["loss"] for row in csv.DictReader(file)] == ["dfl_half", "gfl"]
    page = Path("runs/compare/both/report.html").read_text()
    assert "dfl_half" in page and "report: runs/compare/both/report.html" in result.out

    def no_plotly(*_):
        raise compare.UserError("plotly is not installed")

    monkeypatch.setattr(compare, "write_report", no_plotly)
    stamp = Path("runs/compare/both/val/gfl-seed5/metrics.json").stat().st_mtime_ns
    again = command(
        "compare", "--from", "finished", "--device", "cpu", "--name", "both", "--baseline", "dfl_half"
    )
    assert again.code == 0 and "2 of them done" in again.out and "no report.html: plotly" in again.out
    assert read_content("runs/compare/both")["baseline"] == "dfl_half"
    assert Path("runs/compare/both/val/gfl-seed5/metrics.json").stat().st_mtime_ns == stamp


def test_finished_runs_that_do_not_compare_are_refused(command, trained):
    copy_run(trained, "a")
    copy_run(trained, "b", sets=[("loss.dfl", 0.5)], origins={"loss.dfl": "half.yaml"})
    copy_run(trained, "c", sets=[("loss.dfl", 0.5)], origins={"loss.dfl": "half.yaml"})
    copy_run(trained, "d", sets=[("loss.dfl", 1.0), ("train.lr", 0.5)], origins={"loss.dfl": "--set"})
    for names, words in {
        "a b c": "finished/b and finished/c are both half with seed 0",
        "a d": "differ in more than their losses",
        "a": "all runs are gfl",
    }.items():
        result = command("compare", "--from", *(f"finished/{name}" for name in names.split()))
        assert result.code == USAGE and words in result.err, result.err
    assert (
        "--baseline vfl" in command("compare", "--from", "finished/a", "finished/b", "--baseline", "vfl").err
    )
    assert not Path("runs").exists()


def test_training_batches_do_not_depend_on_the_loss(shapes):
    """The pairing: one seed, the same pictures in the same order with the same changes."""
    spec = load_data_spec(shapes)
    index, _ = load_split(spec, "train")
    given = {"data.path": ("", str(shapes)), "data.imgsz": ("", 96), "train.batch_size": ("", 4)}
    given["data.workers"] = ("", 0)
    batches = {}
    for loss in ("gfl", "yolov8_like", "ltrb_plain", "gfl_simota"):
        config = load_config(cfg="demo", loss=loss, flags=given).config
        loader = make_train_loader(index, config, pin=False)
        loader.set_epoch(3, mosaic=True)
        batches[loss] = list(loader)
    first, *others = batches.values()
    assert len(first) == 4 and len(others) == 3
    for batch, *rest in zip(first, *others, strict=True):
        for other in rest:
            assert other.pictures == batch.pictures and torch.equal(other.images, batch.images)
            assert all(torch.equal(a, b) for a, b in zip(batch.truth, other.truth, strict=True))


def test_fingerprint_is_of_the_data_and_not_of_its_place(shapes, tmp_path):
    shutil.copytree(shapes.parent, tmp_path / "copy")
    specs = [load_data_spec(shapes), load_data_spec(tmp_path / "copy" / "data.yaml")]
    one, copied = (load_split(spec, "val")[0] for spec in specs)
    names = specs[0].names
    assert fingerprint(one, names) == fingerprint(copied, names) and len(fingerprint(one, names)) == 64
    changes = {
        "boxes": one.boxes + 0.5,
        "labels": (one.labels + 1) % len(names),
        "ignore": ~one.ignore,
        "sizes": one.sizes + 1,
        "areas": one.areas + 1,
        "paths": one.paths[::-1],
        "offsets": one.offsets + np.where(np.arange(len(one.offsets)) == 1, 1, 0),
    }
    marks = [fingerprint(one._replace(**{field: value}), names) for field, value in changes.items()]
    marks += [fingerprint(one, names[::-1]), fingerprint(load_split(specs[0], "train")[0], names)]
    assert len({*marks, fingerprint(one, names)}) == len(marks) + 1


@pytest.mark.slow
@pytest.mark.usefixtures("_one_thread")
def test_a_whole_comparison_killed_and_gone_on_with(command, shapes, tiny, tmp_path):
    """Two losses, three seeds, the third asked for later; one training was cut off before its end."""
    (tmp_path / "pair.yaml").write_text(
        f"losses: [gfl, dfl_off]\nseeds: 2\n"
        f"flags: {{data: {shapes}, epochs: 2, noplots: true, device: cpu}}\n"
    )
    first = command("compare", "pair.yaml", *tiny, "--jobs", 2)
    assert first.code == 0, first.err
    content = read_content("runs/compare/pair")
    assert content["seeds"] == [0, 1] and "too few for a verdict" in first.out
    folder = Path("runs/compare/pair/runs")
    files = [*folder.rglob("*"), *Path("runs/compare/pair/val").rglob("*")]
    before = {path: path.stat().st_mtime_ns for path in files if path.is_file()}
    (folder / "dfl_off-seed0" / "metrics.json").unlink()  # cut off at the very end
    second = command("compare", "pair.yaml", *tiny, "--seeds", 3)
    assert second.code == 0, second.err
    assert "6, 3 of them done" in second.out and "dfl_off-seed0 goes on" in second.out
    content = read_content("runs/compare/pair")
    assert content["seeds"] == [0, 1, 2]
    assert content["differences"]["dfl_off"]["AP"]["verdict"] in ("better", "worse", "no evidence")
    untouched = [path for path in before if "dfl_off-seed0" not in str(path)]
    assert len(untouched) >= 9
    assert all(path.stat().st_mtime_ns == before[path] for path in untouched)
    runs = {(name, run["seed"]): run for name, loss in content["losses"].items() for run in loss["runs"]}
    assert len(runs) == 6 and all(run["seconds_per_step"] > 0 for run in runs.values())
    assert all(run["memory_gb"] > 0 for run in runs.values())
    for run in runs.values():  # train.py validated the same average after its last epoch
        with open(Path(run["folder"], "results.csv"), newline="") as file:
            last = list(csv.DictReader(file))[-1]
        for key in ("AP", "AP50", "AP75"):
            assert run["values"][key] == pytest.approx(float(last[f"metrics/{key}"]), abs=1e-4)
    for name in ("report.html", "comparison.csv", "comparison.json"):
        assert Path("runs/compare/pair", name).stat().st_size > 500
