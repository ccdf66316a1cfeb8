"""Out of memory in a step: smaller parts of the same batch, and nothing else is different."""

import pytest
import torch

import utils.step
from data.shapes import make_shapes
from tests.planted import SMALL, Training, set_up
from tests.resume import compare_values, read_rows, read_weights
from utils.errors import OUR_FAULT, UserError
from utils.training import distributed

STEPS = 4  # two epochs of two batches of 16


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Flags of a training of two epochs, in a folder of its own, that looks inside at every step."""
    root = tmp_path_factory.mktemp("memory")
    make_shapes(root / "shapes", num_train=32, num_val=2, sides=(48, 64))
    own = ("--batch-size", 16, "--epochs", 2, "--project", root, "--set", "train.anatomy_every=1")
    return ("--data", root / "shapes/data.yaml", *SMALL, *own)


class Memory:
    """Holds ``most`` pictures from batch ``begins`` on. ``free``: passes of each attempt that fit anyway."""

    def __init__(self, most: int, *, begins: int = 0, free: int = 0):
        self.most, self.begins, self.free = most, begins, free
        self.failed: list[int] = []  # pictures
        self._passes = 0

    def __call__(self, images: torch.Tensor, batch: int) -> torch.Tensor:
        self._passes += 1
        if batch >= self.begins and len(images) > self.most and self._passes > self.free:
            self._passes = 0
            self.failed.append(len(images))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB.\nlots of advice")
        return images


def tables(training: Training) -> list:
    names = ("results.csv", "anatomy.csv", "assignment.csv")
    return [read_rows(training.run.folder, name) for name in names]


def check_same(short: Training, small: Training) -> None:
    """Weights, optimiser, statistics, average, and every row of every table."""
    one, other = (read_weights(training.run.folder) for training in (short, small))
    keys = one.keys() - {"config", "origins"}  # train.micro_batch
    assert keys >= {"model", "ema", "optimizer", "micro_batch", "step"}
    assert list(compare_values({key: one[key] for key in keys}, {key: other[key] for key in keys})) == []
    assert tables(short) == tables(small)


@pytest.mark.parametrize(
    ("more", "memory", "halved"),
    [
        ((), Memory(4), [16, 8]),
        ((), Memory(8), [16]),
        pytest.param(
            ("--micro-batch", 8), Memory(5, free=1), [8], marks=pytest.mark.slow
        ),  # after a part has gone through, with its gradients
        (("--set", "train.nominal_batch=32"), Memory(4, free=1), [16, 8]),  # in the second batch of a step
        pytest.param(
            ("--micro-batch", 7, "--set", "train.optimizer=SGD"),
            Memory(4, free=1),
            [7],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_it_is_as_if_the_parts_had_been_so_small_from_the_start(flags, capsys, more, memory, halved):
    short = set_up(*flags, *more)
    assert short.train(memory) == 0
    out = capsys.readouterr().out
    found = short.run.state.micro_batch
    assert memory.failed == halved and found == (halved[-1] + 1) // 2
    lines = [line for line in out.splitlines() if "out of memory" in line]
    assert len(lines) == len(halved) and all("the batch stays as it is" in line for line in lines)
    assert f"from here on {(halved[0] + 1) // 2} instead of {halved[0]} pictures" in lines[0]
    small = set_up(*flags, *(flag for flag in more if flag != "--micro-batch" and flag not in (7, 8)))
    small.run.state.micro_batch = found
    assert small.train() == 0
    check_same(short, small)


@pytest.mark.slow
def test_the_flag_is_the_same(flags):
    short, small = set_up(*flags), set_up(*flags, "--micro-batch", 4)
    assert short.train(Memory(4)) == small.train() == 0
    check_same(short, small)
    whole = set_up(*flags)
    assert whole.train() == 0
    models = (read_weights(training.run.folder)["model"] for training in (whole, short))
    assert list(compare_values(*models))


def test_in_the_backward_pass(flags):
    """Statistics of the forward passes are taken back, and so is what was counted."""
    short, small = set_up(*flags), set_up(*flags, sizes={1: 8})
    state, failed = short.run.state, []

    def refuse(gradient):
        if state.step == 1 and not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return gradient

    state.model.backbone.stem.conv.weight.register_hook(refuse)  # the last to get its gradient

    assert short.train() == 0 and failed == [True] and state.micro_batch == 8
    assert small.train() == 0
    check_same(short, small)


def test_in_the_midst_of_a_run_and_over_a_resume(flags):
    """The smaller parts are kept, and the run that was stopped equals the one that was not."""
    straight, stopped = set_up(*flags), set_up(*flags, stop=(1, 0))
    assert straight.train(Memory(8, begins=1)) == 0
    assert stopped.train(Memory(8, begins=1)) == 143
    last = stopped.run.folder / "weights/last.pt"
    assert read_weights(stopped.run.folder)["micro_batch"] == 8
    resumed, memory = set_up("--resume", last, "--noplots", "--device", "cpu"), Memory(8)
    assert resumed.run.state.micro_batch == 8
    assert resumed.train(memory) == 0 and memory.failed == []
    check_same(resumed, straight)


def test_not_even_one_picture_fits(flags):
    training = set_up(*flags)
    memory = Memory(0)
    with pytest.raises(
        UserError, match=r"out of memory with 1 pictures .* smaller --imgsz or model"
    ) as ended:
        training.train(memory)
    assert ended.value.code == OUR_FAULT and memory.failed == [16, 8, 4, 2, 1]
    assert "lots of advice" not in str(ended.value) and "Tried to allocate 20 MiB." in str(ended.value)


def test_the_command_says_so_in_one_line(command, monkeypatch, flags):
    def forward(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(utils.step, "forward", forward)
    result = command("train", *flags)
    assert result.code == OUR_FAULT and "Traceback" not in result.err
    assert [line.startswith("error: out of memory") for line in result.err.splitlines()] == [True]


def test_several_ranks_cannot_halve_alone(flags, monkeypatch):
    """Each step is theirs together; rank 1 cannot know. The message says how to go on."""
    training = set_up(*flags)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    counts = training.run.epoch.assigned
    batch = training.run.data.train.first_batch()
    training.run.step.step.accumulate = lambda *_: Memory(4)(batch.images, 0)
    with pytest.raises(UserError, match=r"--micro-batch 8 and --resume") as ended:
        training.run.step([batch], lr=0.1, counts=counts)
    assert ended.value.code == OUR_FAULT and training.run.state.micro_batch == 16


def test_other_errors_are_not_taken_for_it(flags):
    training = set_up(*flags)

    def fail(images, batch):
        raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError, match="a fault of ours"):
        training.train(fail)
    assert training.run.state.micro_batch == 16
