"""The command lines: YOLOv5's flags keep working, and every value finds its setting."""

import pytest
import torch

from utils.arguments import detect_parser, train_parser, val_parser
from utils.config import KEYS, Config, Resolved, config_to_plain
from utils.config_files import load_config
from utils.errors import USAGE, UserError
from utils.settings import (
    DEMO_IMGSZ,
    DETECT_SETTINGS,
    NEVER,
    TRAIN_SETTINGS,
    VAL_SETTINGS,
    given_settings,
    override,
    resolve_training,
    resolve_use,
)
from utils.training.checkpoint import save_checkpoint
from utils.yolov5_flags import REPLACED_IN_DETECT, REPLACED_IN_TRAIN, REPLACED_IN_VAL


def train(line: str = ""):
    return train_parser().parse_args(line.split())


def val(line: str):
    return val_parser().parse_args(line.split())


def detect(line: str):
    return detect_parser().parse_args(line.split())


def resolve(line: str = "") -> Resolved:
    return resolve_training(train(line))


def refusal(line: str) -> str:
    with pytest.raises(UserError) as error:
        resolve(line)
    assert error.value.code == USAGE
    return str(error.value)


def usage_error(parser, line: str, capsys) -> str:
    with pytest.raises(SystemExit) as end:
        parser().parse_args(line.split())
    assert end.value.code == USAGE
    return capsys.readouterr().err


@pytest.fixture
def weights(tmp_path):
    """A checkpoint of a model unlike any default: its path."""
    config = load_config(cfg="demo", sets=["model.reg_max=20", "train.epochs=7"]).config
    content = {"ema": {"w": torch.zeros(1)}, "config": config_to_plain(config), "names": ["a"]}
    save_checkpoint(tmp_path / "best.pt", content)
    return tmp_path / "best.pt"


# YOLOv5's flags


def test_prefixes_for_training():
    args = train("--batch 8 --img 416 --epoch 3 --dev cpu --proj runs/x")
    assert (args.batch_size, args.imgsz, args.epochs) == (8, 416, 3)
    assert (args.device, args.project) == ("cpu", "runs/x")


@pytest.mark.parametrize("parser", [train_parser, val_parser, detect_parser])
@pytest.mark.parametrize(
    ("line", "size"),
    [
        ("--img 640", 640),
        ("--imgsz 640", 640),
        ("--img-size 640", 640),
        ("--imgs 320 416", (320, 416)),
        ("--imgsz 64 96", (64, 96)),
        ("", None),
    ],
)
def test_input_size(parser, line, size):
    needed = "" if parser is train_parser else "--weights w.pt "
    needed += "--source x " if parser is detect_parser else ""
    assert parser().parse_args((needed + line).split()).imgsz == size


def test_input_size_has_two_sides_at_most(capsys):
    assert "height and width" in usage_error(train_parser, "--img 1 2 3", capsys)


def test_prefixes_for_validation():
    args = val("--weights w.pt --conf 0.1 --iou 0.7 --max 50 --batch 4 --task test")
    found = args.conf_thres, args.iou_thres, args.max_det, args.batch_size, args.task
    assert found == (0.1, 0.7, 50, 4, "test")
    plain = val("--weights w.pt")
    assert (plain.conf_thres, plain.iou_thres, plain.max_det, plain.batch_size) == (None,) * 4  # the config's


def test_prefixes_for_detection():
    args = detect("--weights w.pt --source x --conf 0.4 --iou 0.5 --classes 0 2 --agnostic --line 2")
    assert (args.conf_thres, args.iou_thres, args.classes) == (0.4, 0.5, [0, 2])
    assert args.agnostic_nms and args.line_thickness == 2
    plain = detect("--weights w.pt --source x")
    assert (plain.conf_thres, plain.iou_thres, plain.max_det) == (None,) * 3  # the training's


@pytest.mark.parametrize("parser", [val_parser, detect_parser])
def test_weights_are_needed(parser, capsys):
    assert "--weights" in usage_error(parser, "", capsys)


YOLOV5_FLAGS = {  # those that are no setting here
    val: "half augment verbose dnn save-hybrid save-txt save-conf single-cls",
    detect: "half augment view-img visualize update dnn vid-stride save-csv save-format data",
}


def test_all_flags_of_yolov5_are_answered():
    for command, replaced in ((val, REPLACED_IN_VAL), (detect, REPLACED_IN_DETECT)):
        assert sorted(replaced) == sorted(f"--{name}" for name in YOLOV5_FLAGS[command].split())


