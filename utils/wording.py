"""Values in words, for messages that people read."""

import json
import math
import unicodedata
from collections.abc import Mapping

NOTHING = "-"  # shown where there is no value
SHOWN_NAME = 80  # characters of a class's name
JOINERS = "\u200c\u200d"  # without width, but several scripts spell with them


def printable(text: object) -> str:
    """Text for a terminal, in one line: every character that would steer it is spelled out, as ``\\x1b``.

    These are control characters, line breaks, marks that turn the direction of writing, characters without a
    meaning and halves of surrogate pairs, which could not even be printed. All else stays as it is.
    """
    text = str(text)
    return text if text.isprintable() else "".join(map(_spell, text))


def show_class(name: str) -> str:
    """A class's name for a line of text, wherever it comes from: ``printable``, and not all of a long one."""
    return printable(name if len(name) <= SHOWN_NAME else name[: SHOWN_NAME - 3] + "...")


def _spell(letter: str) -> str:
    kind = unicodedata.category(letter)
    steers = (kind[0] == "C" or kind in ("Zl", "Zp")) and letter not in JOINERS
    return letter.encode("unicode_escape").decode() if steers else letter


def is_value(number: float | None) -> bool:
    """Whether there is a finite number."""
    return number is not None and math.isfinite(number)


def figure(number: float | None, spec: str = ".3f") -> str:
    """A number by a format specification, or ``-`` where there is none."""
    return format(number, spec) if is_value(number) else NOTHING


def show_value(value: object) -> str:
    """A value in one short line, spelled as YAML spells it."""
    try:
        text = json.dumps(value, default=str)
    except ValueError:  # a number of more digits than Python writes out
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else text[:77] + "..."


def describe_allowed(schema: Mapping) -> str:
    """A JSON schema in words: ``an integer >= 1, <= 64``, ``"a" or "b"``."""
    if "anyOf" in schema:
        return ", or ".join(map(describe_allowed, schema["anyOf"]))
    if "const" in schema or "enum" in schema:
        return " or ".join(json.dumps(choice) for choice in schema.get("enum", [schema.get("const")]))
    if schema["type"] == "array":
        items = schema.get("prefixItems") or [schema["items"]]
        count = f"{len(items)} values" if "prefixItems" in schema else "values"
        return f"a list of {count}, each {describe_allowed(items[0])}"
    string = "a non-empty string" if schema.get("minLength") else "a string"
    words = {"integer": "an integer", "number": "a number", "boolean": "true or false", "string": string}
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = ", ".join(f"{sign} {schema[bound]}" for bound, sign in signs.items() if bound in schema)
    return f"{words.get(schema['type'], schema['type'])} {limits}".rstrip()
