"""``download:`` of a data-set YAML, against a server on localhost; no other network is touched."""

import hashlib
import http.server
import io
import json
import os
import socket
import tarfile
import threading
import urllib.request
import zipfile
from pathlib import Path

import pytest
import yaml

from data.fetching import download, fetch
from data.fetching.archives import Refused
from data.fetching.download import Download, fetch_all, read_downloads
from data.formats.sources import split_sources
from data.spec import load_data_spec
from utils.config_files import read_yaml
from utils.errors import DATA, UserError

REPOSITORY = Path(__file__).parents[3]
FREE = REPOSITORY.parent / "shared" / "datasets" / "coco_free"
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
ZIP, TAR = zip_of(FILES), tar_of(FILES)
ZIP_SUM = hashlib.sha256(ZIP).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """``pages``: path -> body, or a function of the request handler. ``asked``: the paths, in order."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages, self.asked, self.headers = {}, [], []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append(self.path)
        self.server.headers.append(dict(self.headers))
        page = self.server.pages.get(self.path)
        if page is None:
            self.send_error(404)
        elif callable(page):
            page(self)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)
        self.close_connection = True

    def log_message(self, *_):
        pass


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
    """The server with empty pages; an empty cache directory; no proxy."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LTRB_CACHE", str(tmp_path / "cache"))
    running.pages, running.asked, running.headers = {}, [], []
    (tmp_path / "area").mkdir()
    (tmp_path / "area" / "precious").write_text("mine")
    return running


@pytest.fixture
def root(tmp_path):
    """Where the data set will be; it does not exist yet."""
    return tmp_path / "area" / "set"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def get(root, *values):
    fetch_all(read_downloads(WHERE, list(values)), root, where=WHERE)


def error_of(root, *values) -> str:
    """The message for downloads that must fail, leaving ``root`` as it was and no temporary file."""
    before = files_of(root.parent), root.exists()
    with pytest.raises(UserError) as error:
        get(root, *values)
    assert error.value.code == DATA
    assert (files_of(root.parent), root.exists()) == before
    assert [
        path.name for path in (root.parents[1] / "cache").glob("*") if path.name != "downloads.json"
    ] == []
    return str(error.value)


# the YAML's value


def test_entries_are_read():
    url = "https://example.org/a/b.zip?x=1"
    assert read_downloads(WHERE, None) == ()
    assert read_downloads(WHERE, []) == ()
    assert read_downloads(WHERE, url) == (Download(url, None, None, ""),)
    assert read_downloads(WHERE, {"url": url}) == (Download(url, None, None, ""),)
    full = {"url": "http://[::1]:8000/a.tar", "sha256": SHA.upper(), "size": 7, "to": "images/train"}
    assert read_downloads(WHERE, [full, url]) == (
        Download("http://[::1]:8000/a.tar", SHA, 7, "images/train"),
        Download(url, None, None, ""),
    )
    assert read_downloads(WHERE, {"url": url, "sha256": None, "to": "."})[0].fault == ""


SCRIPT = "from utils.downloads import download\nimport os\nos.system('touch TRAP')\n"
FAULTS = {  # value -> what the message names
    SCRIPT: 'download: "from utils.downloads import download\\nimport os',
    "bash data/scripts/get_coco.sh": 'download: "bash data/scripts/get_coco.sh" is not the http or https URL',
    "wget https://example.org/a.zip": "is not the http or https URL",
    "file:///etc/passwd": "is not the http or https URL",
    "ftp://example.org/a.zip": "is not the http or https URL",
    "//example.org/a.zip": "is not the http or https URL",
    "https://": "is not the http or https URL",
    "http://host:port/a.zip": "is not the http or https URL",
    "http://me:secret@example.org/a.zip": "is not the http or https URL",
    "http://[::1/a.zip": "is not the http or https URL",
    "http://example.org/\u00e4.zip": "is not the http or https URL",
    "": 'download: "" is not',
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
    ({"to": ".."}, 'download.to: ".." is not a folder below'),
    ({"to": "/tmp"}, 'download.to: "/tmp"'),
    ({"to": "C:/x"}, 'download.to: "C:/x"'),
    ({"to": 3}, "download.to: 3"),
    ({"md5": "x"}, "download.md5: unknown key; an entry has url, sha256, size, to"),
    ({1: "x"}, "download.1: unknown key"),
]


def assert_fault(value, text, root):
    (entry,) = read_downloads(WHERE, value)
    assert entry.url == "" and entry.fault.startswith("set.yaml: download") and text in entry.fault
    with pytest.raises(UserError) as error:
        fetch_all((entry,), root, where=WHERE)
    assert "Scripts are never run: fetch the data yourself, or give url" in str(error.value)
    assert text in str(error.value) and error.value.code == DATA
    assert not root.exists()