@pytest.mark.parametrize(
    ("command", "flag", "why"),
    [
        (command, *item)
        for command, replaced in (
            (train, REPLACED_IN_TRAIN),
            (val, REPLACED_IN_VAL),
            (detect, REPLACED_IN_DETECT),
        )
        for item in sorted(replaced.items())
    ],
)
@pytest.mark.parametrize("value", ["", " 5", " ram"])
def test_replaced_flags_print_one_line_and_the_run_goes_on(command, flag, why, value, capsys):
    needed = {train: "", val: "--weights w.pt ", detect: "--weights w.pt --source x "}[command]
    args = command(f"{needed}{flag}{value} --name n")
    printed = capsys.readouterr()
    assert args.name == "n"
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line == f"{flag} is not needed: {why}"


def test_replaced_flags_change_no_setting(capsys):
    plain = resolve("--data x.yaml")
    flags = " ".join(f"{flag} 1" for flag in REPLACED_IN_TRAIN)
    assert resolve(f"--data x.yaml {flags}") == plain
    assert len(capsys.readouterr().err.splitlines()) == len(REPLACED_IN_TRAIN)


def test_replaced_flags_are_not_in_the_help(capsys):
    with pytest.raises(SystemExit) as end:
        train("--help")
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert not any(f" {flag} " in text for flag in REPLACED_IN_TRAIN)
    assert "--batch-size" in text and "--set KEY=VALUE" in text


def test_an_unknown_flag_is_a_usage_error(capsys):
    assert "--no-such-flag" in usage_error(train_parser, "--no-such-flag 1", capsys)


def test_multi_scale_and_show_plan():
    assert resolve("--multi-scale").config.augment.multi_scale == 0.5
    assert resolve("--multi-scale 0.25").config.augment.multi_scale == 0.25
    assert resolve("").config.augment.multi_scale == 0
    assert train("--show-plan").show_plan == 16 and train("--show-plan 3").show_plan == 3
    with pytest.raises(SystemExit):
        train("--show-plan 0")


def test_a_common_command_line_of_yolov5():
    cfg = resolve("--img 640 --batch 16 --epochs 3 --data coco128.yaml --cfg n --cache --cos-lr").config
    assert (cfg.data.imgsz, cfg.train.batch_size, cfg.train.epochs) == (640, 16, 3)
    assert (cfg.data.path, cfg.train.schedule, cfg.data.cache) == ("coco128.yaml", "cosine", "ram")


# from flags to settings


def test_every_setting_is_a_key_and_a_flag():
    parsed = train(), val("--weights w"), detect("--weights w --source x")
    for args, settings in zip(parsed, (TRAIN_SETTINGS, VAL_SETTINGS, DETECT_SETTINGS), strict=True):
        assert set(settings.values()) <= set(KEYS)
        assert all(getattr(args, name) is None for name in settings)  # not given: not set


def test_flags_become_settings():
    line = "--data d.yaml --img 64 96 --rect --single-cls --workers 3 --epochs 5 --batch 6 --seed 9"
    line += " --optimizer SGD --patience 4 --linear-lr --save-period 2 --val-every 3 --sync-bn"
    line += " --micro-batch 3 --save-minutes 0.5 --deterministic"
    resolved = resolve(line)
    plain = config_to_plain(resolved.config)
    expected = {
        "data": {"path": "d.yaml", "imgsz": [64, 96], "rect": True, "single_cls": True, "workers": 3},
        "train": {"epochs": 5, "batch_size": 6, "seed": 9, "optimizer": "SGD", "patience": 4}
        | {"schedule": "linear", "save_period": 2, "val_every": 3, "sync_bn": True}
        | {"micro_batch": 3, "save_minutes": 0.5, "deterministic": True},
    }
    for section, values in expected.items():
        assert {key: plain[section][key] for key in values} == values
    assert resolved.origins["train.batch_size"] == "--batch-size"
    assert resolved.origins["data.single_cls"] == "--single-cls"


def test_flags_that_are_not_given_set_nothing():
    assert given_settings(train("--data d.yaml"), TRAIN_SETTINGS) == {"data.path": ("--data", "d.yaml")}
    assert resolve("--data d.yaml").config.data == Config().data.model_copy(update={"path": "d.yaml"})


def test_zero_is_a_value():
    cfg = resolve("--data d.yaml --workers 0 --patience 0 --seed 0").config
    assert (cfg.data.workers, cfg.train.patience) == (0, 0)


@pytest.mark.parametrize(
    ("line", "key", "flag"),
    [
        ("--epochs 0", "train.epochs", "--epochs"),
        ("--batch 0", "train.batch_size", "--batch-size"),
        ("--micro-batch 0", "train.micro_batch", "--micro-batch"),
        ("--save-minutes -1", "train.save_minutes", "--save-minutes"),
        ("--img 8", "data.imgsz", "--imgsz"),
        ("--seed -1", "train.seed", "--seed"),
        ("--freeze -1", "train.freeze", "--freeze"),
        ("--freeze head", "train.freeze", "--freeze"),
    ],
)
def test_bad_values_name_the_setting_and_the_flag(line, key, flag):
    text = refusal(line)
    assert text.startswith(key) and f"({flag})" in text


