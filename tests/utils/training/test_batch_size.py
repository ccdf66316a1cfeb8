"""``--batch-size auto`` against memories that are made up: how much is used, what is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.config import TrainConfig
from utils.config_files import load_config
from utils.errors import USAGE, UserError
from utils.training import batch_size
from utils.training.batch_size import (
    MOST_TRIES,
    choose_batch_size,
    default_batch_size,
    round_size,
    set_batch_size,
)

GIB = 2**30
MANY = 10**9


class Memory:
    """A GPU of ``total`` bytes on which n pictures take ``peak(n)``; remembers what was tried."""

    def __init__(self, total: int, peak):
        self.total, self.peak, self.tried = total, peak, []

    def __call__(self, size: int) -> int:
        assert isinstance(size, int) and size >= 1
        self.tried.append(size)
        if self.peak(size) > self.total:
            raise torch.OutOfMemoryError("out of memory")
        return int(self.peak(size))

    def choose(self, most: int = MANY) -> int:
        """The choice, which must have been measured."""
        size = choose_batch_size(self, total=self.total, most=most)
        assert size in self.tried and len(self.tried) <= MOST_TRIES
        return size


def best_of(memory: Memory, share: float) -> int:
    """The largest size of at most this share, by asking for each."""
    size = 1
    while memory.peak(size * 2) <= share * memory.total:
        size *= 2
    low, high = size, size * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if memory.peak(middle) <= share * memory.total else (low, middle)
    return low


def test_by_hand():
    """100 bytes, 8 and 4 a picture: 20 pictures take the 88, and 20 is a multiple of 2."""
    memory = Memory(100, lambda n: 8 + 4 * n)
    assert memory.choose() == 20
    assert memory.tried == [1, 2, 4, 8, 20]


def test_running_out_on_the_way_up_halves_the_gap():
    """A cliff that no line foresees: above 50 pictures nothing fits."""
    memory = Memory(10**6, lambda n: n if n <= 50 else 10**9)
    assert memory.choose() == 48


@settings(max_examples=300, deadline=None)
@given(
    total=st.integers(GIB, 200 * GIB),
    base=st.floats(0, 0.6),
    pictures=st.floats(8, 5000),
)
def test_affine_memory_is_used_to_70_to_95_percent(total, base, pictures):
    slope = (0.88 - base) * total / pictures
    memory = Memory(total, lambda n: base * total + slope * n)
    size = memory.choose()
    assert 0.70 <= memory.peak(size) / total <= 0.95
    assert size <= best_of(memory, batch_size.LARGEST)
    assert memory.choose() == size  # the same measurements, the same answer


@settings(max_examples=300, deadline=None)
@given(
    base=st.floats(0, 0.5),
    pictures=st.floats(16, 3000),
    bend=st.floats(0.85, 1.15),
    block=st.sampled_from([1, 2 * 2**20, 20 * 2**20]),
    wave=st.floats(0, 0.03),
)
def test_bent_and_rounded_memory(base, pictures, bend, block, wave):
    """Peaks that grow as n^bend, jump by blocks of an allocator and wobble by the kernels' workspaces."""
    total = 24 * GIB
    slope = (0.88 - base) * total / pictures**bend

    def peak(n: int) -> float:
        exact = base * total + slope * n**bend * (1 + wave * math.sin(n))
        return math.ceil(exact / block) * block

    memory = Memory(total, peak)
    assert 0.68 <= memory.peak(memory.choose()) / total <= 0.95


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 2000), min_size=1, max_size=40), st.integers(1, 60))
def test_any_memory_ends_with_a_size_that_was_seen_to_fit(steps, most):
    """Not even monotonic: whatever comes out was measured, fits, and is at most ``most``."""
    memory = Memory(1000, lambda n: steps[n % len(steps)])
    try:
        size = memory.choose(most)
    except UserError:
        assert memory.peak(1) > memory.total
    else:
        assert size <= most and memory.peak(size) <= memory.total
        assert size == 1 or memory.peak(size) <= 0.95 * memory.total


def test_few_pictures_fit():
    assert Memory(100, lambda n: 60 + 30 * n).choose() == 1  # 90 of 100, and two do not fit
    assert Memory(100, lambda n: 95 * n).choose() == 1  # it does fit
    assert Memory(100, lambda n: 20 * n).choose() == 4
    assert Memory(100, lambda n: 11 * n).choose() == 8


@pytest.mark.parametrize(("most", "size"), [(1, 1), (3, 3), (20, 20), (33, 32), (1000, 1000), (1003, 1000)])
def test_no_more_than_there_are(most, size):
    memory = Memory(10**9, lambda n: 1000 + n)
    assert memory.choose(most) == size and max(memory.tried) <= most


def test_a_flat_beginning_does_not_mislead():
    """The smallest sizes all take one block of the allocator: the line through them is flat."""
    memory = Memory(10**6, lambda n: max(50_000, 900 * n))
    assert 0.7 <= memory.peak(memory.choose()) / 10**6 <= 0.95


def test_where_not_one_fits():
    with pytest.raises(UserError) as error:
        Memory(3 * GIB, lambda n: 4 * GIB).choose()
    assert error.value.code == USAGE
    assert "--batch-size auto" in str(error.value) and "3.0 GiB" in str(error.value)
    assert "--imgsz" in str(error.value)


def test_other_errors_are_not_taken_for_full_memory():
    def broken(size: int) -> int:
        raise RuntimeError("kernel")

    with pytest.raises(RuntimeError, match="kernel"):
        choose_batch_size(broken, total=1, most=1)


@given(st.integers(1, 10**6))
def test_rounding(size):
    rounded = round_size(size)
    assert rounded <= size < rounded * 9 / 8 + (size < 8)
    assert round_size(rounded) == rounded
    assert rounded % 8 == 0 or rounded < 64


def test_without_a_gpu_it_is_the_default():
    default = TrainConfig().batch_size
    assert default_batch_size(1) == default == 16
    assert (default_batch_size(2), default_batch_size(3), default_batch_size(40)) == (16, 15, 40)


def test_the_number_takes_the_place_of_the_word():
    asked = load_config(flags={"train.batch_size": ("--batch-size", "auto")})
    found = set_batch_size(asked, 24)
    assert found.config.train.batch_size == 24 and asked.config.train.batch_size == "auto"
    assert found.config.train.accumulation == 1
    assert found.origins["train.batch_size"] == "--batch-size" + batch_size.AUTO
    assert found.origins == asked.origins | {"train.batch_size": "--batch-size: auto"}
