"""Pictures with boxes, grids and charts; positions are worked out by hand in the comments."""

import cv2
import numpy as np
import pytest
import torch

from utils.plots.curves import plot_labels, plot_pr_curves, plot_table
from utils.plots.draw import PALETTE, _label_text, class_colour, display_name, draw_boxes, ink_on
from utils.plots.grid import save_grid

GREY = 128
NAMES = ("person", "bicycle", "car")
HEADER = (
    "epoch, train/quality, train/box, train/dfl, metrics/AP, metrics/AP50, metrics/AP75, "
    "metrics/precision, metrics/recall, lr, seconds, train/grad_norm"
)


def grey(height=200, width=300):
    return np.full((height, width, 3), GREY, np.uint8)


def painted(picture):
    """Mask of the pixels that are not the grey of the background."""
    return (picture != GREY).any(2)


def test_the_palette_has_80_colours_and_repeats_after_them():
    assert len(set(PALETTE)) == 80
    assert class_colour(0) == (0xE6, 0x9F, 0)  # RGB, not BGR
    assert class_colour(999) == class_colour(999 - 12 * 80)


def test_lines_have_the_class_colour_and_lie_inside_the_box():
    picture = grey()
    drawn = draw_boxes(picture, [[50, 60, 150, 160]], [1], names=NAMES, line_thickness=2, hide_labels=True)
    # The box [50, 150) x [60, 160): first pixels 50 and 60, last ones 149 and 159; two of them thick.
    expected = np.zeros((200, 300), bool)
    expected[60:160, 50:150] = True
    expected[62:158, 52:148] = False
    np.testing.assert_array_equal(painted(drawn), expected)
    assert (drawn[expected] == class_colour(1)).all()
    assert (picture == GREY).all()


def test_the_best_score_lies_on_top():
    boxes = [[50, 60, 150, 160]] * 3
    for scores in ([0.9, 0.2, 0.5], [0.2, 0.5, 0.9]):
        drawn = draw_boxes(grey(), boxes, [0, 1, 2], names=NAMES, scores=scores, hide_labels=True)
        assert tuple(drawn[159, 100]) == class_colour(np.argmax(scores))


@pytest.mark.parametrize(
    "box", [(0, 0, 20, 20), (290, 0, 300, 20), (0, 190, 20, 200), (295, 195, 300, 200), (100, 3, 120, 20)]
)
def test_the_whole_tag_is_inside_the_picture(box):
    middle = draw_boxes(grey(), [[100, 100, 120, 120]], [0], names=["long name"], line_thickness=1)
    tag = painted(middle)[:100]
    colour = (middle == class_colour(0)).all(2)[:100]
    drawn = draw_boxes(grey(), [box], [0], names=["long name"], line_thickness=1)
    # Nothing of the tag is cut: a box in the middle shows as many pixels of it, less what its own lines hide.
    assert painted(drawn).sum() >= tag.sum()
    assert (drawn == class_colour(0)).all(2).sum() >= colour.sum()


def test_the_tag_stands_on_the_box_or_hangs_below_its_top_edge():
    rows = painted(draw_boxes(grey(), [[100, 100, 250, 150]], [0], names=NAMES, line_thickness=1)).any(1)
    assert rows[88:150].all() and not rows[150:].any() and not rows[:80].any()
    top = draw_boxes(grey(), [[100, 2, 250, 150]], [0], names=NAMES, line_thickness=1)
    assert not painted(top)[:2].any()
    assert tuple(top[4, 102]) == class_colour(0)  # inside the box: the tag


def test_hide_labels_and_hide_conf():
    def ink(**options):
        boxes, scores = [[20, 60, 40, 90]], [0.87]
        return (
            painted(draw_boxes(grey(), boxes, [0], names=NAMES, scores=scores, **options))[:60].any(0).sum()
        )

    assert ink(hide_labels=True, hide_conf=True) == 0
    assert 0 < ink(hide_labels=True) < ink(hide_conf=True) < ink()


