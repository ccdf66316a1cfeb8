"""Seeds of a step, and runs that give the same bits again."""

import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from utils.config_files import ROOT
from utils.training.reproducibility import make_deterministic, seed_everything, seed_step


@pytest.fixture(autouse=True)
def _restore():
    """Leave the generators and PyTorch's switches as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])
    torch.use_deterministic_algorithms(before[0])
    cudnn.deterministic, cudnn.benchmark = before[1:]


def draw() -> tuple[float, ...]:
    """A number of each generator."""
    return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002


def drawn_at(seed: int, step: int) -> tuple[float, ...]:
    seed_step(seed, step)
    return draw()


def test_a_step_draws_the_same_whatever_came_before():
    first = drawn_at(3, 7)
    for _ in range(5):
        draw()
    seed_everything(99)
    assert drawn_at(3, 7) == first


def test_steps_and_seeds_differ_in_every_generator():
    cases = [(seed, step) for seed in (0, 1, 2, 2**32 - 1) for step in (0, 1, 2, 1000, 2**40)]
    cases += [(1000, 0), (1000, 1)]  # (a, b) is not (b, a), nor is their sum what counts
    numbers = np.array([drawn_at(*case) for case in cases])
    for column in numbers.T:
        assert len(set(column)) == len(cases)
    assert all(len(set(row)) == 3 for row in numbers.tolist())


def test_neighbouring_steps_have_nothing_in_common():
    """The first draws of 2,000 steps are uniform and uncorrelated: 3 standard errors and a half."""
    numbers = np.array([drawn_at(0, step) for step in range(2000)])
    error = 3.5 / np.sqrt(2000)
    assert np.all(np.abs(numbers.mean(0) - 0.5) < error * np.sqrt(1 / 12))
    for column in numbers.T:
        assert abs(np.corrcoef(column[:-1], column[1:])[0, 1]) < error
    assert np.abs(np.corrcoef(numbers.T)[np.triu_indices(3, 1)]).max() < error


def test_gpu_generators_get_the_seed_too(monkeypatch):
    others = [torch.Generator(), torch.Generator()]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "default_generators", tuple(others), raising=False)
    seed_step(5, 6)
    assert {other.initial_seed() for other in others} == {torch.default_generator.initial_seed()}


def test_seeding_is_cheap():
    """Far below a millisecond a step; some 6 microseconds where nothing else runs."""
    best = min(_seconds(200) for _ in range(5)) / 200
    assert best < 50e-6 * 4  # a slow, busy core


def _seconds(times: int) -> float:
    start = time.perf_counter()
    for step in range(times):
        seed_step(0, step)
    return time.perf_counter() - start


def test_switches(monkeypatch, capsys):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    torch.backends.cudnn.benchmark = True
    make_deterministic()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert capsys.readouterr().err == ""


def test_what_comes_too_late_is_said(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    make_deterministic()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"  # the user's, and as good
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    make_deterministic()
    (line,) = capsys.readouterr().err.splitlines()
    assert "CUBLAS_WORKSPACE_CONFIG=:4096:8" in line and "before" in line


STEP = """
import sys, warnings
import torch
from models.detector import build_detector
from utils.assigners.build import build_assigner
from utils.config_files import load_config
from utils.losses.compute import compute_loss
from utils.structures import Targets
from utils.training.reproducibility import make_deterministic, seed_everything, seed_step
warnings.simplefilter("error")
torch.set_num_threads(1)
make_deterministic()
for loss in sys.argv[1:]:
    cfg = load_config(cfg="demo", loss=loss).config
    sums = []
    for _ in range(2):
        seed_everything(0)
        model = build_detector(cfg.model, 3).train()
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        assign = build_assigner(cfg)
        corner = torch.rand(2, 5, 2) * 40
        boxes = torch.cat((corner, corner + 4 + torch.rand(2, 5, 2) * 20), 2)
        truth = Targets(boxes, torch.randint(3, (2, 5)), torch.ones(2, 5).bool(), torch.zeros(2, 5).bool())
        for step in range(2):
            seed_step(0, step)
            loss_value = compute_loss(model(torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)), truth,
                                      assign, cfg.loss)
            loss_value.total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0, foreach=True)
            optimizer.step()
            optimizer.zero_grad()
        sums.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*sums) and sums[0].isfinite().all(), loss
print("same bits")
"""


@pytest.mark.slow
def test_training_steps_of_all_losses_run_deterministically():
    """No operation of a step lacks a deterministic version on the CPU, and none warns."""
    losses = sorted(path.stem for path in (ROOT / "configs" / "losses").glob("*.yaml"))
    assert len(losses) >= 15
    command = [sys.executable, "-c", STEP, *losses]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and done.stdout.strip() == "same bits", done.stderr
