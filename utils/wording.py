"""Values in words, for messages that people read."""

import json
from collections.abc import Mapping


def show_value(value: object) -> str:
    """A value in one short line, spelled as YAML spells it."""
    text = json.dumps(value, default=str)
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
