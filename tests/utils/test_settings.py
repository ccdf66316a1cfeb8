"""Which settings a run may go on with: what is refused, what is taken over, and where the run is found."""

import shutil
from pathlib import Path

import pytest
import torch

from utils.arguments import train_parser
from utils.config import KEYS, Resolved, config_to_plain
from utils.errors import USAGE, UserError
from utils.settings import FREE_ON_RESUME, NEVER, find_resumed, resolve_training, resume_training
from utils.training.batch_size import set_batch_size
from utils.training.checkpoint import save_checkpoint

WHERE = "runs/train/exp/weights/last.pt"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """The working directory is empty."""
    monkeypatch.chdir(tmp_path)


def parse(line: str):
    return train_parser().parse_args(line.split())


def begin(line: str = "--data d.yaml", *, epoch: int = 3, batch: int = 0) -> dict:
    """What the checkpoint of a run begun by ``line`` says of its settings."""
    settings = resolve_training(parse(line))
    if settings.config.train.batch_size == "auto":
        settings = set_batch_size(settings, 24)
    plain = config_to_plain(settings.config)
    return {"config": plain, "origins": settings.origins, "epoch": epoch, "batch": batch}


def resume(content: dict, line: str = "") -> Resolved:
    return resume_training(parse(f"{line} --resume"), content, where=WHERE)


def refusal(content: dict, line: str) -> str:
    with pytest.raises(UserError) as error:
        resume(content, line)
    assert error.value.code == USAGE
    return str(error.value)


# the run's own settings


def test_nothing_given_changes_nothing():
    content = begin("--data d.yaml --cfg s --loss vfl --hyp sgd --epochs 9 --img 96 64 --set loss.box=3")
    found = resume(content)
    assert config_to_plain(found.config) == content["config"] and found.origins == content["origins"]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--data d.yaml",
        "--data d.yaml --cfg s --loss vfl --hyp sgd --epochs 9 --img 96 64 --set loss.box=3 --set train.lr=1",
        "--data d.yaml --loss ltrb_plain --noval --freeze backbone --multi-scale --linear-lr --sync-bn",
        "--loss gfl --cfg demo --hyp demo --seed 4 --rect --single-cls --optimizer SGD --deterministic",
        "--data d.yaml --loss gfl_dgqp --set model.reg_max=9 --batch-size auto --cache",
        "--data d.yaml --hyp default --batch-size 5 --set train.batch_size=auto",
        "--data d.yaml --noval --epochs 7",
    ],
)
def test_the_same_command_goes_on(line):
    """As compare.py and torchrun start a run again: all its flags, and --resume."""
    content = begin(line)
    found = resume(content, line)
    assert config_to_plain(found.config) == content["config"] and found.origins == content["origins"]
    assert found.config.train.batch_size != "auto"


def test_a_part_of_the_command_goes_on():
    content = begin("--data d.yaml --hyp sgd --loss vfl --epochs 9 --batch 6 --set train.lr=0.3")
    for part in ("--epochs 9", "--batch 6", "--set train.lr=3e-1", "--loss vfl", "--data d.yaml --seed 0"):
        assert config_to_plain(resume(content, part).config) == content["config"]


# refused


def test_other_values_are_refused_key_by_key():
    content = begin("--data d.yaml --batch 6")
    message = refusal(content, "--set train.lr=0.01 --batch 8 --img 320 --epochs 200 --loss vfl")
    lines = message.splitlines()
    assert f"  train.lr: 0.002 in {WHERE}, 0.01 by --set" in lines
    assert f"  train.batch_size: 6 in {WHERE}, 8 by --batch-size" in lines
    assert f"  data.imgsz: 640 in {WHERE}, 320 by --imgsz" in lines
    assert f'  loss.quality_loss: "qfl" in {WHERE}, "vfl" by configs/losses/vfl.yaml' in lines
    assert not any("train.epochs" in line or "loss.gamma" in line for line in lines)
    assert f"--weights {WHERE}" in lines[-1] and "Leave" in lines[-1]