def test_bands_reach_one_sigma_to_both_sides():
    box, sigma = [[100, 100, 200, 150]], [[10, 4, 0, 0]]
    picture = grey()
    drawn = draw_boxes(picture, box, [0], names=NAMES, sigma=sigma, line_thickness=1, hide_labels=True)
    assert (picture == GREY).all()
    across, down = painted(drawn)[125], painted(drawn)[:, 150]
    assert np.flatnonzero(across).tolist() == [*range(90, 110), 199]  # 100 -+ 10, and the right line alone
    assert np.flatnonzero(down).tolist() == [*range(96, 104), 149]
    # 128 x 0.7 + (230, 159, 0) x 0.3
    assert drawn[125, 95].tolist() == [159, 137, 90]


@pytest.mark.parametrize(
    "boxes", [np.zeros((0, 4)), torch.zeros(0, 4), [[-50, -50, -1, -1]], [[400, 5, 500, 9]]]
)
def test_no_box_in_sight_leaves_the_picture_as_it_is(boxes):
    labels = np.zeros(len(boxes), int)
    drawn = draw_boxes(grey(), boxes, labels, names=NAMES, scores=labels * 0.5, sigma=boxes)
    assert (drawn == GREY).all() and drawn.shape == (200, 300, 3)


@pytest.mark.parametrize("size", [(1, 1), (5, 400), (400, 5), (30, 30)])
def test_tiny_pictures_and_degenerate_boxes(size):
    boxes = torch.tensor([[0, 0, 0, 0], [-9e9, -5, 9e9, 9e9]], dtype=torch.float16)
    drawn = draw_boxes(
        grey(*size), boxes, torch.tensor([0, 7]), names=["x" * 500], scores=torch.ones(2).half()
    )
    assert drawn.shape == (*size, 3) and painted(drawn).any()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("машина ñ β", "машина ñ β"),
        ("猫 cat", r"\u732b cat"),
        ("L型扳手", r"L\u578b\u6273\u624b"),
        ("a🙂", r"a\U0001f642"),
        ("hot\ndog\x00\x1b \t", r"hot dog\x00\x1b"),
        ("\x1b[2J\u202e\ud800cat$", r"\x1b[2J\u202e\ud800cat$"),
        ("", "class 0"),
        (" \n", "class 0"),
        ("long " * 99, "long long long long long long l…"),
    ],
)
def test_names_are_drawn_whole_or_spelled_out(name, shown):
    assert display_name(0, [name]) == shown and len(shown) <= 32
    assert display_name(1, [name]) == "class 1"


def test_a_name_of_a_hundred_million_characters_takes_no_time():
    assert display_name(0, ["\0" * 10**8 + "cat"]).startswith(r"\x00")  # only the start is looked at


@pytest.mark.parametrize(
    "names",
    [
        ["L型扳手", "L型螺丝"],
        ["红细胞 (RBC, old)", "红细胞", "class 1"],
        ["long " * 20 + "a", "long " * 20 + "b"],
        ["红细胞" * 9 + "甲", "红细胞" * 9 + "乙"],
        ["cat", "cat ", " cat"],
        ["", "class 0", "a\u200b", "a"],
        ["1: a", "a", "a"],
        ["#1", "b"],
    ],
)
def test_no_two_classes_are_drawn_alike(names):
    shown = [display_name(label, names) for label in range(len(names))]
    assert len(set(shown)) == len(names)


