"""A resolved configuration as text: for the log, and as YAML for the run folder."""

import json
import textwrap

import yaml

from utils.config import Resolved, config_to_plain


def dump_config(resolved: Resolved) -> str:
    """YAML of every value with its origin; ``config_from_plain(read_yaml(path))`` reads it back."""
    text = []
    for section, values in config_to_plain(resolved.config).items():
        text.append(f"{section}:\n")
        for name, value in values.items():
            origin = resolved.origins[f"{section}.{name}"]
            comment = "".join(letter if letter.isprintable() else "?" for letter in origin)
            text.append(f"  {name}: {_inline(value)}  # {comment}\n")
    return "".join(text)


def _inline(value: object) -> str:
    if isinstance(value, str):  # quoted and escaped, so that neither rule set can read another type
        return yaml.safe_dump(value, default_style='"', width=2**20).strip()
    return json.dumps(value)


def format_config(resolved: Resolved) -> str:
    """The configuration for the log: what was set, one line per origin, then the defaults."""
    groups: dict[str, list[str]] = {origin: [] for origin in resolved.origins.values() if origin != "default"}
    plain = config_to_plain(resolved.config)
    for key, origin in resolved.origins.items():
        section, name = key.split(".")
        groups.setdefault(origin, []).append(f"{key}={json.dumps(plain[section][name])}")
    return "\n".join(
        textwrap.fill(f"{origin}: {', '.join(items)}", 110, subsequent_indent="  ", break_on_hyphens=False)
        for origin, items in groups.items()
    )
