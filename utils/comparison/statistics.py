"""Is a loss better than the baseline, or only luckier in its seeds and pictures?

S seeds, N pictures, B resamples of the pictures. Values are AP or any other figure of a run; a difference is
loss minus baseline, run with the same seed (the same data order) and measured on the same pictures. What is
computed and why, with simulated figures: docs/comparison.md.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.random import Generator, Philox
from scipy import optimize, special, stats

LEVEL = 0.05  # of the verdicts; intervals hold with 1 - LEVEL
POWER = 0.80  # with which the smallest difference is found
MIN_SEEDS = 3  # for a verdict
MIN_SIGN_FLIP, MAX_SIGN_FLIP = 6, 20  # seeds: 2^5 signs cannot reach .05 on both sides; 2^20 fill 8 MB

_DRAWS = 20_000  # of the power's integral: 0.3 % of power


class Difference(NamedTuple):
    """Loss minus baseline, in the unit of the values. None: this many seeds or pictures do not tell."""

    mean: float | None  # over the seeds, on all pictures
    low: float | None  # 95 % interval
    high: float | None
    se: float | None  # of the mean: se^2 = se_seeds^2 + se_pictures^2
    se_seeds: float | None  # from the seeds, on these pictures
    se_pictures: float | None  # what other pictures would add; of one seed alone with its own noise
    df: float | None  # degrees of freedom of se
    p: float | None  # two-sided, of no difference
    p_sign_flip: float | None  # exact, of no difference on these pictures
    smallest: float | None  # difference that another comparison of this design finds with 80 % power


NOTHING = Difference(*[None] * len(Difference._fields))


def resample_weights(num_pictures: int, num_resamples: int, seed: int) -> np.ndarray:
    """(B, N) int64: how often each bootstrap resample holds each picture; every row sums to N.

    A function of its arguments alone. The same weights belong to every run of a comparison.
    """
    drawn = Generator(Philox(key=seed)).integers(0, max(1, num_pictures), (num_resamples, num_pictures))
    flat = (drawn + np.arange(num_resamples)[:, None] * num_pictures).ravel()
    return np.bincount(flat, minlength=num_resamples * num_pictures).reshape(num_resamples, num_pictures)


def compare_paired(
    values: np.ndarray,
    base: np.ndarray,
    resampled: np.ndarray,
    resampled_base: np.ndarray,
    *,
    num_pictures: int,
    num_comparisons: int = 1,
) -> Difference:
    """The difference of a loss to the baseline, and how sure it is.

    ``values`` and ``base`` (S,) are the figures of the runs, seeds in the same order; ``resampled`` and
    ``resampled_base`` (S, B) the same figures on the same resamples of the ``num_pictures``. Resamples with
    a nan, in which a class has lost its truths for instance, are left out. With a nan (nothing to measure)
    among the values all fields are None; with one seed or one picture all but what these tell.

    ``smallest`` is that of a loss judged beside ``num_comparisons`` - 1 others that equal the baseline, where
    Holm's procedure asks most of it; all other fields are of this difference alone.

    Where all seeds have the same difference they are copies of one run and tell nothing of other seeds:
    there is no interval, and p is 1.
    """
    values, base = np.asarray(values, np.float64), np.asarray(base, np.float64)
    if np.isnan([values, base]).any():
        return NOTHING
    differences = values - base
    mean, num_seeds = float(differences.mean()), len(differences)
    pictures = _picture_variance(np.asarray(resampled) - np.asarray(resampled_base), num_pictures)
    found = NOTHING._replace(mean=mean, se_pictures=None if pictures is None else math.sqrt(pictures))
    if num_seeds < 2:
        return found
    seeds = float(differences.var(ddof=1)) / num_seeds
    found = found._replace(se_seeds=math.sqrt(seeds), p_sign_flip=sign_flip(differences))
    if np.ptp(differences) <= 1e-12:  # what rounding leaves of equal differences
        return found._replace(p=1.0)
    if pictures is None:
        return found
    se, df = math.sqrt(seeds + pictures), degrees_of_freedom(seeds, pictures, num_seeds, num_pictures)
    half = float(stats.t.ppf(1 - LEVEL / 2, df)) * se
    return found._replace(
        low=mean - half,
        high=mean + half,
        se=se,
        df=float(df),
        p=float(2 * stats.t.sf(abs(mean) / se, df)),
        smallest=power_factor(seeds / se**2, num_seeds, num_pictures, LEVEL / num_comparisons) * se,
    )


def _picture_variance(resampled: np.ndarray, num_pictures: int) -> float | None:
    """What the choice of pictures adds to the mean's variance, from ``resampled`` differences (S, B).

    The covariance of two seeds' differences over the resamples, averaged over the pairs: what a picture does
    to all seeds alike. A seed's own noise on a picture is in the variance between the seeds already and must
    not count twice; it cancels here, but not with one seed. A negative covariance counts as 0. N / (N - 1)
    takes the bootstrap's bias off.
    """
    usable = resampled[:, ~np.isnan(resampled).any(0)]
    if num_pictures < 2 or usable.shape[1] < 2:
        return None
    covariance = np.atleast_2d(np.cov(usable))
    number = len(covariance)
    own = np.trace(covariance)
    shared = (covariance.sum() - own) / (number * (number - 1)) if number > 1 else own
    return max(float(shared), 0.0) * num_pictures / (num_pictures - 1)


def degrees_of_freedom(seeds: float, pictures: float, num_seeds: int, num_pictures: int) -> float:
    """Satterthwaite's, of the sum of two variances with S - 1 and N - 1 of them; at least S - 1.

    The formula wants the shares that the true variances have in the sum. A variance from few seeds is small
    by chance more often than not, and the formula then finds many degrees of freedom just where the sum is
    too small. So the seeds enter, here only, with (S + 1) / (S - 1) of their variance: the expectation of its
    square over that of itself. The second-order term of the series of Welch and Aspin asks for 1 +
    (4.1 share - 1) / (S - 1) at 95 %, the same at a share of .73; docs/comparison.md. Not for two zeros.
    """
    lowest = num_seeds - 1
    enlarged = seeds * (num_seeds + 1) / lowest
    share = enlarged / (enlarged + pictures)
    return np.maximum(1 / (share**2 / lowest + (1 - share) ** 2 / (num_pictures - 1)), lowest)


def sign_flip(differences: np.ndarray) -> float | None:
    """Exact two-sided p of the mean (S,) when each seed's difference might as well have the other sign.

    Its null: loss and baseline are exchangeable in every seed, on these pictures. None below 6 seeds, where
    no outcome falls below .05, and above 20.
    """
    if not MIN_SIGN_FLIP <= len(differences) <= MAX_SIGN_FLIP:
        return None
    sums = np.zeros(1)
    for value in differences:
        sums = np.concatenate((sums + value, sums - value))
    reached = abs(differences.sum()) - 1e-12 * np.abs(differences).sum()  # equal sums differ by rounding
    return float((np.abs(sums) >= reached).mean())


def power_factor(share: float, num_seeds: int, num_pictures: int, level: float = LEVEL) -> float:
    """Standard errors that a difference must have so that another comparison finds it with 80 % power.

    Another one draws its own seeds and pictures, and so its own standard error; and the true one is known
    from this comparison only as well as the degrees of freedom allow. ``share`` of the squared standard error
    is the seeds'. With both known (many seeds) it is 1.96 + 0.84. Found is what has p below ``level``.
    """
    shares, factors = _power_table(num_seeds, num_pictures, level)
    return float(np.interp(share, shares, factors))


@lru_cache(maxsize=64)
def _power_table(num_seeds: int, num_pictures: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    """``power_factor`` over shares from 0 to 1.

    The true variances are the estimates over chi-squared / df (fiducial), those of the other comparison the
    true ones times chi-squared / df; the factor is that at which its interval lies above 0 with ``POWER``.
    """
    freedom = (num_seeds - 1, num_pictures - 1)
    rng = Generator(Philox(key=0))
    own, new = ([rng.chisquare(df, _DRAWS) / df for df in freedom] for _ in range(2))
    shares = np.linspace(0, 1, 21)
    return shares, np.array([_solve_power(share, own, new, freedom, level=level) for share in shares])


def _solve_power(share: float, own: list, new: list, freedom: tuple[int, int], *, level: float) -> float:
    """One entry of the table; ``own`` and ``new``: for seeds and pictures, draws of chi-squared / df."""
    seeds, pictures = share / own[0], (1 - share) / own[1]
    spread = np.sqrt(seeds + pictures)
    seeds, pictures = seeds * new[0], pictures * new[1]
    df = degrees_of_freedom(seeds, pictures, freedom[0] + 1, freedom[1] + 1)
    reach = stats.t.ppf(1 - level / 2, df) * np.sqrt(seeds + pictures)
    return optimize.brentq(lambda c: special.ndtr((c - reach) / spread).mean() - POWER, 0, 1e6)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's p values, in the order given: all verdicts together err with at most ``LEVEL``.

    Scandinavian Journal of Statistics 6, 1979: the k-th smallest of K times K - k + 1, never below an earlier
    one, at most 1.
    """
    order, adjusted, highest = np.argsort(p, kind="stable"), [0.0] * len(p), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[place]))
        adjusted[place] = highest
    return adjusted


def verdict(difference: Difference, p_holm: float | None, num_seeds: int) -> str | None:
    """ "better", "worse" or "no evidence"; None below 3 seeds, which tell too little, or without a p."""
    if num_seeds < MIN_SEEDS or p_holm is None:
        return None
    if p_holm > LEVEL:
        return "no evidence"
    return "better" if difference.mean > 0 else "worse"
