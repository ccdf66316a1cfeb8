"""A cache entry is what was written, or it is made again, with a line: no traceback, no wait, same result."""

import io
import os
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data.cache
from data.cache import cache_folder, load_arrays, save_arrays
from data.doctor.inspect_pictures import inspect_pictures
from data.index import COLUMNS, read_split
from data.spec import load_data_spec

XML = "<annotation><object><name>{}</name><bndbox><xmin>{}</xmin><ymin>1</ymin><xmax>20</xmax><ymax>9</ymax>"


@pytest.fixture(autouse=True)
def _timeout():
    """A wait for a pipe or the end of a device is a failure, not a wait."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def yaml(tmp_path, monkeypatch) -> Path:
    """A VOC data set, whose class names are looked for, with three pictures; a cache of its own."""
    monkeypatch.setenv("LTRB_CACHE", str(tmp_path / "cache"))
    for folder in ("images", "xml"):
        (tmp_path / "set" / folder).mkdir(parents=True)
    for number, name in enumerate(("cat", "dog", "cat")):
        grey = np.arange(24 * 32 * 3, dtype=np.uint32).reshape(24, 32, 3) * (number + 3) % 251
        Image.fromarray(grey.astype(np.uint8)).save(tmp_path / "set" / "images" / f"{number}.png")
        text = XML.format(name, number) + "</bndbox></object></annotation>"
        (tmp_path / "set" / "xml" / f"{number}.xml").write_text(text)
    text = "train: images\nformat: voc\nannotations: xml\n"
    (tmp_path / "set" / "data.yaml").write_text(text)
    return tmp_path / "set" / "data.yaml"


def everything(yaml: Path) -> list:
    """All that is cached, as plain values."""
    spec = load_data_spec(yaml)
    found = read_split(spec, "train")
    paths = [os.fsdecode(path) for path in found.index.paths.tolist()]
    looks = inspect_pictures(paths, "key")
    plain = [*found.index, found.report, found.problems, found.label_files, spec.names, *looks]
    return [value.tolist() if isinstance(value, np.ndarray) else value for value in plain]


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def change(**new: Callable) -> Callable:
    """Damage: the arrays of an entry are others."""

    def damage(path: Path) -> None:
        arrays = arrays_of(path)
        save_sealed(path, arrays | {name: make(arrays[name]) for name, make in new.items() if name in arrays})

    return damage


def save_sealed(path: Path, arrays: dict) -> None:
    """As ``save_arrays``, under the name that is known."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.cache, "_path_of", lambda kind, key: path)
        save_arrays("", "", arrays)


def encrypted(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # local headers, then the directory's
        start = -1
        while (start := content.find(mark, start + 1)) >= 0:
            content[start + place] |= 1
    path.write_bytes(content)


def resaved(save: Callable) -> Callable:
    """Damage: written by another program."""

    def damage(path: Path) -> None:
        content = io.BytesIO()
        save(content, arrays_of(path))
        path.write_bytes(content.getvalue())

    return damage


def huge(path: Path) -> None:
    """A header that claims 80 TB, with a sum that is right for it."""
    content = io.BytesIO()
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000,), }"
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("sizes.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        file.comment = b"0" * 64
    whole = content.getvalue()
    path.write_bytes(whole[:-64] + data.cache.hashlib.sha256(whole[:-64]).hexdigest().encode())


def replaced(make: Callable) -> Callable:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


def sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(10**12)


def flipped(place: float) -> Callable:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(place * (len(content) - 1))] ^= 1
        path.write_bytes(content)

    return damage


def cut(share: float) -> Callable:
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


