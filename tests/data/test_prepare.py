"""What ``--download`` does where there is nothing to fetch, or all is there already."""

import pytest

import data.prepare
from data.prepare import prepare_data
from data.spec import load_data_spec

TEXT = "path: pool\ntrain: images\nnames: [a]\ndownload: https://example.org/a.zip\n"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data set folder; the working directory lies elsewhere."""
    for name in ("elsewhere", "set"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "set"


@pytest.fixture
def fetched(monkeypatch):
    """The folders that something was fetched into."""
    roots = []
    monkeypatch.setattr(data.prepare, "fetch_all", lambda entries, root, **_: roots.append(root))
    return roots


def write(root, text=TEXT):
    (root / "data.yaml").write_text(text, encoding="utf-8")
    return root / "data.yaml"


def test_a_folder_without_a_yaml_says_that_nothing_is_fetched(root, fetched, capsys):
    prepare_data(root, download=True)
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and str(root) in out and "no data.yaml" in out and not fetched
    prepare_data(root, download=False)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("folder", ["set/pool", "elsewhere/pool", "set", "elsewhere"])
def test_data_is_looked_for_where_the_reader_looks(root, fetched, capsys, folder):
    yaml = write(root)
    (root.parent / folder / "images").mkdir(parents=True)
    prepare_data(yaml, download=True)
    assert not fetched and "there already" in capsys.readouterr().out
    assert root.parent / folder in load_data_spec(yaml).search


@pytest.mark.parametrize("key", ["val", "test", "images", "annotations"])
def test_what_lacks_a_part_is_fetched_into_a_folder_of_its_own(root, fetched, key):
    (root / "pool" / "images").mkdir(parents=True)
    prepare_data(write(root, TEXT + f"{key}: gone\n"), download=True)
    prepare_data(write(root, TEXT + f"{key}: ../pool/images\n"), download=True)  # is there
    assert fetched == [root.parent / "elsewhere" / "datasets" / "pool"]


def test_nothing_is_fetched_without_the_flag(root, fetched):
    prepare_data(write(root), download=False)
    assert not fetched
