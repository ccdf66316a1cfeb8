"""The schema, the YAML reader and the merging of files, flags and --set."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from utils.config import KEYS, SECTIONS, Config, ModelConfig, config_to_plain
from utils.config_files import (
    FOLDERS,
    ROOT,
    config_from_plain,
    display_path,
    load_config,
    parse_yaml,
    read_yaml,
    read_yaml_lines,
    resolve_named,
)
from utils.config_text import dump_config, format_config
from utils.errors import DATA, USAGE, UserError
from utils.yolov5_names import ABSENT, RENAMED


@pytest.fixture
def write(tmp_path):
    def write_file(text: str | bytes, name: str = "x.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write_file


def read(text: str) -> object:
    return parse_yaml(text, lambda line: f"text:{line}")[0]


def refusal(**inputs) -> str:
    with pytest.raises(UserError) as caught:
        load_config(**inputs)
    assert caught.value.code == USAGE
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-.5e+2", -50.0),
        ("1.", 1.0),
        ("12", 12),
        ("+3", 3),
        ("010", 10),  # octal in YAML 1.1
        ("0o17", 15),
        ("0x1F", 31),
        ("1:30", "1:30"),  # 90 in YAML 1.1
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("2024-01-31", "2024-01-31"),
        ("TRUE", True),
        ("false", False),
        ("tRUE", "tRUE"),
        ("~", None),
        ("Null", None),
        ("", None),
        ("'1e-3'", "1e-3"),
        ("<<", "<<"),
        ("'a\\u00e9'", "a\\u00e9"),
        ("[1e-3, no]", [0.001, "no"]),
        ("-.INF", float("-inf")),
        (str(2**63 - 1), 2**63 - 1),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    result = read(text)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "y", "n", "Yes", "NO", "On", "OFF"])
def test_words_of_yaml_1_1_stay_strings(word):
    assert read(word) == word
    assert read(f"{word}: {word}") == {word: word}


def test_traps_of_yaml_1_1_in_files(write):
    recipe = write("train:\n  lr: 1e-3\n  amp: off\n")
    train = load_config(hyp=recipe).config.train
    assert train.lr == 0.001
    assert train.amp == "off"
    assert read_yaml(write("names: [yes, no, on]\n")) == {"names": ["yes", "no", "on"]}


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "\ufeff", "null\n"])
def test_an_empty_file_is_an_empty_mapping(write, text):
    assert read_yaml(write(text)) == {}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(write, encoding):
    assert read_yaml(write("names: [été, 犬]\n".encode(encoding))) == {"names": ["été", "犬"]}


def test_lines_of_keys(write):
    _, lines = read_yaml_lines(write("# comment\ntrain:\n  lr: 1\n\n  epochs: 2\nnames: {0: a}\n"))
    assert lines == {
        ("train",): 2,
        ("train", "lr"): 3,
        ("train", "epochs"): 5,
        ("names",): 6,
        ("names", 0): 6,
    }


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a: 1\nb: 2\na: 3\n", [":3:", '"a"', "first in line 1"]),
        ("a:\n  b: 1\n  b: 1\n", [":3:", '"b"']),
        ("a: 1\nb: [1, 2\n", [":3:"]),
        ("a: 1\n\tb: 2\n", [":2:"]),
        ("- 1\n- 2\n", [":1:", "key: value"]),
        ("just text\n", [":1:", "key: value"]),
        ("a: 1\n---\nb: 1\n", [":2:", "document"]),
        ("a: 1\nb: !!python/object/apply:os.system [id]\n", [":2:", "tag"]),
        ("a: !!timestamp 2024-01-01\n", [":1:", "tag"]),
        ("a: !!int ten\n", [":1:", "tag"]),
        ("a: 1\nb: 9223372036854775808\n", [":2:", "64 bits"]),
        (f"a: {'9' * 5000}\n", [":1:", "64 bits"]),
        ("a: &x [1]\nb: *x\n", [":2:", "*x"]),
        ("a: &x {b: *x}\n", [":1:", "*x"]),
        ("a: *nowhere\n", [":1:", "nowhere"]),
        ("a: 1\n? [1, 2]\n: 3\n", [":2:", "key"]),
        ("a: 1\nb: \x00\n", [":2:", "not allowed"]),
        ('a: "\\ud800"\n', [":1:", "surrogate"]),
        ('a: "\\UFFFFFFFF"\n', [":1:"]),
        ("[" * 5000, [":1:", "deeply"]),
        (b"a: 1\nb: \xff\n", [":2:", "UTF-8"]),
        (b"a: " + b"1" * 5_000_001, ["5,000,000 bytes"]),
    ],
)
def test_bad_files_name_file_and_line(write, text, parts):
    path = write(text)
    with pytest.raises(UserError) as caught:
        read_yaml(path, code=DATA)
    assert caught.value.code == DATA
    for part in [str(path), *parts]:
        assert part in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path, "a\0b"):
        with pytest.raises(UserError, match="cannot be read"):
            read_yaml(path)


def test_an_alias_may_repeat_a_scalar():
    assert read("train: &pictures images/all\nval: *pictures\n") == {
        "train": "images/all",
        "val": "images/all",
    }


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.one_of(
        st.binary(max_size=60),
        st.text(max_size=60).map(str.encode),
        st.text(max_size=30).map(lambda text: f"train:\n  lr: {text}".encode(errors="replace")),
        st.text(alphabet="abn019.:-+eE_xo~!&*<>[]{}|%@\"'#?, \n\t\\uU", max_size=60).map(str.encode),
    )
)
def test_random_files_raise_user_errors_only(tmp_path, data):
    path = tmp_path / "junk.yaml"
    path.write_bytes(data)
    for load in (read_yaml, lambda file: load_config(cfg=file), lambda file: load_config(hyp=file)):
        with suppress(UserError):
            load(path)


@settings(deadline=None, max_examples=150)
@given(
    key=st.one_of(st.sampled_from(KEYS), st.text(max_size=12)),
    value=st.one_of(
        st.text(max_size=20), st.sampled_from(["[1, 2]", "{a: 1}", "null", ".nan", "1e999", "true"])
    ),
)
def test_random_sets_raise_user_errors_only(key, value):
    with suppress(UserError):
        load_config(sets=[f"{key}={value}"])


def test_every_setting_has_a_description_and_a_valid_default():
    assert Config.model_validate(Config().model_dump()) == Config()
    for key in KEYS:
        section, name = key.split(".")
        assert SECTIONS[section].model_fields[name].description, key


def test_records_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Config().train.epochs = 3


def test_precedence_and_origins(write):
    cfg = write("model: {width: 0.5, reg_max: 7}\n", "cfg.yaml")
    hyp = write("train: {epochs: 3, lr: 0.5, seed: 4}\n", "hyp.yaml")
    loss = write("model: {reg_max: 9}\nloss: {box: 3}\n", "loss.yaml")
    flags = {"train.lr": ("--lr", 0.25), "train.seed": ("--seed", 5)}
    config, origins = load_config(
        cfg=cfg, hyp=hyp, loss=loss, flags=flags, sets=["train.seed=6", "train.seed=7"]
    )

    assert (config.model.width, origins["model.width"]) == (0.5, str(cfg))
    assert (config.model.reg_max, origins["model.reg_max"]) == (9, str(loss))
    assert (config.loss.box, origins["loss.box"]) == (3.0, str(loss))
    assert (config.train.epochs, origins["train.epochs"]) == (3, str(hyp))
    assert (config.train.lr, origins["train.lr"]) == (0.25, "--lr")
    assert (config.train.seed, origins["train.seed"]) == (7, "--set")
    assert (config.val, origins["val.iou"]) == (Config().val, "default")
    assert tuple(origins) == KEYS


def test_without_input_all_is_default():
    config, origins = load_config()
    assert config == Config()
    assert set(origins.values()) == {"default"}


def test_set_reads_values_by_yaml_1_2():
    sets = [
        "train.lr=1e-4",
        "train.amp=off",
        "data.imgsz=[320, 640]",
        "loss.alpha=null",
        "data.path=a=b.yaml",
    ]
    config = load_config(sets=sets).config
    assert (config.train.lr, config.train.amp, config.data.imgsz) == (1e-4, "off", (320, 640))
    assert (config.loss.alpha, config.data.path) == (None, "a=b.yaml")


@pytest.mark.parametrize("text", ["train.lr", "epochs=3", "=3", ""])
def test_set_needs_section_key_value(text):
    assert "section.key=value" in refusal(sets=[text])


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("train.epoch", "Did you mean train.epochs?"),
        ("trian.epochs", "Did you mean train.epochs?"),
        ("trian.epoch", "Did you mean train.epochs?"),
        ("train.imgsz", "Did you mean data.imgsz?"),
        ("model.batch_size", "Did you mean train.batch_size or val.batch_size?"),
        ("train.qqqqq", "The settings of train are: epochs"),
        ("qqqqq.wwwww", "The sections are: model"),
    ],
)
def test_unknown_keys_are_answered_with_a_suggestion(key, suggestion):
    message = refusal(sets=[f"{key}=1"])
    assert message.startswith(f"{key} is not a setting (--set {key}=1)")
    assert suggestion in message


def test_unknown_keys_in_a_file_name_the_line(write):
    path = write("train:\n  epochs: 3\n  epoch: 3\ntrian: {}\nepochs: 3\ntrain.lr: 1\nval: 3\n")
    assert refusal(hyp=path).splitlines() == [
        f"trian is not a setting ({path}:4). Did you mean train?",
        f"epochs is not a setting ({path}:5). Did you mean train.epochs?",
        f"train.lr ({path}:6) is written as a section with a key in it: train: {{lr: ...}}",
        f"val is 3 ({path}:7); it must be settings: val: {{conf: ...}}",
        f"train.epoch is not a setting ({path}:3). Did you mean train.epochs?",
    ]


@pytest.mark.parametrize("name", [*RENAMED, *ABSENT])
def test_names_of_yolov5_are_answered(write, name):
    answer = RENAMED.get(name) or ABSENT[name]
    path = write(f"train: {{}}\n{name}: 1\n")
    message = refusal(hyp=path)
    assert f"{name} is not a setting ({path}:2)" in message
    assert answer in message
    assert name not in RENAMED or RENAMED[name].split()[0] in KEYS
    if f"train.{name}" not in KEYS:
        assert answer in refusal(hyp=write(f"train: {{{name}: 1}}\n"))


@pytest.mark.parametrize(
    ("option", "key", "home"),
    [
        ("cfg", "train.epochs", "a --hyp file"),
        ("cfg", "loss.box", "a --loss file"),
        ("hyp", "model.width", "a --cfg file"),
        ("hyp", "assigner.top_k", "a --loss file"),
        ("hyp", "data.imgsz", "a flag or --set"),
        ("loss", "model.width", "a --cfg file"),
        ("loss", "augment.scale", "a --hyp file"),
    ],
)
def test_keys_outside_their_files_scope(write, option, key, home):
    section, name = key.split(".")
    path = write(f"{section}:\n  {name}: 1\n")
    message = refusal(**{option: path})
    assert message == f"{key} ({path}:2) does not belong in a --{option} file; it belongs in {home}"


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("train.epochs", "ten", "an integer >= 1"),
        ("train.epochs", 2.0, "an integer >= 1"),
        ("train.epochs", True, "an integer >= 1"),
        ("train.epochs", "10", "an integer >= 1"),
        ("train.epochs", None, "an integer >= 1"),
        ("train.lr", True, "a number > 0"),
        ("train.lr", "1e-3", "a number > 0"),
        ("train.lr", float("nan"), "a number > 0"),
        ("train.lr", float("inf"), "a number > 0"),
        ("train.lr", 10**400, "a number > 0"),
        ("model.reg_max", 65, "an integer >= 0, <= 64"),
        ("model.class_prior", 0.0, "a number > 0, < 1"),
        ("model.levels", [3, 5], "contains 3, 4, 5"),
        ("model.levels", [4, 5, 6], "contains 3, 4, 5"),
        ("model.levels", [], "contains 3, 4, 5"),
        (
            "data.imgsz",
            [640],
            "an integer >= 32, <= 8192, or a list of 2 values, each an integer >= 32, <= 8192",
        ),
        ("data.imgsz", 16, "an integer >= 32"),
        ("data.path", "", "a non-empty string"),
        ("data.rect", 1, "true or false"),
        ("train.amp", False, '"auto" or "off" or "bf16" or "fp16"'),
        ("train.freeze", "head", 'an integer >= 0, <= 1000, or "backbone" or "neck"'),
        ("val.batch_size", 0, "an integer >= 1, <= 65536, or null"),
        ("train.epochs", {"a": [1]}, "an integer >= 1"),
    ],
)
def test_bad_values_name_key_value_flag_and_range(key, value, allowed):
    message = refusal(flags={key: ("--flag", value)})
    assert message.startswith(f"{key} is ")
    assert "\n" not in message  # a union reports each branch
    assert "(--flag); it must be " in message
    assert allowed in message
    assert "Meaning: " in message


def test_bad_values_in_files_name_the_line_and_all_are_listed(write):
    path = write("train:\n  epochs: 0\n  lr: fast\nval: {iou: 2}\n")
    lines = refusal(hyp=path).splitlines()
    assert [line.split(";")[0] for line in lines] == [
        f"train.epochs is 0 ({path}:2)",
        f'train.lr is "fast" ({path}:3)',
        f"val.iou is 2 ({path}:4)",
    ]


@pytest.mark.parametrize("reg_max", [0, 1, 2])
def test_the_quality_branch_needs_bins(reg_max):
    message = refusal(sets=("model.quality_branch=dgqp", f"model.reg_max={reg_max}"))
    assert f"model.reg_max is {reg_max} (--set model.reg_max={reg_max})" in message and "dgqp" in message
    assert load_config(sets=("model.quality_branch=dgqp", "model.reg_max=3")).config.model.reg_max == 3


def test_reach_is_that_of_the_bins_or_of_the_default_bins():
    assert [ModelConfig(reg_max=value).reach for value in (15, 4, 0)] == [15, 4, 15]


@pytest.mark.parametrize("levels", [[3, 4, 5], [2, 3, 4, 5], [3, 4, 5, 6], (2, 3, 4, 5, 6)])
def test_allowed_levels(levels):
    assert load_config(flags={"model.levels": ("--levels", levels)}).config.model.levels == tuple(levels)


def test_named_files_and_paths(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = ROOT / "configs/models/n.yaml"
    for name in ("n", "n.yaml", "configs/models/n.yaml", str(shipped)):
        assert resolve_named(name, "models") == shipped
    assert resolve_named(write("", "own.yaml").name, "models") == Path("own.yaml")
    assert load_config(cfg="n").origins["model.width"] == "configs/models/n.yaml"


def test_a_missing_name_lists_what_was_tried_and_what_is_shipped():
    message = refusal(cfg="nn")
    assert "configs/models/nn.yaml" in message
    assert "demo, l, m, n, s, x" in message


SHIPPED = [
    (option, path) for option, folder in FOLDERS.items() for path in (ROOT / "configs" / folder).glob("*")
]


def test_a_misspelt_name_is_answered_with_the_nearest():
    message = refusal(loss="vfll")
    assert message.startswith("vfll: no such file. Did you mean vfl? Tried vfll, ")


def test_there_are_shipped_files():
    assert len(SHIPPED) >= 9


@pytest.mark.parametrize(("option", "path"), SHIPPED, ids=lambda part: getattr(part, "stem", part))
def test_every_shipped_file_loads_within_its_scope(option, path):
    origins = load_config(**{option.strip("-"): path}).origins
    assert set(origins.values()) <= {"default", display_path(path)}
    opening = path.read_text().split("\n\n")[0]
    for word in ("# Command: python ", "# Cost: ", "# Should reach: "):
        assert word in opening


SOME = {
    "data.path": ("--data", "a: 'b' \"c\" #\x85\u2028\U0001f600\n.yaml"),
    "data.imgsz": ("--img", [320, 640]),
    "train.lr": ("--lr", 1e-5),
    "train.amp": ("--amp", "off"),
    "train.freeze": ("--freeze", "neck"),
}


def test_dump_loads_back_with_origins(write):
    resolved = load_config(cfg="x", hyp="demo", loss="gfl", flags=SOME, sets=["loss.alpha=0.5"])
    text = dump_config(resolved)
    assert config_from_plain(read_yaml(write(text))) == resolved.config
    assert "  width: 1.25  # configs/models/x.yaml\n" in text
    assert "  lr: 1e-05  # --lr\n" in text
    assert '  amp: "off"  # --amp\n' in text
    assert "  alpha: 0.5  # --set\n" in text
    assert text.count("  # ") == len(KEYS)


def test_dump_survives_an_odd_file_name(write):
    path = write("train: {epochs: 3}\n", "odd\nname # é.yaml")
    resolved = load_config(hyp=path)
    assert config_from_plain(read_yaml(write(dump_config(resolved)))) == resolved.config


def test_plain_values_come_back():
    config = load_config(flags=SOME).config
    plain = config_to_plain(config)
    assert plain["data"]["imgsz"] == [320, 640]
    assert config_from_plain(plain) == config
    assert config_from_plain({}) == Config()


@pytest.mark.parametrize(
    ("plain", "part"),
    [
        ({"train": {"epoch": 3}}, "Did you mean train.epochs?"),
        ({"trian": {}}, "Did you mean train?"),
        ({"train": 3}, "it must be settings"),
        ({"train": {"epochs": "3"}}, "an integer >= 1"),
        ([1], "it must hold the sections"),
    ],
)
def test_saved_values_are_checked(plain, part):
    with pytest.raises(UserError, match=r"last\.pt") as caught:
        config_from_plain(plain, where="last.pt")
    assert part in str(caught.value)


def test_format_puts_what_was_set_first():
    lines = format_config(load_config(cfg="m", sets=["train.epochs=3"])).splitlines()
    assert lines[0].startswith("configs/models/m.yaml: model.depth=0.67, ")
    assert lines[1] == "--set: train.epochs=3"
    assert lines[2].startswith("default: ")
    assert max(map(len, lines)) <= 110


@pytest.mark.parametrize(("given", "batch"), [("auto", 32), (8, 8), (64, 32)])
def test_validation_has_a_batch_whatever_a_stranger_s_weights_say(given, batch):
    assert config_from_plain({"train": {"batch_size": given}}, where="x.pt").val_batch == batch
