"""What the doctor makes of splits whose pictures or labels are not there."""

import json
import shutil

import pytest
from PIL import Image

from data.check import main
from data.convert import convert
from data.index import load_split
from data.spec import load_data_spec
from utils.errors import DATA, OK, UserError


@pytest.fixture
def root(tmp_path):
    """Two pictures each of train, val and test with labels."""
    for split in ("train", "val", "test"):
        for kind in ("images", "labels"):
            (tmp_path / kind / split).mkdir(parents=True)
        for number in range(2):
            place = f"{split}/{number}"
            Image.new("RGB", (64, 64), (90 * number, len(split), 0)).save(
                tmp_path / "images" / f"{place}.png"
            )
            (tmp_path / "labels" / f"{place}.txt").write_text("0 .5 .5 .5 .5\n")
    entries = "".join(f"{split}: images/{split}\n" for split in ("train", "val", "test"))
    (tmp_path / "data.yaml").write_text(f"{entries}names: [a]\n")
    return tmp_path


def check(root, monkeypatch, capsys, *flags):
    monkeypatch.setattr("sys.argv", ["check", "--data", str(root), "--img", "64", *flags])
    return main(), capsys.readouterr().out


def without_labels(root, split):
    shutil.rmtree(root / "labels" / split)


def without_pictures(root, split):
    shutil.rmtree(root / "images" / split)


def without_any(root, split):
    without_pictures(root, split)
    (root / "images" / split).mkdir()


def by_a_list_of_absent(root, split):
    without_pictures(root, split)
    (root / f"{split}.txt").write_text("a.jpg\nb.jpg\n")
    yaml = root / "data.yaml"
    yaml.write_text(yaml.read_text().replace(f"images/{split}", f"{split}.txt"))


def named_empty(root, split):
    yaml = root / "data.yaml"
    yaml.write_text(yaml.read_text().replace(f"images/{split}", "''"))


SPOILT = [without_labels, without_pictures, without_any, by_a_list_of_absent]


@pytest.mark.parametrize("spoil", [*SPOILT, named_empty])
def test_a_test_split_that_is_not_there_does_not_stand_against_training(root, monkeypatch, capsys, spoil):
    spoil(root, "test")
    code, shown = check(root, monkeypatch, capsys)
    assert code == OK and "ready to train" in shown and "NOT ready" not in shown
    if spoil is named_empty:
        return
    assert "note    test" in shown and "training does not need it" in shown
    code, shown = check(root, monkeypatch, capsys, "--splits", "test")
    assert code == DATA and "ERROR   test" in shown  # who asks for it needs it
    with pytest.raises(UserError) as error:  # as val.py --task test does
        load_split(load_data_spec(root), "test")
    assert error.value.code == DATA


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("spoil", SPOILT)
def test_training_needs_train_and_val(root, monkeypatch, capsys, spoil, split):
    spoil(root, split)
    code, shown = check(root, monkeypatch, capsys)
    assert code == DATA and f"ERROR   {split}" in shown and "NOT ready to train" in shown


def test_faulty_labels_of_a_test_split_are_errors(root, monkeypatch, capsys):
    (root / "labels" / "test" / "0.txt").write_text("0 .5\n")
    code, shown = check(root, monkeypatch, capsys)
    assert code == DATA and "ERROR   test" in shown


def test_the_other_splits_can_be_converted(root, tmp_path):
    without_labels(root, "test")
    with pytest.raises(UserError, match="To convert the others: --splits train val"):
        convert(load_data_spec(root), "coco", tmp_path / "out")


def four_bands(root, path):
    Image.new("RGBA", (64, 64), (9, len(path.name), 3, 4)).save(path)


def a_folder(root, path):
    (root / "train.txt").write_text("images/train\n")
    yaml = root / "data.yaml"
    yaml.write_text(yaml.read_text().replace("train: images/train", "train: train.txt"))


def floats(root, path):
    path.unlink()
    Image.new("F", (64, 64), 0.5).save(path.with_suffix(".tif"))


def no_rights(root, path):
    path.unlink()
    path.symlink_to(path.name)  # a circle, as rights do not hold for root


@pytest.mark.parametrize(
    ("spoil", "code", "remedy", "flags"),
    [
        (four_bands, "picture-bands", "--set data.bands=", ("--set", "data.bands=[4,3,2]")),
        (floats, "picture-range", "--set data.pixel_range=auto", ("--set", "data.pixel_range=full")),
        (a_folder, "picture-folder", "name these folders in the YAML", ()),
        (no_rights, "picture-access", "look at their rights", ()),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_another_file_would_not_mend(root, monkeypatch, capsys, spoil, code, remedy, flags):
    spoil(root, root / "images/train/0.png")
    status, _ = check(root, monkeypatch, capsys, "--json", str(root / "out.json"), *flags)
    findings = json.loads((root / "out.json").read_text())["findings"]
    told = [(finding["code"], finding["remedy"]) for finding in findings if finding["severity"] == "error"]
    assert status == DATA and code in dict(told) and remedy in dict(told)[code], told
    assert not any("delete these files" in text for _, text in told)
