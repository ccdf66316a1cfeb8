"""COCO JSON: every dialect that says all that is needed gives the same index; each fault names its place."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask

from data.doctor.diagnosis import diagnose
from data.doctor.hints import find_hints
from data.formats.coco import read_categories
from data.formats.coco_values import Fault, Ids, key_of, read_box
from data.formats.sources import format_classes
from data.index import load_split, path_of, read_split
from data.spec import load_data_spec
from tests.data.test_formats import (
    IDS,
    NAMES,
    REAL,
    coco_content,
    error_of,
    load,
    make_pictures,
    write_coco,
)
from utils.config_files import load_config
from utils.wording import printable


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The pictures a, b, c; the working directory lies elsewhere."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return make_pictures(tmp_path / "set")


def write_text(root, text, yaml="train: a.json\nimages: images\n"):
    (root / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    (root / "data.yaml").write_text(yaml, encoding="utf-8")
    return root / "data.yaml"


def changed(key, number, **changes):
    content = coco_content()
    content[key][number] |= changes
    return content


def each(content, key, change):
    """``content`` with ``change(element)`` merged into each element of a list; values None are taken out."""
    for item in content[key]:
        for name, value in change(item).items():
            item.pop(name, None)
            if value is not None:
                item[name] = value
    return content


def ids_as(spell, reference=None):
    """Ids spelled by ``spell``, and where they are referred to by ``reference``."""
    reference = reference or spell
    content = each(coco_content(), "images", lambda item: {"id": spell(item["id"])})
    each(content, "categories", lambda item: {"id": spell(item["id"])})
    return each(
        content,
        "annotations",
        lambda item: {key: reference(item[key]) for key in ("image_id", "category_id")},
    )


def corners_of(row):
    x, y, width, height = row["bbox"]
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


def outlines(shape):
    """No bbox, but ``segmentation`` as ``shape`` makes it from the corners."""
    return each(
        coco_content(), "annotations", lambda row: {"segmentation": shape(corners_of(row)), "bbox": None}
    )


def flat(points):
    return [value for point in points for value in point]


def named(spell):
    return each(coco_content(), "images", lambda item: {"file_name": spell(item["file_name"])})


def keyed(key, by=lambda item: str(item["id"])):
    content = coco_content()
    content[key] = {by(item): item for item in content[key]}
    return content


def rows_by_picture(content):
    rows = {}
    for row in content["annotations"]:
        rows.setdefault(str(row.pop("image_id")), []).append(row)
    return rows


def in_images():
    content = coco_content()
    rows = rows_by_picture(content)
    for image in content["images"]:
        image["annotations"] = rows.get(str(image["id"]), [])
    del content["annotations"]
    return content


def with_umbrella():
    """As Roboflow writes it: the project, which is called like a class of its own."""
    content = coco_content()
    content["categories"].insert(0, {"id": 0, "name": "cat", "supercategory": "none"})
    content["categories"][1]["supercategory"] = content["categories"][2]["supercategory"] = "cat"
    return content


DIALECTS = {
    "text ids": lambda: ids_as(str),
    "text ids, numbers refer": lambda: ids_as(str, int),
    "number ids, text refers": lambda: ids_as(int, str),
    "names as ids": lambda: ids_as(lambda key: f"img_{key}"),
    "padded ids": lambda: ids_as(lambda key: f"{key:06}"),
    "padded ids, numbers refer": lambda: ids_as(lambda key: f"{key:06}", int),
    "uuids": lambda: ids_as(lambda key: f"6f9619ff-8b86-d011-b42d-{key:012x}"),
    "floats": lambda: ids_as(float),
    "13 digits": lambda: ids_as(lambda key: 10**12 + key),
    "64 bits": lambda: ids_as(lambda key: 2**63 + key),
    "negative": lambda: ids_as(lambda key: key - 50),
    "digits as text": lambda: each(
        each(coco_content(), "images", lambda i: {key: str(i[key]) for key in ("width", "height")}),
        "annotations",
        lambda row: {"bbox": list(map(str, row["bbox"])), "area": f" {row['area']}.0"},
    ),
    "polygons": lambda: outlines(lambda points: [flat(points)]),
    "a flat polygon": lambda: outlines(flat),
    "points": lambda: outlines(lambda points: [[list(point) for point in points]]),
    "two polygons": lambda: outlines(lambda points: [flat(points[:3]), flat(points[1:])]),
    "bbox null": lambda: each(outlines(lambda p: [flat(p)]), "annotations", lambda row: {"bbox": []}),
    "annotations as an object": lambda: keyed("annotations"),
    "images as an object": lambda: keyed("images"),
    "categories as an object": lambda: keyed("categories"),
    "categories as id: name": lambda: coco_content() | {"categories": {"7": "cat", "90": "dog"}},
    "annotations by picture": lambda: (c := coco_content()) | {"annotations": rows_by_picture(c)},
    "annotations in images": in_images,
    "no annotation ids": lambda: each(coco_content(), "annotations", lambda row: {"id": None}),
    "iscrowd false": lambda: each(coco_content(), "annotations", lambda row: {"iscrowd": False}),
    "iscrowd text": lambda: each(coco_content(), "annotations", lambda row: {"iscrowd": "0"}),
    "no iscrowd": lambda: each(coco_content(), "annotations", lambda row: {"iscrowd": None}),
    "more keys": lambda: (
        each(coco_content(), "annotations", lambda r: {"score": 1, "attributes": {}})
        | {"info": 3, "licenses": None}
    ),
    "no sizes": lambda: each(coco_content(), "images", lambda i: {"width": None, "height": 0}),
    "Windows paths": lambda: named(lambda name: f"images\\train\\{name}"),
    "another machine": lambda: named(lambda name: f"/home/me/set/images/{name}"),
    "a drive": lambda: named(lambda name: f"C:\\data\\{name}"),
    "a dot": lambda: named(lambda name: f"./{name}"),
    "addresses": lambda: named(lambda name: f"https://example.org/x/{name}?size=full"),
    "addresses, escaped": lambda: named(lambda name: f"https://example.org/x/%{ord(name[0]):02x}{name[1:]}"),
    "a folder too much": lambda: named(lambda name: f"images/{name}"),
    "blanks in names": lambda: each(coco_content(), "categories", lambda c: {"name": f" {c['name']} "}),
    "an umbrella of a class's name": with_umbrella,
}


UNSORTED = ("names as ids", "uuids")  # text that is no number: classes keep the order of the file


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialects_give_the_same_index(root, dialect):
    plain, report = load(write_coco(root))
    content = DIALECTS[dialect]()
    assert json.dumps(content) != json.dumps(coco_content())
    index, same = load(write_coco(root, content))
    for field in ("paths", "sizes", "offsets", "ignore", "areas"):
        assert np.array_equal(getattr(index, field), getattr(plain, field)), field
    np.testing.assert_allclose(index.boxes, plain.boxes, rtol=0, atol=1e-9)
    names = load_data_spec(root / "data.yaml").names
    assert [names[label] for label in index.labels] == [NAMES[label] for label in plain.labels]
    assert same == report and names == (NAMES[::-1] if dialect in UNSORTED else NAMES)


ENCODINGS = {
    "a mark of bytes": lambda text: text.encode("utf-8-sig"),
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16, no mark": lambda text: text.encode("utf-16-le"),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "one line": lambda text: json.dumps(json.loads(text), separators=(",", ":")).encode(),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encodings_give_the_same_index(root, encoding):
    plain, _ = load(write_coco(root))
    index, _ = load(write_text(root, ENCODINGS[encoding](json.dumps(coco_content(), indent=1))))
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(index, plain, strict=True))


@pytest.mark.parametrize(
    ("change", "names", "ids"),
    [
        (lambda c: {"categories": None}, "[dog, cat]", (7, 90)),  # as many names as ids
        (lambda c: {"categories": [{"id": 90}, {"id": 7}]}, "[dog, cat]", (7, 90)),
        (lambda c: {"categories": None} | ids_from(c, 0), "[cat, dog, bird]", (0, 1, 2)),
        (lambda c: {"categories": None} | ids_from(c, 2), "[cat, dog, bird]", (1, 2, 3)),
    ],
)
def test_names_of_the_yaml_stand_for_missing_categories(root, change, names, ids):
    content = coco_content()
    yaml = with_yaml_names(root, content | change(content), names)
    assert load_data_spec(yaml).category_ids == ids and load(yaml)[1].num_boxes == 3


def ids_from(content, first):
    number = {7: first, 90: first + 1}
    return {
        "annotations": [row | {"category_id": number[row["category_id"]]} for row in content["annotations"]]
    }


def with_yaml_names(root, content, names):
    return write_text(root, json.dumps(content), f"train: a.json\nimages: images\nnames: {names}\n")


def test_categories_without_names_need_names(root):
    content = coco_content() | {"categories": []}
    assert "names: missing, and the JSON files have no categories with names" in error_of(
        write_coco(root, content)
    )
    text = json.dumps(content | ids_from(content, 1))
    yaml = write_text(root, text, "train: a.json\nimages: images\nnames: [a, b, c]\n")
    assert "there are 3, but the JSON files, which name no categories, use the ids [1, 2]" in error_of(yaml)
    spec = load_data_spec(yaml, single_cls=True)
    assert load_split(spec, "train", single_cls=True)[0].labels.tolist() == [0, 0, 0]


# ids


@pytest.mark.parametrize(
    ("listed", "value", "place"),
    [
        ([7, 8], 7, 0),
        ([7, 8], 8.0, 1),
        ([7, 8], "8", 1),
        ([7, 8], "008", 1),
        (["007", 8], 7, 0),
        (["007", 7], 7, 1),
        (["007", 7], "007", 0),
        (["007", "07"], 7, None),  # which of them?
        (["007", 7], "07", None),
        (["a ", "b"], "a", 0),
        ([1, 0], True, None),
        ([1, 0], None, None),
        ([1], [1], None),
        ([1], float("nan"), None),
        ([10**400], 10**400, 0),
        (["-3"], -3, 0),
        (["1e3"], 1000, None),
        (["٣"], 3, None),  # a digit, but not one that a program writes
    ],
)
def test_references_find_what_they_mean(listed, value, place):
    assert Ids(listed).find(value) == place


def test_ids_crowds_and_mask_areas_are_kept(root):
    index, report = load(write_coco(root, changed("annotations", 0, iscrowd=True)))
    spec = load_data_spec(root / "data.yaml")
    assert spec.category_ids == (7, 90) and index.picture_ids.tolist() == [12, 11, 13]
    assert index.areas.tolist() == [9, 9, 9] and report.num_ignored == index.ignore.sum() == 1
    assert len(index.source_ids) == 0  # the same


def test_names_of_the_yaml_choose_and_order_the_classes(root):
    def yaml(names):
        write_coco(root)
        return write_text(
            root, (root / "a.json").read_bytes(), f"train: a.json\nimages: images\nnames: {names}\n"
        )

    assert load_data_spec(yaml("[dog, cat]")).category_ids == (90, 7)
    index, report = load(yaml("[dog]"))
    assert index.labels.tolist() == [0] and report.num_unlisted == 2  # the cats
    assert "names: 'bird' is no category of the JSON files; they have: cat, dog" in error_of(
        yaml("[dog, bird]")
    )


def write_files(root, *contents):
    """A split of several JSON files, a.json, b.json, ..."""
    names = [f"{letter}.json" for letter, _ in zip("abc", contents, strict=False)]
    for name, content in zip(names, contents, strict=True):
        (root / name).write_text(json.dumps(content), encoding="utf-8")
    (root / "data.yaml").write_text(f"train: [{', '.join(names)}]\nimages: images\n", encoding="utf-8")
    return root / "data.yaml"


def in_two(first=lambda part: part, second=lambda part: part):
    """The content as two files, the picture b in the first; each changed."""
    parts = []
    for change, keep in ((first, lambda number: number == 11), (second, lambda number: number != 11)):
        content = coco_content()
        content["images"] = [item for item in content["images"] if keep(item["id"])]
        content["annotations"] = [row for row in content["annotations"] if keep(row["image_id"])]
        parts.append(change(content))
    return parts


def counted_from_1(content):
    """Ids of pictures and annotations as every exporter gives them to a file."""
    number = {item["id"]: place for place, item in enumerate(content["images"], 1)}
    each(content, "images", lambda item: {"id": number[item["id"]]})
    return each(content, "annotations", lambda row: {"image_id": number[row["image_id"]]})


def renamed(**ids):
    """Other category ids."""
    number = {IDS[name]: key for name, key in ids.items()}

    def change(content):
        each(content, "categories", lambda item: {"id": number[item["id"]]})
        return each(content, "annotations", lambda row: {"category_id": number[row["category_id"]]})

    return change


@pytest.mark.parametrize(
    ("changes", "ids", "sources"),
    [
        ({}, [12, 11, 13], []),
        ({"first": counted_from_1, "second": counted_from_1}, [1, 2, 3], [b"null"] * 3),
        ({"second": lambda c: ids_of_text(c)}, [1, 2, 3], [b'"x12"', b"11", b'"x13"']),
    ],
)
def test_ids_belong_to_their_file(root, changes, ids, sources):
    whole, _ = load(write_coco(root))
    index, report = load(write_files(root, *in_two(**changes)))
    for field in ("paths", "sizes", "offsets", "boxes", "labels", "areas"):
        assert np.array_equal(getattr(index, field), getattr(whole, field)), field
    assert index.picture_ids.tolist() == ids and index.source_ids.tolist() == sources
    assert report.num_renumbered == sources.count(b"null")


def ids_of_text(content):
    each(content, "images", lambda item: {"id": f"x{item['id']}"})
    return each(content, "annotations", lambda row: {"image_id": f"x{row['image_id']}"})


@pytest.mark.parametrize(
    ("second", "ids", "note"),
    [
        (renamed(cat=7, dog=90), (7, 90), ""),
        (renamed(cat="7", dog="90"), (7, 90), ""),  # the same
        (renamed(cat=1, dog=2), (7, 90), "'dog' is 90 in {root}/a.json and 2 in {root}/b.json (2 such)"),
        (renamed(cat=90, dog=7), (7, 90), "classes are matched by name, and ids are those of the first file"),
    ],
)
def test_classes_of_several_files_are_matched_by_name(root, second, ids, note):
    whole, _ = load(write_coco(root))
    yaml = write_files(root, *in_two(second=second))
    spec = load_data_spec(yaml)
    assert np.array_equal(load(yaml)[0].labels, whole.labels) and spec.category_ids == ids
    assert bool(spec.notes) == bool(note) and note.format(root=root) in format_classes(spec)


def test_a_new_class_whose_id_is_taken_gets_the_next(root):
    second = coco_content() | {"categories": [{"id": 7, "name": "bird"}], "images": [], "annotations": []}
    spec = load_data_spec(write_files(root, coco_content(), second))
    assert dict(zip(spec.names, spec.category_ids, strict=True)) == {"cat": 7, "dog": 90, "bird": 91}
    assert "7 is 'bird' in" in spec.notes[0]


def test_repeated_ids_in_one_file_name_both_and_skip_gives_nothing_to_either(root):
    yaml = write_coco(root, changed("images", 1, id="11"))  # 11 and "11" are one
    text = error_of(yaml)
    assert (
        'picture a.png, id "11" (images[1]): its id is also that of picture b.png, id 11 (images[0])' in text
    )
    assert (
        'picture b.png, id 11 (images[0]): its id is also that of picture a.png, id "11" (images[1])' in text
    )
    index, report = load(yaml, label_errors="skip")
    assert [path_of(index, i).stem for i in range(len(index.sizes))] == ["c"]
    # the box of b; those of a refer to 12, which no picture has now
    assert (report.num_boxes, report.num_unplaced, report.num_skipped) == (0, 1, 4)


def test_a_picture_in_two_files_is_an_error_and_its_boxes_are_not_doubled(root):
    yaml = write_files(root, coco_content(), coco_content())
    assert f"this file is listed twice, before in {root}/a.json (images[0]); keep one entry" in error_of(yaml)
    index, report = load(yaml, label_errors="skip")
    assert len(index.boxes) == 3 and (report.num_unplaced, report.num_skipped) == (3, 3)


def test_the_end_of_a_path_that_fits_two_entries_is_nobodys(root):
    content = coco_content()
    for place, folder in ((0, "x"), (1, "y")):
        content["images"][place]["file_name"] = f"{folder}/b.png"
    assert f"{root}/images/x/b.png: no such file" in error_of(write_coco(root, content))
    index, _ = load(root / "data.yaml", label_errors="skip")
    assert [path_of(index, i).stem for i in range(len(index.sizes))] == ["c"]


# faults

FAULTS = [  # (list, element, changes, text)
    ("images", 1, {"file_name": None}, "file_name is null, not the name of a file"),
    ("images", 1, {"file_name": "\ud800.png"}, 'file_name is "\\ud800.png", not the name of a file'),
    ("images", 1, {"id": None}, "id is null, not a number or a text"),
    ("images", 1, {"id": True}, "id is true, not a number or a text"),
    ("images", 1, {"id": 11}, "its id is also that of picture b.png, id 11 (images[0])"),
    ("images", 1, {"file_name": "b.png"}, "this file is listed twice, before in "),
    ("images", 1, {"width": 50, "height": 30}, "written for a picture of 50 x 30, but the file is 30 x 50"),
    ("annotations", 2, {"image_id": 5}, "image_id is 5; no picture has this id"),
    ("annotations", 2, {"image_id": [12]}, "image_id is [12]; not the id of a picture"),
    ("annotations", 2, {"category_id": 8}, "category_id is 8; the categories have the ids [7, 90]"),
    ("annotations", 2, {"bbox": None}, "bbox is null, and there is no segmentation to take the box from"),
    ("annotations", 2, {"bbox": [1, 2, 3]}, "bbox is [1, 2, 3], not four numbers"),
    ("annotations", 2, {"bbox": {"x": 1}}, 'bbox is {"x": 1}, not four numbers x, y, width, height in px'),
    ("annotations", 2, {"bbox": [1, 2, 3, "4 px"]}, "not four numbers x, y, width, height"),
    ("annotations", 2, {"bbox": [1, 2, 3, "4,5"]}, '"4,5"], not four numbers'),
    ("annotations", 2, {"bbox": [1, 2, True, 4]}, "true, 4], not four numbers"),
    ("annotations", 2, {"bbox": [1, 2, 3, float("nan")]}, "not four finite numbers"),
    ("annotations", 2, {"bbox": [1, 2, float("inf"), 4]}, "Infinity, 4], not four finite numbers"),
    ("annotations", 2, {"bbox": [9, 9, -3, 4]}, "width or height is negative"),
    ("annotations", 2, {"bbox": [20, 20, 30, 4]}, "beyond the right edge of its picture, 30 x 50"),
    ("annotations", 2, {"bbox": [1, 2, 10**400, 4]}, "bbox is [1, 2, 1000000000"),
    ("annotations", 2, {"bbox": None, "segmentation": [[1, 2]]}, "not polygons of three and more points"),
    ("annotations", 2, {"bbox": None, "segmentation": [[1] * 7]}, "not polygons of three and more points"),
    (
        "annotations",
        2,
        {"bbox": None, "segmentation": {"size": [9, 9], "counts": [1]}},
        "no mask whose counts",
    ),
    ("annotations", 2, {"area": -1}, "area is -1, not a number of px^2"),
    ("annotations", 2, {"area": 10**400}, "area is 10000000000"),
    ("annotations", 2, {"iscrowd": 2}, "iscrowd is 2, not 0 or 1"),
    ("annotations", 2, {"iscrowd": []}, "iscrowd is [], not 0 or 1"),
]


def subject_of(key, number, content):
    item = content[key][number]
    if key == "images":
        name = f" {item['file_name']}" if item["file_name"] else ""
        number_of = f", id {json.dumps(item['id'])}" if item["id"] is not None else ""
        return printable(f"picture{name}{number_of} (images[{number}])")
    picture = " of picture a.png" * (item["image_id"] == 12)
    return f"annotation id {item['id']}{picture} (annotations[{number}])"


@pytest.mark.parametrize(("key", "number", "changes", "text"), FAULTS)
def test_faults_name_the_element_and_its_line(root, key, number, changes, text):
    content = changed(key, number, **changes)
    subject = subject_of(key, number, content)
    yaml = write_coco(root, content)
    line = next(part for part in error_of(yaml).splitlines() if text in part and subject in part)
    written = (root / "a.json").read_text().splitlines()
    start = int(line.split("a.json:")[1].split(":")[0])
    assert written[start - 1].strip() == "{"  # the object begins there
    wanted = json.dumps(content[key][number], indent=1).splitlines()[1].strip().rstrip(",")
    assert written[start].strip().rstrip(",") == wanted
    write_text(root, json.dumps(content) + "\n")
    assert f"a.json: {subject}: " in error_of(yaml)  # one line: no number
    index, report = load(yaml, label_errors="skip")
    assert report.num_skipped + report.num_left_out >= 1
    assert len(index.boxes) == report.num_boxes < 3


@pytest.mark.parametrize(
    ("shape", "place"),
    [
        (lambda: keyed("annotations"), 'annotation id 3 of picture a.png (annotations["3"])'),
        (lambda: keyed("images"), "annotation id 3 of picture a.png (annotations[2])"),
        (in_images, "annotation id 3 of picture a.png (images[1].annotations[1])"),
    ],
)
def test_faults_in_other_shapes_name_their_place(root, shape, place):
    content = shape()
    rows = content.get("annotations") or [row for item in content["images"] for row in item["annotations"]]
    next(row for row in (rows.values() if isinstance(rows, dict) else rows) if row["id"] == 3)["bbox"] = 3
    assert f"{place}: bbox is 3, not four numbers" in error_of(write_coco(root, content))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"images": [],\n"annotations": [}', "a.json:2: not valid JSON (column 17): Expecting value"),
        ('{"images": [],\n"annotations": [1,]}', "a.json:2: not valid JSON (column 19): a comma before ']'"),
        ('{"images": [],\n}', "a.json:2: not valid JSON (column 1): a comma before '}'; delete it"),
        (
            '{"images": []}\n{"images": []}',
            "a.json:2: not valid JSON (column 1): one object ends and another",
        ),
        ('{"images": [{"id": 1', "the file ends too early"),
        ("", "the file ends too early"),
        (
            '{"annotations": [],\n"annotations": [1], "images": []}',
            "the key 'annotations' stands there twice",
        ),
        ("[1]", "a COCO file is an object with images, annotations, categories; this is none"),
        ('{"images": [1], "categories": []}', "images is missing or no list of objects"),
        ('{"images": {"a": 1}, "categories": []}', "images is missing or no list of objects"),
        ('{"images": [], "annotations": {"1": [3]}}', "annotations is missing or no list of objects"),
        ('{"images": [], "annotations": []}', "the JSON files have no categories with names"),
        ('{"images": [], "categories": [{"id": null, "name": "a"}]}', "needs an id and a name"),
        ('{"images": [], "categories": [{"id": 1, "name": "a"}, {"id": 2}]}', "needs an id and a name"),
        (
            '{"images": [], "categories": [{"id": 1, "name": "a"}, {"id": "1", "name": "b"}]}',
            "category id \"1\" is 'b' here, but 'a' before",
        ),
        (
            json.dumps(
                {
                    "images": [],
                    "annotations": [{"category_id": 1}, {"category_id": 2}],
                    "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}],
                }
            ),
            "the name 'a' stands for several ids: [1, 2]",
        ),
        ('{"images": [], "categories": []}', "the JSON files have no categories with names"),
        ('{"images": [], "categories": [{"id": 1, "name": "a"}]}', "split 'train' has no pictures"),
        (b'{"\xff": 1}', "byte 3 is not UTF-8; save the file as UTF-8"),
        ("{" + '"a":' * 2 + "1}", "a.json:1: not valid JSON"),
        ("[" * 100_000, "cannot read this as COCO JSON"),
        ('{"images": ' + "9" * 5000 + "}", "cannot read this as COCO JSON"),
    ],
)
def test_json_files_that_are_no_coco_files(root, text, expected):
    assert expected in error_of(write_text(root, text))


def test_a_split_without_a_proper_picture_twice(root):
    """The second time from the cache, which then holds no path at all."""
    yaml = write_coco(root, each(coco_content(), "images", lambda item: {"id": None}))
    for _ in range(3):
        assert "id is null, not a number or a text" in error_of(yaml)


def test_a_picture_that_is_missing_is_named_or_skipped(root):
    yaml = write_coco(root)
    (root / "images" / "a.png").unlink()
    assert f"{root}/images/a.png: no such file" in error_of(yaml)
    index, report = load(yaml, label_errors="skip")
    assert (len(index.sizes), report.num_left_out, report.num_boxes) == (2, 1, 1)
    assert index.offsets.tolist() == [0, 1, 1]


def test_a_picture_of_another_size_is_left_out_by_skip(root):
    yaml = write_coco(root)
    Image.new("RGB", (15, 25)).save(root / "images" / "a.png")
    index, report = load(yaml, label_errors="skip")
    assert (len(index.sizes), report.num_left_out, report.num_boxes) == (2, 1, 1)


def test_ids_of_text_stay_with_their_pictures_when_others_are_left_out(root):
    yaml = write_coco(root, ids_as(lambda key: f"img_{key}"))
    (root / "images" / "a.png").unlink()
    for _ in range(2):  # the second time from the cache
        index, _ = load(yaml, label_errors="skip")
        assert index.source_ids.tolist() == [b'"img_11"', b'"img_13"']


# units


def write_units(root, scale, *, count=40, side=(640, 480), seed=0, whole=False):
    """Boxes spread over one picture, in px times ``scale`` (x, y)."""
    rng = np.random.default_rng(seed)
    size = rng.uniform(0.05, 0.3, (count, 2)) * side
    boxes = np.hstack([rng.uniform(0, 1, (count, 2)) * (side - size), size]) * np.tile(scale, 2)
    boxes = boxes.round() if whole else boxes
    Image.new("RGB", side).save(root / "images" / "a.png")
    rows = [{"id": n, "image_id": 1, "category_id": 7, "bbox": box.tolist()} for n, box in enumerate(boxes)]
    content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": rows, "categories": IDS_AND_NAMES}
    return write_coco(root, content)


IDS_AND_NAMES = [{"id": 7, "name": "cat"}, {"id": 90, "name": "dog"}]


@pytest.mark.parametrize(
    ("scale", "options", "unit"),
    [
        ((1, 1), {}, ""),
        ((1 / 640, 1 / 480), {}, "fractions"),
        ((1 / 640, 1 / 480), {"count": 1}, "fractions"),
        ((100 / 640, 100 / 480), {}, "percent"),
        ((100 / 160, 100 / 120), {"side": (160, 120)}, "percent"),
        ((100 / 640, 100 / 480), {"count": 5}, ""),  # too few to know
        ((0.05, 0.05), {}, ""),  # small, and not to the end of anything
        ((1, 1), {"side": (100, 100)}, ""),
        ((1, 1), {"side": (110, 110)}, ""),
        ((0.9, 0.9), {"side": (110, 110), "count": 10}, ""),
        ((1000 / 2000, 1000 / 1500), {"side": (2000, 1500), "whole": True}, "thousandths"),
        ((1000 / 1920, 1000 / 1080), {"side": (1920, 1080), "whole": True, "count": 200}, "thousandths"),
        ((1000 / 2000, 1000 / 1500), {"side": (2000, 1500)}, ""),  # models write whole numbers
        ((1, 1), {"side": (1000, 1000), "whole": True}, ""),
        ((1, 1), {"side": (1010, 1010), "whole": True, "count": 200}, ""),
    ],
)
def test_units_are_told_by_the_whole_file(root, scale, options, unit):
    yaml = write_units(root, scale, **options)
    if not unit:
        assert load(yaml)[1].num_boxes == options.get("count", 40)
        return
    for policy in ("stop", "skip", "clip"):
        text = error_of(yaml, label_errors=policy)
        assert f"a.json: all {options.get('count', 40)} boxes look like {unit} of the picture" in text
    found = diagnose(load_data_spec(yaml), load_config().config, splits=["train"]).findings
    assert found[0].code == unit and "multiply x and width by the picture's width" in found[0].remedy
    assert not [finding for finding in found if finding.code in ("boxes-lost", "boxes-tiny", "empty")]


def test_fractions_among_boxes_in_px_are_named_one_by_one(root):
    """Of a file that was joined of two; they are not small boxes."""
    yaml = write_units(root, (1, 1))
    content = json.loads((root / "a.json").read_text())
    for row in content["annotations"][::2]:
        row["bbox"] = [value / side for value, side in zip(row["bbox"], (640, 480, 640, 480), strict=True)]
    (root / "a.json").write_text(json.dumps(content))
    assert "annotation id 2 of picture a.png (annotations[2]): the box lies in the first" in error_of(yaml)
    assert load(yaml, label_errors="skip")[1].num_boxes == 20
    found = diagnose(load_data_spec(yaml), load_config().config, splits=["train"]).findings
    assert (found[0].severity, found[0].code, found[0].count) == ("error", "first-pixel", 20)
    assert not [finding for finding in found if finding.code == "boxes-lost"]


@pytest.mark.parametrize(
    ("form", "text", "remedy"),
    [
        ("corners", "look like corners x1, y1, x2, y2, not x, y, width, height", "width = x2 - x1"),
        ("centres", "look like centres and sizes cx, cy, width, height", "x = cx - width / 2"),
    ],
)
def test_corners_and_centres_are_told_by_the_whole_file(root, form, text, remedy):
    yaml = write_units(root, (1, 1))
    content = json.loads((root / "a.json").read_text())
    for row in content["annotations"]:
        x, y, width, height = row["bbox"]
        corner, centre = [x, y, x + width, y + height], [x + width / 2, y + height / 2, width, height]
        row["bbox"] = corner if form == "corners" else centre
    (root / "a.json").write_text(json.dumps(content))
    for policy in ("stop", "skip", "clip"):
        assert f"a.json: all 40 boxes {text}" in error_of(yaml, label_errors=policy)
    found = diagnose(load_data_spec(yaml), load_config().config, splits=["train"]).findings
    assert (found[0].severity, found[0].code) == ("error", form) and remedy in found[0].remedy


def test_a_box_of_zeros_is_none_where_there_is_an_outline(root):
    content = coco_content()
    content["annotations"] = [
        {"id": 1, "image_id": 11, "category_id": 7, "bbox": [0, 0, 0, 0], "segmentation": outline}
        for outline in ([[3, 4, 9, 4, 9, 8]], [])
    ]
    index, report = load(write_coco(root, content))
    assert (index.boxes.tolist(), report.num_empty) == ([[3, 4, 9, 8]], 1)


@pytest.mark.parametrize("name", [None, 5])
def test_pictures_without_a_name_say_so(root, name):
    content = coco_content()
    content["images"] = [entry | {"file_name": name} for entry in content["images"]]
    assert f"file_name is {json.dumps(name)}, not the name of a file" in error_of(write_coco(root, content))


def test_one_file_of_another_unit_is_left_out_alone(root):
    write_units(root, (1 / 640, 1 / 480))
    first = json.loads((root / "a.json").read_text())
    second = coco_content() | {"images": coco_content()["images"][:1]}
    second["annotations"] = second["annotations"][:1]
    yaml = write_files(root, first, second)
    index, report = load(yaml, label_errors="skip")
    assert [path_of(index, i).stem for i in range(len(index.sizes))] == ["b"]
    assert (len(index.boxes), report.num_left_out) == (1, 1)


@pytest.mark.parametrize(("count", "severity"), [(0, ""), (1, "note"), (2, "warning")])
def test_pictures_that_no_file_lists_are_counted_and_named(root, count, severity):
    content = coco_content() | {"images": [{"id": n, "file_name": f"{n}.png"} for n in range(100)]}
    for number in range(100 + count):
        shutil.copy(root / "images" / "a.png", root / "images" / f"{number}.png")
    for stem in "abc":
        (root / "images" / f"{stem}.png").unlink()
    spec = load_data_spec(write_coco(root, content | {"annotations": []}))
    found = find_hints(spec, {"train": read_split(spec, "train")})
    assert [finding.severity for finding in found] == [severity] * (count > 0)
    assert [place.path for finding in found for place in finding.places] == [
        str(root / "images" / f"{100 + number}.png") for number in range(count)
    ]


# masks


@pytest.mark.parametrize("seed", range(20))
def test_boxes_of_masks_are_pycocotools(seed):
    rng = np.random.default_rng(seed)
    pixels = np.zeros(rng.integers(2, 40, 2), np.uint8)
    y, x = (rng.integers(0, side, 2) for side in pixels.shape)
    pixels[min(y) : max(y) + 1, min(x) : max(x) + 1] = rng.random((np.ptp(y) + 1, np.ptp(x) + 1)) < 0.7
    pixels[y[0], x[0]] = 1
    packed = mask.encode(np.asfortranarray(pixels))
    ends = np.flatnonzero(np.diff(pixels.T.ravel(), prepend=0)).tolist()
    counts = np.diff([0, *ends, pixels.size]).tolist()
    rows, columns = pixels.any(1).nonzero()[0], pixels.any(0).nonzero()[0]
    expected = (columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1)
    for own in (packed["counts"].decode(), counts):
        assert read_box({"segmentation": {"size": list(pixels.shape), "counts": own}}) == expected
    if not np.diff(columns).max(initial=1) > 1:
        assert mask.toBbox(packed).tolist() == list(expected)


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [9, 9], "counts": [81]},  # nothing in it
        {"size": [9, 9], "counts": [80, 0]},
        {"size": [2**30, 2**30], "counts": [0, 2**60]},
        {"size": [9, 9], "counts": [-1, 82]},
        {"size": [9, 9], "counts": [1.0, 80]},
        {"size": [9], "counts": "Q2"},
        {"size": [9, 9], "counts": "o" * 100_000},
        {"size": [9, 9], "counts": "\xff"},
        {"counts": [1, 2]},
        [[[[[[1, 2, 3]]]]]],
        "Q2",
        7,
    ],
)
def test_masks_that_are_none(segmentation):
    with pytest.raises(Fault):
        read_box({"segmentation": segmentation})


# what stays


def test_roboflow_layout_without_a_yaml(root, capsys):
    content = coco_content()
    content["categories"] = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        {"id": 7, "name": "cat", "supercategory": "pets"},
        {"id": 90, "name": "dog", "supercategory": "pets"},
    ]
    folder = root.parent / "roboflow" / "train"
    shutil.copytree(root / "images", folder)
    (folder / "_annotations.coco.json").write_text(json.dumps(content), encoding="utf-8")
    spec = load_data_spec(folder.parent)
    assert spec.names == NAMES and spec.category_ids == (7, 90)  # without the umbrella
    assert spec.left_out == ("pets",) and "left out, as no box has it: pets" in format_classes(spec)
    assert not capsys.readouterr().out  # said with the table, not on every reading
    assert load_split(spec, "train")[1].num_boxes == 3
    # as Roboflow writes paths
    (folder.parent / "data.yaml").write_text("train: ../train\n", encoding="utf-8")
    assert load(folder.parent)[1].num_boxes == 3


@pytest.mark.skipif(not REAL.exists(), reason="the real pictures are not there")
def test_real_umbrella_class_is_left_out():
    found = read_categories([REAL / "odd_files" / "roboflow_chess_test_annotations.coco.json"])
    assert found.left_out == ["pieces"] and 0 not in found.ids and len(found.names) == 13


def test_no_annotations_are_background(root):
    assert load(write_coco(root, coco_content() | {"annotations": None}))[1].num_background == 3


def test_copies_of_an_annotation_are_kept_as_coco_keeps_them(root):
    content = coco_content()
    content["annotations"].append(dict(content["annotations"][0]))
    index, report = load(write_coco(root, content))
    assert len(index.boxes) == 4 and report.num_duplicate == 0


def test_pictures_from_another_folder_are_read_again(root):
    yaml = write_coco(root)
    load(yaml)
    make_pictures(root / "new")
    yaml.write_text("train: a.json\nimages: new/images\n", encoding="utf-8")
    assert path_of(load(yaml)[0], 0) == root / "new" / "images" / "a.png"


def test_categories_are_read_once(root, monkeypatch):
    yaml = write_coco(root)
    first = load_data_spec(yaml)
    monkeypatch.setattr("data.spec.read_categories", lambda files: pytest.fail("read again"))
    assert load_data_spec(yaml) == first and first.left_out == ()


def write_cameras(root, files, folders):
    """A picture of the same name in each folder; of each JSON file a box in it, at the file's number."""
    for folder in folders:
        (root / folder).mkdir()
        Image.new("RGB", (40, 40)).save(root / folder / "0.png")
    for number, file in enumerate(files):
        row = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [number, 0, 20, 20]}
        content = {"images": [{"id": 1, "file_name": "0.png"}], "annotations": [row]}
        (root / file).write_text(json.dumps(content | {"categories": IDS_AND_NAMES}))
    (root / "data.yaml").write_text(f"train: {json.dumps(files)}\nimages: {json.dumps(folders)}\n")
    return root / "data.yaml"


