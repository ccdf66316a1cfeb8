"""What certainly cannot be held is refused with its figure; what is in use is not."""

from types import SimpleNamespace

import pytest
import torch

import utils.training.device
from models.detector import build_detector
from models.memory import check_training_memory, check_use_memory, least_memory
from utils.config import ModelConfig
from utils.config_files import load_config
from utils.errors import UserError
from utils.training.device import free_memory

CPU = torch.device("cpu")
GB = 10**9


def check(*sets: str, free: float = 16 * GB, device=CPU, ranks=(1, 1)) -> None:
    config = load_config(cfg="n", sets=sets).config
    side = config.data.imgsz
    check_training_memory(config, 80, (side, side), device, ranks=ranks, free=lambda _: free)


FITS = [
    (),
    ("train.batch_size=64", "data.imgsz=320"),
    ("data.imgsz=4096", "train.batch_size=1"),
    ("train.batch_size=4096", "train.micro_batch=1", "data.imgsz=320"),
]
CANNOT = [
    ("data.imgsz=8192", "train.batch_size=8"),
    ("train.batch_size=65536",),
    ("train.batch_size=65536", "train.micro_batch=1"),  # the pictures themselves
    ("model.width=8", "model.depth=8", "model.max_channels=65536"),
    ("model.width=8", "train.batch_size=1", "data.imgsz=32"),
]


@pytest.mark.parametrize("sets", FITS, ids=" ".join)
def test_what_fits_is_let_through(sets):
    check(*sets)


@pytest.mark.parametrize("sets", CANNOT, ids=" ".join)
def test_what_cannot_be_is_refused_with_the_figure(sets):
    with pytest.raises(
        UserError, match=r"need at least [\d.e+,]+ GB, and this machine has 16 GB free"
    ) as error:
        check(*sets)
    assert "\n" not in str(error.value) and error.value.code == 2


def test_on_a_gpu_one_picture_decides():
    """A batch too large for it is split when it runs out."""
    gpu = SimpleNamespace(type="cuda", index=0)
    check("train.batch_size=512", device=gpu)
    with pytest.raises(UserError, match="GPU 0 has 2 GB free"):
        check("data.imgsz=8192", "train.batch_size=1", device=gpu, free=2 * GB)


def test_ranks_share_the_batch_and_the_memory():
    sets = ("train.batch_size=128",)
    check(*sets, free=24 * GB)
    check(*sets, free=3 * GB, ranks=(8, 1))
    with pytest.raises(UserError):
        check(*sets, free=3 * GB, ranks=(8, 8))


def test_the_estimate_is_from_below_but_not_nothing():
    """What PyTorch holds of a forward pass for backward, counted, is more; and not by orders of magnitude."""
    model, held = build_detector(ModelConfig(), 3), {}

    def pack(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        pred = model(torch.zeros(2, 3, 64, 64))
    need = least_memory(ModelConfig(), 3, (64, 64), itemsize=4, training=True)
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    assert 0.4 * sum(held.values()) < 2 * need.picture + parameters <= sum(held.values()) * 1.05, pred.levels


def test_use_takes_less_than_training():
    model, config = build_detector(ModelConfig(), 3), load_config().config
    check_use_memory(model, config, (640, 640), pictures=32, free=lambda _: GB)
    with pytest.raises(UserError, match="this machine has 1 GB free"):
        check_use_memory(model, config, (8192, 8192), pictures=32, free=lambda _: GB)


@pytest.mark.parametrize(
    ("files", "room"),
    [
        ({"max": "1000", "current": "900", "stat": "anon 5\nfile 300"}, 400),
        ({"max": "max", "current": "900", "stat": "file 300"}, float("inf")),
        ({"max": "1000"}, float("inf")),
        ({"max": "x", "current": "y", "stat": ""}, float("inf")),
    ],
)
def test_a_containers_limit_counts(files, room, tmp_path):
    for name, text in files.items():
        (tmp_path / f"memory.{name}").write_text(text + "\n")
    assert utils.training.device._container_room(tmp_path) == room


def test_free_memory_is_some():
    assert free_memory(CPU) > 10**7
