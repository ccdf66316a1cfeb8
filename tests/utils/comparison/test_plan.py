"""What a comparison is asked for: flags, YAML, what is refused and why, which runs may go on."""

import shutil
from pathlib import Path

import pytest
import torch

from utils.arguments import train_parser
from utils.comparison.arguments import parse_comparison
from utils.comparison.compare_file import flags_to_argv, read_compare_file
from utils.comparison.finished import Finished, check_recipes, group_by_loss, plan_of_finished
from utils.comparison.plan import check_start, check_started, make_plan, read_seeds
from utils.comparison.runs import Slot, train_command
from utils.config import KEYS, Resolved, config_to_plain
from utils.config_files import ROOT, load_config
from utils.config_text import dump_config
from utils.errors import USAGE, UserError
from utils.settings import resolve_training, resume_training
from utils.training.checkpoint import save_checkpoint

COMPARISONS = sorted((ROOT / "configs" / "compare").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """The working directory is empty."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def losses(tmp_path) -> list[str]:
    """Two loss files, of which the second changes two settings."""
    (tmp_path / "a.yaml").write_text("")
    (tmp_path / "b.yaml").write_text("loss: {dfl: 0.5}\nmodel: {reg_max: 20}\n")
    return ["a.yaml", "b.yaml"]


def plan(line: str):
    return make_plan(*parse_comparison(line.split()))


def refusal(function, *arguments, **options) -> str:
    with pytest.raises(UserError) as error:
        function(*arguments, **options)
    assert error.value.code == USAGE
    return str(error.value)


def yaml_refusal(text: str) -> str:
    Path("bad.yaml").write_text(text)
    return refusal(read_compare_file, "bad.yaml")


# flags


def test_losses_seeds_and_flags_of_the_training(losses):
    found = plan(
        "--losses a.yaml b.yaml --seeds 3 --data d.yaml --epochs 4 --img 96 --set loss.box=3 --jobs 2"
    )
    assert list(found.groups) == ["a", "b"] and found.baseline == "a"
    assert [run.name for run in found.runs] == [f"{x}-seed{s}" for s in (0, 1, 2) for x in "ab"]
    config = found.groups["b"].config
    assert (config.loss.dfl, config.loss.box, config.model.reg_max, config.train.epochs) == (0.5, 3, 20, 4)
    assert (config.data.imgsz, found.groups["a"].config.model.reg_max) == (96, 15)
    assert config.train.patience == 0  # the end must not be chosen on the pictures that measure
    assert found.folder == Path("runs/compare/a-b")
    run = found.groups["b"].runs[2]
    assert run.folder == Path("runs/compare/a-b/runs/b-seed2") and run.log == run.folder.with_suffix(".log")
    assert run.measured == Path("runs/compare/a-b/val/b-seed2")


def test_baseline_by_name_or_file_and_names_of_the_comparison(losses):
    assert plan("--losses a.yaml b.yaml --baseline b").baseline == "b"
    assert plan("--losses a.yaml b.yaml --baseline b.yaml --name x --project y").folder == Path("y/x")
    assert "none of the losses: a, b" in refusal(plan, "--losses a.yaml b.yaml --baseline c")
    shutil.copy("b.yaml", "dfl_0.5.yaml")
    assert plan("--losses a.yaml dfl_0.5.yaml --baseline dfl_0.5").baseline == "dfl_0.5"
    assert plan("--losses a.yaml dfl_0.5.yaml --baseline dfl_0.5.yaml").baseline == "dfl_0.5"


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[2J", "\udcff", "x" * 199])
def test_names_that_no_folder_or_screen_takes_are_refused(losses, name):
    shutil.copy("b.yaml", f"{name}.yaml")
    arguments = parse_comparison(["--losses", "a.yaml", f"{name}.yaml", "--data", "d"])
    message = refusal(make_plan, *arguments)
    assert "rename the loss's file" in message and message.isprintable() and message.isascii()


@pytest.mark.parametrize(
    ("given", "seeds"), [(None, [0, 1, 2, 3, 4]), (3, [0, 1, 2]), ([3], [3]), ([7, 2], [7, 2])]
)
def test_seeds_are_a_count_or_a_list(given, seeds):
    assert read_seeds(given) == seeds


@pytest.mark.parametrize("given", [0, -1, [1, 1], [0, -2]])
def test_bad_seeds(given):
    assert "--seeds" in refusal(read_seeds, given)


@pytest.mark.parametrize(
    "flag", ["--loss vfl", "--seed 3", "--seed 0", "--proj x", "--resume", "--exist-ok", "--show-plan"]
)
def test_flags_that_a_comparison_owns_are_refused_with_a_reason(losses, flag):
    message = refusal(plan, f"--losses a.yaml b.yaml --data d {flag}")
    assert "is not for compare.py: " in message
    assert message.startswith("--" + {"--proj": "project"}.get(flag.split()[0], flag.split()[0].strip("-")))


def test_what_would_make_a_loss_other_than_its_file_says_is_refused(losses):
    message = refusal(plan, "--losses a.yaml b.yaml --data d --set loss.dfl=1")
    assert "loss.dfl of b.yaml would be overridden by --set" in message.replace(str(Path.cwd()) + "/", "")
    assert "--seeds" in refusal(plan, "--losses a.yaml b.yaml --data d --set train.seed=1")


def test_mistakes_of_a_training_are_found_before_any(losses, capsys):
    assert "train.epochs is 0" in refusal(plan, "--losses a.yaml b.yaml --epochs 0")
    Path("c.yaml").write_text("loss: {dlf: 1}")
    assert "Did you mean loss.dfl?" in refusal(plan, "--losses a.yaml c.yaml")
    with pytest.raises(SystemExit) as end:
        plan("--losses a.yaml b.yaml --epohcs 3")
    assert end.value.code == USAGE and "--epohcs" in capsys.readouterr().err


def test_too_few_losses_and_losses_of_one_name(losses):
    Path("sub").mkdir()
    shutil.copy("a.yaml", "sub/a.yaml")
    assert "would both be named a" in refusal(plan, "--losses a.yaml sub/a.yaml")
    assert "at least two" in refusal(plan, "--losses a.yaml")
    assert "--losses" in refusal(plan, "--seeds 3")
    assert "Shipped in configs/losses" in refusal(plan, "--losses a.yaml nothing_like_it")


# the YAML


def test_yaml_gives_all_and_flags_win(losses):
    Path("c.yaml").write_text(
        "losses: [a.yaml, b.yaml]\nbaseline: b\nseeds: [4, 2]\n"
        "flags: {data: d, imgsz: [96, 128], epochs: 9, set: [loss.box=3, train.lr=1e-3], noplots: true}\n"
    )
    found = plan("c.yaml --epochs 2 --set train.lr=2e-3")
    config = found.groups["a"].config
    assert (found.baseline, config.train.epochs, config.data.imgsz) == ("b", 2, (96, 128))
    assert (config.loss.box, config.train.lr) == (3, 2e-3)
    assert [run.seed for run in found.runs] == [2, 2, 4, 4] and found.folder.name == "c"
    assert plan("c.yaml --seeds 1 --baseline a").baseline == "a"
    assert "--noplots" in found.flags


@pytest.mark.parametrize(
    "flags",
    [
        *("download: true", "data-root: x", 'set: ["data.root=x"]', 'set: [" data.root =x"]'),
        *("cfg: [n, --data-root=x]", "cfg: [n, --downl]", "imgsz: [64, '--set', data.root=x]"),
    ],
)
def test_a_yaml_neither_fetches_nor_says_where_to(losses, flags):
    Path("set.yaml").write_text(f"losses: [a.yaml, b.yaml]\nflags: {{data: d.yaml, {flags}}}\n")
    assert "is for the command line alone" in refusal(plan, "set.yaml")
    assert plan("--losses a.yaml b.yaml --data d.yaml --data-root x --download").download


def test_flags_of_a_yaml_as_arguments():
    assert flags_to_argv({"a": 1, "b": True, "c": False, "d": None, "e": [1, 2], "set": ["x=1", "y=2"]}) == [
        "--a=1",
        "--b",
        *("--e", "1", "2"),
        *("--set=x=1", "--set=y=2"),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    {
        "loses: [a]": ["loses is no key", "bad.yaml:1", "Did you mean losses?"],
        "zebra: 1": ["Its keys are: losses, baseline, seeds, flags"],
        "losses: gfl": ['losses is "gfl"', "a list of names"],
        "losses: [1]": ["losses is [1]"],
        "losses: []": ["losses is []"],
        "seeds: 2.5": ["seeds is 2.5", "a count, or a list"],
        "seeds: true": ["seeds is true"],
        "seeds: [0, x]": ["seeds is"],
        "flags:\n  epoch: 3": ["flags.epoch is no flag of train.py", "bad.yaml:2", "Did you mean epochs?"],
        "flags:\n  data: d\n  batch_size: 3": ["bad.yaml:3", "Did you mean batch-size?"],
        "flags: {set: {a: 1}}": ["flags.set is", "a list of values"],
        "flags: 3": ["flags is 3"],
        "- a": ["bad.yaml:1", "key: value"],
        "loses: 1\nflags: {x: 1}": ["loses", "flags.x"],
    }.items(),
)
def test_mistakes_in_a_yaml_name_line_and_remedy(text, words):
    message = yaml_refusal(text)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
def test_shipped_comparisons(path):
    assert len(COMPARISONS) >= 3
    found = plan(f"{path.stem} --data d.yaml")
    assert len(found.groups) >= 4 and found.baseline == "gfl" and len(found.runs) == 5 * len(found.groups)
    head = path.read_text().partition("losses:")[0]
    assert all(f"# {word}: " in head for word in ("Command", "Cost", "Should reach"))


# going on


def begin(found, name: str = "b-seed0", **changes) -> Path:
    """The folder of a begun run, with its configuration as train.py writes it."""
    run = next(run for run in found.runs if run.name == name)
    (run.folder / "weights").mkdir(parents=True)
    run.weights.touch()
    config = found.groups[run.loss].config
    config = config.model_copy(update={"train": config.train.model_copy(update=changes)})
    (run.folder / "config.yaml").write_text(dump_config(Resolved(config, dict.fromkeys(KEYS, "--set"))))
    return run.folder


def test_runs_of_the_same_settings_go_on(losses):
    found = plan("--losses a.yaml b.yaml --seeds 2 --data d --img 96 64")
    check_started(found)
    begin(found, "b-seed1", seed=1)
    begin(found)
    check_started(found)
    check_started(plan("--losses a.yaml b.yaml --seeds 9 --data e --img 96 64 --workers 3 --save-minutes 1"))


def test_finished_runs_may_differ_in_more_than_those_that_go_on(losses):
    """train.py itself would refuse another cache for what is left of a run."""
    folder = begin(plan("--losses a.yaml b.yaml --seeds 2 --data d"))
    changed = plan("--losses a.yaml b.yaml --seeds 2 --data d --cache ram --deterministic")
    message = refusal(check_started, changed)
    assert 'data.cache: there "none", asked "ram"' in message and "train.deterministic" in message
    (folder / "metrics.json").touch()
    check_started(changed)


def test_what_a_started_run_goes_on_with_is_what_train_takes(losses):
    """Its command, as it stands, and --resume: nothing of it is refused."""
    found = plan("--losses a.yaml b.yaml --seeds 2 --data d --hyp sgd --img 96 64 --epochs 9")
    run = next(run for run in found.runs if run.name == "b-seed1")
    words = train_command(found, run, Slot("cpu", {}, 3))[2:]
    settings = resolve_training(train_parser().parse_args(words))
    content = {"config": config_to_plain(settings.config), "origins": settings.origins, "epoch": 2}
    args = train_parser().parse_args([*words, "--resume=x/last.pt"])
    assert resume_training(args, content, where="x/last.pt") == settings
    check_started(plan("--losses a.yaml b.yaml --seeds 2 --data d --hyp sgd --img 96 64 --epochs 9"))


def test_a_batch_size_of_its_own_for_each_loss_is_refused(losses):
    for flag in ("--batch-size auto", "--set train.batch_size=auto"):
        message = refusal(plan, f"--losses a.yaml b.yaml --data d {flag}")
        assert "--batch-size auto is not for compare.py" in message and "a number" in message


def test_runs_of_other_settings_are_refused(losses):
    folder = begin(plan("--losses a.yaml b.yaml --seeds 2 --data d --epochs 3"))
    message = refusal(check_started, plan("--losses a.yaml b.yaml --seeds 2 --data d --epochs 5 --batch 4"))
    assert str(folder) in message and "train.epochs: there 3, asked 5" in message and "--name" in message
    assert "train.batch_size: there 16, asked 4" in message and "train.seed" not in message
    Path("b.yaml").write_text("loss: {dfl: 0.75}\nmodel: {reg_max: 20}\n")
    changed = plan("--losses a.yaml b.yaml --seeds 2 --data d --epochs 3")
    assert "loss.dfl: there 0.5, asked 0.75" in refusal(check_started, changed)
    (folder / "weights" / "last.pt").unlink()  # nothing to go on with: it starts anew
    check_started(changed)


def test_other_weights_or_training_pictures_are_refused(losses):
    found = plan("--losses a.yaml b.yaml --data d")
    check_start(found, "aaa")
    check_start(found, "aaa")
    message = refusal(check_start, found, "bbb")
    assert "there training data: aaa" in message and "now   training data: bbb" in message
    assert "scratch" not in message and "--name" in message
    assert "x.pt not found" in refusal(check_start, found._replace(weights="x.pt"), "aaa")
    content = {"config": {"model": {}}, "names": ["cat"], "ema": {"a": torch.zeros(1)}}
    save_checkpoint(Path("x.pt"), content)
    message = refusal(check_start, found._replace(weights="x.pt"), "aaa")
    assert "there weights: from scratch" in message and "now   weights: x.pt " in message
    Path("runs/compare/a-b/runs/start.txt").write_text("")  # killed while it was written
    check_start(found._replace(weights="x.pt"), "aaa")
    save_checkpoint(Path("x.pt"), content | {"names": ["dog"]})  # the same path, other weights
    assert "weights: x.pt" in refusal(check_start, found._replace(weights="x.pt"), "aaa")


# finished runs


def finished(folder: str, **options) -> Finished:
    config, origins = load_config(cfg="demo", **options)
    return Finished(Path(folder), config, origins)


def test_finished_runs_are_grouped_and_named_by_their_loss(losses):
    runs = [
        finished("plain"),
        finished("by_name", loss="gfl", sets=["train.seed=1"]),
        finished("vfl", loss="vfl"),
        finished("flag", sets=["loss.dfl=0.5"]),
        finished("both", loss="vfl", sets=["model.reg_max=20"]),
        finished("a", loss="a.yaml"),
    ]
    groups = group_by_loss(runs)
    assert {name: [str(run.folder) for run in group] for name, group in groups.items()} == {
        "gfl": ["plain", "by_name", "a"],  # a.yaml changes nothing
        "vfl": ["vfl"],
        "gfl_dfl=0.5": ["flag"],
        "vfl_reg_max=20": ["both"],
    }
    Path("b.yaml").write_text("loss: {dfl: 0.5}\n")
    first = finished("old", loss="b.yaml")
    Path("b.yaml").write_text("loss: {dfl: 0.75}\n")
    second = finished("new", loss="b.yaml")
    assert list(group_by_loss([first, second, second])) == ["b", "b_dfl=0.75"]


def test_other_differences_than_those_of_the_losses_are_refused(losses):
    one = finished("one", loss="a.yaml", sets=["data.workers=1"])
    check_recipes([one, finished("two", loss="b.yaml", sets=["train.seed=4", "data.workers=2"])])
    other = finished("three", loss="b.yaml", sets=["train.epochs=7", "data.imgsz=96"])
    message = refusal(check_recipes, [one, one, other])
    assert "one and three differ in more than their losses" in message
    assert "train.epochs: first 100, second 7" in message and "data.imgsz: first 640, second 96" in message
    assert "dfl" not in message


def test_folders_without_finished_runs_are_refused(tmp_path):
    options = {"folder": Path("out"), "baseline": None, "device": ""}
    assert "no finished run" in refusal(plan_of_finished, ["nowhere"], **options)
    (tmp_path / "x" / "weights").mkdir(parents=True)
    (tmp_path / "x" / "weights" / "last.pt").touch()
    assert "--resume" in refusal(plan_of_finished, ["x"], **options)