def test_of_folders_with_the_same_names_each_file_has_its_own(root):
    index, _ = load(write_cameras(root, ["one.json", "two.json"], ["cam2", "cam1"]))
    assert [path_of(index, i).parent.name for i in range(2)] == ["cam1", "cam2"]
    assert index.boxes[:, 0].tolist() == [1, 0]  # cam1 is the second folder, of the second file


def test_which_of_two_folders_is_meant_is_asked(root):
    text = error_of(write_cameras(root, ["one.json"], ["cam1", "cam2"]))
    assert "0.png, which one.json lists, may be in any of:" in text and "in their order" in text


def test_pictures_found_by_the_end_of_their_path_are_said(root, capsys):
    content = each(coco_content(), "images", lambda item: {"file_name": f"cam1/{item['file_name']}"})
    assert load(write_coco(root, content))[1].num_pictures == 3
    name = content["images"][0]["file_name"].removeprefix("cam1/")
    said = f"3 pictures are listed in other folders; cam1/{name} taken for {root}/images/{name}"
    assert said in capsys.readouterr().out


def test_addresses_of_a_labelling_tool_s_own_disk(root):
    prefix = "/data/local-files/?d=project%20one/images/"
    content = each(coco_content(), "images", lambda item: {"file_name": prefix + item["file_name"]})
    assert load(write_coco(root, content))[1].num_pictures == 3


def test_faulty_annotations_without_an_id_are_named_by_their_place(root):
    content = each(coco_content(), "annotations", lambda item: {"id": None})
    content["annotations"][1]["iscrowd"] = 7
    assert "annotation of picture a.png (annotations[1]): iscrowd is 7" in error_of(write_coco(root, content))


def test_ids_that_all_have_one_hash_are_no_numbers():
    assert key_of(5 * (2**61 - 1)) == str(5 * (2**61 - 1)) and key_of(2**62) == 2**62
