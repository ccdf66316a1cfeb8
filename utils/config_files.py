"""Settings from YAML files, flags and ``--set``.

YAML is read by the 1.2 core rules: ``1e-3`` is a float, only ``true`` and ``false`` are bools, so ``no``,
``off``, ``1:30`` and dates stay strings. Precedence: default < --cfg < --hyp < --loss < flags < --set.
"""

import codecs
import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml

from utils.config import KEYS, SECTIONS, Config, Entry, Resolved, build_config
from utils.errors import USAGE, UserError
from utils.files import open_regular
from utils.wording import show_value
from utils.yolov5_names import ABSENT, RENAMED

ROOT = Path(__file__).resolve().parents[1]
MAX_BYTES = 5_000_000
SHOWN_SET = 100  # characters of a --set in errors
FOLDERS = {"--cfg": "models", "--hyp": "recipes", "--loss": "losses"}
SCOPES = {
    "--cfg": ("model",),
    "--hyp": ("train", "augment", "val"),
    "--loss": ("loss", "assigner", "model.reg_max", "model.quality_branch"),
}
_NUMBER = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"


def _read_integer(text: str) -> int:
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    value = int(text, base) if len(text) <= 40 else 2**63
    if not -(2**63) <= value < 2**63:
        raise OverflowError("the integer needs more than 64 bits; quote it if it is a name")
    return value


