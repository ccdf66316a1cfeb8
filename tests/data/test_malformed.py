"""Malformed labels through the whole reading: each has a message of its own that names file and line."""

import contextlib
import json
from xml.parsers.expat import ExpatError

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.formats.labels import clean_labels
from data.formats.voc import parse_xml
from data.formats.yolo import read_labels
from tests.data.formats.test_coco import FAULTS
from tests.data.test_formats import (
    VOC_FAULTS,
    coco_content,
    error_of,
    make_pictures,
    write_coco,
    write_voc,
    xml_of,
)
from utils.errors import UserError

SIZES = np.array([[50, 30]])
ROWS = [  # (row of a YOLO file, text)
    ("cat .5 .5 .1 .1", "class 'cat' is not a whole number"),
    ("1.5 .5 .5 .1 .1", "class 1.5 is not a whole number"),
    ("2 .5 .5 .1 .1", "class 2 is outside 0..1 (the data set has 2 names); do these labels count from 1?"),
    ("-1 .5 .5 .1 .1", "class -1 is outside 0..1"),
    ("80 .5 .5 .1 .1", "class 80 is outside 0..1"),
    ("nan .5 .5 .1 .1", "class is nan"),
    ("0 nan .5 .1 .1", "cx is nan"),
    ("0 .5 inf .1 .1", "cy is inf"),
    ("0 .5 .5 -inf .1", "w is -inf"),
    ("0 .5 .5 .1 1e999", "h is inf"),
    ("0 320 .5 .1 .1", "cx is 320: these look like pixels"),
    ("0 .5 240 .1 .1", "cy is 240: these look like pixels"),
    ("0 .5 .5 50 .1", "w is 50: these look like pixels"),
    ("0 .5 .5 .1 60", "h is 60: these look like pixels"),
    ("0 10 10 50 10 50 60", "cx is 30: these look like pixels"),
    ("0 .5 .5 -.1 .1", "w is -0.1, negative"),
    ("0 .5 .5 .1 -.1", "h is -0.1, negative"),
    ("0 .5 .5 .1", "4 columns, not 5"),
    ("0", "1 columns, not 5"),
    ("0 .5 .5 .1 .1 .9", "with a confidence as sixth column these are predictions"),
    ("0 .1 .1 .2 .2 .3 .3 .4", "8 columns, not 5"),
    ("0 .1 .1 nan .5 .3 .3", "column 4 of this row is nan, not a finite number"),
    ("0,0.5,0.5,0.1,0.1", "'0,0.5,0.5,0.1,0.1' has commas or semicolons"),
    ("0;0.5;0.5;0.1;0.1", "'0;0.5;0.5;0.1;0.1' has commas or semicolons"),
    ("0 0,5 0,5 0,1 0,1", "'0 0,5 0,5 0,1 0,1' has commas or semicolons"),
    ("0 .5 .5 .1 1O", "column 5, '1O', is not a number"),
    ("0 .5 .5 0x1 .1", "column 4, '0x1', is not a number"),
    ("0 .5 .5 .1 0_1", "column 5, '0_1', is not a number"),
    ('{"class": 0}', "is not a whole number; labels hold the index"),
    ("0 .9 .5 .3 .1", "reaches 5.00% beyond the right edge"),
    ("0 .1 .5 .3 .1", "reaches 5.00% beyond the left edge"),
    ("0 .5 .1 .1 .3", "reaches 5.00% beyond the upper edge"),
    ("0 .5 .9 .1 .3", "reaches 5.00% beyond the lower edge"),
]


def write_row(folder, row):
    """A YOLO data set whose label file has ``row`` on line 3."""
    (folder / "labels").mkdir()
    (folder / "labels" / "a.txt").write_text(f"0 .5 .5 .1 .1\n\n{row}\n", encoding="utf-8")
    (folder / "data.yaml").write_text("train: images\nnames: [cat, dog]\n", encoding="utf-8")
    return folder / "data.yaml"


def write_changed_coco(folder, key, number, changes):
    content = coco_content()
    content[key][number] |= changes
    return write_coco(folder, content)


def write_changed_voc(folder, old, new):
    yaml = write_voc(folder)
    (folder / "xml" / "a.xml").write_text(xml_of("a").replace(old, new, 1), encoding="utf-8")
    return yaml


CASES = [(write_row, (row,), "labels/a.txt:3: ", text) for row, text in ROWS]
CASES += [(write_changed_coco, case[:3], "a.json:", case[3]) for case in FAULTS]
CASES += [(write_changed_voc, case[:2], "xml/a.xml:", case[3]) for case in VOC_FAULTS]


@pytest.fixture(scope="module")
def messages(tmp_path_factory):
    """The line of each case's error that names the fault."""
    found = []
    for write, arguments, where, text in CASES:
        shown = error_of(write(make_pictures(tmp_path_factory.mktemp("case") / "set"), *arguments))
        found.append(next((line for line in shown.splitlines() if where in line and text in line), shown))
    return found


def test_each_names_file_and_line_and_fault(messages):
    for (_, _, where, text), message in zip(CASES, messages, strict=True):
        assert where in message and text in message, message


def test_there_are_sixty_different_ones(messages):
    texts = {message.split("/set/", 1)[1] for message in messages}
    assert len(texts) == len(messages) >= 60


number = st.floats() | st.floats(-0.02, 1.02) | st.integers(-3, 5)
row_like = st.lists(number, max_size=9).map(lambda row: " ".join(map(str, row)))
file_like = st.binary() | st.text().map(str.encode) | st.lists(row_like).map("\n".join).map(str.encode)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=1000)
@given(file_like)
def test_fuzzed_label_files(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzzed.txt"
    path.write_bytes(data)
    try:
        raw = read_labels([str(path)], SIZES, ("a", "b"))
    except UserError:  # as a whole they are of another task or unit: one row may look like a pose's
        return
    for policy in ("stop", "clip"):
        kept = clean_labels(raw, SIZES, policy=policy)
        assert (kept.boxes >= 0).all() and (kept.boxes <= [30, 50, 30, 50]).all()
        assert all(problem.text and "\n" not in problem.text for problem in raw.problems + kept.problems)


@settings(max_examples=300, deadline=1000)
@given(st.binary(max_size=60), st.integers(0, 400), st.integers(0, 60))
def test_fuzzed_xml_is_read_or_refused(data, start, length):
    text = xml_of("a").encode()
    with contextlib.suppress(ValueError, ExpatError):
        parse_xml(text[:start] + data + text[start + length :])


json_like = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["id", "bbox", "name"]), inner)
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=2000)
@given(
    st.sampled_from(["images", "annotations", "categories"]),
    st.sampled_from(
        ["id", "image_id", "category_id", "bbox", "area", "iscrowd", "file_name", "width", "name"]
    ),
    json_like,
)
def test_fuzzed_json_is_read_or_refused(tmp_path_factory, key, field, value):
    from data.formats.coco import list_pictures, read_categories, read_json
    from data.formats.coco import read_labels as read_annotations

    content = coco_content()
    content[key][0][field] = value
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    try:
        found = read_categories([path])
        file = read_json(path)
        pictures = list_pictures([file], [path.parent])
        raw = read_annotations([file], pictures, found.names, found.ids)
    except UserError:
        return
    assert np.isfinite(raw.boxes).all() and len(raw.boxes) <= 3
