"""What tests share: no network, a small generated data set, a way to call a command, and a browser."""

import importlib
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from data.shapes import make_shapes
from utils.errors import run_main


class Result(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session", autouse=True)
def _no_network(tmp_path_factory):
    """Neither the tests nor a Python process they start may reach another host: ``tests/offline``.

    Through the same variable those processes find our modules, wherever they are started.
    """
    attempts = tmp_path_factory.mktemp("network") / "attempts.txt"
    here = Path(__file__).parent
    path = filter(None, [str(here / "offline"), str(here.parent), os.environ.get("PYTHONPATH")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path))
        patch.setenv("LTRB_ATTEMPTS", str(attempts))
        patch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")  # c10d warns where nobody knows a name of 127.0.0.1
        importlib.import_module("tests.offline.sitecustomize")
        yield
    assert not attempts.exists(), f"somebody tried to leave this machine:\n{attempts.read_text()}"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Tests keep their caches apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LTRB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _hangup_is_heard():
    """Under ``nohup`` it is ignored, by the processes that tests start, too, and ltrb leaves it so."""
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def _two_threads():
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="module")
def one_thread():
    """Sums as a process with OMP_NUM_THREADS=1 takes them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def more_shapes(tmp_path_factory) -> Path:
    """data.yaml of 32 training and 4 validation pictures of 64 to 96 px."""
    root = tmp_path_factory.mktemp("more") / "shapes"
    make_shapes(root, num_train=32, num_val=4, sides=(64, 96))
    return root / "data.yaml"


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """data.yaml of 16 training and 6 validation pictures of 64 to 96 px."""
    root = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(root, num_train=16, num_val=6, sides=(64, 96))
    return root / "data.yaml"


@pytest.fixture(scope="session")
def few_shapes(tmp_path_factory) -> Path:
    """data.yaml of 4 training and 2 validation pictures of 64 px."""
    root = tmp_path_factory.mktemp("few") / "shapes"
    make_shapes(root, num_train=4, num_val=2, sides=(64, 64))
    return root / "data.yaml"


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Flags of a training of seconds."""
    return ["--cfg", "demo", "--imgsz", "96", "--batch-size", "8", "--workers", "0", "--set", "train.amp=off"]


@pytest.fixture
def command(capfd, monkeypatch, tmp_path):
    """``command("train", "--epochs", 1)`` runs train.py here, in an empty folder; returns a ``Result``."""
    monkeypatch.chdir(tmp_path)

    def run(script: str, *arguments) -> Result:
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            run_main(importlib.import_module(script).main)
        return Result(ended.value.code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def trained(shapes, tiny, tmp_path_factory) -> Path:
    """The folder of a finished run of four epochs, with a checkpoint after the second."""
    project = tmp_path_factory.mktemp("runs")
    arguments = ["train.py", "--data", shapes, *tiny, "--epochs", 4, "--save-period", 2, "--project", project]
    arguments += ["--set", "train.anatomy_every=3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(map(str, arguments)))
        __import__("train").main()
    return project / "exp"


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A headless Chromium, driven by selenium, that resolves no name and reaches no host.

    ``browser.get_log("browser")`` is its console and ``get_log("performance")`` its network events, each
    since the last call. Skips where selenium, Chromium or its driver is missing.
    """
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    program, driver = next(filter(None, map(shutil.which, names)), None), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip(f"no {'chromedriver' if program else 'Chromium'} on this machine: pages are not driven")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    profile = tmp_path_factory.mktemp("chromium")
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "disable-background-networking",
        "host-resolver-rules=MAP * ~NOTFOUND",
        f"user-data-dir={profile}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SE_OFFLINE", "true")  # selenium looks for no driver of its own
        session = webdriver.Chrome(options=options, service=service)
    session.get("about:blank")
    session.get_log("performance")  # what the page of a new tab loads from inside the browser
    yield session
    session.quit()