@pytest.mark.parametrize("value", FAULTS)
def test_what_is_no_archive_loads_and_fails_only_when_fetched(value, root):
    assert_fault(value, FAULTS[value], root)


@pytest.mark.parametrize(("changes", "text"), MAP_FAULTS)
def test_wrong_keys_load_and_fail_only_when_fetched(changes, text, root):
    assert_fault({"url": "http://example.org/a.zip", **changes}, text, root)


def test_a_fault_in_a_list_is_named_and_nothing_is_fetched(server, root):
    server.pages["/a.zip"] = ZIP
    assert 'set.yaml: download[1]: "bash x" is not' in error_of(root, f"{server.url}/a.zip", "bash x")
    assert server.asked == []


def test_scripts_do_not_run(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = f"import os\nos.system('touch {tmp_path}/TRAP')\n__import__('pathlib').Path('TRAP').touch()\n"
    for value in (script, f"bash -c 'touch {tmp_path}/TRAP'", f"`touch {tmp_path}/TRAP`", "$(touch TRAP)"):
        error_of(root, value)
    assert not (tmp_path / "TRAP").exists()


def test_no_entries_are_said(root, capsys):
    fetch_all((), root, where=WHERE)
    assert capsys.readouterr().out == "set.yaml: has no `download`, so there is nothing to fetch\n"


# success


@pytest.mark.parametrize(("name", "body"), [("a.zip", ZIP), ("b.tar.gz", TAR), ("c", tar_of(FILES, "w"))])
def test_an_archive_is_fetched_and_unpacked(name, body, server, root, capsys):
    server.pages[f"/{name}"] = body
    get(root, f"{server.url}/{name}")
    assert files_of(root) == FILES
    assert sorted(files_of(root.parent)) == ["precious", "set/images/a.jpg", "set/labels/a.txt"]
    assert os.listdir(os.environ["LTRB_CACHE"]) == ["downloads.json"]
    out = capsys.readouterr().out
    total = hashlib.sha256(body).hexdigest()
    assert f"fetching {server.url}/{name} (" in out and f") for {root}" in out
    assert f"sha256 {total}, {len(body):,} bytes" in out and "downloads.json" in out
    assert f"unpacked 2 files into {root}" in out
    record = json.loads((Path(os.environ["LTRB_CACHE"]) / "downloads.json").read_text())
    kept = {"sha256": total, "size": len(body), "files": sorted(FILES)}
    assert record == {f"{server.url}/{name}": kept}


def test_entries_go_where_they_say(server, root):
    server.pages.update({"/a.zip": ZIP, "/b.zip": zip_of({"b.jpg": b"b"})})
    url = f"{server.url}/a.zip"
    get(
        root,
        {"url": url, "sha256": ZIP_SUM.upper(), "size": len(ZIP)},
        {"url": f"{server.url}/b.zip", "to": "images"},
    )
    assert files_of(root) == {**FILES, "images/b.jpg": b"b"}


def test_a_published_sum_is_not_reported_as_news(server, root, capsys):
    server.pages["/a.zip"] = ZIP
    get(root, {"url": f"{server.url}/a.zip", "sha256": ZIP_SUM})
    assert "sha256" not in capsys.readouterr().out


def test_redirects_are_followed(server, root):
    def elsewhere(handler):
        handler.send_response(302)
        handler.send_header("Location", "/real.zip")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    server.pages.update({"/a.zip": elsewhere, "/real.zip": ZIP})
    get(root, f"{server.url}/a.zip")
    assert server.asked == ["/a.zip", "/real.zip"] and files_of(root) == FILES


def test_a_body_of_unknown_length_is_fetched(server, root, capsys):
    def stream(handler):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(ZIP)

    server.pages["/a.zip"] = stream
    get(root, f"{server.url}/a.zip")
    assert files_of(root) == FILES and "(size unknown)" in capsys.readouterr().out


# what is there already


def test_what_is_there_is_not_fetched_again(server, root, capsys):
    server.pages["/a.zip"] = ZIP
    url = f"{server.url}/a.zip"
    get(root, url)
    get(root, url)
    get(root, {"url": url, "sha256": ZIP_SUM})
    assert server.asked == ["/a.zip"]
    assert f"already there: {url} in {root}" in capsys.readouterr().out
    (root / "labels" / "a.txt").unlink()
    get(root, url)
    assert server.asked == ["/a.zip"] * 2 and files_of(root) == FILES


def test_another_folder_or_another_sum_is_fetched(server, root):
    server.pages["/a.zip"] = ZIP
    url = f"{server.url}/a.zip"
    get(root, url)
    get(root.parent / "other", url)
    assert len(server.asked) == 2 and files_of(root.parent / "other") == FILES
    assert "the YAML says " + SHA in error_of(root, {"url": url, "sha256": SHA})
    assert len(server.asked) == 3


def test_few_names_of_a_large_archive_are_remembered(server, root):
    names = {f"images/{number:03}.jpg": b"x" for number in range(100)}
    server.pages["/a.zip"] = zip_of(names)
    get(root, f"{server.url}/a.zip")
    record = json.loads((Path(os.environ["LTRB_CACHE"]) / "downloads.json").read_text())
    files = record[f"{server.url}/a.zip"]["files"]
    assert files == [f"images/{number:03}.jpg" for number in range(0, 100, 4)]


def test_the_sum_of_another_file_than_the_first_is_refused(server, root, tmp_path):
    other = zip_of({**FILES, "images/a.jpg": b"other!!"})
    url, server.pages["/a.zip"] = f"{server.url}/a.zip", ZIP
    get(root, url)
    server.pages["/a.zip"] = other
    new = tmp_path / "area" / "new"
    message = error_of(new, url)
    assert (
        f"sha256 is {hashlib.sha256(other).hexdigest()}, that of the first download was {ZIP_SUM}" in message
    )
    assert "write it as `sha256:`" in message and "downloads.json" in message and url in message
    get(new, {"url": url, "sha256": hashlib.sha256(other).hexdigest()})  # pinned, so trusted
    assert (new / "images" / "a.jpg").read_bytes() == b"other!!"


def test_the_sum_of_what_could_not_be_unpacked_is_not_kept(server, root):
    server.pages["/a.zip"] = b"<html>busy, try again</html>"
    assert "no .zip or .tar archive" in error_of(root, f"{server.url}/a.zip")
    server.pages["/a.zip"] = ZIP
    get(root, f"{server.url}/a.zip")


def test_files_of_the_user_are_never_replaced(server, root):
    (root / "images").mkdir(parents=True)
    (root / "images" / "a.jpg").write_bytes(b"my own")
    server.pages["/a.zip"] = ZIP
    message = error_of(root, f"{server.url}/a.zip")
    assert f"{root / 'images' / 'a.jpg'} is there already" in message


@pytest.mark.parametrize("text", ["", "{", "[]", '{"u": 1}', '{"u": {"sha256": "0"}}', "\xff"])
def test_a_spoilt_record_is_an_error(text, server, root):
    cache = Path(os.environ["LTRB_CACHE"])
    cache.mkdir()
    (cache / "downloads.json").write_bytes(text.encode("latin-1"))
    server.pages["/a.zip"] = ZIP
    message = error_of(root, f"{server.url}/a.zip")
    assert f"{cache / 'downloads.json'}: not readable as the record of downloads" in message
    assert "Delete it" in message and server.asked == []


def test_a_record_that_cannot_be_written_is_said(server, root, monkeypatch, capsys):
    def fail(*_):
        raise PermissionError(13, "Permission denied")

    server.pages["/a.zip"] = ZIP
    monkeypatch.setattr(download.os, "replace", fail)
    get(root, f"{server.url}/a.zip")
    assert files_of(root) == FILES
    assert "downloads.json: Permission denied" in capsys.readouterr().err


def test_a_cache_directory_that_cannot_be_made_is_said(server, root, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LTRB_CACHE", str(tmp_path / "file" / "cache"))
    assert "LTRB_CACHE" in error_of(root, f"{server.url}/a.zip")


# failure


def test_a_wrong_sum_is_refused(server, root):
    server.pages["/a.zip"] = ZIP
    message = error_of(root, {"url": f"{server.url}/a.zip", "sha256": SHA})
    assert message.startswith(
        f"set.yaml: download: {server.url}/a.zip: its sha256 is {ZIP_SUM}, the YAML says {SHA}"
    )
    assert "ask where it comes from" in message


def test_a_wrong_size_is_refused_before_the_body_is_read(server, root):
    server.pages["/a.zip"] = ZIP
    message = error_of(root, {"url": f"{server.url}/a.zip", "size": len(ZIP) + 1})
    assert f"the server offers {len(ZIP):,} bytes, `size` in the YAML says {len(ZIP) + 1:,}" in message

    def stream(handler):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(ZIP)

    server.pages["/a.zip"] = stream
    message = error_of(root, {"url": f"{server.url}/a.zip", "size": len(ZIP) + 1})
    assert f"{len(ZIP):,} bytes have come" in message


@pytest.mark.parametrize(
    ("code", "reason"), [(404, "Not Found"), (403, "Forbidden"), (503, "Service Unavailable")]
)
def test_an_answer_of_failure_is_said(code, reason, server, root):
    server.pages["/a.zip"] = lambda handler: handler.send_error(code)
    message = error_of(root, f"{server.url}/a.zip")
    assert f"the server answers {code} {reason}. Try again later, or fetch it yourself into {root}" in message


def test_a_refused_connection_is_said(server, root):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a.zip"
    assert f"{url}: the server refuses connections" in error_of(root, url)


def test_an_unknown_server_is_said(server, root, monkeypatch):
    def fail(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert "name cannot be looked up (Name or service not known)" in error_of(
        root, "http://nowhere.example/a.zip"
    )


def test_a_silent_server_is_said(server, root, monkeypatch):
    hold = threading.Event()
    server.pages["/a.zip"] = lambda handler: hold.wait(5)
    monkeypatch.setattr(fetch, "TIMEOUT", 0.2)
    assert "the server has been silent for 0 s" in error_of(root, f"{server.url}/a.zip")
    hold.set()


@pytest.mark.parametrize("sent", [0, 10, len(ZIP) - 1])
def test_a_short_body_is_refused(sent, server, root):
    def short(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(ZIP)))
        handler.end_headers()
        handler.wfile.write(ZIP[:sent])

    server.pages["/a.zip"] = short
    assert f"broke off after {sent} of {len(ZIP)} bytes" in error_of(root, f"{server.url}/a.zip")


def test_a_chunked_body_that_breaks_off_is_refused(server, root):
    def chunked(handler):
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"ff\r\nonly this")

    server.pages["/a.zip"] = chunked
    assert "broke off" in error_of(root, f"{server.url}/a.zip")


@pytest.mark.parametrize(
    "answer", [b"", b"no http\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x" + b"x" * 70_000]
)
def test_nonsense_from_a_server_is_said(answer, server, root):
    server.pages["/a.zip"] = lambda handler: handler.wfile.write(answer)
    assert f"set.yaml: download: {server.url}/a.zip: " in error_of(root, f"{server.url}/a.zip")


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/a.zip", "data:,x", "gopher://x/y"])
def test_redirects_to_other_schemes_are_refused(to, server, root, tmp_path):
    (tmp_path / "a.zip").write_bytes(ZIP)
    to = to.replace("/etc/passwd", str(tmp_path / "a.zip"))

    def away(handler):
        handler.send_response(302)
        handler.send_header("Location", to)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    server.pages["/a.zip"] = away
    message = error_of(root, f"{server.url}/a.zip")
    assert to in message and ("not allowed" in message or "only http and https" in message)


def test_redirects_from_https_to_http_are_refused():
    handler = fetch._Redirects()
    request = urllib.request.Request("https://example.org/a.zip")
    with pytest.raises(Refused, match="not from https to http"):
        handler.redirect_request(request, None, 302, "Found", {}, "http://example.org/a.zip")
    new = handler.redirect_request(request, None, 302, "Found", {}, "https://example.com/b.zip")
    assert new.full_url == "https://example.com/b.zip"


def test_endless_redirects_end(server, root):
    def around(handler):
        handler.send_response(302)
        handler.send_header("Location", f"/{len(handler.server.asked)}.zip")
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        handler.server.pages[f"/{len(handler.server.asked)}.zip"] = around

    server.pages["/a.zip"] = around
    assert "the server answers 302" in error_of(root, f"{server.url}/a.zip")
    assert len(server.asked) <= 12


def test_a_disk_without_room_is_said_before_fetching(server, root, monkeypatch):
    def large(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(10**15))
        handler.end_headers()

    server.pages["/a.zip"] = large
    message = error_of(root, f"{server.url}/a.zip")
    assert "needs 2000000.0 GB on the disk of" in message and "LTRB_CACHE" in message


def test_a_body_of_unknown_length_stops_before_the_disk_is_full(server, root, monkeypatch):
    def long(handler):
        handler.send_response(200)
        handler.end_headers()
        try:
            for _ in range(200):
                handler.wfile.write(bytes(100_000))
        except OSError:
            pass

    server.pages["/a.zip"] = long
    usage = fetch.shutil.disk_usage(root.parent)._replace(free=fetch.RESERVE + 3 * 10**6)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda folder: usage)
    assert "the server sends more than the 3.0 MB that are free" in error_of(root, f"{server.url}/a.zip")


