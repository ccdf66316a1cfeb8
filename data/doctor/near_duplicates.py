"""Pictures that show the same: copies, also those stored again, resized, brightened or cut a little.

N pictures, K with different files, P pairs. Candidates are thumbnails that agree in 20 of 64 hash bits, for
one of ``NUM_BANDS`` choices of 20: sorting finds them, so the cost grows about as N log N. A candidate is
confirmed if one thumbnail, shifted and scaled by little and with another tone curve, leaves no residual
anywhere that stands out: different pictures of one kind of scene agree on the whole, but not in each place.
"""

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np

from data.doctor.inspect_pictures import SIDE

NUM_BITS, BAND_BITS, NUM_BANDS = 64, 20, 64
MAX_BITS = 16  # in which candidates may differ; copies differ in up to 12
NEIGHBOURS = 8  # of a band's equals, how many each is compared with: thousands of equals stay cheap
BLUR = 1.0  # px of the thumbnail: shifts of about a pixel become linear
FLAT = 4.0  # grey levels: thumbnails with less contrast say nothing
LIKENESS = 0.8  # correlation below which no candidate is looked at more closely
PEAK = 0.33  # largest residual, in standard deviations of the thumbnail; between boards of deeppcb 0.35
MARGIN = 2  # px at the border that a shift brings in from outside
INNER = SIDE - 2 * MARGIN
BUDGET, MIN_BUDGET = 10, 100_000  # most candidates fitted, a picture and at least
CHUNK = 2048  # pairs fitted at a time


class Duplicates(NamedTuple):
    """Which pictures repeat which."""

    first: np.ndarray  # (N,) int64, the first picture with the same bytes, often the picture itself
    group: np.ndarray  # (N,) int64, the first picture of those that look the same, by one or several steps
    num_flat: int  # nearly uniform pictures, compared by their bytes only
    complete: bool  # False: so many look alike that not all candidates were compared


def find_duplicates(thumbnails: np.ndarray, digests: np.ndarray) -> Duplicates:
    """Copies among pictures with (N, SIDE, SIDE) uint8 ``thumbnails`` and (N, 2) uint64 ``digests``."""
    first = _first_of_equals(digests)
    alone = np.flatnonzero(first == np.arange(len(first)))
    contrast = thumbnails[alone].std((1, 2))
    rich = alone[contrast >= FLAT]
    smooth = _smooth(thumbnails[rich])
    labels, complete = _group(hash_bits(smooth), smooth)
    group = np.arange(len(first))
    group[rich] = rich[labels]
    flat = np.isin(first, alone[contrast < FLAT])
    return Duplicates(first, group[first], int(flat.sum()), complete)


