"""Nothing leaves this machine unless it is asked for: see ``tests/offline`` for how the tests are kept in."""

import ast
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from data.index import load_split
from data.prepare import prepare_data
from data.spec import load_data_spec
from tests.effects import state_of, watched
from tests.test_layers import ROOT, TREES
from utils.errors import UserError

ELSEWHERE = {  # documentation's addresses and names: they belong to nobody
    "connect": lambda: socket.create_connection(("192.0.2.1", 80), 1),
    "IPv6": lambda: socket.socket(socket.AF_INET6).connect(("2001:db8::1", 80)),
    "mapped": lambda: socket.socket(socket.AF_INET6).connect(("::ffff:192.0.2.1", 80)),
    "connect_ex": lambda: socket.socket().connect_ex(("192.0.2.1", 80)),
    "sendto": lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"", ("192.0.2.1", 53)),
    "sendmsg": lambda: socket.socket(type=socket.SOCK_DGRAM).sendmsg([b""], (), 0, ("192.0.2.1", 53)),
    "getaddrinfo": lambda: socket.getaddrinfo("example.org", 80),
    "bytes": lambda: socket.getaddrinfo(b"example.org", 80),
    "gethostbyname": lambda: socket.gethostbyname("example.org"),
    "gethostbyaddr": lambda: socket.gethostbyaddr("192.0.2.1"),
}
CHILD = """
import socket, sys
try:
    socket.socket().connect(("192.0.2.1", 80))
except Exception as error:
    sys.exit(type(error).__name__)
"""


@pytest.mark.parametrize("way", ELSEWHERE)
def test_another_host_cannot_be_reached_from_here(way, tmp_path, monkeypatch):
    monkeypatch.setenv("LTRB_ATTEMPTS", str(tmp_path / "attempts.txt"))
    with pytest.raises(RuntimeError, match=r"192\.0\.2\.1|2001:db8::1|example\.org"):
        ELSEWHERE[way]()
    assert "test_another_host_cannot_be_reached" in (tmp_path / "attempts.txt").read_text()


@pytest.mark.parametrize("start", [[], ["-m", "torch.distributed.run", "--standalone"]])
def test_another_host_cannot_be_reached_from_a_child(start, tmp_path, monkeypatch):
    monkeypatch.setenv("LTRB_ATTEMPTS", str(tmp_path / "attempts.txt"))
    (tmp_path / "child.py").write_text(CHILD)
    command = [sys.executable, *start, str(tmp_path / "child.py")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1 and "NetworkBlockedError" in result.stderr
    (line,) = (tmp_path / "attempts.txt").read_text().splitlines()
    assert line.startswith("socket.connect '192.0.2.1'") and "test_another_host_cannot" in line


def test_this_host_can_be_reached(tmp_path):
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "localhost")):
        with socket.create_server((address, 0), family=family) as server:
            socket.create_connection((address, server.getsockname()[1]), 5).close()
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(tmp_path / "s"))
        server.listen()
        client.connect(str(tmp_path / "s"))
    socket.getaddrinfo(None, 80)


def test_no_test_lets_a_child_out():
    """A PYTHONPATH of its own would leave ``tests/offline`` out; our modules are on it already."""
    files = [
        path
        for path in (ROOT / "tests").rglob("*.py")
        if path.name not in ("conftest.py", Path(__file__).name)
    ]
    assert len(files) > 60
    assert [
        str(path) for path in files if "PYTHONPATH" in path.read_text() and path.parent.name != "offline"
    ] == []


