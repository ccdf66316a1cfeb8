"""Labels of a split written as YOLO text, COCO JSON or VOC XML. N pictures, T boxes, xyxy px.

Numbers are written with all their digits, so reading them back gives the same boxes but for the last bits of
the arithmetic (about 1e-12 px). The readers' own rules say where the label file of a picture lies.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TextIO
from xml.sax.saxutils import escape

import numpy as np

from data.conversion.parts import PICTURES, Part, label_paths_of
from data.index import Index

UNFIT = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\ud800-\\udfff\\ufffe\\uffff]")
DEPTH = 3  # channels of a decoded picture, whatever the file has


def write_yolo(root: Path, part: Part) -> None:
    """``labels/<split>/*.txt``, empty for a background picture. Crowd and difficult boxes are left out."""
    index, scale = part.index, _scale_of_boxes(part.index)
    corners = index.boxes / scale
    middle, extent = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    shares, labels = np.hstack([middle, extent]).tolist(), index.labels.tolist()
    paths = _make_parents(label_paths_of(root, part, "yolo"))
    for path, rows in zip(paths, _rows_of_pictures(index), strict=True):
        lines = [
            f"{labels[row]} {' '.join(map(repr, shares[row]))}\n" for row in rows if not index.ignore[row]
        ]
        _write(path, "".join(lines))


def write_voc(root: Path, part: Part, names: Sequence[str], offset: int) -> None:
    """``Annotations/<split>/*.xml``; ``offset`` is added to xmin, ymin; ignored boxes are ``difficult``."""
    index = part.index
    boxes = (index.boxes + np.array([offset, offset, 0, 0])).tolist()
    paths = _make_parents(label_paths_of(root, part, "voc"))
    pictures = zip(paths, part.files, index.sizes.tolist(), _rows_of_pictures(index), strict=True)
    for path, file, (height, width), rows in pictures:
        folder, _, name = f"{PICTURES['voc']}/{part.split}/{file}".rpartition("/")
        lines = [
            f"<annotation>\n  <folder>{_escape(folder)}</folder>\n  <filename>{_escape(name)}</filename>",
            f"  <size><width>{width}</width><height>{height}</height><depth>{DEPTH}</depth></size>",
            *(_voc_object(names[index.labels[row]], index.ignore[row], boxes[row]) for row in rows),
            "</annotation>\n",
        ]
        _write(path, "\n".join(lines))


def write_coco(root: Path, part: Part, names: Sequence[str], category_ids: Sequence[int | str]) -> None:
    """``annotations/instances_<split>.json`` with the source's ids; ignored boxes are ``iscrowd``.

    Pictures of files that use the same ids have their numbers in the index.

    One entry a line, written as it is made: COCO itself has 860,000 annotations.
    """
    categories = zip(category_ids, names, strict=True)
    path = next(_make_parents(label_paths_of(root, part, "coco")))
    with open(path, "w", encoding="utf-8") as file:
        _write_list(file, '{"images": [', _coco_images(part))
        _write_list(file, '], "annotations": [', _coco_annotations(part.index, category_ids))
        _write_list(file, '], "categories": [', ({"id": number, "name": name} for number, name in categories))
        file.write("]}\n")


def spell_out(text: str) -> str:
    """``text`` with ``\\x01`` and the like for what XML cannot hold: control characters, half surrogates."""
    return UNFIT.sub(lambda match: ascii(match[0])[1:-1], text)


def _escape(text: str) -> str:
    return escape(spell_out(text))


def _voc_object(name: str, ignore: bool, box: list[float]) -> str:
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    bounds = "".join(f"<{side}>{_show(value)}</{side}>" for side, value in sides)
    return (
        f"  <object>\n    <name>{_escape(name)}</name>\n    <difficult>{int(ignore)}</difficult>\n"
        f"    <bndbox>{bounds}</bndbox>\n  </object>"
    )


def _show(value: float) -> str:
    """All digits; whole numbers without a point, since many programs read VOC's coordinates as integers."""
    return str(int(value)) if value.is_integer() else repr(value)


def _coco_images(part: Part) -> Iterator[dict]:
    sizes, ids = part.index.sizes.tolist(), _ids_of(part.index)
    for number, file, (height, width) in zip(ids, part.files, sizes, strict=True):
        yield {"id": number, "file_name": file, "height": height, "width": width}


def _ids_of(index: Index) -> list[int | str]:
    """(N,) the source's id of each picture, else its number."""
    sources = map(json.loads, index.source_ids.tolist())
    return [
        number if source is None else source
        for source, number in zip_longest(sources, index.picture_ids.tolist())
    ]


def _coco_annotations(index: Index, category_ids: Sequence[int | str]) -> Iterator[dict]:
    ids, counts = _ids_of(index), np.diff(index.offsets).tolist()
    image_ids = [number for number, count in zip(ids, counts, strict=True) for _ in range(count)]
    boxes = np.hstack([index.boxes[:, :2], index.boxes[:, 2:] - index.boxes[:, :2]]).tolist()
    columns = zip(
        image_ids, index.labels.tolist(), boxes, index.areas.tolist(), index.ignore.tolist(), strict=True
    )
    for number, (image_id, label, box, area, ignore) in enumerate(columns, 1):
        entry = {"id": number, "image_id": image_id, "category_id": category_ids[label]}
        yield entry | {"bbox": box, "area": area, "iscrowd": int(ignore)}


def _write_list(file: TextIO, opening: str, entries: Iterator[dict]) -> None:
    file.write(opening)
    for number, entry in enumerate(entries):
        file.write(f"{',' * (number > 0)}\n{json.dumps(entry)}")
    file.write("\n")


def _scale_of_boxes(index: Index) -> np.ndarray:
    """(T, 4) width, height, width, height of the picture of each box."""
    return np.repeat(index.sizes[:, [1, 0, 1, 0]], np.diff(index.offsets), axis=0).astype(np.float64)


def _rows_of_pictures(index: Index) -> Iterator[range]:
    """The rows of the boxes of picture 0, 1, ..."""
    offsets = index.offsets.tolist()
    return map(range, offsets[:-1], offsets[1:])


def _make_parents(paths: list[str]) -> Iterator[str]:
    """The paths, once the folders of all of them are made."""
    for folder in {os.path.dirname(path) for path in paths}:
        os.makedirs(folder, exist_ok=True)
    return iter(paths)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
