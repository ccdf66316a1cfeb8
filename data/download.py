"""``download:`` of a data-set YAML: archives that ``--download`` fetches, checks, unpacks. Nothing is run.

An entry is an http(s) URL, or a map of ``url``, ``sha256``, ``size`` (bytes) and ``to`` (a folder inside the
data set); a list holds several. Where they land is never up to the YAML: below the user's data-sets root
(``--data-root``), in a folder that is made for this data set (``folder_of``) and holds nothing else.

``.ltrb-download.json`` in that folder marks it as ours and lists what has arrived whole, so that an
interrupted download goes on. ``downloads.json`` in the user's cache directory, {URL: {"sha256", "size"}},
keeps the sum of the first download of URLs for which the YAML gives none; later ones are compared with it.
"""

import filecmp
import hashlib
import json
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple

from data.cache import cache_folder
from data.fetch import Fetched, fetch_file
from data.unpack import Refused, split_name, unpack
from utils.config import DataConfig
from utils.errors import DATA, USAGE, UserError
from utils.files import open_regular, write_whole
from utils.training.run_lock import LOCK, RunLock
from utils.wording import show_value

REPOSITORY = Path(__file__).resolve().parents[1]
DATA_ROOT = DataConfig().root  # in the working directory
RECORD, WORK = ".ltrb-download.json", ".incoming"  # in a data set's folder; archives bring no hidden files
CODE_FOLDERS = {"site-packages", "dist-packages"}
RESERVED = re.compile(r"con|prn|aux|nul|(com|lpt)[0-9]", re.IGNORECASE)  # Windows takes these for devices
REMEDY = "Scripts are never run: fetch the data yourself, or give url, sha256, size, to of an archive"


class Download(NamedTuple):
    """One archive. ``fault`` says what is wrong with the entry and where; only ``fetch_all`` minds."""

    url: str
    sha256: str | None  # 64 hexadecimal digits, lower case
    size: int | None  # bytes
    to: str  # folder inside the data set's, "" is that itself
    fault: str = ""


Sums = dict[str, dict]  # what arrived -> {"sha256", "size"}


def read_downloads(yaml: Path, value: object) -> tuple[Download, ...]:
    """The entries of the YAML's ``download`` value, ``()`` for None. Raises nothing and runs nothing.

    YOLOv5's scripts, other schemes, unknown keys and impossible sums become entries with a ``fault``, so
    that a data set that is there already still loads.
    """
    if value is None:
        return ()
    if isinstance(value, list):
        return tuple(_read_entry(f"{yaml}: download[{index}]", item) for index, item in enumerate(value))
    return (_read_entry(f"{yaml}: download", value),)


def folder_of(yaml: Path, path: object, root: str | Path) -> Path:
    """The data set's own folder below the data-sets root: where a download goes, and is read afterwards.

    Its name is the last part of the YAML's ``path``, else the YAML's own name, else that of the folder around
    it: the first that is plain. A number stands for a name where none is.
    """
    names = [Path(path).name if isinstance(path, str) else "", yaml.stem, yaml.parent.name]
    digest = hashlib.sha256(os.fsencode(yaml.name)).hexdigest()[:8]
    name = next(filter(_is_plain, names), f"set-{digest}")
    return Path(os.path.abspath(Path.cwd() / os.path.expanduser(root))) / name


def download_state(folder: Path, downloads: tuple[Download, ...]) -> str:
    """Whether ``folder`` holds what these downloads bring: ``complete``, ``partial``, or ``other`` archives.

    An empty string where nobody has downloaded into it, or the YAML names no downloads.
    """
    record, asked = read_record(folder), {_key(entry): entry.sha256 for entry in downloads}
    if record is None or not asked:
        return ""
    if any(asked.get(key, "none") not in (None, item["sha256"]) for key, item in record.items()):
        return "other"
    return "complete" if record.keys() == asked.keys() else "partial"


