"""Polygons, pose rows and rotated boxes are told apart by the YAML, else by what a split holds as a whole."""

import numpy as np
import pytest
from PIL import Image

from data.formats.row_tasks import has_visibility, looks_like_pose
from tests.data.reading import error_of, load


def pose_rows(rng, count, keypoints, *, dims=2, low=0.05, high=0.6, hidden=0.2):
    """(T, 4 + K * dims) boxes with their keypoints, of which a share is not visible and stands at 0, 0."""
    size = rng.uniform(low, high, (count, 2))
    centre = rng.uniform(size / 2, 1 - size / 2)
    points = centre[:, None] + size[:, None] * rng.uniform(-0.5, 0.5, (count, keypoints, 2))
    unset = rng.random((count, keypoints)) < hidden
    points[unset] = 0
    if dims == 3:
        marks = np.where(unset, 0, rng.integers(1, 3, (count, keypoints)))
        points = np.concatenate([points, marks[..., None]], axis=2)
    return np.hstack([centre, size, points.reshape(count, -1)])


def polygon_rows(rng, count, corners, *, low=0.02, high=0.3, region=(0, 1), rectangles=False):
    """(T, 2 * corners) closed outlines around centres in ``region``."""
    centre, half = rng.uniform(*region, (count, 1, 2)), rng.uniform(low, high, (count, 1, 2)) / 2
    if rectangles:
        outline = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])[None]
    else:
        angle = np.sort(rng.uniform(0, 2 * np.pi, (count, corners)), axis=1)
        outline = np.stack([np.cos(angle), np.sin(angle)], 2) * rng.uniform(0.4, 1, (count, corners, 1))
    return (centre + half * outline).clip(0, 1).reshape(count, -1)


def text_of(rows):
    return "".join("0 " + " ".join(f"{value:.6g}" for value in row) + "\n" for row in rows)


def write(root, texts, extra=""):
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    for number, text in enumerate(texts):
        Image.new("RGB", (200, 100)).save(root / "images" / f"{number}.png")
        (root / "labels" / f"{number}.txt").write_text(text)
    (root / "data.yaml").write_text(f"train: images\nnames: [a]\n{extra}\n")
    return root / "data.yaml"


SHAPES = [(1, 2), (2, 2), (4, 2), (5, 2), (17, 2), (1, 3), (2, 3), (4, 3), (5, 3), (17, 3)]


@pytest.mark.parametrize(("keypoints", "dims"), SHAPES)
@pytest.mark.parametrize("said", ["kpt_shape", "flip_idx", "nothing"])
def test_pose_rows_give_their_boxes_or_an_error_that_names_the_key(tmp_path, keypoints, dims, said):
    rows = pose_rows(np.random.default_rng(0), 40, keypoints, dims=dims)
    entry = f"kpt_shape: [{keypoints}, {dims}]"
    extra = {"kpt_shape": entry, "flip_idx": f"flip_idx: {list(range(keypoints))}", "nothing": ""}[said]
    yaml = write(tmp_path, [text_of(rows[:25]), text_of(rows[25:])], extra)
    if said == "nothing":
        assert entry in error_of(yaml) and "pose rows" in error_of(yaml)
        return
    index, report = load(yaml)
    extent = np.array([200, 100, 200, 100])
    corners = np.hstack([rows[:, :2] - rows[:, 2:4] / 2, rows[:, :2] + rows[:, 2:4] / 2]) * extent
    np.testing.assert_allclose(index.boxes, corners, atol=1e-3)
    assert (report.num_keypoint_rows, report.num_polygons) == (40, 0)


POLYGONS = [
    {"corners": 3},
    {"corners": 3, "region": (0.3, 0.6)},
    {"corners": 4},
    {"corners": 4, "region": (0.4, 0.6)},
    {"corners": 4, "region": (0.2, 0.5), "high": 0.05},
    {"corners": 4, "region": (0.45, 0.55), "low": 0.5, "high": 0.9},
    {"corners": 4, "rectangles": True},
    {"corners": 4, "rectangles": True, "region": (0.3, 0.5)},
    {"corners": 4, "rectangles": True, "region": (0.2, 0.4), "high": 0.04},
    {"corners": 5},
    {"corners": 8, "region": (0.3, 0.6)},
    {"corners": 32},
    {"corners": 32, "region": (0.3, 0.6), "high": 0.1},
]


@pytest.mark.parametrize("kind", POLYGONS, ids=str)
def test_polygons_of_one_number_of_points_stay_polygons(kind):
    rng = np.random.default_rng(1)
    for count in (5, 20, 200):
        points = polygon_rows(rng, count, **kind).reshape(count, -1, 2)
        for start in range(0, points.shape[1], 2):  # wherever the outlines begin
            rows = np.roll(points, start, axis=1)
            assert not looks_like_pose(rows), (count, start)
            assert not has_visibility(np.hstack([np.zeros((count, 1)), rows.reshape(count, -1)]))