def find_shared(found: Duplicates, ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """(S, 3) our picture, the first of ``theirs`` that is like it, 1 if their bytes are equal.

    ``ours`` and ``theirs`` are ascending numbers of pictures of two splits.
    """
    equal, like = (_first_member(labels, theirs)[labels[ours]] for labels in (found.first, found.group))
    partner = np.where(equal >= 0, equal, like)
    return np.stack([ours, partner, equal >= 0], 1)[partner >= 0]


def find_repeats(found: Duplicates, members: np.ndarray) -> np.ndarray:
    """(S, 3) as ``find_shared``, of pictures that repeat an earlier one of the same split."""
    rows = find_shared(found, members, members)
    like = _first_member(found.group, members)[found.group[members]]
    rows[:, 1] = np.where(rows[:, 1] == members, like, rows[:, 1])
    rows[:, 2] &= rows[:, 1] == _first_member(found.first, members)[found.first[members]]
    return rows[rows[:, 1] != members]


def _first_member(labels: np.ndarray, members: np.ndarray) -> np.ndarray:
    """(N,) by label: the first of ``members`` that carries it, -1 where none does."""
    result = np.full(len(labels), -1)
    result[labels[members[::-1]]] = members[::-1]
    return result


def hash_bits(smooth: np.ndarray) -> np.ndarray:
    """(K, NUM_BITS) bool: signs of the slowest cosine waves of each thumbnail, the mean left out."""
    waves = np.cos(np.pi * np.outer(np.arange(16), 2 * np.arange(SIDE) + 1) / (2 * SIDE)).astype(np.float32)
    order = np.argsort(np.add.outer(np.arange(16) ** 2, np.arange(16) ** 2).ravel(), kind="stable")
    return (waves @ smooth @ waves.T).reshape(len(smooth), 256)[:, order[1 : NUM_BITS + 1]] > 0


def find_candidates(bits: np.ndarray) -> Iterator[np.ndarray]:
    """(P, 2) int64 rows that agree in a band and nearly in all bits, band by band.

    Of many equals each is paired with its neighbours only, the nearest first.
    """
    rng = np.random.Generator(np.random.Philox(0))  # which bits form a band: the same for everybody
    for _ in range(NUM_BANDS):
        band, rest = np.split(rng.permutation(NUM_BITS), [BAND_BITS])
        key = bits[:, band] @ (1 << np.arange(BAND_BITS)[::-1])
        finer = bits[:, rest] @ (1 << np.arange(NUM_BITS - BAND_BITS)[::-1])
        order = np.argsort((key << (NUM_BITS - BAND_BITS - 1)) | (finer >> 1))  # the alike become neighbours
        key = key[order]
        for step in range(1, min(NEIGHBOURS, len(bits) - 1) + 1):
            equal = np.flatnonzero(key[step:] == key[:-step])
            pairs = np.stack([order[equal], order[equal + step]], 1)
            yield pairs[(bits[pairs[:, 0]] != bits[pairs[:, 1]]).sum(1) <= MAX_BITS]


def _group(bits: np.ndarray, smooth: np.ndarray) -> tuple[np.ndarray, bool]:
    """(K,) the first of each group, and whether all candidates were compared."""
    count, budget = len(bits), max(MIN_BUDGET, BUDGET * len(bits))
    group, tried = np.arange(count), np.empty(0, np.int64)
    centred = smooth - smooth.mean((1, 2), keepdims=True)
    centred /= np.maximum(centred.std((1, 2), keepdims=True), 1e-6)
    for pairs in find_candidates(bits):
        pairs = np.sort(pairs[group[pairs[:, 0]] != group[pairs[:, 1]]], axis=1)
        keys = pairs[:, 0] * count + pairs[:, 1]
        place = np.searchsorted(tried, keys)
        new = np.append(tried, -1)[place] != keys
        if not new.any():
            continue
        if len(tried) + new.sum() > budget:
            return group, False
        order = np.argsort(keys[new])
        tried = np.insert(tried, place[new][order], keys[new][order])
        group = _join(group, pairs[new][_confirm(centred, pairs[new])])
    return group, True


def _join(group: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """(K,) first members of the groups after the ``pairs`` have been put together."""
    group = group.copy()
    while len(pairs := pairs[group[pairs[:, 0]] != group[pairs[:, 1]]]):
        roots = group[pairs]
        np.minimum.at(group, roots.max(1), roots.min(1))
        while (group[group] != group).any():
            group = group[group]
    return group


def _first_of_equals(digests: np.ndarray) -> np.ndarray:
    """(N,) number of the first row that is equal."""
    order = np.lexsort(digests.T)  # stable
    ordered = digests[order]
    starts = np.ones(len(order), bool)
    starts[1:] = (ordered[1:] != ordered[:-1]).any(1)
    first = np.empty(len(order), np.int64)
    first[order] = order[starts][np.cumsum(starts) - 1]
    return first


def _smooth(thumbnails: np.ndarray) -> np.ndarray:
    """(K, SIDE, SIDE) float32."""
    smooth = [cv2.GaussianBlur(item.astype(np.float32), (0, 0), BLUR) for item in thumbnails]
    return np.stack(smooth) if smooth else np.empty((0, SIDE, SIDE), np.float32)


def _confirm(centred: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """(P,) bool: alike on the whole, and each explained by the other in every place."""
    result = np.zeros(len(pairs), bool)
    for start in range(0, len(pairs), CHUNK):
        one, other = pairs[start : start + CHUNK].T
        kept = np.einsum("nij,nij->n", centred[one], centred[other]) >= LIKENESS * SIDE * SIDE
        for here, there in ((one, other), (other, one)):
            kept[kept] = _peak(centred[here[kept]], centred[there[kept]]) <= PEAK
        result[start : start + CHUNK] = kept
    return result


def _peak(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(P,) largest residual of ``other`` where ``one`` may be shifted, scaled and toned to fit best.

    Least squares with 7 columns: 1, the picture, its square (tone curve), its two slopes (shift), and these
    times the place (scale).
    """
    inner = slice(MARGIN, -MARGIN)
    place = np.linspace(-1, 1, SIDE, dtype=np.float32)
    down, across = np.gradient(one, axis=(1, 2))
    columns = (np.ones_like(one), one, one * one, across, down, across * place, down * place[:, None])
    design = np.stack(
        [column[:, inner, inner].reshape(len(one), INNER**2) for column in columns], -1, dtype=np.float64
    )
    target = other[:, inner, inner].reshape(len(one), INNER**2, 1)
    square = design.transpose(0, 2, 1) @ design + 1e-3 * np.eye(len(columns), dtype=np.float32)
    residual = target - design @ np.linalg.solve(square, design.transpose(0, 2, 1) @ target)
    return np.abs(residual).max((1, 2)) / np.maximum(target.std((1, 2)), 1e-6)
