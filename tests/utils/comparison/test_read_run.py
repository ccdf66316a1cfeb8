"""metrics.json and results.csv as a stranger may send them: read, or refused in a line, never a traceback."""

import json
import os
from pathlib import Path

import pytest

from tests.utils.test_files import ends_within
from utils.comparison.read_run import read_curves, read_metrics
from utils.errors import DATA, UserError

DATA_OF = {"fingerprint": "f", "path": "d.yaml", "num_pictures": 1, "num_boxes": 2}
METRICS = [
    ("", "Expecting value"),
    ("[]", "dictionary"),
    ("[" * 100_000, "recursion"),
    ('{"AP": ' + "1" * 5000 + "}", "digit"),
    (None, "not a regular file"),
    *((json.dumps({key: value}), key) for key in ("data", "training", "environment") for value in (5, [])),
    (json.dumps({"data": {}}), "data.fingerprint field required"),
    (json.dumps({"data": DATA_OF | {"fingerprint": 5}}), "data.fingerprint"),
    (json.dumps({"environment": {"versions": {"torch": 5}}}), "environment.versions.torch"),
    (json.dumps({"per_class": {"a": 5}}), "per_class.a"),
]


def write(path: Path, text: str | None) -> None:
    os.mkfifo(path) if text is None else path.write_text(text)


@pytest.mark.parametrize(("text", "said"), METRICS, ids=range(len(METRICS)))
def test_metrics_that_are_not_ours(text, said, tmp_path):
    write(tmp_path / "metrics.json", text)
    with ends_within(20), pytest.raises(UserError, match=r"metrics.json is damaged") as error:
        read_metrics(tmp_path)
    assert said in str(error.value) and error.value.code == DATA and len(str(error.value)) < 600


def test_metrics_of_older_runs(tmp_path):
    write(tmp_path / "metrics.json", json.dumps({"AP": -1, "per_class": {"a": {"AP": -1, "boxes": 0}}}))
    assert read_metrics(tmp_path) == {"AP": None, "per_class": {"a": {"AP": None, "boxes": 0}}}


@pytest.mark.parametrize("text", [None, "", "a,b\n1,2\n", "epoch,a\n1," + "2" * 200_000 + "\n"])
def test_a_table_that_is_not_ours(text, tmp_path):
    write(tmp_path / "results.csv", text)
    with ends_within(20):
        if text == "":
            assert read_curves(tmp_path) == {"epoch": []}
            return
        with pytest.raises(UserError, match=r"results.csv is damaged"):
            read_curves(tmp_path)


def test_rows_without_an_epoch_are_left_out_and_cells_that_are_no_numbers_empty(tmp_path):
    write(tmp_path / "results.csv", "epoch,a,metrics/AP\nx,1,1\n,1,1\n1,y,-1,7,8\n2,nan\n3,0.5,0.25\n")
    assert read_curves(tmp_path) == {
        "epoch": [1.0, 2.0, 3.0],
        "a": [None, None, 0.5],
        "metrics/AP": [None, None, 0.25],
    }
