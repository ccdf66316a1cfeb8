"""Numbers that no machine can hold, in every numeric flag of every command: one line, never a try."""

import argparse
import importlib

import pytest

from utils.arguments import detect_parser, train_parser, val_parser
from utils.comparison.arguments import compare_parser
from utils.comparison.plan import read_seeds
from utils.config import SECTIONS
from utils.config_files import load_config
from utils.errors import UserError
from utils.settings import DETECT_SETTINGS, VAL_SETTINGS, given_settings, training_settings
from utils.training.device import select_device
from utils.wording import show_value

check_parser = importlib.import_module("data.check").check_parser
CHECK_SETTINGS = importlib.import_module("data.check").SETTINGS
PARSERS = {
    "train": (train_parser, training_settings),
    "val": (val_parser, lambda args: given_settings(args, VAL_SETTINGS)),
    "detect": (detect_parser, lambda args: given_settings(args, DETECT_SETTINGS)),
    "check": (check_parser, lambda args: given_settings(args, CHECK_SETTINGS)),
    "compare": (compare_parser, lambda args: {}),
}
REQUIRED = {"weights": "w.pt", "source": "s", "data": "d.yaml"}
ABSURD = [
    "9" * 10,
    str(2**62),
    str(2**63),
    "1" + "0" * 400,
    "9" * 5000,
    "nan",
    "inf",
    "-inf",
    "1e400",
    "²",
    "",
]
# Compared with what is there once that is read, and without cost before; see test_no_such_seeds.
LATER = {"classes", "seeds"}


def numeric_flags() -> list[tuple[str, str]]:
    found = []
    for program, (parser, _) in PARSERS.items():
        for action in parser()._actions:
            if action.type is not None and action.type is not str:
                found.append((program, action.option_strings[0]))
    return found


def test_all_are_found():
    assert len(numeric_flags()) > 25


@pytest.mark.parametrize(("program", "flag"), numeric_flags())
def test_an_absurd_number_is_refused(program, flag, capsys):
    make, settings_of = PARSERS[program]
    parser = make()
    needed = [f"--{a.dest}={REQUIRED[a.dest]}" for a in parser._actions if a.required]
    for value in ABSURD:
        try:
            args = parser.parse_args([*needed, f"{flag}={value}"])
        except SystemExit:  # argparse's own, with code 2
            assert "error: argument" in capsys.readouterr().err
            continue
        if flag.removeprefix("--") not in LATER:
            with pytest.raises(UserError, match="must be"):
                load_config(flags=settings_of(args))


def numbers_of_schema() -> list[str]:
    return [
        f"{section}.{name}"
        for section, schema in SECTIONS.items()
        for name, field in schema.model_json_schema()["properties"].items()
        if "integer" in str(field)
    ]


@pytest.mark.parametrize("key", numbers_of_schema())
def test_every_integer_of_the_schema_has_two_bounds(key):
    for value in (10**10, 2**62, -2, -(2**62)):
        with pytest.raises(UserError):
            load_config(sets=[f"{key}={value}"])


@pytest.mark.parametrize("key", ["train.lr", "train.save_minutes", "loss.box", "augment.scale", "val.conf"])
@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e400", "1" + "0" * 400, "0x" + "F" * 5000])
def test_no_number_is_no_number(key, value):
    with pytest.raises(UserError) as error:
        load_config(sets=[f"{key}={value}"])
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("device", ["cuda:99999999999", "9" * 5000, "²", "cuda:-1", "0,99999999999999999999"])
def test_no_such_device(device):
    with pytest.raises(UserError, match="--device"):
        select_device(device)


@pytest.mark.parametrize("seeds", [10**9, 2**63, [2**32], [-1], [0, 0], 0])
def test_no_such_seeds(seeds):
    with pytest.raises(UserError, match="--seeds"):
        read_seeds(seeds)


def test_a_number_too_long_to_write_can_be_named():
    assert show_value(16**5000) == "a number of thousands of digits"


def test_counting_flags_are_bounded():
    with pytest.raises(argparse.ArgumentTypeError, match="no count from 1 to 10"):
        importlib.import_module("utils.arguments").count_up_to(10)("11")