def test_every_setting_is_refused_or_free():
    """Each key in turn with another value."""
    content = begin("--data d.yaml", epoch=0)
    others = {"model.levels": "[3, 4, 5, 6]", "model.quality_branch": "dgqp", "loss.alpha": 0.5}
    others |= {"loss.quality_loss": "vfl", "loss.target": "hard", "loss.box_loss": "iou"}
    others |= {"loss.normaliser": "positives", "loss.box_weight": "one", "assigner.name": "atss"}
    others |= {
        "data.path": "e",
        "data.root": "e",
        "data.workers": 3,
        "data.label_errors": "skip",
        "data.cache": "ram",
    }
    others |= {"train.optimizer": "SGD", "train.schedule": "linear", "train.amp": "off"}
    others |= {"data.pixel_range": [0, 9], "data.bands": [3, 2, 1]}
    others |= {"train.micro_batch": 3, "train.nominal_batch": 64, "val.batch_size": 3}
    others |= {"val.evaluator": "pycocotools", "model.depth": 0.4, "train.save_period": 7}
    others |= {"model.class_prior": 0.02, "model.width": 0.3, "model.max_channels": 512}
    refused = set()
    for key in KEYS:
        if key == "model.backbone":
            continue  # there is one
        section, name = key.split(".")
        old = content["config"][section][name]
        value = others.get(key, (not old) if isinstance(old, bool) else None)
        if value is None:
            value = old + 32 if isinstance(old, int) else old / 2 or 0.25
        text = f"--set {key}={value}".replace(" ", "").replace("--set", "--set ").replace("True", "true")
        try:
            found = resume(content, text)
        except UserError as error:
            refused.add(str(error).splitlines()[1].strip().partition(":")[0])
        else:
            assert config_to_plain(found.config)[section][name] != old
            assert found.origins == content["origins"] | {key: "--set"}
    assert refused == set(KEYS) - set(FREE_ON_RESUME) - {"model.backbone"}


@pytest.mark.parametrize("line", ["--noval", "--val-every 2", "--freeze 2", "--linear-lr", "--cache disk"])
def test_flags_that_are_not_numbers_are_refused_too(line):
    assert line.split()[0] in refusal(begin("--data d.yaml"), line)


def test_a_file_stands_for_what_it_leaves_at_the_default():
    """gfl.yaml sets nothing: given for a run of another loss it is no less another loss."""
    message = refusal(begin("--data d.yaml --loss vfl"), "--loss gfl")
    assert f'loss.quality_loss: "vfl" in {WHERE}, "qfl" by --loss gfl, which leaves the default' in message
    message = refusal(begin("--data d.yaml --loss ltrb_plain"), "--loss gfl")
    assert f"model.reg_max: 0 in {WHERE}, 15 by --loss gfl" in message
    message = refusal(begin("--data d.yaml --hyp sgd"), "--hyp default")
    assert 'train.optimizer: "SGD"' in message
    assert "model.width" in refusal(begin("--data d.yaml --cfg s"), "--cfg n")


def test_a_file_does_not_stand_for_what_others_set():
    Path("mine.yaml").write_text("model: {depth: 0.5, reg_max: 9}\n")
    for line in ("--cfg mine.yaml", "--set loss.dfl=2 --set model.reg_max=9", "--hyp sgd"):
        content = begin(f"--data d.yaml {line}")
        assert config_to_plain(resume(content, "--loss gfl").config) == content["config"]


def test_an_edited_file_is_noticed():
    Path("x.yaml").write_text("loss: {dfl: 0.5, box: 3}\n")
    content = begin("--data d.yaml --loss x.yaml")
    resume(content, "--loss x.yaml")
    Path("x.yaml").write_text("loss: {dfl: 0.5}\n")
    assert "loss.box: 3" in refusal(content, "--loss x.yaml").replace("3.0", "3")


def test_weights_may_be_named_again():
    """They began the run; the checkpoint goes on with it. Their architecture is the run's."""
    config = begin("--cfg demo --set model.reg_max=20")["config"]
    save_checkpoint(Path("best.pt"), {"ema": {"w": torch.zeros(1)}, "config": config, "names": ["a"]})
    line = "--data d.yaml --weights best.pt --loss gfl"
    content = begin(line)
    assert content["config"]["model"]["reg_max"] == 20
    assert config_to_plain(resume(content, line).config) == content["config"]
    Path("best.pt").unlink()
    assert config_to_plain(resume(content, line).config) == content["config"]


def test_mistakes_in_what_is_given_are_found():
    content = begin()
    assert "Did you mean train.epochs?" in refusal(content, "--set train.epoch=3")
    assert "train.batch_size is 0" in refusal(content, "--batch 0")
    assert "no such file" in refusal(content, "--loss nothing_like_it")


# taken over


def test_free_settings_are_taken_over_with_their_origin():
    line = "--workers 2 --save-period 4 --save-minutes 1.5 --patience 7 --micro-batch 4 --data e.yaml"
    content = begin("--data d.yaml --epochs 9")
    found = resume(content, line)
    train, data = found.config.train, found.config.data
    assert (train.save_period, train.save_minutes, train.patience, train.micro_batch) == (4, 1.5, 7, 4)
    assert (data.workers, data.path, train.epochs) == (2, "e.yaml", 9)
    flags = {"data.workers": "--workers", "data.path": "--data", "train.save_period": "--save-period"}
    flags |= {"train.save_minutes": "--save-minutes", "train.patience": "--patience"}
    assert found.origins == content["origins"] | flags | {"train.micro_batch": "--micro-batch"}
    assert content["config"]["train"]["patience"] == 100  # the checkpoint's own are left alone