def test_a_hostile_archive_leaves_nothing(server, root, tmp_path):
    server.pages["/a.zip"] = zip_of({"ok.jpg": b"x", "../../evil": b"evil"})
    message = error_of(root, f"{server.url}/a.zip")
    assert f"{server.url}/a.zip: '../../evil' has a '..'" in message
    assert not list(tmp_path.rglob("evil"))


def test_entries_before_the_failing_one_stay(server, root):
    server.pages["/a.zip"] = ZIP
    with pytest.raises(UserError, match="404"):
        get(root, f"{server.url}/a.zip", f"{server.url}/gone.zip")
    assert files_of(root) == FILES


# the shipped YAML files

SHIPPED = {"coco": 80, "coco128": 80, "voc": 20}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_name_archives_and_the_command(name):
    path = REPOSITORY / "data" / f"{name}.yaml"
    content, text = read_yaml(path), path.read_text()
    downloads = read_downloads(path, content["download"])
    assert len(downloads) == (1 if name == "coco128" else 3)
    assert not [entry.fault for entry in downloads if entry.fault]
    assert all(entry.sha256 is None for entry in downloads)  # none is published; none is made up
    assert f"# Command: python train.py --data {name} --download" in text
    assert list(content["names"]) == list(range(SHIPPED[name]))
    assert len(set(content["names"].values())) == SHIPPED[name]
    assert content["format"] == {"coco": "coco", "coco128": "yolo", "voc": "voc"}[name]
    assert yaml.safe_load(text) == content  # nothing that YAML 1.1 and 1.2 read differently


