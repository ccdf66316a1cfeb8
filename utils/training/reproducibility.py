"""Seeds and bits. Data draws its own numbers from counters (``data.augment.plan``); global generators are for
initial weights, and for whatever a library may draw in a step.
"""

import hashlib
import os
import random
import struct
import sys

import numpy as np
import torch

CUBLAS_CONFIGS = (":4096:8", ":16:8")  # with which cuBLAS gives the same bits again; the first is the faster


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch on all devices."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries may draw from it
    torch.manual_seed(seed)


def seed_step(seed: int, step: int) -> None:
    """Seed the same generators as a function of (seed, step) alone; both are at least 0 and below 2^64.

    So a run that goes on at a step draws what an uninterrupted one would, and no generator has to be saved.
    The words come from a hash: neighbouring steps, or seeds, have nothing in common. PyTorch's generators are
    seeded one by one, because ``torch.manual_seed`` takes more than ten times as long where CUDA is not up.
    """
    digest = hashlib.blake2b(struct.pack("<QQ", seed, step), digest_size=24).digest()
    for_python, for_torch, for_numpy = struct.unpack("<QQQ", digest)
    random.seed(for_python)
    np.random.seed(for_numpy & 0xFFFFFFFF)  # noqa: NPY002 - as above
    generators = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
    for generator in (torch.default_generator, *generators):
        generator.manual_seed(for_torch)


def make_deterministic() -> None:
    """The same bits again on the same device, for the rest of the process; call it before CUDA starts.

    An operation that has no such version raises a RuntimeError that names it. cuBLAS reads its setting when
    CUDA starts: one line says so if that is too late.
    """
    if os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in CUBLAS_CONFIGS:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = CUBLAS_CONFIGS[0]
        if torch.cuda.is_initialized():
            setting = f"CUBLAS_WORKSPACE_CONFIG={CUBLAS_CONFIGS[0]}"
            print(f"--deterministic: CUDA is up already; set {setting} before the start", file=sys.stderr)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