@pytest.mark.parametrize("keypoints", [1, 2, 3, 4, 5, 17])
@pytest.mark.parametrize("sides", [(0.05, 0.3), (0.05, 0.9), (0.4, 0.7), (0.6, 0.95)])
def test_pose_rows_of_any_size_are_seen(keypoints, sides):
    rows = pose_rows(np.random.default_rng(2), 60, keypoints, low=sides[0], high=sides[1])
    assert looks_like_pose(rows.reshape(60, -1, 2))


@pytest.mark.parametrize("keypoints", [2, 4, 6, 14, 16])  # of an odd number the columns are no polygon's
@pytest.mark.parametrize("marks", ["confidences", "px", "beyond", "minus one"])
def test_pose_rows_as_tools_write_them_are_no_polygons(tmp_path, keypoints, marks):
    rng = np.random.default_rng(3)
    rows = pose_rows(rng, 60, keypoints, dims=3, hidden=0)
    triples = rows[:, 4:].reshape(60, keypoints, 3)  # a view
    if marks == "confidences":
        triples[..., 2] = rng.uniform(0.2, 1, (60, keypoints))
    elif marks == "px":
        triples[..., :2] *= (200, 100)
    elif marks == "beyond":
        triples[..., :2] += 0.5
    else:
        triples[rng.random((60, keypoints)) < 0.3] = -1
    assert f"kpt_shape: [{keypoints}, 3]" in error_of(write(tmp_path, [text_of(rows)]))


def test_pose_rows_with_minus_one_for_what_is_not_there_are_no_polygons(tmp_path):
    rows = pose_rows(np.random.default_rng(4), 60, 5)
    points = rows[:, 4:].reshape(60, 5, 2)
    points[(points == 0).all(2)] = -1
    assert "kpt_shape: [5, 2]" in error_of(write(tmp_path, [text_of(rows)]))


def test_a_few_broken_rows_do_not_turn_pose_rows_into_polygons(tmp_path):
    rows = pose_rows(np.random.default_rng(0), 40, 4)
    yaml = write(tmp_path, [text_of(rows) + text_of(rows[:2, :8]), text_of(rows[:3])])
    assert "kpt_shape: [4, 2]" in error_of(yaml)


def test_boxes_and_polygons_in_one_split_are_read_as_both(tmp_path):
    rng = np.random.default_rng(0)
    boxes = pose_rows(rng, 6, 0)
    mixed = text_of(boxes) + "".join(text_of(polygon_rows(rng, 2, corners)) for corners in (3, 4, 7, 20))
    _, report = load(write(tmp_path, [mixed]))
    assert (report.num_boxes, report.num_polygons, report.num_four_points) == (14, 8, 2)


def test_rotated_boxes_are_said_to_be_read_as_their_bounds(tmp_path, capsys):
    rows = polygon_rows(np.random.default_rng(0), 30, 4)
    index, report = load(write(tmp_path, [text_of(rows)]))
    assert report.num_polygons == report.num_four_points == len(index.boxes) == 30
    x, y = rows[:, ::2].min(1) * 200, rows[:, 1::2].min(1) * 100
    np.testing.assert_allclose(index.boxes[:, :2], np.stack([x, y], 1), atol=1e-3)


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        ("task: segment", ""),
        ("task: obb\nkpt_shape: [2, 2]", ""),
        ("task: weed detection", "look like pose rows"),
        ("task: detect", "look like pose rows"),
        ("task: pose", "task: pose needs kpt_shape"),
        ("task: classify", "no boxes to learn from"),
        ("kpt_shape: [2, 4]", "kpt_shape: [2, 4] is not [number of keypoints, 2 or 3]"),
        ("kpt_shape: 2", "kpt_shape: 2 is not"),
        ("kpt_shape: [2, 3]", "9 columns, not 5 (class cx cy w h) nor 11, as kpt_shape: [2, 3]"),
        ("flip_idx: [0, 1, 2]", "9 columns, not 5 (class cx cy w h) nor 11 or 14, as flip_idx with 3"),
        ("kpt_shape: null", "look like pose rows"),
        ("kpt_shape: [0, 3]", "look like pose rows"),
        ("kpt_shape: [2, 2]", ""),
    ],
)
def test_what_the_yaml_says_of_the_task(tmp_path, extra, text):
    yaml = write(tmp_path, [text_of(pose_rows(np.random.default_rng(0), 30, 2))], extra)
    if text:
        assert text in error_of(yaml)
    elif "segment" in extra or "obb" in extra:
        assert load(yaml)[1].num_polygons == 30
    else:
        assert load(yaml)[1].num_keypoint_rows == 30


def test_keypoints_that_are_no_numbers_of_use_do_not_matter(tmp_path):
    text = "0 .5 .5 .2 .2 nan 7000\n0 .3 .3 .2 .2 .3 .3\n0 .3 .5 .1 .1\n"
    assert load(write(tmp_path, [text], "kpt_shape: [1, 2]"))[1].num_boxes == 3
