"""Which device ``--device`` means, what is said where it is not there, and how batches get to it."""

from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

import utils.training.device
from utils.errors import USAGE, UserError
from utils.structures import Targets
from utils.training.device import autocast_dtype, on_device, select_device

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def no_torchrun(monkeypatch):
    for name in ("LOCAL_RANK", "WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def gpus(monkeypatch):
    """Make as if there were so many GPUs; the list of those that were made the current one."""
    chosen = []

    def pretend(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
        return chosen

    return pretend


def refusal(asked, launch="train.py --epochs 3") -> str:
    with pytest.raises(UserError) as error:
        select_device(asked, launch=launch)
    assert error.value.code == USAGE
    return str(error.value)


@pytest.mark.parametrize("asked", ["", "cpu", "CPU", " cpu "])
def test_cpu_without_cuda(gpus, asked):
    gpus(0)
    assert select_device(asked) == CPU


@pytest.mark.parametrize("asked", ["0", "cuda:0", "cuda", "1", "7"])
def test_a_gpu_that_is_not_there(gpus, asked):
    gpus(0)
    text = refusal(asked)
    assert f"--device {asked}" in text and "CUDA" in text and "--device cpu" in text


def test_a_gpu_beyond_the_last(gpus):
    gpus(2)
    text = refusal("2")
    assert "CUDA device 2" in text and "2 CUDA" in text


@pytest.mark.parametrize(("asked", "number"), [("", 0), ("0", 0), ("1", 1), ("cuda:1", 1), ("cuda", 0)])
def test_one_gpu(gpus, asked, number):
    chosen = gpus(2)
    assert select_device(asked) == torch.device("cuda", number)
    assert chosen == [torch.device("cuda", number)]


def test_cpu_where_there_is_a_gpu(gpus):
    chosen = gpus(2)
    assert select_device("cpu") == CPU and chosen == []


@pytest.mark.parametrize("asked", ["0,1", "cuda:0,1", "0, 1", "0,1,"])
def test_several_gpus_are_answered_with_the_line_to_type(gpus, asked):
    gpus(2)
    text = refusal(asked, launch="train.py --data a.yaml")
    assert "CUDA_VISIBLE_DEVICES=0," in text.replace(" ", "")
    assert "torchrun --nproc_per_node 2 train.py --data a.yaml" in text


def test_the_line_names_the_devices(gpus):
    gpus(0)
    assert "CUDA_VISIBLE_DEVICES=2,5,7 torchrun --nproc_per_node 3 train.py" in refusal("2,5,7")


def test_the_line_has_no_blanks_in_the_list(gpus):
    gpus(2)
    assert "CUDA_VISIBLE_DEVICES=0,1 torchrun" in refusal("0, 1")


@pytest.mark.parametrize("asked", ["gpu", "mps", "-1", "0;1", "cuda:x"])
def test_what_is_no_device(gpus, asked):
    gpus(2)
    assert "expected cpu, a GPU's number" in refusal(asked)


def test_torchrun_gives_each_process_its_gpu(gpus, monkeypatch):
    chosen = gpus(4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    for asked in ("", "0,1,2,3"):
        assert select_device(asked) == torch.device("cuda", 3)
    assert chosen == [torch.device("cuda", 3)] * 2
    assert select_device("cpu") == CPU


def test_torchrun_without_cuda_is_cpu(gpus, monkeypatch):
    gpus(0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert select_device("") == select_device("cpu") == CPU


# precision


def test_half_type_as_asked():
    assert autocast_dtype("off", CPU) is None
    assert autocast_dtype("bf16", CPU) == autocast_dtype("bf16", CUDA) == torch.bfloat16
    assert autocast_dtype("fp16", CUDA) == torch.float16


def test_fp16_needs_a_gpu():
    with pytest.raises(UserError, match=r"fp16 needs a GPU.*bf16 or off"):
        autocast_dtype("fp16", CPU)


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_on_a_gpu(monkeypatch, native, expected):
    def supported(*, including_emulation):
        assert not including_emulation
        return native

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert autocast_dtype("auto", CUDA) == expected


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, None)])
def test_auto_on_a_cpu(monkeypatch, native, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    assert autocast_dtype("auto", CPU) == expected


def test_the_module_reads_the_launcher_itself():
    assert utils.training.device.launched_by_torchrun() is False


# batches


class Batch(NamedTuple):
    images: object
    truth: Targets
    pictures: list[int]


def test_on_the_cpu_batches_pass_through():
    tensors = [torch.zeros(2, 3), *(torch.ones(2) for _ in range(4))]
    batches = [Batch(tensors[0], Targets(*tensors[1:]), [n]) for n in range(3)]
    arriving = on_device(iter(batches), CPU)
    for batch, arrived in zip(batches, arriving, strict=True):
        assert arrived.images is batch.images and arrived.pictures is batch.pictures
        assert isinstance(arrived.truth, Targets)
        assert all(tensor is other for tensor, other in zip(batch.truth, arrived.truth, strict=True))
    assert list(on_device([], CPU)) == []


def test_on_cuda_a_batch_is_copied_beside_the_step_before(monkeypatch):
    """Batch 1 is read and copied before the step on batch 0 begins; each step waits for its own copy only."""
    log, stack = [], ["computing"]

    class Tensor:
        def __init__(self, name):
            self.name = name

        def to(self, device, *, non_blocking):
            assert device == CUDA and non_blocking
            log.append(f"copy {self.name} on {stack[-1]}")
            return Tensor(self.name)

        def record_stream(self, stream):
            log.append(f"{self.name} used on {stream.name}")

    class Stream:
        def __init__(self, name, copied=0):
            self.name, self.copied = name, copied

        def record_event(self):
            self.copied += 1
            return f"event {self.copied}"

        def wait_event(self, event):
            log.append(f"{self.name} waits for {event}")

    class Switch:
        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            stack.append(self.stream.name)

        def __exit__(self, *_):
            stack.pop()

    streams = SimpleNamespace(made=0)

    def make(device):
        streams.made += 1
        return Stream("copying")

    monkeypatch.setattr(torch.cuda, "Stream", make)
    monkeypatch.setattr(torch.cuda, "stream", Switch)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(stack[-1]))

    def read():
        for n in range(2):
            log.append(f"read {n}")
            truth = Targets(*(Tensor(f"truth {n}") for _ in range(4)))
            yield Batch(Tensor(f"images {n}"), truth, [n])

    for batch in on_device(read(), CUDA):
        log.append(f"step {batch.pictures[0]}")
    expected = []
    for n in range(2):
        expected += [f"read {n}", f"copy images {n} on copying", *[f"copy truth {n} on copying"] * 4]
    for n in range(2):
        used = [f"images {n} used on computing", *[f"truth {n} used on computing"] * 4]
        expected += [f"computing waits for event {n + 1}", *used, f"step {n}"]
    assert log == expected and streams.made == 1