@pytest.mark.parametrize("line", ["--noval", "--noval --epochs 7", "--noval --val-every 2"])
def test_noval_leaves_the_last_epoch(line):
    """Whatever the epochs, so that the same flag goes with more of them."""
    assert resolve(line).config.train.val_every == NEVER > 10**5


# val.py and detect.py: the training's configuration, and flags over it


def test_flags_of_validation():
    trained = load_config(cfg="demo", sets=["train.batch_size=5", "val.iou=0.7", "data.imgsz=96"]).config
    line = "--weights w --data d.yaml --conf 0 --max-det 7 --batch 3 --workers 0 --rect --set val.conf=0.2"
    found = config_to_plain(resolve_use(val(line), trained, VAL_SETTINGS))
    expected = config_to_plain(trained)
    expected["data"] |= {"path": "d.yaml", "workers": 0, "rect": True}
    expected["val"] |= {"conf": 0.2, "max_det": 7, "batch_size": 3}
    assert found == expected


def test_flags_of_detection():
    trained = load_config(cfg="demo", sets=["val.detect_conf=0.4"]).config
    line = "--weights w --source x --conf 0 --iou 0.1 --max-det 7 --img 64 96"
    found = config_to_plain(resolve_use(detect(line), trained, DETECT_SETTINGS))
    expected = config_to_plain(trained)
    expected["data"] |= {"imgsz": [64, 96]}
    expected["val"] |= {"detect_conf": 0, "detect_iou": 0.1, "max_det": 7}
    assert found == expected
    assert resolve_use(detect("--weights w --source x"), trained, DETECT_SETTINGS) == trained


def test_override_takes_none_for_the_old_value_and_names_the_bad_one():
    assert override(Config(), {"val.max_det": ("max_det", None)}) == Config()
    with pytest.raises(UserError, match=r"val.max_det is 0 \(max_det\)"):
        override(Config(), {"val.max_det": ("max_det", 0), "val.conf": ("conf", 0)})


# --freeze


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ("0", 0),
        ("3", 3),
        ("10", 10),
        ("backbone", "backbone"),
        ("neck", "neck"),
        ("0 1 2", 3),  # YOLOv5's list of parts
        ("0 1", 2),
    ],
)
def test_freeze(given, what):
    assert resolve(f"--freeze {given}").config.train.freeze == what


@pytest.mark.parametrize("given", ["1 2 3", "0 2", "2 1 0", "0 backbone", "backbone neck", "0 0"])
def test_freeze_takes_the_first_parts_only(given):
    text = refusal(f"--freeze {given}")
    assert f"--freeze {given}" in text and "number of parts" in text


def test_freeze_by_setting():
    assert resolve("--set train.freeze=backbone").config.train.freeze == "backbone"


# the demo, and weights


def test_no_arguments_are_the_demo():
    resolved = resolve()
    demo = load_config(cfg="demo", hyp="demo").config
    assert resolved.config.model == demo.model and resolved.config.train == demo.train
    assert resolved.config.data.imgsz == DEMO_IMGSZ and resolved.origins["data.imgsz"] == "demo"
    assert resolved.config.data.path == "data/shapes.yaml"
    assert resolved.config.model != Config().model and resolved.config.train != Config().train


def test_the_demo_takes_flags():
    cfg = resolve("--epochs 2 --img 160 --cfg n").config
    assert (cfg.train.epochs, cfg.data.imgsz) == (2, 160)
    assert cfg.model == load_config(cfg="n").config.model


@pytest.mark.parametrize(
    "line", ["--data d.yaml", "--set data.path=d.yaml", "--set data.path=d.yaml --epochs 100"]
)
def test_with_data_it_is_no_demo(line):
    resolved = resolve(line)
    assert resolved.config.data.path == "d.yaml"
    assert resolved.config.model == load_config(cfg="n").config.model
    assert resolved.config.train == load_config(hyp="default").config.train
    assert resolved.config.data.imgsz == 640


@pytest.mark.parametrize("data", ["", "--data d.yaml"])
def test_weights_bring_their_architecture_and_nothing_else(weights, data):
    resolved = resolve(f"--weights {weights} {data}")
    assert resolved.config.model == load_config(cfg="demo", sets=["model.reg_max=20"]).config.model
    assert resolved.origins["model.reg_max"] == str(weights)
    assert (
        resolved.config.train == load_config(hyp="default" if data else "demo").config.train
    )  # not 7 epochs


