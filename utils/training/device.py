"""Which device a run uses, and in which precision."""

import os

import torch

from utils.errors import UserError
from utils.training.distributed import launched_by_torchrun


def select_device(asked: str, *, command: str = "train.py") -> torch.device:
    """The device of a ``--device`` argument: '' (CUDA where there is one), 'cpu', '0', 'cuda:0'.

    Several ('0,1') need one process each: without torchrun that is an error holding the line to type.
    """
    name = asked.strip().lower().removeprefix("cuda:")
    if launched_by_torchrun() and name != "cpu" and torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        return device
    if "," in name:
        numbers = [part.strip() for part in name.split(",") if part.strip()]
        line = (
            f"CUDA_VISIBLE_DEVICES={','.join(numbers)} torchrun --nproc_per_node {len(numbers)} {command} ..."
        )
        raise UserError(f"--device {asked}: several GPUs need one process each. Type:\n  {line}")
    if name in ("cpu", "") and (name or not torch.cuda.is_available()):
        return torch.device("cpu")
    if name and name != "cuda" and not name.isdigit():
        raise UserError(f"--device {asked}: expected cpu, a GPU's number such as 0, or several as 0,1")
    number = int(name) if name.isdigit() else 0
    if number >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UserError(
            f"--device {asked}: CUDA device {number} is not there; this machine shows {found} CUDA "
            "device(s). Use --device cpu, or check the driver with nvidia-smi"
        )
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
