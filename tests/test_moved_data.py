"""Data that moved since a training: who remembers the old path, and that ``--data`` mends it."""

import shutil

import pytest

from data.spec import check_there, load_data_spec, remembered
from utils.errors import DATA, OK, NotFoundError, UserError
from utils.training.checkpoint import load_checkpoint, save_checkpoint

KEPT = "No flag gave this path: it is kept in {}. Where the data set has moved, add --data <"


@pytest.fixture
def moved(trained, tmp_path):
    """``moved(path)`` is a copy of the finished run whose data lay at ``path``."""

    def copy(path):
        shutil.copytree(trained, tmp_path / "run")
        for name in ("last.pt", "best.pt"):
            file = tmp_path / "run" / "weights" / name
            content = load_checkpoint(file)
            content["config"]["data"]["path"] = str(path)
            save_checkpoint(file, content)
        return tmp_path / "run"

    return copy


def place(kind, folder):
    """A path at which the data set is not, or not all of it."""
    (folder / "dangling.yaml").symlink_to(folder / "gone.yaml")
    for name, text in {
        "half.yaml": "path: gone\ntrain: images\nval: images\nnames: [a]",
        "roboflow.yaml": "train: ../train/images\nval: ../valid/images\nnames: [a]",
        "coco.yaml": "format: coco\ntrain: gone.json\nval: gone.json",
    }.items():
        (folder / name).write_text(text)
    return {
        "absolute": folder / "gone" / "data.yaml",
        "folder": folder / "gone",
        "relative": "gone/data.yaml",
        "a name": "mine",
        "windows": r"C:\data\mine\data.yaml",
        "below a file": folder / "half.yaml" / "data.yaml",
        "link": folder / "dangling.yaml",
        "only the YAML": folder / "half.yaml",
        "Roboflow's": folder / "roboflow.yaml",
        "JSON": folder / "coco.yaml",
    }[kind]


PLACES = ("absolute", "folder", "relative", "a name", "windows", "below a file", "link", "only the YAML")
PLACES += ("Roboflow's", "JSON")


@pytest.mark.parametrize("kind", PLACES)
def test_a_remembered_path_says_who_remembers_it(monkeypatch, tmp_path, kind):
    monkeypatch.chdir(tmp_path)
    path = place(kind, tmp_path)
    for source, told in (("last.pt", KEPT.format("last.pt")), ("", "not found")):
        with pytest.raises(NotFoundError) as error, remembered(source):
            check_there(load_data_spec(path), ["train", "val"])
        assert error.value.code == DATA and "not found" in str(error.value) and told in str(error.value)
        assert ("No flag gave" in str(error.value)) == bool(source)


@pytest.mark.parametrize("kind", ["absolute", "only the YAML"])
def test_commands_say_it(command, moved, tmp_path, kind):
    run = moved(place(kind, tmp_path))
    best = run / "weights" / "best.pt"
    for result, keeper in (
        (command("train", "--resume", run, "--epochs", 5, "--device", "cpu"), run / "weights" / "last.pt"),
        (command("val", "--weights", best, "--device", "cpu"), best),
    ):
        assert result.code == DATA and "not found" in result.err and "Traceback" not in result.err
        assert KEPT.format(keeper) in result.err
    assert not (tmp_path / "runs").exists()


def test_data_mends_it_and_detect_needs_none(command, moved, shapes, tmp_path):
    run = moved(tmp_path / "gone")
    best, data = run / "weights" / "best.pt", ("--data", shapes, "--device", "cpu")
    assert command("train", "--resume", run, *data).code == OK  # finished; the data is read and compared
    assert command("val", "--weights", best, *data, "--noplots").code == OK
    found = command("detect", "--weights", best, "--source", shapes.parent / "images" / "val")
    assert found.code == OK


@pytest.mark.parametrize("flags", [("--data", "nowhere.yaml"), ("--set", "data.path=nowhere.yaml")])
def test_a_path_that_was_given_is_nobodys_memory(command, trained, flags):
    for result in (
        command("val", "--weights", trained / "weights" / "best.pt", *flags),
        command("train", "--resume", trained, *flags),
    ):
        assert result.code == DATA and "'nowhere.yaml' not found" in result.err
        assert "No flag gave" not in result.err


def test_runs_of_a_comparison_remember_it_too(command, moved, tmp_path):
    run = moved(tmp_path / "gone")
    shutil.copytree(run, tmp_path / "other")
    last = tmp_path / "other" / "weights" / "last.pt"
    content = load_checkpoint(last)
    content["config"]["loss"]["dfl"] = 0.5
    save_checkpoint(last, content)
    result = command("compare", "--from", run, tmp_path / "other", "--device", "cpu")
    assert result.code == DATA and KEPT.format(f"the runs of --from, as of {run}") in result.err


def test_what_cannot_be_looked_into_is_not_called_absent(tmp_path):
    """A link to itself, as no rights would stop root."""
    loop, yaml = tmp_path / "loop", tmp_path / "data.yaml"
    loop.symlink_to(loop)
    yaml.write_text("train: loop/train\nval: loop/val\nnames: [a]")
    for path in (loop / "data.yaml", yaml):
        with pytest.raises(UserError) as error, remembered("last.pt"):
            check_there(load_data_spec(path), ["train"])
        assert not isinstance(error.value, NotFoundError) and error.value.code == DATA
        assert f"{loop}" in str(error.value) and "cannot be looked into (" in str(error.value)
