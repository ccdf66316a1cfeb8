"""A comparison as a YAML file of configs/compare: losses, baseline, seeds, and flags of train.py."""

import difflib
from collections.abc import Mapping

from utils.arguments import train_parser
from utils.config_files import display_path, read_yaml_lines, resolve_named
from utils.errors import UserError
from utils.wording import show_value

KEYS = {  # key -> its types, and in words
    "losses": (list, "a list of names in configs/losses, or of files"),
    "baseline": (str, "the name of one of the losses"),
    "seeds": ((int, list), "a count, or a list of seeds"),
    "flags": (Mapping, "flags of train.py: {cfg: n, epochs: 20}"),
}


def read_compare_file(path: str) -> dict:
    """The mapping of a file, or of a name in configs/compare; one error lists everything that is wrong."""
    file = resolve_named(path, "compare")
    tree, lines = read_yaml_lines(file)
    tree = {key: value for key, value in tree.items() if value is not None}
    where = {keys: f"{display_path(file)}:{line}" for keys, line in lines.items()}
    problems = [_explain_key(key, value, where[(key,)]) for key, value in tree.items()]
    flags = tree.get("flags")
    if isinstance(flags, Mapping):
        problems += [_explain_flag(key, value, where[("flags", key)]) for key, value in flags.items()]
    if any(problems):
        raise UserError("\n".join(filter(None, problems)))
    return tree


def flags_to_argv(flags: Mapping[str, object]) -> list[str]:
    """``{imgsz: 160, noplots: true, set: [a.b=1]}`` -> ``--imgsz=160 --noplots --set=a.b=1``."""
    argv = []
    for key, value in flags.items():
        if value is True:
            argv.append(f"--{key}")
        elif isinstance(value, list) and key != "set":
            argv += [f"--{key}", *map(str, value)]
        elif value is not None and value is not False:
            argv += [f"--{key}={item}" for item in (value if isinstance(value, list) else [value])]
    return argv


def _explain_key(key: str, value: object, where: str) -> str:
    """What is wrong with a key, or ''."""
    if key not in KEYS:
        near = difflib.get_close_matches(str(key), KEYS, 1)
        hint = f"Did you mean {near[0]}?" if near else f"Its keys are: {', '.join(KEYS)}"
        return f"{key} is no key of a comparison ({where}). {hint}"
    kinds, words = KEYS[key]
    item = {"losses": str, "seeds": int}.get(key, object)
    items = value if isinstance(value, list) else []
    sound = all(isinstance(part, item) for part in items) and not any(
        type(p) is bool for p in (value, *items)
    )
    if isinstance(value, kinds) and sound and value not in ([], ""):
        return ""
    return f"{key} is {show_value(value)} ({where}); it must be {words}"


def _explain_flag(key: str, value: object, where: str) -> str:
    """What is wrong with a line under ``flags``, or ''; values are read by train.py's own parser, later."""
    known = {name.replace("_", "-") for name in vars(train_parser().parse_args([]))} - {"sets", "schedule"}
    known |= {"set", "cos-lr", "linear-lr"}
    if key not in known:
        near = difflib.get_close_matches(str(key), known, 1)
        hint = f"Did you mean {near[0]}?" if near else "python train.py --help lists them"
        return f"flags.{key} is no flag of train.py ({where}). {hint}"
    if isinstance(value, Mapping):
        return f"flags.{key} is {show_value(value)} ({where}); it must be a value, or a list of values"
    return ""
