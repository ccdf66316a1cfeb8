"""Which device a run uses, in which precision, and how batches get there."""

import math
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from utils.errors import UserError
from utils.structures import Targets
from utils.training.distributed import launched_by_torchrun

try:
    import resource
except ImportError:  # Windows
    resource = None


def select_device(asked: str, *, launch: str = "") -> torch.device:
    """The device of a ``--device`` argument: '' (CUDA where there is one), 'cpu', '0', 'cuda:0'.

    Several ('0,1') need one process each: an error that holds the torchrun line for ``launch``, the command
    as typed, or asks for one device where that is ''. Under torchrun each process takes the GPU of its place
    in the list. Float32 is float32 from here on: TF32 is off, mixed precision is for speed.
    """
    name = {"cuda": "0"}.get(asked.strip().lower(), asked.strip().lower().removeprefix("cuda:"))
    if name == "cpu" or (not name and not torch.cuda.is_available()):
        return torch.device("cpu")
    numbers = [part.strip() for part in name.split(",") if part.strip()]
    # No machine has 10,000 GPUs, and int() refuses digits beyond 4,300.
    if not all(number.isascii() and number.isdigit() and len(number) <= 4 for number in numbers):
        raise UserError(f"--device {asked[:80]}: expected cpu, a GPU's number such as 0, or several as 0,1")
    if launched_by_torchrun():
        return _use(_gpu_of_rank(numbers, asked), asked)
    if len(numbers) > 1 and launch:
        gpus, count = ",".join(numbers), len(numbers)
        line = f"CUDA_VISIBLE_DEVICES={gpus} torchrun --nproc_per_node {count} {launch}"
        raise UserError(f"--device {asked}: several GPUs need one process each. Type:\n  {line}")
    if len(numbers) > 1:
        raise UserError(f"--device {asked}: give one device, cpu or a GPU's number")
    return _use(int(numbers[0]) if numbers else 0, asked)


def free_memory(device: torch.device) -> float:
    """Bytes that this process may still take: of the CUDA ``device``, or of the machine without swapping.

    A container's limit counts. Infinity where the system does not say.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return min(_available(), _container_room(Path("/sys/fs/cgroup")))


def _available() -> float:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        return math.inf


def _container_room(folder: Path) -> float:
    """What a control group of version 2 leaves; files that it caches can be given up."""
    try:
        limit, used = (
            (folder / f"memory.{name}").read_text(encoding="utf-8").strip() for name in ("max", "current")
        )
        lines = map(str.split, (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
        cached = next((int(count) for name, count in lines if name == "file"), 0)
        return math.inf if limit == "max" else int(limit) - int(used) + cached
    except (OSError, ValueError):  # no such group, or of version 1
        return math.inf


def peak_memory_gb() -> float:
    """Most memory so far, 1e9 bytes: reserved on the GPU in use, else resident in this process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_reserved() / 1e9
    if resource is None:
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _gpu_of_rank(numbers: list[str], asked: str) -> int:
    """The GPU of this process of torchrun: that at its place in the list; without a list, its own number."""
    place = int(os.environ["LOCAL_RANK"])
    if not numbers:
        return place
    if place >= len(numbers):
        raise UserError(f"--device {asked}: {len(numbers)} GPUs for more processes (--nproc_per_node)")
    return int(numbers[place])


def _use(number: int, asked: str) -> torch.device:
    found = torch.cuda.device_count()
    if number >= found:
        raise UserError(
            f"--device {asked}: CUDA device {number} is not there; this machine shows {found} CUDA "
            "device(s). Use --device cpu, or check the driver with nvidia-smi"
        )
    torch.backends.cudnn.allow_tf32 = False
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    return device


def autocast_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """The half type of a run, or None: 'auto' is bf16 where the device has it natively, fp16 on older GPUs.

    On a CPU with bf16 instructions a training step takes less than half the time.
    """
    if amp == "auto":
        if device.type == "cuda":
            return (
                torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
            )
        return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else None
    if amp == "fp16" and device.type == "cpu":
        raise UserError("train.amp fp16 needs a GPU; use bf16 or off on a CPU")
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]


def on_device(batches: Iterable, device: torch.device) -> Iterator:
    """The batches with ``images`` and ``truth`` on the device; on CUDA one ahead of the step that computes.

    There the next batch is copied, from pinned memory, on a stream of its own beside that of the computation,
    which waits for it only when it is that batch's turn. Nothing stops the host.
    """
    if device.type != "cuda":
        for batch in batches:
            yield _copy(batch, device)
        return
    copying, ahead = torch.cuda.Stream(device), None
    for batch in batches:
        with torch.cuda.stream(copying):
            following = _copy(batch, device), copying.record_event()
        if ahead:
            yield _take_over(*ahead, device)
        ahead = following
    if ahead:
        yield _take_over(*ahead, device)


def _copy(batch, device: torch.device):
    images, *truth = (tensor.to(device, non_blocking=True) for tensor in (batch.images, *batch.truth))
    return batch._replace(images=images, truth=Targets(*truth))


def _take_over(batch, copied: torch.cuda.Event, device: torch.device):
    """The computing stream waits for the copy, and owns its memory until it is done with it."""
    computing = torch.cuda.current_stream(device)
    computing.wait_event(copied)
    for tensor in (batch.images, *batch.truth):
        tensor.record_stream(computing)
    return batch
