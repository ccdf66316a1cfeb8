"""Where the pictures of one output lie before they are turned: alone, or as a mosaic of four or of nine.

Nothing is drawn here. Coordinates are edges in pixels of the output, whose plane goes on beyond it; x before
y. Sizes are (height, width). A piece is cut and placed in whole pixels on both sides, so that neighbours
share their edge exactly and boxes go through the very matrix that the pixels go through.
"""

from typing import NamedTuple

import numpy as np

Rect = tuple[int, int, int, int]  # x1, y1, x2, y2, whole pixels

FOUR = ((0, 0), (1, 0), (0, 1), (1, 1))  # cells (column, row) in the order of the sources
# the own picture in the middle
NINE = ((1, 1), (0, 0), (1, 0), (2, 0), (0, 1), (2, 1), (0, 2), (1, 2), (2, 2))
NINE_GAIN = 2 / 3  # three pictures a row as wide as two of four: the same share of the mosaic is in view


class View(NamedTuple):
    """How the plane is seen."""

    shape: tuple[int, int]  # of the output
    window: np.ndarray  # (4,) xyxy, the part of the plane that can be in view
    gain: float  # of the pictures, over fitting them into the output
    shift: np.ndarray  # (2,) of everything, in outputs


class Piece(NamedTuple):
    """The pixels of ``crop``, resized to ``place``."""

    source: int  # number of the picture in the index
    crop: Rect  # px of the source picture
    place: Rect  # px of the plane


def arrange_single(source: int, sizes: np.ndarray, view: View) -> list[Piece]:
    """The picture fitted into the output, scaled about its centre, shifted by a share of the output."""
    extent = np.array(view.shape[::-1], float)
    shown = _fitted(sizes[source], view.shape) * view.gain
    corner = extent / 2 + view.shift * extent - shown / 2
    return _cut_piece(source, sizes, np.concatenate((corner, corner + shown)), view.window)


def arrange_four(sources: list[int], sizes: np.ndarray, joint: np.ndarray, view: View) -> list[Piece]:
    """Four pictures that meet at ``joint`` (in outputs, of a canvas of 2 x 2), seen through the output."""
    return _arrange_cells(sources, sizes, FOUR, (_centre(joint, view),), view)


def arrange_nine(sources: list[int], sizes: np.ndarray, joint: np.ndarray, view: View) -> list[Piece]:
    """The first picture with its centre at ``joint``, the others around it, all scaled by 2/3.

    Rows and columns are as tall and wide as the first picture: what another lacks to its cell stays grey,
    what it has too much is cut, except outwards.
    """
    centre, view = _centre(joint, view), view._replace(gain=view.gain * NINE_GAIN)
    half = _fitted(sizes[sources[0]], view.shape) * view.gain / 2
    return _arrange_cells(sources, sizes, NINE, (centre - half, centre + half), view)


def _centre(joint: np.ndarray, view: View) -> np.ndarray:
    """(2,) px: ``joint`` in the plane."""
    return ((joint - 1) * view.gain + 0.5 + view.shift) * np.array(view.shape[::-1], float)


def _arrange_cells(sources, sizes: np.ndarray, cells, lines: tuple, view: View) -> list[Piece]:
    """Pictures in the cells of a grid; ``lines``: (2,) xy of each crossing of its inner lines, ascending.

    A picture touches the inner lines of its cell; one between two lines is centred.
    """
    pieces, last = [], len(lines)
    for source, cell in zip(sources, cells, strict=True):
        shown = _fitted(sizes[source], view.shape) * view.gain
        corner, room = np.empty(2), view.window.copy()
        for axis, number in enumerate(cell):
            low = lines[number - 1][axis] if number > 0 else None
            high = lines[number][axis] if number < last else None
            if low is None:
                corner[axis] = high - shown[axis]
            else:
                corner[axis] = low if high is None else (low + high - shown[axis]) / 2
            near, far = view.window[axis], view.window[axis + 2]
            room[axis] = near if low is None else np.rint(low).clip(near, far)
            room[axis + 2] = far if high is None else np.rint(high).clip(near, far)
        pieces += _cut_piece(source, sizes, np.concatenate((corner, corner + shown)), room)
    return pieces


def _fitted(size: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(width, height) of a picture fitted into the output, not rounded."""
    height, width = size
    return np.array((width, height)) * min(shape[0] / height, shape[1] / width)


def _cut_piece(source: int, sizes: np.ndarray, box: np.ndarray, room: np.ndarray) -> list[Piece]:
    """The part of a picture shown at ``box`` that lies in ``room``, in whole pixels on both sides, if any."""
    size = np.array(sizes[source][::-1], float)
    place = np.rint(np.concatenate((np.maximum(box[:2], room[:2]), np.minimum(box[2:], room[2:]))))
    if (place[2:] - place[:2] < 1).any():
        return []
    ratio = size / (box[2:] - box[:2])
    low = np.rint((place[:2] - box[:2]) * ratio).clip(0, size - 1)
    high = np.maximum(np.rint((place[2:] - box[:2]) * ratio).clip(0, size), low + 1)
    crop = tuple(int(value) for value in (*low, *high))
    return [Piece(int(source), crop, tuple(int(value) for value in place))]