def coco_json(*pictures: str) -> bytes:
    names = read_yaml(REPOSITORY / "data" / "coco.yaml")["names"].values()
    categories = [{"id": 2 * index + 1, "name": name} for index, name in enumerate(names)]
    images = [
        {"id": index, "file_name": name, "width": 8, "height": 8} for index, name in enumerate(pictures)
    ]
    return json.dumps({"images": images, "annotations": [], "categories": categories}).encode()


def voc_tar(year: int, split: str) -> bytes:
    """The layout of the official archives, with one picture."""
    top, name = f"VOCdevkit/VOC{year}", f"{year}_{split}"
    files = {"Annotations": f"{name}.xml", "JPEGImages": f"{name}.jpg", "ImageSets/Main": f"{split}.txt"}
    return tar_of({f"{top}/{folder}/{file}": name.encode() for folder, file in files.items()}, "w")


def bodies_of(name: str) -> dict[str, bytes]:
    """File name in the YAML's URLs -> a small archive of the real one's layout."""
    if name == "coco128":
        picture = "coco128/images/train2017/000000000009.jpg"
        return {
            "coco128.zip": zip_of(
                {"coco128/LICENSE": b"", picture: b"", picture.replace("images", "labels"): b""}
            )
        }
    if name == "voc":
        return {
            "VOCtrainval_06-Nov-2007.tar": voc_tar(2007, "trainval"),
            "VOCtest_06-Nov-2007.tar": voc_tar(2007, "test"),
            "VOCtrainval_11-May-2012.tar": voc_tar(2012, "trainval"),
        }
    annotations = {
        f"annotations/instances_{split}2017.json": coco_json("1.jpg") for split in ("train", "val")
    }
    pictures = {f"{split}2017.zip": zip_of({f"{split}2017/1.jpg": b""}) for split in ("train", "val")}
    return {"annotations_trainval2017.zip": zip_of(annotations), **pictures}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_find_what_their_archives_hold(name, server, tmp_path):
    """With archives of the official layout on our server instead of the official one."""
    text = (REPOSITORY / "data" / f"{name}.yaml").read_text()
    path = tmp_path / "area" / "data" / f"{name}.yaml"
    path.parent.mkdir()
    path.write_text(text)
    bodies = bodies_of(name)
    server.pages = {f"/{file}": body for file, body in bodies.items()}
    content = read_yaml(path)
    files = [entry.url.rpartition("/")[2] for entry in read_downloads(path, content["download"])]
    assert set(files) == set(bodies)
    downloads = read_downloads(path, [f"{server.url}/{file}" for file in files])
    fetch_all(downloads, path.parent / content["path"], where=path)
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


@pytest.mark.skipif(not FREE.is_dir(), reason=f"no {FREE}")
def test_names_of_coco_are_those_of_its_categories():
    for split in ("train", "val"):
        categories = json.loads((FREE / "annotations" / f"instances_{split}.json").read_text())["categories"]
        names = [item["name"] for item in sorted(categories, key=lambda item: item["id"])]
        for name in ("coco", "coco128"):
            assert list(read_yaml(REPOSITORY / "data" / f"{name}.yaml")["names"].values()) == names