def fetch_all(
    downloads: tuple[Download, ...], folder: Path, *, where: Path, tops: tuple[str, ...] = ()
) -> None:
    """Fetch, check and unpack every entry into ``folder``, in order; what is there already is only named.

    ``where`` is the YAML, for messages. An archive whose only top entry is a folder called like ``folder``,
    or in ``tops``, unpacks as that folder. Raises ``UserError``: for faulty entries and places before
    anything is fetched; later with the entries before the failing one in place, and nothing of that one.
    """
    for entry in downloads:
        if entry.fault:
            raise UserError(f"{entry.fault}. {REMEDY}.", DATA)
    if not downloads:
        print(f"{where}: has no `download`, so there is nothing to fetch")
        return
    folder = _check_place(folder)
    with _own_folder(folder, downloads, where) as record:
        for entry in downloads:
            known = record.get(_key(entry))
            if known and entry.sha256 in (None, known["sha256"]):
                print(f"already there: {entry.url} in {folder} (remove that folder to fetch it again)")
                continue
            label = f"{where}: download: {entry.url}"
            try:
                record[_key(entry)] = _fetch_entry(entry, folder, tops)._asdict()
            except Refused as error:
                raise UserError(f"{label}: {error}. Nothing was unpacked.", DATA) from error
            except OSError as error:
                what = f"cannot be unpacked into {folder}: {error}"
                raise UserError(f"{label}: {what}. Nothing was unpacked.", DATA) from error
            _write_sums(folder / RECORD, record)


def read_record(folder: Path) -> Sums | None:
    """What has arrived whole in a folder that a download made; None for any other folder."""
    try:
        return _read_sums(folder / RECORD)
    except (OSError, ValueError):
        return None


def _key(entry: Download) -> str:
    return f"{entry.url} {entry.to}"


# the YAML's value


def _read_entry(where: str, value: object) -> Download:
    content = value if isinstance(value, dict) else {"url": value}
    wrong = [key for key, (is_good, _) in ENTRY.items() if not is_good(content.get(key))]
    wrong += [key for key in content if key not in ENTRY]
    if wrong:
        key, shown = wrong[0], show_value(content.get(wrong[0]))
        what = (
            f"{shown} is not {ENTRY[key][1]}" if key in ENTRY else f"unknown key; known: {', '.join(ENTRY)}"
        )
        return Download("", None, None, "", f"{where}{f'.{key}' * (content is value)}: {what}")
    sha256, to = content.get("sha256"), split_name(content.get("to") or "")
    return Download(content["url"], sha256 and sha256.lower(), content.get("size"), "/".join(to))


def _is_folder(value: str) -> bool:
    try:
        return not any(part.startswith(".") for part in split_name(value))
    except Refused:
        return False


URL = re.compile(
    r"https?://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:[1-9][0-9]{0,4})?([/?#][!-~]*)?", re.IGNORECASE
)
ENTRY: dict[str, tuple[Callable[[object], object], str]] = {  # key -> what is good for it, and in words
    "url": (
        lambda value: isinstance(value, str) and URL.fullmatch(value),
        "the http or https URL of an archive (ASCII, no user name)",
    ),
    "sha256": (
        lambda value: value is None or (isinstance(value, str) and re.fullmatch("[0-9a-fA-F]{64}", value)),
        "64 hexadecimal digits in quotes",
    ),
    "size": (lambda value: value is None or (type(value) is int and value > 0), "a number of bytes"),
    "to": (
        lambda value: value is None or (isinstance(value, str) and _is_folder(value)),
        "a folder inside the data set, not a hidden one",
    ),
}


# where it lands