REACHING = {  # modules that could leave this machine or start something -> what of them is used, and why
    "benchmarks.bccd": ("subprocess", "runs our own programs"),
    "benchmarks.comparison": ("subprocess", "runs our own programs"),
    "benchmarks.on_gpu": ("subprocess", "runs our own programs"),
    "data.formats.coco": ("urllib.parse", "undoes %20 in the names of pictures"),
    "data.fetch": ("http.client socket urllib", "fetches what --download asks for"),
    "data.workers": ("multiprocessing", "watches the loader's processes"),
    "utils.comparison.runs": ("subprocess", "runs train.py and val.py"),
    "utils.environment": ("subprocess", "asks git for the commit"),
    "utils.training.run_lock": ("socket", "the name of this host"),
    "utils.training.signals": ("multiprocessing socket", "processes to end; a pair of sockets hears signals"),
    "utils.training.trackers": ("wandb mlflow", "sends logs where --loggers asks for it"),
}
REACHING_PACKAGES = [
    "subprocess",
    "socket",
    "socketserver",
    "ssl",
    "http",
    "urllib",
    "ftplib",
    "smtplib",
    "poplib",
    "imaplib",
    "telnetlib",
    "nntplib",
    "xmlrpc",
    "asyncio",
    "multiprocessing",
    "pty",
    "webbrowser",
    "ctypes",
    "pip",
    "ensurepip",
    "venv",
    "runpy",
    "requests",
    "httpx",
    "aiohttp",
    "urllib3",
    "wandb",
    "mlflow",
    "huggingface_hub",
    "timm",
    "sentry_sdk",
]
REACHING_CALLS = (
    "system",
    "popen",
    "posix_spawn",
    "fork",
    "forkpty",
    "load_state_dict_from_url",
    "download_url",
)


def reaches(tree: ast.Module) -> set[str]:
    """Names of the imports and calls by which a module could leave this machine, or start a program."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            call = node.func.attr
            if call in REACHING_CALLS or (
                call.startswith(("exec", "spawn")) and ast.unparse(node.func.value) == "os"
            ):
                names.add(f"subprocess.{call}")
            if call in ("import_module", "__import__"):
                names.add("runpy")
    return {name for name in names if name.split(".")[0] in REACHING_PACKAGES}


def test_only_some_modules_could_reach_out():
    found = {module: names for module, tree in TREES.items() if (names := reaches(tree))}
    unknown = {
        module: sorted(
            name for name in names if not name.startswith(tuple(REACHING.get(module, "-")[0].split()))
        )
        for module, names in found.items()
    }
    assert {module: names for module, names in unknown.items() if names} == {}
    assert sorted(REACHING.keys() & TREES.keys() - found.keys()) == [], "these need no entry any more"


@pytest.mark.parametrize(
    "text",
    [
        "import socket",
        "import urllib.request as u",
        "from http import client",
        "def f():\n    import wandb",
        "os.system('x')",
        "os.execv('x', [])",
        "os.popen('x')",
        "torch.hub.load_state_dict_from_url('x')",
        "importlib.import_module('requests')",
    ],
)
def test_ways_to_reach_out_are_seen(text):
    assert reaches(ast.parse(text))


IMPORTER = """
import importlib, sys
seen = []
sys.addaudithook(lambda event, _: seen.append(event) if event.startswith(("socket.", "os.system")) else None)
for name in sys.argv[1].split():
    importlib.import_module(name)
print(len(sys.argv[1].split()), "imported")
for name in sys.argv[2].split():
    sys.argv = [name, "--help"]
    try:
        sys.modules[name].main()
    except SystemExit as ended:
        assert not ended.code, name
assert not seen, seen
"""
PROGRAMS = ("train", "val", "detect", "data.check", "data.convert", "data.shapes")


def test_importing_everything_and_asking_for_help_opens_no_socket():
    names = " ".join(sorted(TREES))
    command = [sys.executable, "-c", IMPORTER, names, " ".join(PROGRAMS)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert f"{len(TREES)} imported" in result.stdout
    assert result.stdout.count("show this help message") == len(PROGRAMS)


def test_a_data_set_is_fetched_only_when_asked(tmp_path):
    (tmp_path / "data.yaml").write_text("train: gone\nnames: [a]\ndownload: https://example.org/a.zip\n")
    before = state_of(tmp_path)
    with watched(tmp_path) as seen:
        prepare_data(tmp_path / "data.yaml", download=False)
        with pytest.raises(UserError, match="--download"):
            load_split(load_data_spec(tmp_path / "data.yaml"), "train")
    assert seen == [] and state_of(tmp_path) == before
