"""``download:`` of a data-set YAML: archives that ``--download`` fetches, checks, unpacks. Nothing is run.

An entry is an http(s) URL, or a map of ``url``, ``sha256``, ``size`` (bytes) and ``to`` (a folder below the
data set's root); a list holds several. Where the YAML gives no sha256, the sum of the first download is kept
in ``downloads.json`` in the user's cache directory, and that of every later download is compared with it.

``downloads.json``: {URL: {"sha256", "size", "files"}}, where ``files`` is a sample of what was unpacked.
While an entry's whole sample exists in its folder and the sum is not another one than the YAML's, the entry
counts as there already and is not fetched.
"""

import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from data.cache import cache_folder, replacing
from data.fetching.archives import Refused, split_name
from data.fetching.fetch import Fetched, fetch_file
from data.fetching.unpack import unpack
from utils.errors import DATA, UserError
from utils.wording import show_value

WANTED = {
    "url": "the http or https URL of an archive (ASCII, no user name)",
    "sha256": "64 hexadecimal digits in quotes",
    "size": "a number of bytes",
    "to": "a folder below the data set's root",
}
SAMPLE = 32  # files of an archive that are remembered
REMEDY = "Scripts are never run: fetch the data yourself, or give url, sha256, size, to of an archive"


class Download(NamedTuple):
    """One archive. ``fault`` says what is wrong with the entry and where; only ``fetch_all`` minds."""

    url: str
    sha256: str | None  # 64 hexadecimal digits, lower case
    size: int | None  # bytes
    to: str  # folder below the data set's root, "" is the root itself
    fault: str = ""


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


def fetch_all(downloads: tuple[Download, ...], root: Path, *, where: Path) -> None:
    """Fetch, check and unpack every entry below ``root``, in order; what is there already is only named.

    ``where`` is the YAML, for messages. Raises ``UserError``: for faulty entries before anything is fetched;
    later with the entries before the failing one in place, and nothing of that one. One process at a time.
    """
    for entry in downloads:
        if entry.fault:
            raise UserError(f"{entry.fault}. {REMEDY}.", DATA)
    if not downloads:
        print(f"{where}: has no `download`, so there is nothing to fetch")
    for entry in downloads:
        _fetch(entry, Path(os.path.abspath(root), entry.to), where)


def _read_entry(key: str, value: object) -> Download:
    content = value if isinstance(value, dict) else {"url": value}
    fault = _find_fault(content)
    if fault:
        name, text = fault
        return Download("", None, None, "", f"{key}.{name}: {text}" if content is value else f"{key}: {text}")
    sha256 = content.get("sha256")
    return Download(content["url"], sha256 and sha256.lower(), content.get("size"), content.get("to") or "")


def _find_fault(content: dict) -> tuple[str, str] | None:
    """(key, what is wrong with it) of the first fault of an entry."""
    url, sha256, size, to = (content.get(name) for name in WANTED)
    good = {
        "url": _is_url(url),
        "sha256": sha256 is None or (isinstance(sha256, str) and re.fullmatch("[0-9a-fA-F]{64}", sha256)),
        "size": size is None or (isinstance(size, int) and not isinstance(size, bool) and size > 0),
        "to": to is None or _is_folder(to),
    }
    faults = [
        (name, f"{show_value(content.get(name))} is not {WANTED[name]}") for name in WANTED if not good[name]
    ]
    unknown = [
        (str(name), f"unknown key; an entry has {', '.join(WANTED)}")
        for name in content
        if name not in WANTED
    ]
    return next(iter(faults + unknown), None)


def _is_url(value: object) -> bool:
    if not isinstance(value, str) or not re.fullmatch("[!-~]+", value):
        return False
    try:
        parts = urlsplit(value)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and "@" not in parts.netloc
            and parts.port != 0
        )
    except ValueError:  # a port that is no number, a bracket alone
        return False


def _is_folder(value: object) -> bool:
    try:
        return isinstance(value, str) and split_name(value) is not None
    except Refused:
        return False


def _fetch(entry: Download, target: Path, where: Path) -> None:
    label = f"{where}: download: {entry.url}"
    record = _load_record()
    if _is_there(entry, target, record):
        print(f"already there: {entry.url} in {target} (delete the files to fetch it again)")
        return
    with _temporary_folder(label) as folder:
        archive = Path(folder) / "archive"
        try:
            fetched = fetch_file(entry.url, archive, target=target, expected=entry.size)
            _check_sum(entry, fetched, record)
        except Refused as error:
            raise UserError(f"{label}: {error}. Nothing was unpacked.", DATA) from error
        files = unpack(archive, target, label=label)
    print(f"unpacked {len(files):,} files into {target}")
    _keep_record(entry, fetched, files)


def _temporary_folder(label: str) -> tempfile.TemporaryDirectory:
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=cache_folder(), prefix="download-")
    except OSError as error:
        text = f"{label}: no room for a temporary file in {cache_folder()}: {error.strerror}"
        raise UserError(f"{text}. LTRB_CACHE chooses another folder.", DATA) from error


def _check_sum(entry: Download, fetched: Fetched, record: dict) -> None:
    """Compare with the YAML's size and sha256; without a sha256, with the sum of the first download."""
    changed = "The file was changed, or is not the one that was meant: ask where it comes from"
    first = record.get(entry.url)
    if entry.size not in (None, fetched.size):
        raise Refused(f"{fetched.size:,} bytes have come, `size` in the YAML says {entry.size:,}. {changed}")
    if entry.sha256 not in (None, fetched.sha256):
        raise Refused(f"its sha256 is {fetched.sha256}, the YAML says {entry.sha256}. {changed}")
    if entry.sha256 is None and first is None:
        print(f"sha256 {fetched.sha256}, {fetched.size:,} bytes: the YAML has no sum to check it against;")
        print(f"  kept in {_record_path()} and compared from now on; `sha256:` in the YAML pins it")
    elif entry.sha256 is None and first["sha256"] != fetched.sha256:
        both = f"its sha256 is {fetched.sha256}, that of the first download was {first['sha256']}"
        pin = f"If you trust the new one, write it as `sha256:` below the `url:` (the old: {_record_path()})"
        raise Refused(f"{both}. {changed}. {pin}")


def _is_there(entry: Download, target: Path, record: dict) -> bool:
    known = record.get(entry.url)
    if known is None or entry.sha256 not in (None, known["sha256"]):
        return False
    return all(os.path.lexists(target / name) for name in known["files"])


def _record_path() -> Path:
    return cache_folder() / "downloads.json"


def _load_record() -> dict:
    """The content of ``downloads.json``, checked; an unreadable one is an error: its sums are lost."""
    try:
        content = json.loads(_record_path().read_text(encoding="utf-8"))
        return {
            url: {
                "sha256": item["sha256"],
                "size": item["size"],
                "files": [str(name) for name in item["files"]],
            }
            for url, item in content.items()
        }
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        text = f"{_record_path()}: not readable as the record of downloads ({error!r})"
        raise UserError(f"{text}. Delete it: the sums of first downloads start anew.", DATA) from error


def _keep_record(entry: Download, fetched: Fetched, files: list[str]) -> None:
    """Add to ``downloads.json``: the old file stays whole until the new one is complete."""
    sample = files[:: -(-len(files) // SAMPLE)]
    record = {**_load_record(), entry.url: {**fetched._asdict(), "files": sample}}
    path = _record_path()
    try:
        with replacing(path) as file:
            file.write((json.dumps(record, indent=1) + "\n").encode())
    except OSError as error:
        print(f"not remembered: {path}: {error.strerror} (LTRB_CACHE chooses the folder)", file=sys.stderr)