_CORE_TYPES: dict[str, tuple[re.Pattern, Callable[[str], object]]] = {
    "null": (re.compile(r"|~|null|Null|NULL"), lambda text: None),
    "bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), lambda text: text.lower() == "true"),
    "int": (re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"), _read_integer),
    "float": (re.compile(_NUMBER), lambda text: float(re.sub(r"\.(?=[a-zA-Z]{3}$)", "", text))),
}
_TAG = "tag:yaml.org,2002:"
Lines = dict[tuple, int]  # path of keys -> line, from 1


class CoreLoader(yaml.SafeLoader):
    """Composes nodes by the YAML 1.2 core rules. An alias stands for a scalar only: no cycles, no bombs."""

    def resolve(self, kind, value, implicit):
        if kind is yaml.ScalarNode and implicit[0]:
            for name, (pattern, _) in _CORE_TYPES.items():
                if pattern.fullmatch(value):
                    return _TAG + name
            return _TAG + "str"
        return super().resolve(kind, value, implicit)

    def compose_node(self, parent, index):
        alias = self.check_event(yaml.AliasEvent) and self.peek_event()
        node = super().compose_node(parent, index)
        if alias and not isinstance(node, yaml.ScalarNode):
            raise _problem(alias, f"the alias *{alias.anchor} repeats a list or a mapping; write it out")
        return node


def read_yaml(path: Path | str, *, code: int = USAGE) -> dict:
    """The mapping in a YAML file, ``{}`` if it is empty. Anything wrong is a ``UserError`` with ``code``."""
    return read_yaml_lines(path, code=code)[0]


def read_yaml_lines(path: Path | str, *, code: int = USAGE) -> tuple[dict, Lines]:
    """``read_yaml``, and the line of each key: ``lines[("train", "epochs")]``."""
    name = display_path(path)
    value, lines = parse_yaml(_read_text(path, name, code), lambda line: f"{name}:{line}", code=code)
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{name}:1: holds {show_value(value)}; it must hold `key: value` lines", code)
    return value or {}, lines


def parse_yaml(text: str, where: Callable[[int], str], *, code: int = USAGE) -> tuple[object, Lines]:
    """The value of a YAML document and the line of each key; ``where(line)`` names a place in errors."""
    lines: Lines = {}
    try:
        node = CoreLoader(text).get_single_node()
        return (None if node is None else _plain_value(node, (), lines)), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UserError(
            f"{where(mark.line + 1 if mark else 1)}: {error.problem or error.context}", code
        ) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(
            f"{where(line)}: the character {error.character!r} is not allowed in YAML", code
        ) from error
    except RecursionError as error:
        raise UserError(f"{where(1)}: nested too deeply", code) from error
    except (ValueError, OverflowError) as error:  # PyYAML's own, such as for the escape \UFFFFFFFF
        raise UserError(f"{where(1)}: not readable as YAML ({error})", code) from error


def display_path(path: Path | str) -> str:
    """A path as messages show it: relative to the repository where it lies inside."""
    full = Path(os.path.abspath(path))
    return full.relative_to(ROOT).as_posix() if full.is_relative_to(ROOT) else str(path)


def _read_text(path: Path | str, name: str, code: int) -> str:
    try:
        with open_regular(path) as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a pipe, or a NUL in the name
        raise UserError(
            f"{name}: cannot be read ({getattr(error, 'strerror', None) or error})", code
        ) from error
    if len(data) > MAX_BYTES:
        raise UserError(f"{name}: larger than {MAX_BYTES:,} bytes, the limit for a YAML file", code)
    encoding = (
        "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8"
    )  # PyYAML skips its BOM
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{name}:{line}: not {encoding.upper()} text; save it as UTF-8", code) from error


def _plain_value(node: yaml.Node, path: tuple, lines: Lines) -> object:
    if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
        return [_plain_value(item, (*path, index), lines) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
        return _plain_mapping(node, path, lines)
    kind = node.tag.removeprefix(_TAG)
    pattern, read = _CORE_TYPES.get(kind, (None, None))
    if isinstance(node, yaml.ScalarNode) and pattern and pattern.fullmatch(node.value):
        try:
            return read(node.value)
        except OverflowError as error:
            raise _problem(node, str(error)) from error
    if not isinstance(node, yaml.ScalarNode) or kind != "str":
        raise _problem(node, f"a value with the tag {node.tag} is not read")
    if any("\ud800" <= letter <= "\udfff" for letter in node.value):
        raise _problem(node, "half a surrogate pair is not a character; write the character itself")
    return node.value


def _plain_mapping(node: yaml.MappingNode, path: tuple, lines: Lines) -> dict:
    result: dict = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise _problem(key_node, "a key must be a single value, not a list or a mapping")
        key = _plain_value(key_node, path, lines)
        if key in result:
            first = lines[(*path, key)]
            raise _problem(key_node, f"the key {show_value(key)} stands here again, first in line {first}")
        lines[(*path, key)] = key_node.start_mark.line + 1
        result[key] = _plain_value(value_node, (*path, key), lines)
    return result


def _problem(node: yaml.Node | yaml.Event, text: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, text, node.start_mark)


def load_config(
    *,
    cfg: Path | str | None = None,
    hyp: Path | str | None = None,
    loss: Path | str | None = None,
    flags: Mapping[str, tuple[str, object]] = {},
    sets: Sequence[str] = (),
) -> Resolved:
    """The settings of a run: three optional files, flags and ``section.key=value`` strings over the defaults.

    ``flags`` maps a dotted key to the flag as typed and its value. One error lists every unknown or misplaced
    key. Of several values for a key only the last is checked.
    """
    entries: dict[str, Entry] = {}
    problems: list[str] = []
    for option, name in (("--cfg", cfg), ("--hyp", hyp), ("--loss", loss)):
        if name is not None:
            found = _read_settings(resolve_named(name, FOLDERS[option]), problems)
            problems += [
                _explain_scope(key, entry, option) for key, entry in found.items() if _misplaced(key, option)
            ]
            entries |= found
    entries |= {key: Entry(value, flag, flag) for key, (flag, value) in flags.items()}
    entries |= dict(map(_read_set, sets))
    problems += [explain_unknown(key, entry.where) for key, entry in entries.items() if key not in KEYS]
    if problems:
        raise UserError("\n".join(problems))
    origins = {key: entries[key].origin if key in entries else "default" for key in KEYS}
    return Resolved(build_config(entries), origins)


def config_from_plain(plain: Mapping, *, where: str = "saved configuration") -> Config:
    """The ``Config`` of ``config_to_plain``'s dicts; what they lack has its default."""
    problems: list[str] = []
    if not isinstance(plain, Mapping):
        raise UserError(
            f"{where}: holds {show_value(plain)}; it must hold the sections {', '.join(SECTIONS)}"
        )
    if isinstance(plain.get("data"), Mapping):  # files older than the key mean what was done then
        plain = {**plain, "data": {"pixel_range": "full", **plain["data"]}}
    entries = _flatten(plain, where, lambda *keys: where, problems)
    problems += [explain_unknown(key, where) for key in entries if key not in KEYS]
    if problems:
        raise UserError("\n".join(problems))
    return build_config(entries)


def resolve_named(name: Path | str, folder: str) -> Path:
    """The file that ``name`` means: a path, or a shipped name such as ``n`` in configs/``folder``."""
    shelf = ROOT / "configs" / folder
    tried = [Path(name), ROOT / name, shelf / name, shelf / f"{name}.yaml"]
    for path in tried:
        if os.path.exists(path) and not os.path.isdir(path):  # a pipe is there, too: its reader will say so
            return path
    names = sorted(path.stem for path in shelf.glob("*.yaml"))
    near = [f"Did you mean {match}?" for match in difflib.get_close_matches(str(name), names, 1)]
    tries = f"Tried {', '.join(dict.fromkeys(map(str, tried)))}."
    shipped = f"Shipped in configs/{folder}: {', '.join(names) or 'none'}"
    raise UserError(" ".join([f"{name}: no such file.", *near, tries, shipped]))


def _read_settings(path: Path, problems: list[str]) -> dict[str, Entry]:
    tree, lines = read_yaml_lines(path)
    name = display_path(path)
    return _flatten(tree, name, lambda *keys: f"{name}:{lines[keys]}", problems)


def _flatten(tree: Mapping, origin: str, where: Callable[..., str], problems: list[str]) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for section, values in tree.items():
        if section not in SECTIONS:
            problems.append(explain_unknown(str(section), where(section)))
        elif isinstance(values, Mapping):
            for name, value in values.items():
                entries[f"{section}.{name}"] = Entry(value, origin, where(section, name))
        elif values is not None:
            example = f"{section}: {{{next(iter(SECTIONS[section].model_fields))}: ...}}"
            problems.append(
                f"{section} is {show_value(values)} ({where(section)}); it must be settings: {example}"
            )
    return entries


def _read_set(text: str) -> tuple[str, Entry]:
    key, equals, value = text.partition("=")
    if not equals or "." not in key:
        raise UserError(f"--set {text}: write it as --set section.key=value, such as --set train.epochs=10")
    shown = f"--set {text}" if len(text) <= SHOWN_SET else f"--set {text[: SHOWN_SET - 3]}..."
    parsed, _ = parse_yaml(value, lambda line: shown)
    return key.strip(), Entry(parsed, "--set", shown)


def _misplaced(key: str, option: str) -> bool:
    return key in KEYS and key not in SCOPES[option] and key.split(".")[0] not in SCOPES[option]


def _explain_scope(key: str, entry: Entry, option: str) -> str:
    section = key.split(".")[0]
    home = next((f"a {flag} file" for flag, scope in SCOPES.items() if section in scope), "a flag or --set")
    return f"{key} ({entry.where}) does not belong in a {option} file; it belongs in {home}"


def explain_unknown(key: str, where: str) -> str:
    """What is wrong with a key outside ``KEYS``, and which key may be meant; YOLOv5's names are known."""
    section, _, name = key.rpartition(".")
    if key in KEYS:
        return f"{key} ({where}) is written as a section with a key in it: {section}: {{{name}: ...}}"
    if name in RENAMED:
        return f"{key} is not a setting ({where}). YOLOv5's {name} is {RENAMED[name]} here"
    if name in ABSENT:
        return f"{key} is not a setting ({where}). YOLOv5's {name} has no counterpart: {ABSENT[name]}"
    near = nearest_keys(section, name)
    if near:
        return f"{key} is not a setting ({where}). Did you mean {' or '.join(near)}?"
    fields = SECTIONS[section].model_fields if section in SECTIONS else SECTIONS
    title = f"The settings of {section}" if section in SECTIONS else "The sections"
    return f"{key} is not a setting ({where}). {title} are: {', '.join(fields)}"


def nearest_keys(section: str, name: str) -> list[str]:
    """The settings, or the section, that a wrong name may mean: same name elsewhere, then similar names."""
    same = [key for key in KEYS if key.split(".")[1] == name]
    siblings = [key for key in KEYS if key.split(".")[0] == section]
    tails = {key.split(".")[1]: key for key in KEYS}
    return (
        same
        or difflib.get_close_matches(f"{section}.{name}", siblings, 1, 0.75)
        or (difflib.get_close_matches(f"{section}.{name}", KEYS, 1, 0.75) if section else [])
        or (difflib.get_close_matches(name, SECTIONS, 1) if not section else [])
        or [tails[match] for match in difflib.get_close_matches(name, tails, 1)]
    )
