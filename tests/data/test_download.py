"""``download:`` of a data-set YAML, against a server on localhost; no other network is touched."""

import contextlib
import hashlib
import http.server
import io
import json
import os
import socket
import sys
import tarfile
import threading
import urllib.request
import zipfile
from pathlib import Path

import pytest
import yaml as pyyaml

from data import download, fetch
from data.download import RECORD, WORK, Download, fetch_all, folder_of, read_downloads
from data.formats.sources import split_sources
from data.prepare import prepare_data
from data.spec import find_place, load_data_spec
from data.unpack import Refused
from utils.arguments import train_parser, val_parser
from utils.config import Config
from utils.config_files import load_config, read_yaml
from utils.errors import DATA, USAGE, UserError
from utils.settings import TRAIN_SETTINGS, VAL_SETTINGS, given_settings, override

REPOSITORY = Path(__file__).parents[2]
WHERE = Path("set.yaml")
SHA = "0123456789abcdef" * 4


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def tar_of(files: dict[str, bytes], mode="w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


FILES = {"images/a.jpg": b"picture", "labels/a.txt": b"0 .5 .5 1 1\n"}
EVIL = dict.fromkeys(
    ("hotcoco.py", "evil.pth", "sitecustomize.py", RECORD, f"{WORK}/x.txt", ".git/hooks/post.txt"),
    b"raise SystemExit('PWNED')",
)
ZIP, TAR = zip_of(FILES), tar_of(FILES)
ZIP_SUM = hashlib.sha256(ZIP).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """``pages``: path -> body, or a function of the request handler. ``asked``: the paths, in order."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages, self.asked = {}, []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append(self.path)
        page = self.server.pages.get(self.path)
        if page is None:
            self.send_error(404)
        elif callable(page):
            page(self)
        else:
            answer(page)(self)
        self.close_connection = True

    def log_message(self, *_):
        pass


def answer(body: bytes, code=200, **headers):
    """A page with other headers; ``Content_Length=None`` leaves that one out."""

    def page(handler):
        handler.send_response(code)
        for name, value in ({"Content_Length": len(body)} | headers).items():
            if value is not None:
                handler.send_header(name.replace("_", "-"), str(value))
        handler.end_headers()
        handler.wfile.write(body)

    return page


@pytest.fixture(scope="module")
def running():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def server(running, tmp_path, monkeypatch):
    """The server with /a.zip only; an empty cache directory; no proxy; the working directory is ``area``."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LTRB_CACHE", str(tmp_path / "cache"))
    running.pages, running.asked = {"/a.zip": ZIP}, []
    (tmp_path / "area").mkdir()
    (tmp_path / "area" / "precious").write_text("mine")
    monkeypatch.chdir(tmp_path / "area")
    return running


@pytest.fixture
def folder(tmp_path):
    """Where the data set will be; neither it nor the data-sets root exists yet."""
    return tmp_path / "area" / "datasets" / "set"