@pytest.mark.parametrize("width", [14, 20, 40, 60, 90, 130, 300])
def test_in_a_narrow_picture_names_are_whole_or_numbers(monkeypatch, width):
    names, texts = ["screw M8 (long, old)", "screw M8 (long, new)", "screw M8", "#0", "screw"], []
    monkeypatch.setattr("utils.plots.draw.paint_tag", lambda pen, text, *_, **__: texts.append(text))
    for label in range(len(names)):
        draw_boxes(np.zeros((64, width, 3), np.uint8), [[4, 30, 12, 60]], [label], names=names, scores=[0.5])
    shown = [text.removesuffix(" 0.50") for text in texts]
    whole = [*names[:3], "3: #0", names[4]]
    allowed = [{name, f"#{label}"} for label, name in enumerate(whole)]
    assert width == 14 or all(text in own for text, own in zip(shown, allowed, strict=True))
    assert len(set(shown)) == len(names) or not any(shown)


def test_what_gives_way_in_a_narrow_picture():
    names = ["long name", "b"]
    for room, text in {99: "long name 0.50", 13: "long name", 8: "#0 0.50", 6: "#0", 1: ""}.items():
        assert _label_text(0, names, "0.50", lambda text, room=room: len(text) <= room) == text


def test_non_ascii_names_differ_in_the_picture():
    box = [[20, 60, 40, 90]]
    first, second = (draw_boxes(grey(), box, [0], names=[name]) for name in ("дом", "мод"))
    assert (first != second).any()


def test_text_is_black_on_light_and_white_on_dark():
    assert ink_on((0xF0, 0xE4, 0x42)) == ink_on((255, 255, 255)) == (0, 0, 0)
    assert ink_on((0, 0, 0xE1)) == ink_on((0, 0, 0)) == (255, 255, 255)


def read(path):
    picture = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    return picture[..., ::-1]


