"""A step of the optimiser: batches and parts, what is undone, and that it reads nothing from the device."""

import traceback
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import utils.step
from data.dataset import Batch
from models.detector import build_detector
from utils.assigners.build import build_assigner
from utils.assigners.statistics import AssignmentStatistics
from utils.config import Config
from utils.config_files import load_config
from utils.epoch import Epoch
from utils.losses.anatomy import LossAnatomy
from utils.losses.compute import compute_loss
from utils.step import TrainStep, forward
from utils.structures import Targets
from utils.training.optimizer import freeze, frozen_norms
from utils.training.state import start_state

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


def config(*sets: str) -> Config:
    return load_config(cfg="demo", sets=("train.amp=off", "model.width=0.0625", *sets)).config


def make_batch(seed: int, count: int = 4) -> Batch:
    """Noise, with two boxes in each picture but the last."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 64, 64), generator=draw, dtype=torch.uint8)
    corner = torch.rand((count, 2, 2), generator=draw) * 24
    boxes = torch.cat((corner, corner + 8 + 30 * torch.rand((count, 2, 2), generator=draw)), -1)
    valid = torch.ones(count, 2, dtype=torch.bool)
    valid[-1] = False
    labels = torch.randint(0, 2, (count, 2), generator=draw)
    return Batch(images, Targets(boxes, labels, valid, ~valid & False), [0] * count, [None] * count)


def make_step(cfg: Config, *, micro_batch: int = 4, every: int = 1) -> TrainStep:
    torch.manual_seed(0)
    model = build_detector(cfg.model, 2)
    state = start_state(model, cfg.train, 100, CPU, micro_batch=micro_batch)
    return TrainStep(model, state, cfg, LossAnatomy(every, model.strides))


def gradients(step: TrainStep) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in step.model.parameters()])


# what a step computes


def test_a_step_is_forward_loss_backward_and_update():
    cfg, batch, counts = config(), make_batch(0), AssignmentStatistics()
    step, plain = make_step(cfg), make_step(cfg, every=0)
    update, terms = step([batch], lr=0.01, counts=counts)
    loss = compute_loss(plain.model(batch.images), batch.truth, build_assigner(cfg), cfg.loss)
    loss.total.backward()
    wanted = plain.state.update(lr=0.01, clip_norm=cfg.train.clip_norm)
    assert terms.tolist() == [[term.item() for term in loss.terms.values()]]
    assert update.norm == wanted.norm and update.taken and not update.bad
    for (name, mine), theirs in zip(
        step.model.state_dict().items(), plain.model.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs), name
    assert counts.row()["small/boxes"] + counts.row()["medium/boxes"] == 6
    assert [row["step"] for row in step.anatomy.rows(1)] == [0]


@pytest.mark.parametrize("normaliser", ["quality", "positives"])
@pytest.mark.parametrize(("cut", "micro_batch"), [((8,), 4), ((8,), 3), ((8,), 1), ((4, 4), 4), ((3, 5), 2)])
def test_parts_and_batches_of_a_step_are_one_batch(normaliser, cut, micro_batch):
    """8 pictures, also where whole parts have no boxes: one normaliser, with batch normalisation frozen."""
    cfg, whole = config(f"loss.normaliser={normaliser}"), make_batch(0, 8)
    whole.truth.valid[3:6] = False
    batches, rest = [], whole
    for size in cut:
        batches.append(rest.split(size)[0])
        rest = Batch(
            rest.images[size:],
            Targets(*(tensor[size:] for tensor in rest.truth)),
            rest.pictures[size:],
            rest.letterboxes[size:],
        )
    found, wanted = make_step(cfg, micro_batch=micro_batch), make_step(cfg, micro_batch=8)
    for step in (found, wanted):
        step.model.eval()
    rows = found.accumulate(batches, AssignmentStatistics())
    (terms,) = wanted.accumulate([whole], AssignmentStatistics())
    gap = (gradients(found) - gradients(wanted)).norm() / gradients(wanted).norm()
    assert gap < 1e-5
    assert len(rows) == len(cut)
    if len(cut) == 1:
        assert torch.allclose(rows[0], terms, rtol=1e-5)


def test_each_batch_of_a_step_has_terms_of_its_own():
    """In order, as if it were alone."""
    batches, cfg = [make_batch(seed) for seed in range(3)], config()
    terms = make_step(cfg).accumulate(batches, AssignmentStatistics())
    for number, batch in enumerate(batches):
        (row,) = make_step(cfg).accumulate([batch], AssignmentStatistics())
        assert torch.equal(row, terms[number])


def test_all_parts_are_counted_and_the_first_of_a_batch_is_looked_at():
    batches, counts, whole = [make_batch(0), make_batch(1)], AssignmentStatistics(), AssignmentStatistics()
    step = make_step(config(), micro_batch=1)
    step.state.step = 7
    step.accumulate(batches, counts)
    make_step(config()).accumulate(batches, whole)
    assert counts.row()["small/boxes"] == whole.row()["small/boxes"] > 0
    assert [row["step"] for row in step.anatomy.rows(1)] == [7, 8]


def test_draws_depend_on_the_step_alone(monkeypatch):
    """Whatever was drawn before, and however often memory ran out."""
    drawn = []

    def watched(model, images, amp):
        drawn.append(torch.rand(()).item())
        if len(drawn) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(model, images, amp)

    monkeypatch.setattr(utils.step, "forward", watched)
    step = make_step(config())
    for number in (3, 3, 4):
        torch.rand(5)
        step.state.step = number
        step([make_batch(0)], lr=0.01, counts=AssignmentStatistics())
    first, failed, again, _, other, _ = drawn  # from the second step on, two parts
    assert first == failed == again != other


def test_counts_of_a_bad_step_are_taken_back():
    step, counts = make_step(config()), AssignmentStatistics()
    step([make_batch(0)], lr=0.01, counts=counts)
    before = counts.counts.clone()
    bad = make_batch(1)
    bad = bad._replace(images=torch.full(bad.images.shape, torch.nan))
    update, terms = step([bad, make_batch(2)], lr=0.01, counts=counts)
    assert update.bad and terms[0].isnan().any() and terms[1].isfinite().all()
    assert torch.equal(counts.counts, before)


@pytest.mark.parametrize("precision", ["off", "bf16"])
def test_precision(precision):
    pred = forward(make_step(config()).model, make_batch(0).images, precision)
    assert pred.cls_logits.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)


# nothing is read from the device


class Reading(TorchDispatchMode):
    """Notes the place of ours that asks for a value, or for a size that depends on values."""

    ASKS = (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "is_nonzero",
        "equal",
        "_unique2",
        "unique_dim",
    )

    def __init__(self):
        super().__init__()
        self.places = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masks = [
            index
            for index in (args[1] if name in ("index", "index_put_", "index_put") else ())
            if index is not None
        ]
        if name in self.ASKS or any(index.dtype in (torch.bool, torch.uint8) for index in masks):
            ours = [frame for frame in traceback.extract_stack() if frame.filename.startswith(str(ROOT))]
            ours = [frame for frame in ours if "/tests/" not in frame.filename]
            self.places += [f"{Path(ours[-1].filename).name}: {ours[-1].line}"] if ours else []
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_step_reads_nothing_from_the_device(optimizer, scaled):
    """With all that guards it; ``tests/test_layers.py`` sees what is asked for by name, as ``tolist``."""
    cfg = config(f"train.optimizer={optimizer}")
    step = make_step(cfg, micro_batch=3)
    freeze(step.model, 2)
    if scaled:
        step.state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    epoch, batches = Epoch(CPU, step.anatomy), [make_batch(0), make_batch(1)]
    with Reading() as reading:
        for _ in range(2):
            update, terms = step(batches, lr=0.01, counts=epoch.assigned)
            epoch.add(terms, update)
    elsewhere = [place for place in reading.places if 'device.type == "cpu"' not in place]  # there it pays
    assert frozen_norms(step.model) and reading.places and elsewhere == []


@pytest.mark.parametrize(
    "code",
    [
        "values[0].item()",
        "float(values[1])",
        "values[values > 1]",
        "values.nonzero()",
        "values.masked_select(values > 1)",
        "1 if values[0] > 0 else 2",
        "values.index_put_((values > 1,), torch.tensor(0.0))",
    ],
)
def test_readings_are_seen(code):
    values = torch.tensor([1.0, 2.0])
    ours = compile(code, str(ROOT / "utils" / "made_up.py"), "eval")
    with Reading() as reading:
        eval(ours, {"torch": torch, "values": values})
    assert len(reading.places) >= 1