def test_more_epochs_extend_a_run():
    found = resume(begin("--data d.yaml --epochs 9", epoch=9), "--epochs 20")
    assert found.config.train.epochs == 20 and found.origins["train.epochs"] == "--epochs"
    assert resume(begin("--data d.yaml --epochs 9"), "--set train.epochs=20").config.train.epochs == 20


@pytest.mark.parametrize(
    ("epoch", "batch", "epochs", "taken"),
    [(5, 0, 5, True), (5, 0, 4, False), (5, 1, 5, False), (5, 1, 6, True), (0, 0, 1, True), (0, 3, 1, True)],
)
def test_fewer_epochs_than_are_begun_are_refused(epoch, batch, epochs, taken):
    content = begin("--data d.yaml --epochs 9", epoch=epoch, batch=batch)
    if taken:
        assert resume(content, f"--epochs {epochs}").config.train.epochs == epochs
    else:
        message = refusal(content, f"--epochs {epochs}")
        assert f"train.epochs is {epochs} (--epochs)" in message and WHERE in message
        assert f"at least {epoch + (batch > 0)}" in message


def test_auto_is_the_number_it_was():
    content = begin("--data d.yaml --batch-size auto")
    assert resume(content, "--batch-size auto").config.train.batch_size == 24
    assert resume(content, "--batch-size 24").config.train.batch_size == 24
    assert resume(begin("--data d.yaml --batch 6"), "--batch-size auto").config.train.batch_size == 6
    assert "train.batch_size: 24" in refusal(content, "--batch-size 32")


@pytest.mark.parametrize("origins", [None, [], {"train.lr": 3}, {"train.lr": "a\x1b[2Jb\n"}])
def test_origins_of_a_strange_checkpoint_reach_no_terminal(origins):
    found = resume(begin() | {"origins": origins}, "--loss gfl")
    assert found.origins.keys() == set(KEYS)
    assert all(text.isprintable() for text in found.origins.values())


# where the run is


def make_last(folder: str) -> Path:
    path = Path(folder) / "weights" / "last.pt"
    path.parent.mkdir(parents=True)
    content = {"ema": {"w": torch.zeros(1)}, "config": begin()["config"], "names": ["a"], "epoch": 1}
    save_checkpoint(path, content)
    return path


def test_no_resume_is_a_new_run():
    assert find_resumed(parse("")) is None


def test_a_path_may_be_that_of_the_run():
    last = make_last("somewhere/run")
    assert find_resumed(parse(f"--resume {last}")) == last
    assert find_resumed(parse("--resume somewhere/run")) == last
    assert find_resumed(parse("--resume somewhere/run/weights")) == last
    for path in ("nowhere", "nowhere/last.pt", "somewhere"):
        with pytest.raises(UserError, match=f"--resume {path}: no .*give a run's folder"):
            find_resumed(parse(f"--resume {path}"))


def test_a_checkpoint_that_was_copied_away_is_no_run():
    """Else the files of whoever owns the folder above it would be taken for those of a run."""
    (Path("home/kept")).mkdir(parents=True)
    shutil.copy(make_last("somewhere/run"), "home/kept/last.pt")
    with pytest.raises(UserError, match=r"RUN/weights.*--weights home/kept/last.pt"):
        find_resumed(parse("--resume home/kept/last.pt"))


def test_bare_resume_is_the_latest_of_the_project():
    last = make_last("p/a")
    assert find_resumed(parse("--resume --project p")) == last
    assert find_resumed(parse("--resume latest --project p")) == last
    with pytest.raises(UserError, match="--resume"):
        find_resumed(parse("--resume --project q"))


def test_auto_starts_where_it_will_be_found():
    assert find_resumed(parse("--resume auto --project p --name a")) is None
    Path("p/a/weights").mkdir(parents=True)  # begun, but nothing saved yet
    assert find_resumed(parse("--resume auto --project p --name a")) is None
    last = make_last("q/a")
    make_last("q/b")
    assert find_resumed(parse("--resume auto --project q --name a")) == last
    last.rename(last.with_name("last.previous.pt"))  # killed while it saved; loading falls back to this one
    assert find_resumed(parse("--resume auto --project q --name a")) == last


def test_never_is_more_than_any_run_has():
    content = begin("--data d.yaml --noval")
    assert content["config"]["train"]["val_every"] == NEVER
    assert resume(content, "--noval --epochs 200").config.train.epochs == 200