ANY = {  # of every store
    "encrypted": encrypted,
    "npy": lambda path: np.save(open(path, "wb"), np.arange(3)),  # noqa: SIM115
    "json": lambda path: path.write_text('{"paths": []}'),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(5000)),
    "no arrays": lambda path: save_sealed(path, {}),
    "no sum": resaved(lambda content, arrays: np.savez(content, **arrays)),
    "compressed": resaved(lambda content, arrays: np.savez_compressed(content, **arrays)),
    "objects": resaved(lambda content, arrays: np.savez(content, paths=np.array([{}, None], object))),
    "huge": huge,
    "a pipe": replaced(os.mkfifo),
    "a device": replaced(lambda path: path.symlink_to("/dev/zero")),
    "a folder": replaced(Path.mkdir),
    "loop": replaced(lambda path: path.symlink_to(path)),
    "sparse": replaced(sparse),
    "to nowhere": replaced(lambda path: path.symlink_to("nowhere")),
    **{f"cut at {share}": cut(share) for share in (0.01, 0.5, 0.999)},
    **{f"flipped at {place}": flipped(place) for place in (0, 0.1, 0.3, 0.6, 0.9, 1)},
}
CONTENT = {  # of one store each: the sum is right, what it is over is not
    "lengths": change(boxes=lambda a: a[:-1]),
    "more rows": change(labels=lambda a: np.append(a, 0)),
    "negative offsets": change(offsets=lambda a: a - 1),
    "falling offsets": change(offsets=lambda a: a[[0, 3, 2, 3]]),
    "offsets too far": change(offsets=lambda a: a * 2),
    "too many offsets": change(offsets=lambda a: np.append(a, a[-1])),
    "label out of range": change(labels=lambda a: a + 2),
    "negative label": change(labels=lambda a: a - 1),
    "nan": change(boxes=lambda a: a * np.nan),
    "infinite": change(areas=lambda a: a * np.inf),
    "upside down": change(boxes=lambda a: a[:, ::-1]),
    "outside": change(boxes=lambda a: a + 100),
    "negative sizes": change(sizes=lambda a: -a),
    "turned": change(sizes=lambda a: a.T),
    "float sizes": change(sizes=lambda a: a.astype(float)),
    "text": change(sizes=lambda a: a.astype(str)),
    "unsorted": change(paths=lambda a: a[::-1]),
    "other paths": change(pictures=lambda a: a[:-1]),
    "wide text": change(paths=lambda a: a.astype(str)),
    "few files": change(label_files=lambda a: a[:0]),
    "stats": change(stats=lambda a: a[:, :2]),
    "report": change(report=lambda a: a[:3]),
    "counts": change(report=lambda a: a * 0),
    "problems": change(problems=lambda a: np.frombuffer(b"{", np.uint8)),
    "thumbnails": change(thumbnails=lambda a: a[:, :16]),
    "digests": change(digests=lambda a: a.astype(np.int64)),
    "faults": change(faults=lambda a: np.zeros(len(a))),
    "json in classes": change(text=lambda a: np.frombuffer(b"[1, ", np.uint8)),
    "number in classes": change(text=lambda a: np.frombuffer(b"7", np.uint8)),
    "numbers in classes": change(text=lambda a: np.frombuffer(b"[7, null]", np.uint8)),
}
STORES = ("labels", "pictures", "classes")


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("damage", ANY)
def test_a_damaged_entry_is_made_again(damage, store, yaml, capsys):
    cold = everything(yaml)
    assert not capsys.readouterr().out
    (path,) = (cache_folder() / store).iterdir()
    ANY[damage](path)
    assert everything(yaml) == cold
    lines = capsys.readouterr().out.splitlines()
    assert lines == [] if damage == "to nowhere" else len(lines) == 1 and str(path) in lines[0], lines
    assert everything(yaml) == cold
    assert damage == "a folder" or not capsys.readouterr().out  # the good entry stands there again


@pytest.mark.parametrize("damage", CONTENT)
def test_an_entry_that_contradicts_itself_is_made_again(damage, yaml, capsys):
    cold = everything(yaml)
    for store in STORES:
        CONTENT[damage](next((cache_folder() / store).iterdir()))
    assert everything(yaml) == cold
    out = capsys.readouterr().out
    assert out and "Traceback" not in out


@pytest.mark.parametrize("place", ["a file", "a loop", "read-only"])
def test_a_cache_that_cannot_be_costs_lines_only(place, yaml, tmp_path, monkeypatch, capfd):
    cold, folder = everything(yaml), tmp_path / "other"
    monkeypatch.setenv("LTRB_CACHE", str(folder))
    if place == "a file":
        folder.write_text("")
    elif place == "a loop":
        folder.symlink_to(folder)
    else:
        monkeypatch.setattr(data.cache, "replacing", refuse)
    assert everything(yaml) == cold and everything(yaml) == cold
    assert capfd.readouterr().err.count("cache not written: ") == 1


def refuse(path):
    raise PermissionError(13, "Permission denied", str(path))


def test_no_home_is_a_folder_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.delenv("LTRB_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(data.cache.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(data.cache.tempfile, "mkdtemp", lambda prefix: str(tmp_path / "fresh"))
    monkeypatch.setattr(Path, "home", no_home)
    own = tmp_path / f"ltrb-{os.getuid()}"
    assert cache_folder() == own / ".cache" / "ltrb" == cache_folder() and own.stat().st_mode & 0o077 == 0
    own.chmod(0o777)  # others may write there
    assert cache_folder() == tmp_path / "fresh" / ".cache" / "ltrb"
    own.rmdir()
    own.symlink_to(tmp_path)
    assert cache_folder() == tmp_path / "fresh" / ".cache" / "ltrb"
    monkeypatch.setenv("LTRB_CACHE", "~nobody-of-that-name/x")
    assert cache_folder() == Path("~nobody-of-that-name/x")


def no_home():
    raise RuntimeError("Could not determine home directory.")


def test_another_file_of_the_same_size_and_time_is_noticed(yaml, capsys):
    """As rsync -t, cp -p and unzip bring it: times of modification come with the files."""
    cold = everything(yaml)
    for name in ("xml/0.xml", "images/1.png"):
        path = yaml.parent / name
        state, fresh = path.stat(), path.with_name("fresh")
        content = path.read_bytes().replace(b"<name>cat", b"<name>dog")
        fresh.write_bytes(content if name.endswith("xml") else (yaml.parent / "images/2.png").read_bytes())
        os.truncate(fresh, state.st_size)
        os.utime(fresh, ns=(state.st_atime_ns, state.st_mtime_ns))
        os.replace(fresh, path)
    found = everything(yaml)
    assert "and 1 others changed" in capsys.readouterr().out
    Path(os.environ["LTRB_CACHE"]).rename(yaml.parent / "old")
    assert everything(yaml) == found != cold


def test_a_lifted_ban_is_noticed(yaml, monkeypatch):
    """A chmod changes nothing of the content."""
    before = data.cache.stat_files([str(yaml)])
    yaml.chmod(0o600)
    assert (before != data.cache.stat_files([str(yaml)])).any()


def test_entries_need_what_their_reader_declares(tmp_path, monkeypatch):
    monkeypatch.setenv("LTRB_CACHE", str(tmp_path))
    assert load_arrays("labels", "absent", COLUMNS, name="x") is None
