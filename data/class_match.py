"""Whether weights measure a data set: the classes of both, by name."""

from collections.abc import Sequence

import yaml

from data.formats.sources import DataSpec, give_ids, show_names
from utils.errors import UserError

NAMED = ("coco", "voc")  # formats whose labels hold names, or ids of names, so that their order is ours


def match_classes(spec: DataSpec, names: Sequence[str], *, weights: str) -> DataSpec:
    """The data set with the classes ``names`` of the weights, in their order, where that is the same data.

    So it is where labels go by name and no class is strange to the weights: a class that is rare may well not
    occur in a set to measure on. YOLO labels hold indices, so there the names must be the first of the
    weights'. Raises ``UserError`` otherwise.
    """
    names = tuple(names)
    strange = [name for name in spec.names if name not in names]
    if spec.names == names:
        return spec
    if spec.format in NAMED and not strange:
        print(f"{spec.yaml}: measured by the classes of {weights}: {show_names(names)}")
        return spec._replace(names=names, category_ids=_category_ids(spec, names))
    if spec.names == names[: len(spec.names)]:
        print(f"{spec.yaml}: no names for {show_names(names[len(spec.names) :])}; taken from {weights}")
        return spec._replace(names=names, category_ids=tuple(range(len(names))))
    raise UserError(
        f"the classes of the weights are not those of the data:\n  {weights}: {show_names(names)}\n"
        f"  {spec.yaml}: {show_names(spec.names)}\n{_remedy(spec, names, strange)}"
    )


def _category_ids(spec: DataSpec, names: Sequence[str]) -> tuple[int, ...]:
    if spec.format != "coco":
        return tuple(range(len(names)))
    return give_ids(names, dict(zip(spec.names, spec.category_ids, strict=True)))


def _remedy(spec: DataSpec, names: Sequence[str], strange: Sequence[str]) -> str:
    line = yaml.safe_dump(
        list(names), default_flow_style=True, allow_unicode=True, width=float("inf")
    ).strip()
    if not strange:
        return (
            f"YOLO labels hold numbers. If theirs count the classes of the weights, write in {spec.yaml}:\n"
            f"names: {line}"
        )
    if set(names) <= set(spec.names) and spec.format in NAMED:
        skip = " and add --label-errors skip" if spec.format == "voc" else ""
        return (
            f"The weights do not know: {show_names(strange)}. To measure without these classes, write in "
            f"{spec.yaml}{skip}:\nnames: {line}"
        )
    return "Measure on the data set it was trained on, or train on this one"