def _is_plain(name: str) -> bool:
    """Whether a folder of this name steers nothing: no hidden one, no device, nothing that Python imports."""
    folded = unicodedata.normalize("NFKC", name)
    if folded != name or not re.fullmatch(r"\w[\w.+-]{0,59}", name) or name.endswith("."):
        return False
    if RESERVED.fullmatch(name.partition(".")[0]) or name.lower() in CODE_FOLDERS:
        return False
    found = PathFinder.find_spec(name)
    return name not in sys.stdlib_module_names and (found is None or found.origin is None)  # None: a folder


def _check_place(folder: Path) -> Path:
    """``folder`` with its root resolved; refuses a root where files that come from a network could be run."""
    root = Path(os.path.realpath(folder.parent))
    ours = root.relative_to(REPOSITORY).parts[:1] if root.is_relative_to(REPOSITORY) else None
    environments = [base / name for base in (root, *root.parents) for name in ("pyvenv.cfg", "conda-meta")]
    prefixes = (sys.prefix, sys.base_prefix)
    faults = {
        "the repository itself": root == REPOSITORY,
        "a folder of the repository's code": ours and (REPOSITORY / ours[0] / "__init__.py").exists(),
        "in a hidden folder": any(part.startswith(".") for part in root.parts),
        "in an environment of Python": any(map(os.path.exists, environments))
        or any(map(root.is_relative_to, prefixes))
        or not CODE_FOLDERS.isdisjoint(root.parts),
    }
    for what, present in faults.items():
        if present:
            raise UserError(
                f"--data-root {root}: this is {what}, where nothing from a network may land. Choose a folder "
                "for data sets, such as --data-root ~/datasets",
                USAGE,
            )
    if folder.is_symlink():
        text = f"{folder}: a link, and downloads follow none. Remove it, or choose another --data-root"
        raise UserError(text, DATA)
    return root / folder.name


@contextmanager
def _own_folder(folder: Path, downloads: tuple[Download, ...], where: Path) -> Iterator[Sums]:
    """``folder``, new or ours, for this process alone, with an empty ``WORK`` in it; yields its record.

    What was made here and is empty at the end goes again.
    """
    made = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _claim(folder, downloads, where)  # before the lock, which is no file for a folder of somebody else's
        with RunLock("downloaded", other="--data-root") as lock:
            lock.take(folder)
            record = _claim(folder, downloads, where)
            _write_sums(folder / RECORD, record)
            shutil.rmtree(folder / WORK, ignore_errors=True)  # of a process that was killed
            (folder / WORK).mkdir()
            try:
                yield record
            finally:
                shutil.rmtree(folder / WORK, ignore_errors=True)
                if not record:
                    (folder / RECORD).unlink(missing_ok=True)
    except OSError as error:
        text = f"{where}: download: cannot be written into {folder}: {error}"
        raise UserError(f"{text}. Choose another --data-root.", DATA) from error
    finally:
        for path in made:
            with suppress(OSError):  # not empty
                path.rmdir()


def _claim(folder: Path, downloads: tuple[Download, ...], where: Path) -> Sums:
    """The record of a folder that is new, empty or of these downloads; any other folder is refused."""
    record = read_record(folder)
    if record is None and not all(path.name.startswith(LOCK) for path in folder.iterdir()):
        what = "is there already, and no download made it"
    elif record and (others := record.keys() - set(map(_key, downloads))):
        what = f"holds the download of another data set ({min(others).strip()})"
    else:
        return record or {}
    raise UserError(
        f"{where}: download: {folder} {what}; nothing is written into it. Where it is this data set, give "
        "its folder as `path`; else move it away, or choose another --data-root",
        DATA,
    )


