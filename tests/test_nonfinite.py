"""Numbers that are not finite: the step is skipped as if it had not been, reported, and at last the end."""

import ast
import json
from pathlib import Path

import pytest
import torch

import utils.step
from data.shapes import make_shapes
from tests.planted import SMALL, set_up
from tests.resume import compare_values, read_rows, read_weights
from utils.errors import NON_FINITE, UserError

ROOT = Path(__file__).parents[1]
BATCHES = 4  # of an epoch, of 4 pictures


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Flags of a training of two epochs, in a folder of its own."""
    root = tmp_path_factory.mktemp("nonfinite")
    make_shapes(root / "shapes", num_train=16, num_val=2, sides=(48, 64))
    return ("--data", root / "shapes/data.yaml", *SMALL, "--batch-size", 4, "--epochs", 2, "--project", root)


def differences(one, other) -> list[str]:
    return list(compare_values(one, other))


def whole(value: float):
    """Every pixel of the batch."""
    return lambda images: torch.full(images.shape, value)


def one_pixel(images):
    images = images.float() / 255
    images[0, 0, 5, 5] = torch.nan
    return images


def at(batches, spoil):
    return lambda images, batch: spoil(images) if batch in batches else images


def report_of(folder: Path) -> list[dict]:
    """The skipped steps; what is no JSON by the book, such as NaN, is refused."""

    def refuse(word: str):
        raise AssertionError(f"{word} is no JSON")

    return json.loads((folder / "nan_report.json").read_text(), parse_constant=refuse)["skipped"]


def shown_in(run, epoch: int, batch: int) -> list[str]:
    """The files whose pixels a batch really reads, by rendering it anew."""
    dataset, read = run.data.train.dataset, set()
    plain = dataset.pictures

    class Recorder:
        def __getattr__(self, name):
            return getattr(plain, name)

        def __call__(self, number: int):
            read.add(number)
            return plain(number)

    dataset.pictures = Recorder()
    run.data.train.set_epoch(epoch, mosaic=True)  # as close_mosaic has it: off in the last tenth only
    for item in run.data.train.sampler.items(batch, range(4)):
        dataset.sample(*item)
    dataset.pictures = plain
    return sorted(str(dataset.index.paths[number].decode()) for number in read)


CASES = {  # what is spoilt, in which batch, flags
    "nan": (whole(torch.nan), 2, ()),
    "first step": (whole(torch.nan), 0, ()),
    "inf": (whole(torch.inf), 5, ("--set", "train.optimizer=SGD")),
    "first step by SGD": (whole(-torch.inf), 0, ("--set", "train.optimizer=SGD")),
    "one pixel": (one_pixel, 3, ("--micro-batch", 2)),
    "accumulated": (whole(torch.nan), 5, ("--set", "train.nominal_batch=8", "--micro-batch", 3)),
    "one step an epoch": (whole(torch.nan), 1, ("--set", "train.nominal_batch=16")),
    "frozen": (one_pixel, 1, ("--freeze", "backbone", "--set", "train.optimizer=SGD")),
}


@pytest.mark.parametrize("case", CASES)
def test_a_spoilt_step_is_as_if_it_had_not_been(flags, case):
    """Weights, optimiser, statistics, average and its count, and all rows of results.csv, to the bit."""
    spoil, batch, more = CASES[case]
    spoilt = set_up(*flags, *more)
    steps = spoilt.run.cfg.train.accumulation
    begins = batch - batch % steps
    skipping = set_up(*flags, *more, skipped=[begins])
    assert spoilt.train(at({batch}, spoil)) == skipping.train() == 0
    one, other = (read_weights(training.run.folder) for training in (spoilt, skipping))
    assert one["step"] == 2 * BATCHES and one["ema_updates"] == 2 * BATCHES // steps - 1
    assert differences(one, other) == []
    rows = read_rows(spoilt.run.folder)
    assert rows == read_rows(skipping.run.folder) and len(rows) == 2
    alone = steps == BATCHES  # nothing of that epoch counts
    for epoch, row in enumerate(rows):
        finite = [value != "nan" for key, value in row.items() if key.startswith("train/")]
        assert finite == [not (alone and epoch == batch // BATCHES)] * 4
    (entry,) = report_of(spoilt.run.folder)
    (named,) = entry["batches"]
    assert (entry["step"], named["epoch"], named["batch"]) == (begins, 1 + batch // BATCHES, batch % BATCHES)
    assert named["pictures"] == shown_in(spoilt.run, batch // BATCHES, batch % BATCHES)
    assert set(named["terms"]) == {"quality", "box", "dfl"} and named["terms"]["quality"] == "nan"
    tables = [(training.run.folder / "assignment.csv").read_text() for training in (spoilt, skipping)]
    assert tables[0] == tables[1]


def test_gradients_can_be_spoilt_where_losses_are_not(flags):
    """Then all batches of the step are named, as nobody knows which it was."""
    more = ("--set", "train.nominal_batch=8")
    spoilt, skipping = set_up(*flags, *more), set_up(*flags, *more, skipped=[2])
    weight = spoilt.run.state.model.head.cls_outputs[0].weight
    weight.register_hook(lambda gradient: gradient * torch.nan if spoilt.run.state.step == 2 else gradient)
    assert spoilt.train() == skipping.train() == 0
    assert differences(*(read_weights(training.run.folder) for training in (spoilt, skipping))) == []
    assert read_rows(spoilt.run.folder) == read_rows(skipping.run.folder)
    (entry,) = report_of(spoilt.run.folder)
    assert (entry["step"], entry["gradient_norm"]) == (2, "nan")
    assert [named["batch"] for named in entry["batches"]] == [2, 3]
    for named in entry["batches"]:
        assert all(0 < float(value) < 10 for value in named["terms"].values())
        assert named["pictures"] == shown_in(spoilt.run, 0, named["batch"])


# one after the other


def until_the_end(training, first: int) -> UserError:
    """Train with every batch from ``first`` on spoilt."""
    with pytest.raises(UserError) as ended:
        training.train(at(range(first, 1000), whole(torch.nan)))
    return ended.value


@pytest.mark.parametrize("first", [0, 1, 3])
def test_spoilt_from_a_step_on(flags, first):
    """The run ends within five steps, with the weights as they were, and goes on from there."""
    spoilt, stopped = set_up(*flags), set_up(*flags, stop=(0, first))
    computed = []
    spoilt.run.state.model.register_forward_hook(lambda *_: computed.append(spoilt.run.state.step))
    error = until_the_end(spoilt, first)
    assert error.code == NON_FINITE and "train.lr" in str(error) and "nan_report.json" in str(error)
    assert max(computed) < first + 5
    assert stopped.train() == 143
    last, before = (read_weights(training.run.folder) for training in (spoilt, stopped))
    assert first + 3 <= last["step"] <= first + 5
    for content in (last, before):
        content["ema"] = {name: tensor + 0 for name, tensor in content["ema"].items()}  # -0.0 becomes 0.0
    for part in ("model", "ema", "ema_updates", "best", "scaler"):
        assert differences(last[part], before[part]) == [], part
    assert all(tensor.isfinite().all() for tensor in (*last["model"].values(), *last["ema"].values()))
    if first:
        assert differences(last["optimizer"]["state"], before["optimizer"]["state"]) == []
    check_report(spoilt.run, range(first, last["step"]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.training.step_watch.IN_A_ROW", 100)
        skipping = set_up(*flags, skipped=range(first, last["step"]))
        assert skipping.train() == 0
    resumed = set_up("--resume", spoilt.run.folder / "weights/last.pt", "--noplots", "--device", "cpu")
    assert resumed.train() == 0
    assert differences(read_weights(spoilt.run.folder), read_weights(skipping.run.folder)) == []
    assert read_rows(spoilt.run.folder) == read_rows(skipping.run.folder)


def check_report(run, batches) -> None:
    """Exactly these are named, with exactly their pictures."""
    found = report_of(run.folder)
    assert [entry["step"] for entry in found] == list(batches)
    for entry, number in zip(found, batches, strict=True):
        (named,) = entry["batches"]
        assert (named["epoch"] - 1, named["batch"]) == divmod(number, BATCHES)
        assert named["pictures"] == shown_in(run, *divmod(number, BATCHES))
        assert all(Path(picture).is_file() for picture in named["pictures"])


def test_spoilt_after_resuming(flags):
    stopped = set_up(*flags, stop=(0, 2))
    assert stopped.train() == 143
    last = stopped.run.folder / "weights/last.pt"
    before = read_weights(stopped.run.folder)
    resumed = set_up("--resume", last, "--noplots", "--device", "cpu")
    assert until_the_end(resumed, 2).code == NON_FINITE
    after = read_weights(stopped.run.folder)
    for part in ("model", "ema", "ema_updates"):
        assert differences(after[part], before[part]) == [], part
    assert differences(after["optimizer"]["state"], before["optimizer"]["state"]) == []
    check_report(resumed.run, range(2, after["step"]))


def test_two_in_a_row_do_not_end_a_run(flags):
    spoilt = set_up(*flags)
    assert spoilt.train(at((1, 2, 4, 5, 7), whole(torch.nan))) == 0  # also at the end
    check_report(spoilt.run, (1, 2, 4, 5, 7))
    assert read_weights(spoilt.run.folder)["ema_updates"] == 3


def test_the_command_ends_with_code_3_and_a_hint(command, monkeypatch, flags):
    plain = utils.step.forward
    monkeypatch.setattr(utils.step, "forward", lambda m, images, amp: plain(m, images * torch.nan, amp))
    result = command("train", *flags)
    assert result.code == NON_FINITE and "Traceback" not in result.err
    assert "train.lr" in result.err and "train.amp=off" in result.err


# what is saved


@pytest.mark.parametrize(("first", "ends"), [(4, "in the epoch"), (7, "with the epoch")])
def test_weights_that_are_not_finite_are_never_saved(flags, first, ends):
    """A learning rate beyond float32 gives infinite weights from a sound gradient: the old file stays."""
    training = set_up(*flags)
    run, rate = training.run, training.run.rate
    kept = {}

    def absurd(step: int) -> float:
        if step == first:
            kept.update({path: path.read_bytes() for path in (run.folder / "weights").iterdir()})
        return 1e39 if step >= first else rate(step)

    run.rate = absurd
    with pytest.raises(UserError, match=r"\.pt is not written: .* numbers of .* are inf or nan") as ended:
        training.train()
    assert ended.value.code == NON_FINITE
    assert {path: path.read_bytes() for path in (run.folder / "weights").iterdir()} == kept
    assert [path.name for path in kept] == ["last.pt"]
    assert read_weights(run.folder)["epoch"] == 1


def test_nothing_is_turned_into_numbers():
    """Hidden, what is not finite would train on."""
    files = [path for path in ROOT.rglob("*.py") if not path.is_relative_to(ROOT / "tests")]
    names = {
        (path.relative_to(ROOT), node.lineno)
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if "nan_to_num" in (getattr(node, "attr", ""), getattr(node, "id", ""), getattr(node, "name", ""))
        or "nan_to_num_" in (getattr(node, "attr", ""), getattr(node, "id", ""))
    }
    assert len(files) > 100 and not names


# half precision


def test_overflows_that_the_scaler_mends_are_not_bad(flags, capsys):
    """The first steps of fp16: the scale is too large, and halved until gradients fit; nobody is told."""
    training = set_up(*flags)
    state, found = training.run.state, []
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22)
    for weight in state.model.parameters():  # as in half precision
        weight.register_hook(lambda gradient: gradient.where(gradient.abs() < 65504, torch.inf))
    plain = state.update

    def update(**settings):
        found.append(plain(**settings))
        return found[-1]

    state.update = update
    assert training.train() == 0
    taken = [bool(update.taken) for update in found]
    skipped = taken.count(False)
    assert not taken[0] and 1 <= skipped <= 6
    assert not any(update.bad for update in found)
    assert state.scaler.get_scale() == 2.0 ** (22 - skipped)
    assert not (training.run.folder / "nan_report.json").exists() and "skipped" not in capsys.readouterr().out
    last = read_weights(training.run.folder)
    assert last["ema_updates"] == 8 - skipped and last["scaler"]["scale"] == 2.0 ** (22 - skipped)
    assert "nan" not in str(read_rows(training.run.folder)[0]["train/quality"])


def test_an_overflow_that_the_smallest_scale_does_not_mend_is_bad(flags):
    training = set_up(*flags)
    state = training.run.state
    state.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)  # 4, 2, then 1, where it stops to help
    weight = state.model.head.cls_outputs[0].weight
    weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(UserError) as ended:
        training.train()
    assert ended.value.code == NON_FINITE
    assert [entry["step"] for entry in report_of(training.run.folder)][:3] == [2, 3, 4]
    assert read_weights(training.run.folder)["ema_updates"] == 0