def test_a_model_file_wins_over_that_of_the_weights(weights):
    assert resolve(f"--weights {weights} --cfg s").config.model == load_config(cfg="s").config.model


def test_set_wins_over_the_weights(weights):
    cfg = resolve(f"--weights {weights} --set model.reg_max=12").config
    assert cfg.model.reg_max == 12


def test_weights_that_are_none(tmp_path):
    assert "not found" in refusal(f"--weights {tmp_path}/yolov5s.pt")


@pytest.mark.parametrize("config", [{}, [], None, {"model": None}])
def test_weights_without_a_model_section(tmp_path, config):
    save_checkpoint(tmp_path / "x.pt", {"ema": {}, "config": config, "names": ["a"]})
    refusal(f"--weights {tmp_path}/x.pt")


# precedence and --set


def test_precedence(tmp_path):
    """default < --hyp < flags < --set; --cfg and --loss for their own sections."""
    hyp, loss = tmp_path / "hyp.yaml", tmp_path / "loss.yaml"
    hyp.write_text("train: {epochs: 11, batch_size: 5, lr: 1e-2}\n")
    loss.write_text("loss: {beta: 1.5}\nmodel: {reg_max: 9}\n")
    line = f"--data d.yaml --cfg demo --hyp {hyp} --loss {loss} --batch 6 --epochs 12 --set train.epochs=13"
    resolved = resolve(line)
    train_cfg, origins = resolved.config.train, resolved.origins
    assert (train_cfg.lr, train_cfg.batch_size, train_cfg.epochs) == (0.01, 6, 13)
    assert (origins["train.batch_size"], origins["train.epochs"]) == ("--batch-size", "--set")
    assert origins["train.lr"] == str(hyp) and origins["train.momentum"] == "default"
    assert (resolved.config.loss.beta, resolved.config.model.reg_max) == (1.5, 9)
    assert resolved.config.model.width == load_config(cfg="demo").config.model.width


def test_set_is_repeatable_and_the_last_wins():
    cfg = resolve("--set train.lr=1e-3 --set train.epochs=2 --set train.lr=2e-4").config
    assert (cfg.train.lr, cfg.train.epochs) == (2e-4, 2)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("train.epoch", "Did you mean train.epochs?"),
        ("trian.epochs", "Did you mean train.epochs?"),
        ("model.regmax", "Did you mean model.reg_max?"),
        ("train.lr0", "YOLOv5's lr0 is train.lr here"),
        ("train.unlike_any", "The settings of train are: epochs, batch_size"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(key, nearest):
    text = refusal(f"--set {key}=1")
    assert text.startswith(f"{key} is not a setting (--set {key}=1)") and nearest in text


@pytest.mark.parametrize("given", ["epochs=3", "train.epochs", "=3", "train.epochs:3"])
def test_set_says_how_it_is_written(given):
    assert "--set section.key=value" in refusal(f"--set {given}") or "not a setting" in refusal(
        f"--set {given}"
    )


def test_set_is_for_validation_too():
    assert val("--weights w --set val.conf=0.1").sets == ["val.conf=0.1"]


def test_resume_alone_means_the_latest():
    assert train("").resume is None
    assert train("--resume").resume == "latest"
    assert train("--resume a/last.pt").resume == "a/last.pt"
    assert train("--resume auto").resume == "auto"


def test_batch_size_auto(capsys):
    assert resolve("--batch auto").config.train.batch_size == "auto"
    assert resolve("--batch-size 24").config.train.batch_size == 24
    assert "'many' is neither a number of pictures nor auto" in usage_error(
        train_parser, "--batch many", capsys
    )
    assert "2.5" in usage_error(train_parser, "--batch 2.5", capsys)


def test_loggers(capsys):
    assert train().loggers == []
    assert train("--loggers tensorboard mlflow --name x").loggers == ["tensorboard", "mlflow"]
    assert "'comet'" in usage_error(train_parser, "--loggers comet", capsys)
    assert resolve("--loggers wandb") == resolve()  # no setting


@pytest.mark.parametrize("flag", ["--entity", "--upload_dataset", "--bbox_interval", "--artifact_alias"])
def test_flags_of_weights_and_biases_say_what_to_use(flag, capsys):
    train(f"{flag} x")
    assert "--loggers wandb" in capsys.readouterr().err


def test_every_flag_of_the_help_says_what_it_does():
    """None without a text, none with a value of Python's in it."""
    for parser in (train_parser(), val_parser(), detect_parser()):
        text = parser.format_help()
        assert "None" not in text and "False" not in text and "null" not in text
        assert all(action.help for action in parser._actions)