def test_a_grid_holds_every_tile_at_its_place(tmp_path):
    colours = np.array(
        [[250, 20, 20], [20, 250, 20], [20, 20, 250], [250, 250, 20], [20, 250, 250]], np.uint8
    )
    images = np.tile(colours[:, None, None], (1, 90, 120, 1))
    boxes, labels = [np.zeros((0, 4))] * 5, [np.zeros(0, int)] * 5
    path = tmp_path / "сетка.jpg"
    save_grid(path, images, boxes, labels, names=NAMES, titles=[f"{i}.jpg" for i in range(5)])
    picture = read(path)
    # 5 tiles of 90 x 120: 3 rows of 2 have the least long side (270, not 360); gaps are 4 px.
    assert picture.shape == (3 * 90 + 2 * 4, 2 * 120 + 4, 3)
    for i in range(5):
        centre = picture[i // 2 * 94 + 60, i % 2 * 124 + 60].astype(int)
        assert abs(centre - colours[i]).max() < 12
    assert picture[238, 184].min() > 245  # the sixth place is blank
    plates = torch.from_numpy(images).permute(0, 3, 1, 2)
    save_grid(
        tmp_path / "tensor.jpg", plates, boxes, labels, names=NAMES, titles=[f"{i}.jpg" for i in range(5)]
    )
    assert (tmp_path / "tensor.jpg").read_bytes() == path.read_bytes()


def test_a_large_grid_is_shrunk_with_its_boxes(tmp_path):
    images = torch.full((20, 3, 640, 640), GREY, dtype=torch.uint8)
    boxes = [torch.tensor([[160.0, 160, 480, 480]])] * 20
    labels, scores = [torch.tensor([4])] * 20, [torch.tensor([0.5])] * 20
    save_grid(tmp_path / "grid.jpg", images, boxes, labels, names=NAMES, scores=scores)
    picture = read(tmp_path / "grid.jpg")
    # 16 of them in 4 x 4, tiles of (1920 - 3 x 4) / 4 = 477 px: the last column is 480 x 477 / 640 - 1 = 357.
    assert picture.shape == (1920, 1920, 3)
    blue = picture[..., 2].astype(int) - picture[..., 0] > 40
    assert np.flatnonzero(blue[240, 250:450]).max() + 250 == pytest.approx(357, abs=1)


def test_a_grid_of_no_pictures_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one picture"):
        save_grid(tmp_path / "no.jpg", np.zeros((0, 8, 8, 3), np.uint8), [], [], names=NAMES)


def write_results(path, rows):
    path.write_text("\n".join([HEADER, *(", ".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")
    return path


def results_row(epoch, ap):
    return [epoch, 1.5, 1.0, 0.5, ap, ap, ap, ap, ap, 0.01, 12.5, 3.0]


@pytest.mark.parametrize("num_rows", [0, 1, 1000])
def test_results_of_any_length(tmp_path, num_rows):
    table = write_results(tmp_path / "results.csv", [results_row(i, i / 1000) for i in range(num_rows)])
    plot_table(table, tmp_path / "results.png")
    picture = read(tmp_path / "results.png")
    assert picture.shape[1] == (5 * 3 * 110 if num_rows else 5 * 110)
    assert (picture < 128).any() == bool(num_rows)


def test_empty_cells_bad_cells_and_a_torn_last_row(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr("matplotlib.axes.Axes.set_title", lambda self, text, **_: titles.append(text))
    aps = ["", 0.2, "inf", 0.4, "nan", 0.3]
    rows = [results_row(i, ap) for i, ap in enumerate(aps)] + [[6, "inf", "junk"]]
    plot_table(write_results(tmp_path / "results.csv", rows), tmp_path / "results.png")
    assert "Average precision: best 0.400 at epoch 3" in titles
    assert "Gradient norm" in titles


def test_older_tables_with_nothing_to_measure_have_no_curve_of_it(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr("matplotlib.axes.Axes.set_title", lambda self, text, **_: titles.append(text))
    (tmp_path / "results.csv").write_text("epoch,lr,metrics/AP\n1,0.1,-1.0\n2,0.1,-1.0\n")
    plot_table(tmp_path / "results.csv", tmp_path / "results.png")
    assert titles == ["Learning rate"]


def test_columns_that_are_missing_leave_their_panel_out(tmp_path):
    (tmp_path / "results.csv").write_text("epoch,train/box,metrics/AP\n0,1.5,\n1,1.2,\n")
    plot_table(tmp_path / "results.csv", tmp_path / "results.png")
    assert read(tmp_path / "results.png").shape == (429, 550, 3)  # the one panel of losses: 3.9 x 5 inches


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("num_boxes", "num_classes"), [(0, 0), (0, 3), (1, 1), (5000, 1000)])
def test_labels_of_any_number(tmp_path, num_boxes, num_classes):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 300, (num_boxes, 2, 2)).cumsum(1).reshape(-1, 4)
    corners[:1, 2:] = corners[:1, :2]  # a box without area
    plot_labels(
        tmp_path / "labels.png",
        labels=rng.integers(0, max(1, num_classes), num_boxes),
        boxes=corners,
        sizes=np.full((num_boxes, 2), 600),
        names=[rf"_$\frac{i}$ 猫" for i in range(num_classes)],
    )
    assert read(tmp_path / "labels.png").shape == (1045, 1760, 3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("num_classes", [0, 1, 3, 1000])
def test_pr_curves_of_any_number(tmp_path, num_classes):
    precision = np.linspace(np.ones(num_classes), np.zeros(num_classes), 101).T
    plot_pr_curves(tmp_path / "pr.png", np.linspace(0, 1, 101), precision, ["_a", r"$\frac$", "猫"] * 400)
    assert read(tmp_path / "pr.png").shape == (682, 880, 3)


def test_classes_without_truths_do_not_count_for_the_mean(tmp_path, monkeypatch):
    entries = []
    monkeypatch.setattr("utils.plots.curves._legend", lambda axes, texts, **_: entries.extend(texts))
    precision = np.repeat([[0.5], [-1], [np.nan], [0.75]], 101, axis=1)
    plot_pr_curves(tmp_path / "pr.png", np.linspace(0, 1, 101), precision, ["a", "b", "c", "d"])
    assert entries == ["d  0.750", "a  0.500", "mean  0.625"]  # best first