def files_of(folder: Path) -> dict[str, bytes]:
    """What lies there, without our own record."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != RECORD]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def get(folder, *values):
    fetch_all(read_downloads(WHERE, list(values)), folder, where=WHERE)


def error_of(folder, *values, code=DATA) -> str:
    """The message for downloads that must fail, leaving nothing new behind."""
    before = sorted(Path.cwd().rglob("*")), os.path.lexists(folder), folder.parent.exists()
    with pytest.raises(UserError) as error:
        get(folder, *values)
    assert (sorted(Path.cwd().rglob("*")), os.path.lexists(folder), folder.parent.exists()) == before
    assert error.value.code == code
    return str(error.value)


# the YAML's value

URL = "https://example.org/a/b.zip?x=1"
ENTRIES = [  # value, entries
    (None, ()),
    ([], ()),
    (URL, (Download(URL, None, None, ""),)),
    ({"url": URL, "sha256": None, "to": "."}, (Download(URL, None, None, ""),)),
    (
        [{"url": "http://[::1]:8000/a.tar", "sha256": SHA.upper(), "size": 7, "to": "./images/train"}, URL],
        (Download("http://[::1]:8000/a.tar", SHA, 7, "images/train"), Download(URL, None, None, "")),
    ),
]


@pytest.mark.parametrize(("value", "entries"), ENTRIES)
def test_entries_are_read(value, entries):
    assert read_downloads(WHERE, value) == entries


SCRIPT = "from utils.downloads import download\nimport os\nos.system('touch TRAP')\n"
NO_URLS = (
    *("wget https://example.org/a.zip", "file:///etc/passwd", "ftp://example.org/a.zip", "$(touch x)", ""),
    *("//example.org/a.zip", "https://", "http://host:port/a.zip", "http://me:pass@example.org/a.zip"),
    *("http://[::1/a.zip", "http://example.org/\u00e4.zip", "http://x:0/a.zip", "https:///a.zip", SCRIPT),
)
FAULTS = {  # value -> what the message names
    "bash data/scripts/get_coco.sh": 'download: "bash data/scripts/get_coco.sh" is not the http or https URL',
    **dict.fromkeys(NO_URLS, "is not the http or https URL"),
    7: "download: 7 is not",
    True: "download: true is not",
}
MAP_FAULTS = [  # changed keys, what the message names
    ({"url": None}, "download.url: null is not the http or https URL"),
    ({"url": ["http://a/b"]}, "download.url: ["),
    ({"sha256": SHA[1:]}, f'download.sha256: "{SHA[1:]}" is not 64 hexadecimal digits in quotes'),
    ({"sha256": 123}, "download.sha256: 123 is not"),
    ({"size": 0}, "download.size: 0 is not a number of bytes"),
    ({"size": "7 MB"}, 'download.size: "7 MB"'),
    ({"size": True}, "download.size: true"),
    ({"size": 1.5}, "download.size: 1.5"),
    ({"to": ".."}, 'download.to: ".." is not a folder inside the data set'),
    ({"to": "a/../../x"}, "download.to"),
    ({"to": "/tmp"}, 'download.to: "/tmp"'),
    ({"to": "C:/x"}, 'download.to: "C:/x"'),
    ({"to": ".hidden"}, 'download.to: ".hidden"'),
    ({"to": "a/.git/hooks"}, "download.to"),
    ({"to": "a\u202eb"}, "download.to"),
    ({"to": 3}, "download.to: 3"),
    ({"md5": "x"}, "download.md5: unknown key; known: url, sha256, size, to"),
    ({1: "x"}, "download.1: unknown key"),
]


@pytest.mark.parametrize(
    ("value", "text"),
    [*FAULTS.items(), *(({"url": "http://example.org/a.zip", **keys}, text) for keys, text in MAP_FAULTS)],
)
def test_what_is_no_archive_loads_and_fails_only_when_fetched(value, text, server, folder):
    (entry,) = read_downloads(WHERE, value)
    assert entry.url == "" and entry.fault.startswith("set.yaml: download") and text in entry.fault
    message = error_of(folder, f"{server.url}/a.zip", value)
    assert "Scripts are never run: fetch the data yourself, or give url" in message
    assert text.partition("download")[2] in message and "download[1]" in message and server.asked == []


def test_no_entries_are_said(folder, capsys):
    fetch_all((), folder, where=WHERE)
    assert capsys.readouterr().out == "set.yaml: has no `download`, so there is nothing to fetch\n"


# where it lands

FOLDERS = [  # the YAML, its `path` -> the name of the folder
    ("sub/cells.yaml", "../datasets/blood", "blood"),
    ("sub/cells.yaml", None, "cells"),
    ("sub/cells.yaml", ".", "cells"),
    ("sub/cells.yaml", "..", "cells"),
    ("sub/cells.yaml", "~", "cells"),
    ("sub/cells.yaml", "$HOME", "cells"),
    ("sub/cells.yaml", "/", "cells"),
    ("sub/cells.yaml", "", "cells"),
    ("sub/cells.yaml", 7, "cells"),
    ("sub/cells.yaml", "/abs/elsewhere", "elsewhere"),
    ("sub/cells.yaml", ".venv/lib/python3/site-packages", "cells"),
    ("sub/cells.yaml", "\uff53\uff49te-packages", "cells"),
    ("sub/cells.yaml", "Site-Packages", "cells"),
    ("sub/cells.yaml", ".git/hooks", "hooks"),
    ("sub/cells.yaml", "x/.hidden", "cells"),
    ("sub/cells.yaml", "C:\\data\\x", "cells"),
    ("sub/cells.yaml", "a\x1b[2J", "cells"),
    ("sub/cells.yaml", "a\u202eb", "cells"),
    ("sub/cells.yaml", "a\0b", "cells"),
    ("sub/cells.yaml", "x" * 61, "cells"),
    ("sub/cells.yaml", "numpy", "cells"),
    ("sub/cells.yaml", "os", "cells"),
    ("sub/cells.yaml", "__main__.", "cells"),
    ("sub/cells.yaml", "con", "cells"),
    ("sub/cells.yaml", "LPT1.x", "cells"),
    ("sub/cells.yaml", "\u732b", "\u732b"),
    ("sub/data.yaml", None, "sub"),
    ("sub/data.yaml", "../models", "sub"),
    ("utils/data.yaml", None, "set-d8f0aa6f"),
    (".x/.data.yaml", None, "set-95b8d4da"),
]


@pytest.mark.parametrize(("name", "path", "expected"), FOLDERS)
def test_a_folder_has_a_plain_name(name, path, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = folder_of(tmp_path / name, path, "datasets")
    assert found.parent == tmp_path / "datasets"
    assert found.name == expected if "set-" not in expected else found.name.startswith("set-")


def write_yaml(path: Path, server, *, top="", url="/evil.zip") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{top}train: images\nnames: [a]\ndownload: {server.url}{url}\n")
    return path


HOSTILE = [
    ".",
    "..",
    "~",
    "../datasets",
    "datasets",
    ".git/hooks",
    "../.venv/lib/site-packages",
    "/tmp",
    "utils",
]
PLACES = ["cells.yaml", "sub/cells.yaml", "repo/cells.yaml", "repo/data/cells.yaml"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("path", HOSTILE)
def test_a_yaml_never_decides_where_an_archive_lands(path, place, server, tmp_path, monkeypatch, capsys):
    """All that is new lies in one folder below the data-sets root, is data, and is read from there."""
    area = tmp_path / "area"
    monkeypatch.setenv("HOME", str(area / "home"))
    for name in ("home", "datasets/other", ".git/hooks", ".venv/lib/site-packages", "utils", "repo/data"):
        (area / name).mkdir(parents=True)
    (area / "datasets" / "other" / "mine.txt").write_text("mine")
    server.pages["/evil.zip"] = zip_of(
        {**FILES, **EVIL, "data.yaml": b"train: x\ndownload: http://x/y.zip\n"}
    )
    yaml = write_yaml(area / place, server, top=f"path: {path}\n")
    before = set(area.rglob("*"))
    prepare_data(yaml, download=True)
    new = {str(item.relative_to(area)) for item in set(area.rglob("*")) - before}
    (folder,) = {name for name in new if name.count("/") == 1}
    assert folder.startswith("datasets/") and folder != "datasets/other"
    inside = {"images", "images/a.jpg", "labels", "labels/a.txt", "data.yaml", RECORD}
    assert new == {folder, *(f"{folder}/{name}" for name in inside)}
    assert json.loads((area / folder / RECORD).read_text()).keys() == {f"{server.url}/evil.zip "}
    assert f"left out, as no pictures, labels or text: {len(EVIL)}, such as" in capsys.readouterr().out
    assert split_sources(load_data_spec(yaml), "train") == [area / folder / "images"]  # in later runs, too
    assert load_data_spec(yaml).yaml == yaml and load_data_spec(yaml).root == area / folder
    prepare_data(yaml, download=True)
    assert server.asked == ["/evil.zip"] and "there already" in capsys.readouterr().out


def link(target: str):
    return lambda root: (root.parent / target).mkdir(parents=True) or root.symlink_to(root.parent / target)


def holding(name: str):
    def make(root):
        root.mkdir(parents=True)
        (root / name).write_text("")

    return make


ROOTS = {  # --data-root, how it is made -> what is wrong with it
    "the repository": (str(REPOSITORY), None, "the repository itself"),
    "its code": (str(REPOSITORY / "utils"), None, "repository's code"),
    "below its code": (str(REPOSITORY / "data" / "new"), None, "repository's code"),
    "this environment": (f"{sys.prefix}/new", None, "an environment of Python"),
    "its base": (f"{sys.base_prefix}/new", None, ""),
    "site-packages": (next(item for item in sys.path if item.endswith("site-packages")), None, ""),
    "venv": ("venv", holding("pyvenv.cfg"), "an environment of Python"),
    "conda": ("conda", holding("conda-meta"), "an environment of Python"),
    "below site-packages": ("lib/site-packages/x", None, "an environment of Python"),
    "hidden": (".cache", None, "a hidden folder"),
    "below hidden": ("a/.git/hooks", None, "a hidden folder"),
    "link to hidden": ("seen", link(".git/hooks"), "a hidden folder"),
    "link to an environment": ("seen", link("lib/site-packages"), "an environment of Python"),
}


@pytest.mark.parametrize("kind", ROOTS)
def test_a_root_where_code_could_run_is_refused(kind, server, tmp_path):
    name, make, text = ROOTS[kind]
    root = tmp_path / "area" / name
    if make:
        make(root)
    message = error_of(root / "set", f"{server.url}/a.zip", code=USAGE)
    assert text in message and "such as --data-root" in message and "\n" not in message and server.asked == []


def test_a_root_may_be_a_link_and_lie_anywhere_else(server, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "area" / "datasets").symlink_to(tmp_path / "disk")
    yaml = write_yaml(tmp_path / "area" / "cells.yaml", server, url="/a.zip")
    prepare_data(yaml, download=True)
    prepare_data(yaml, root=tmp_path / "own", download=True)
    for place in ("disk", "own"):
        assert files_of(tmp_path / place / "cells") == FILES
    with pytest.raises(UserError, match=r"--download fetches it into .*nowhere/cells.*--data-root"):
        split_sources(load_data_spec(yaml, root="nowhere"), "train")
    assert load_data_spec(yaml, root=tmp_path / "own").root == tmp_path / "own" / "cells"


def record_of(*keys):
    return json.dumps({key: {"sha256": SHA, "size": 1} for key in keys})


TAKEN = {  # what lies in the folder -> message
    "a file": ({"mine.txt": "mine"}, "is there already, and no download made it"),
    "a hidden file": ({".mine": ""}, "is there already, and no download made it"),
    "a folder": ({"images/a.jpg": ""}, "is there already, and no download made it"),
    "another download": ({RECORD: record_of("http://other/a.zip ")}, "another data set (http://other/a.zip)"),
    "a spoilt record": ({RECORD: "{"}, "is there already, and no download made it"),
    "a record of lists": ({RECORD: "[1]"}, "is there already, and no download made it"),
    "a deep record": ({RECORD: "[" * 100_000}, "is there already, and no download made it"),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_a_folder_that_is_not_ours_is_never_written_into(kind, server, folder):
    files, text = TAKEN[kind]
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    message = error_of(folder, f"{server.url}/a.zip")
    assert text in message and "choose another --data-root" in message and server.asked == []


@pytest.mark.parametrize("kind", ["link", "dangling link", "file", "link inside"])
def test_nothing_is_written_through_a_link(kind, server, folder, tmp_path):
    (tmp_path / "area" / "victim").mkdir()
    folder.parent.mkdir()
    if kind == "file":
        folder.write_text("")
    elif kind == "link inside":
        server.pages["/b.zip"] = zip_of({"b.jpg": b"b"})
        get(folder, f"{server.url}/a.zip")
        (folder / "sub").symlink_to(tmp_path / "area" / "victim")
    else:
        folder.symlink_to(tmp_path / "area" / ("victim" if kind == "link" else "nowhere"))
    message = error_of(folder, f"{server.url}/a.zip", {"url": f"{server.url}/b.zip", "to": "sub/deeper"})
    inside, whole = "is behind a link", "a link, and downloads follow none"
    assert {"file": "File exists", "link inside": inside}.get(kind, whole) in message


def test_two_yamls_of_one_name_do_not_share_a_folder(server, tmp_path):
    """Nor is the one read in place of the other, where that was never fetched."""
    server.pages["/b.zip"] = zip_of({"images/b.jpg": b"b"})
    first = write_yaml(tmp_path / "area" / "x" / "cells.yaml", server, url="/a.zip")
    second = write_yaml(tmp_path / "area" / "y" / "cells.yaml", server, url="/b.zip")
    prepare_data(first, download=True)
    with pytest.raises(UserError, match="holds the download of another data set"):
        prepare_data(second, download=True)
    with pytest.raises(UserError, match="not found"):
        split_sources(load_data_spec(second), "train")
    prepare_data(second, root="other", download=True)
    assert files_of(tmp_path / "area" / "other" / "cells") == {"images/b.jpg": b"b"}


def test_data_is_read_where_path_says_if_it_is_there(server, tmp_path):
    yaml = write_yaml(tmp_path / "area" / "cells.yaml", server, top=f"path: {tmp_path}/mine\n")
    (tmp_path / "mine" / "images").mkdir(parents=True)
    prepare_data(yaml, download=True)
    assert server.asked == [] and load_data_spec(yaml).root == tmp_path / "mine"
    assert not (tmp_path / "area" / "datasets").exists()


@pytest.mark.parametrize("program", ["train", "val", "check"])
def test_no_file_chooses_the_root_of_a_download(program, tmp_path):
    """Weights bring their own data.root: where data is read, but never where a download is written."""
    parser, settings, flags = {
        "train": (train_parser(), TRAIN_SETTINGS, []),
        "val": (val_parser(), VAL_SETTINGS, ["--weights", "w.pt"]),
        "check": (val_parser(), {"data_root": "data.root"}, ["--weights", "w.pt"]),
    }[program]
    trained = override(Config(), {"data.root": ("weights", "/home/me/.venv")})
    for more, root in (
        ([], "/home/me/.venv"),
        (["--download"], "datasets"),
        (["--download", "--data-root", "d"], "d"),
        (["--data-root", "d"], "d"),
    ):
        given = given_settings(parser.parse_args([*flags, *more]), settings)
        assert override(trained, given).data.root == root
    (tmp_path / "hyp.yaml").write_text("data: {root: /home/me/.venv}\n")
    for option in ("cfg", "hyp", "loss"):
        with pytest.raises(UserError, match=r"data\.root"):
            load_config(**{option: tmp_path / "hyp.yaml"})


# success, and what is there already


@pytest.mark.parametrize(("name", "body"), [("a.zip", ZIP), ("b.tar.gz", TAR), ("c", tar_of(FILES, "w"))])
def test_an_archive_is_fetched_and_unpacked(name, body, server, folder, capsys):
    server.pages[f"/{name}"] = body
    get(folder, f"{server.url}/{name}")
    assert files_of(folder) == FILES and sorted(os.listdir(folder)) == [RECORD, "images", "labels"]
    out, total = capsys.readouterr().out, hashlib.sha256(body).hexdigest()
    assert f"fetching {server.url}/{name} (" in out and f"unpacked 2 files into {folder}" in out
    assert f"sha256 {total}, {len(body):,} bytes" in out and "downloads.json" in out
    kept = json.loads((Path(os.environ["LTRB_CACHE"]) / "downloads.json").read_text())
    assert kept == {f"{server.url}/{name}": {"sha256": total, "size": len(body)}}


def test_entries_go_where_they_say(server, folder, capsys):
    server.pages["/b.zip"] = zip_of({"sub/b.jpg": b"b"})
    first = {"url": f"{server.url}/a.zip", "sha256": ZIP_SUM.upper(), "size": len(ZIP)}
    get(folder, first, {"url": f"{server.url}/b.zip", "to": "images/sub"})
    assert files_of(folder) == {**FILES, "images/sub/b.jpg": b"b"}
    assert ZIP_SUM not in capsys.readouterr().out  # a published sum is no news


@pytest.mark.parametrize("top", ["set", "given", "else"])
def test_a_top_folder_named_like_the_data_set_is_the_data_set(top, server, folder):
    server.pages["/a.zip"] = zip_of({f"{top}/a.jpg": b"a", f"__MACOSX/{top}/._a.jpg": b"fork"})
    entries = read_downloads(WHERE, f"{server.url}/a.zip")
    fetch_all(entries, folder, where=WHERE, tops=("given",))
    assert files_of(folder) == {"else/a.jpg" if top == "else" else "a.jpg": b"a"}


PAGES = {  # other ways in which an archive arrives
    "redirect": answer(b"", 302, Location="/real.zip"),
    "another host": answer(b"", 301, Location="http://localhost:{port}/real.zip"),
    "unknown length": answer(ZIP, Content_Length=None),
}


@pytest.mark.parametrize("kind", PAGES)
def test_other_ways_to_arrive(kind, server, folder):
    server.pages |= {"/a.zip": PAGES[kind], "/real.zip": ZIP}
    if kind == "another host":
        server.pages["/a.zip"] = answer(b"", 301, Location=f"http://localhost:{server.server_port}/real.zip")
    get(folder, f"{server.url}/a.zip")
    assert files_of(folder) == FILES


def test_the_body_of_a_redirect_is_not_read(server, folder):
    sent = []

    def page(handler):
        answer(b"", 302, Content_Length=None, Location="/real.zip")(handler)
        with contextlib.suppress(OSError):  # it hangs up
            while len(sent) < 64:
                sent.append(handler.wfile.write(bytes(2**20)))

    server.pages |= {"/a.zip": page, "/real.zip": ZIP}
    get(folder, f"{server.url}/a.zip")
    assert files_of(folder) == FILES and len(sent) < 32  # MiB: what the sockets hold


def test_what_is_there_is_not_fetched_again(server, folder, capsys):
    url = f"{server.url}/a.zip"
    for value in (url, url, {"url": url, "sha256": ZIP_SUM}):
        get(folder, value)
    assert server.asked == ["/a.zip"] and f"already there: {url} in {folder}" in capsys.readouterr().out
    assert f"the YAML says {SHA}" in error_of(folder, {"url": url, "sha256": SHA})


def test_a_download_that_failed_goes_on_with_what_is_missing(server, folder, tmp_path):
    """Also over the remains of a process that was killed while it unpacked; until then nothing is read."""
    yaml = tmp_path / "area" / "set.yaml"
    urls = [f"{server.url}/a.zip", f"{server.url}/b.zip"]
    yaml.write_text(f"path: datasets/set\ntrain: images\nnames: [a]\ndownload: {json.dumps(urls)}\n")
    with pytest.raises(UserError, match="404"):
        prepare_data(yaml, download=True)
    assert files_of(folder) == FILES
    with pytest.raises(
        UserError, match="not all of it has arrived; the same command with --download goes on"
    ):
        load_data_spec(yaml)
    (folder / WORK / "content").mkdir(parents=True)
    (folder / WORK / "content" / "half.jpg").write_text("")
    (folder / "images" / "b.jpg").write_bytes(b"b")  # moved already, but not recorded
    (folder / "images" / "mine.jpg").write_bytes(b"mine")
    server.pages["/b.zip"] = zip_of({"images/b.jpg": b"b", "images/c.jpg": b"c"})
    prepare_data(yaml, download=True)
    more = {"images/b.jpg": b"b", "images/c.jpg": b"c", "images/mine.jpg": b"mine"}
    assert files_of(folder) == FILES | more and server.asked == ["/a.zip", "/b.zip", "/b.zip"]
    assert load_data_spec(yaml).root == folder


@pytest.mark.parametrize("there", ["file", "folder", "link"])
def test_a_file_in_our_folder_is_never_replaced(there, server, folder):
    server.pages["/b.zip"] = zip_of({"images/b.jpg": b"b", "aa.jpg": b""})
    get(folder, f"{server.url}/a.zip")
    place = folder / "images" / "b.jpg"
    if there == "file":
        place.write_bytes(b"my own")
    else:
        place.mkdir() if there == "folder" else place.symlink_to(folder.parents[1] / "precious")
    message = error_of(folder, f"{server.url}/a.zip", f"{server.url}/b.zip")
    assert f"{place} is " in message and "Nothing was unpacked" in message


def test_a_second_process_waits_its_turn(server, folder):
    def page(handler):
        with pytest.raises(UserError, match=r"is being downloaded by process .* choose another --data-root"):
            get(folder, f"{server.url}/a.zip")
        answer(ZIP)(handler)

    server.pages["/b.zip"] = page
    get(folder, f"{server.url}/b.zip")
    assert files_of(folder) == FILES and server.asked == ["/b.zip"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_what_stops_unpacking_leaves_nothing(error, server, folder, monkeypatch):
    def fail(*_):
        (folder / WORK / "content" / "half.jpg").write_text("")
        raise error

    monkeypatch.setattr(download, "unpack", fail)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else UserError):
        get(folder, f"{server.url}/a.zip")
    assert os.listdir(folder.parents[1]) == ["precious"]


# sums


def test_the_sum_of_another_file_than_the_first_is_refused(server, folder):
    """Also in a new folder; a sum in the YAML is trusted."""
    other = zip_of({**FILES, "images/a.jpg": b"other!!"})
    url, total = f"{server.url}/a.zip", hashlib.sha256(other).hexdigest()
    get(folder, url)
    server.pages["/a.zip"], new = other, folder.parent / "new"
    message = error_of(new, url)
    assert f"sha256 is {total}, that of the first download was {ZIP_SUM}" in message
    assert "write it as `sha256:`" in message and "downloads.json" in message and url in message
    get(new, {"url": url, "sha256": total})
    assert files_of(new)["images/a.jpg"] == b"other!!"


def test_the_sum_of_what_could_not_be_unpacked_is_not_kept(server, folder):
    server.pages["/a.zip"] = b"<html>busy, try again</html>"
    assert "no .zip or .tar archive" in error_of(folder, f"{server.url}/a.zip")
    server.pages["/a.zip"] = ZIP
    get(folder, f"{server.url}/a.zip")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"u": 1}', '{"u": {"sha256": 0}}', "\xff", "[" * 100_000])
def test_a_spoilt_record_of_sums_is_an_error(text, server, folder):
    cache = Path(os.environ["LTRB_CACHE"])
    cache.mkdir()
    (cache / "downloads.json").write_bytes(text.encode("latin-1"))
    message = error_of(folder, f"{server.url}/a.zip")
    assert f"{cache / 'downloads.json'}: not readable as the sums of downloads" in message
    assert "Delete it" in message and server.asked == []


def test_sums_that_cannot_be_written_are_said(server, folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LTRB_CACHE", str(tmp_path / "file" / "cache"))
    get(folder, f"{server.url}/a.zip")
    assert files_of(folder) == FILES and "not remembered" in capsys.readouterr().err


# failure


def chunked(handler):
    answer(b"ff\r\nonly this", Content_Length=None, Transfer_Encoding="chunked")(handler)


def endless(handler):
    answer(b"", Content_Length=None)(handler)
    try:
        for _ in range(200):
            handler.wfile.write(bytes(100_000))
    except OSError:
        pass


def around(handler):
    place = f"/{len(handler.server.asked)}.zip"
    handler.server.pages[place] = around
    answer(b"", 302, Location=place)(handler)


FAILURES = {  # the server's answer, more of the entry -> message
    "404": (lambda handler: handler.send_error(404), {}, "the server answers 404 Not Found. Try again later"),
    "503": (lambda handler: handler.send_error(503), {}, "the server answers 503 Service Unavailable"),
    "sum": (ZIP, {"sha256": SHA}, f"its sha256 is {ZIP_SUM}, the YAML says {SHA}"),
    "size": (ZIP, {"size": 9}, f"the server offers {len(ZIP):,} bytes, `size` in the YAML says 9"),
    "size, unsaid": (answer(ZIP, Content_Length=None), {"size": 9}, f"{len(ZIP):,} bytes have come, `size`"),
    "nothing": (answer(b"", Content_Length=len(ZIP)), {}, f"broke off after 0 of {len(ZIP)} bytes"),
    "short": (answer(ZIP[:10], Content_Length=len(ZIP)), {}, f"broke off after 10 of {len(ZIP)} bytes"),
    "chunks": (chunked, {}, "broke off: IncompleteRead"),
    "silence": (lambda handler: threading.Event().wait(1), {}, "the server has been silent for 0 s"),
    "empty": (lambda handler: None, {}, "broke off"),
    "no http": (lambda handler: handler.wfile.write(b"no http\r\n\r\n"), {}, "broke off"),
    "long header": (lambda handler: handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000), {}, ""),
    "huge": (answer(b"", Content_Length=10**15), {}, "needs 2000000.0 GB on the disk"),
    "endless": (endless, {}, "the server sends more than the 3.0 MB that are free"),
    "around": (around, {}, "the server answers 302"),
    **{
        scheme: (answer(b"", 302, Location=f"{scheme}/etc/passwd"), {}, scheme)
        for scheme in ("file://", "ftp://127.0.0.1", "data:,", "gopher://x")
    },
    "hostile": (zip_of({"ok.jpg": b"x", "../../evil": b"evil"}), {}, "'../../evil' has a '..'"),
    "no data": (zip_of(EVIL), {}, "holds no files of a data set; left out: 6, such as 'hotcoco.py'"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_failures_are_said_and_leave_nothing(kind, server, folder, monkeypatch):
    server.pages["/a.zip"], more, text = FAILURES[kind]
    monkeypatch.setattr(fetch, "TIMEOUT", 0.2)
    if kind == "endless":
        usage = fetch.shutil.disk_usage(folder.parents[1])._replace(free=fetch.RESERVE + 3 * 10**6)
        monkeypatch.setattr(fetch.shutil, "disk_usage", lambda folder: usage)
    message = error_of(folder, {"url": f"{server.url}/a.zip", **more})
    assert message.startswith(f"set.yaml: download: {server.url}/a.zip: ") and text in message
    assert "\n" not in message and len(server.asked) <= 12


def test_a_server_that_is_not_there_is_said(server, folder, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a.zip"
    assert "Connection refused" in error_of(folder, url)

    def fail(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert "name cannot be looked up (Name or service" in error_of(folder, "http://nowhere.example/a.zip")


def test_redirects_from_https_to_http_are_refused():
    handler = fetch._Redirects()
    request = urllib.request.Request("https://example.org/a.zip")
    with pytest.raises(Refused, match="not from https to http"):
        handler.redirect_request(request, io.BytesIO(), 302, "Found", {}, "http://example.org/a.zip")
    new = handler.redirect_request(request, io.BytesIO(), 302, "Found", {}, "https://example.com/b.zip")
    assert new.full_url == "https://example.com/b.zip"


# the shipped YAML files

SHIPPED = {"coco": 80, "coco128": 80, "voc": 20}


def coco_json(*pictures: str) -> bytes:
    names = read_yaml(REPOSITORY / "data" / "coco.yaml")["names"].values()
    categories = [{"id": 2 * index + 1, "name": name} for index, name in enumerate(names)]
    images = [{"id": i, "file_name": name, "width": 8, "height": 8} for i, name in enumerate(pictures)]
    return json.dumps({"images": images, "annotations": [], "categories": categories}).encode()


def voc_tar(year: int, split: str) -> bytes:
    """The layout of the official archives, with one picture."""
    top, name = f"VOCdevkit/VOC{year}", f"{year}_{split}"
    files = {"Annotations": f"{name}.xml", "JPEGImages": f"{name}.jpg", "ImageSets/Main": f"{split}.txt"}
    return tar_of({f"{top}/{folder}/{file}": name.encode() for folder, file in files.items()}, "w")


def bodies_of(name: str) -> list[bytes]:
    """For each of the YAML's URLs, a small archive of the real one's layout."""
    if name == "coco128":
        picture = "coco128/images/train2017/000000000009.jpg"
        label = picture.replace("images", "labels").replace(".jpg", ".txt")
        return [zip_of({"coco128/LICENSE": b"", "coco128/README.txt": b"", picture: b"", label: b""})]
    if name == "voc":
        return [voc_tar(2007, "trainval"), voc_tar(2007, "test"), voc_tar(2012, "trainval")]
    splits = ("train", "val")
    annotations = {f"annotations/instances_{split}2017.json": coco_json("1.jpg") for split in splits}
    return [zip_of(annotations), *(zip_of({f"{split}2017/1.jpg": b""}) for split in splits[::-1])]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_find_what_their_archives_hold(name, server, tmp_path):
    """With archives of the official layout on our server instead of the official one."""
    text = (REPOSITORY / "data" / f"{name}.yaml").read_text()
    content, bodies = read_yaml(REPOSITORY / "data" / f"{name}.yaml"), bodies_of(name)
    assert f"# Command: python train.py --data {name} --download" in text
    assert pyyaml.safe_load(text) == content  # nothing that YAML 1.1 and 1.2 read differently
    downloads = read_downloads(WHERE, content["download"])
    assert len(downloads) == len(bodies) and not any(entry.fault or entry.sha256 for entry in downloads)
    for number, (entry, body) in enumerate(zip(downloads, bodies, strict=True)):
        server.pages[f"/{number}"] = body
        text = text.replace(entry.url, f"{server.url}/{number}")
    path = tmp_path / "area" / "data" / f"{name}.yaml"
    path.parent.mkdir()
    path.write_text(text)
    prepare_data(path, download=True)
    spec = load_data_spec(path)
    assert len(spec.names) == SHIPPED[name] and spec.format == content["format"]
    assert spec.voc_offset == (1 if name == "voc" else 0)
    assert spec.category_ids == tuple(range(1, 161, 2) if name == "coco" else range(SHIPPED[name]))
    for split in ("train", "val"):
        sources = split_sources(spec, split)
        assert all(source.is_relative_to(tmp_path / "area" / "datasets") for source in sources)
        assert len(sources) == (2 if (name, split) == ("voc", "train") else 1)
    folders = [folder for entries in spec.images.values() for folder in entries]
    assert folders == (["train2017", "val2017"] if name == "coco" else [])
    assert all((spec.root / folder / "1.jpg").is_file() for folder in folders)
    assert find_place(path, read_yaml(path), "datasets").state == "complete"