def _fetch_entry(entry: Download, folder: Path, tops: tuple[str, ...]) -> Fetched:
    target = folder / entry.to
    if os.path.realpath(target) != str(target):
        raise Refused(f"{target} is behind a link")
    archive, content, sums = folder / WORK / "archive", folder / WORK / "content", _load_sums()
    fetched = fetch_file(entry.url, archive, expected=entry.size)
    _check_sum(entry, fetched, sums)
    content.mkdir()
    unpacked = unpack(archive, content)
    (top, *others), tops = os.listdir(content), (target.name,) if entry.to else (target.name, *tops)
    strip = not others and top in tops and (content / top).is_dir()
    _move_into(content / top if strip else content, target)
    shutil.rmtree(content, ignore_errors=True)
    archive.unlink()
    _keep_sum(entry.url, fetched)
    print(f"unpacked {unpacked.num_files:,} files into {target}")
    if unpacked.left_out:
        print(f"left out, as no pictures, labels or text: {unpacked.left_out:,}, such as {unpacked.example}")
    return fetched


def _move_into(source: Path, target: Path) -> None:
    """Move a tree into place, also into folders that are there; checked as a whole before anything moves."""
    for new, place in list(_plan_moves(source, target)):
        place.parent.mkdir(parents=True, exist_ok=True)
        os.rename(new, place)


def _plan_moves(source: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    """(from, to) of the largest trees and of the files that are not there yet; equal files need no move."""
    if not os.path.lexists(target):
        yield source, target
    elif source.is_dir() and target.is_dir() and not target.is_symlink():
        for path in sorted(source.iterdir()):
            yield from _plan_moves(path, target / path.name)
    elif source.is_dir() or target.is_symlink() or not target.is_file():
        raise Refused(f"{target} is in the way")
    elif not filecmp.cmp(source, target, shallow=False):
        raise Refused(f"{target} is there already, with other content, and is never replaced; move it away")


# sums


def _check_sum(entry: Download, fetched: Fetched, sums: dict) -> None:
    """Compare with the YAML's size and sha256; without a sha256, with the sum of the first download."""
    changed = "The file was changed, or is not the one that was meant: ask where it comes from"
    if entry.size not in (None, fetched.size):
        raise Refused(f"{fetched.size:,} bytes have come, `size` in the YAML says {entry.size:,}. {changed}")
    if entry.sha256 not in (None, fetched.sha256):
        raise Refused(f"its sha256 is {fetched.sha256}, the YAML says {entry.sha256}. {changed}")
    first = sums.get(entry.url, {}).get("sha256")
    if entry.sha256 is None and first is None:
        print(f"sha256 {fetched.sha256}, {fetched.size:,} bytes: the YAML has no sum to check it against;")
        print(f"  kept in {_sums_file()} and compared from now on; `sha256:` in the YAML pins it")
    elif entry.sha256 is None and first != fetched.sha256:
        both = f"its sha256 is {fetched.sha256}, that of the first download was {first}"
        pin = f"If you trust the new one, write it as `sha256:` below the `url:` (the old: {_sums_file()})"
        raise Refused(f"{both}. {changed}. {pin}")


def _sums_file() -> Path:
    return cache_folder() / "downloads.json"


def _load_sums() -> Sums:
    """The content of ``downloads.json``; an unreadable one is an error: its sums are lost."""
    try:
        return _read_sums(_sums_file())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        text = f"{_sums_file()}: not readable as the sums of downloads ({error})"
        raise UserError(f"{text}. Delete it: the sums of first downloads start anew.", DATA) from error


def _read_sums(path: Path) -> Sums:
    try:
        with open_regular(path, most=2**24) as file:
            content = json.loads(file.read())
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    items = content.values() if isinstance(content, dict) else [None]
    if not all(isinstance(item, dict) and isinstance(item.get("sha256"), str) for item in items):
        raise ValueError("no map of sums")
    return content


def _write_sums(path: Path, sums: Sums) -> None:
    """The old file stays whole until the new one is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(sums, indent=1) + "\n")


def _keep_sum(url: str, fetched: Fetched) -> None:
    try:
        _write_sums(_sums_file(), {**_load_sums(), url: fetched._asdict()})
    except OSError as error:
        text = f"not remembered: {_sums_file()}: {error.strerror} (LTRB_CACHE chooses the folder)"
        print(text, file=sys.stderr)
