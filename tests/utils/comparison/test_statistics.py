"""Verdicts: oracles (scipy, numbers by hand, enumeration), invariances, and simulated coverage."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from utils.comparison.statistics import (
    NOTHING,
    compare_paired,
    degrees_of_freedom,
    holm,
    power_factor,
    resample_weights,
    sign_flip,
    verdict,
)

VALUES = np.array([0.312, 0.305, 0.331, 0.318, 0.302, 0.327])
BASE = np.array([0.301, 0.307, 0.309, 0.299, 0.304, 0.311])


def compare_scores(own, base, *, num_resamples=400, order=None):
    """``compare_paired`` where a run's figure is the mean of its pictures' scores (S, N)."""
    num_pictures = own.shape[1]
    weights = resample_weights(num_pictures, num_resamples, 0)
    weights = weights if order is None else weights[:, order]
    resampled = [scores @ weights.T / num_pictures for scores in (own, base)]
    return compare_paired(own.mean(1), base.mean(1), *resampled, num_pictures=num_pictures)


def draw_scores(rng, *, seeds=3, pictures=73, seed=0.005, loss=0.03, luck=0.055, true=0.0):
    """The noise model of ``benchmarks.comparison``, without what cancels."""
    runs = []
    for gain in (true, 0.0):
        suits, initial = rng.normal(0, loss, pictures), rng.normal(0, seed, (seeds, 1))
        runs.append(gain + suits + initial + rng.normal(0, luck, (seeds, pictures)))
    return runs


def without_pictures(values, base):
    """A comparison in which every resample gives the figures of all pictures: no noise but the seeds'."""
    repeated = [np.repeat(figures[:, None], 50, axis=1) for figures in (values, base)]
    return compare_paired(values, base, *repeated, num_pictures=100)


# resamples


def test_resamples_hold_as_many_pictures_as_there_are():
    weights = resample_weights(7, 1000, 3)
    assert weights.shape == (1000, 7) and weights.dtype == np.int64
    assert (weights.sum(1) == 7).all() and weights.min() == 0
    # binomial: 7 draws of probability 1/7 have mean 1 and variance 6/7
    assert weights.mean(0) == pytest.approx(np.ones(7), abs=0.1)
    assert weights.var(0) == pytest.approx(np.full(7, 6 / 7), abs=0.15)


def test_resamples_are_a_function_of_their_arguments():
    assert np.array_equal(resample_weights(9, 20, 1), resample_weights(9, 20, 1))
    assert np.array_equal(resample_weights(9, 20, 1)[:5], resample_weights(9, 5, 1))
    assert not np.array_equal(resample_weights(9, 20, 1), resample_weights(9, 20, 2))
    assert resample_weights(0, 4, 0).shape == (4, 0)


# oracles


@pytest.mark.parametrize("num_seeds", [2, 3, 6])
def test_pure_seed_noise_is_the_paired_t_test(num_seeds):
    found = without_pictures(VALUES[:num_seeds], BASE[:num_seeds])
    oracle = stats.ttest_rel(VALUES[:num_seeds], BASE[:num_seeds])
    interval = oracle.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert (found.p, found.df) == pytest.approx((oracle.pvalue, num_seeds - 1))
    assert found.se == pytest.approx(found.se_seeds) and found.se_pictures == pytest.approx(0, abs=1e-9)


def test_degrees_of_freedom_by_hand():
    # S = 3: the seeds' variance counts (3 + 1) / (3 - 1) = 2 times in the shares. 0.5 and 1 are then equal
    # shares: 1 / (1/4 / 2 + 1/4 / 10) = 1 / 0.15.
    assert degrees_of_freedom(0.5, 1, 3, 11) == pytest.approx(20 / 3)
    assert degrees_of_freedom(1, 0, 3, 11) == pytest.approx(2)
    assert degrees_of_freedom(0, 1, 3, 11) == pytest.approx(10)


def test_degrees_of_freedom_stay_between_those_of_seeds_and_of_both():
    for seeds, pictures in itertools.product((1e-8, 0.1, 1, 30), repeat=2):
        assert 4 <= degrees_of_freedom(seeds, pictures, 5, 73) <= 4 + 72


def test_interval_by_hand():
    # Three pictures, two seeds, differences (0, 1, 2) and (1, 2, 3): their covariance over pictures is 1, of
    # the mean over 3 pictures 1/3; means 1 and 2, variance 1/2, of the mean over 2 seeds 1/4.
    own = np.array([[0.0, 1, 2], [1, 2, 3]])
    every = np.array(list(itertools.product(range(3), repeat=3)))  # all 27 resamples: no sampling error
    resampled = own[:, every].mean(2)
    found = compare_paired(own.mean(1), np.zeros(2), resampled, np.zeros((2, 27)), num_pictures=3)
    pictures = 1 / 3 * 27 / 26  # the sample variance of 27 values
    assert found.mean == 1.5 and found.se_seeds == pytest.approx(0.5)
    assert found.se_pictures == pytest.approx(math.sqrt(pictures))
    assert found.se == pytest.approx(math.sqrt(1 / 4 + pictures))
    share = 0.75 / (0.75 + pictures)  # (2 + 1) / (2 - 1) times 1/4
    df = 1 / (share**2 / 1 + (1 - share) ** 2 / 2)
    assert found.df == pytest.approx(df)
    half = stats.t.ppf(0.975, df) * found.se
    assert (found.low, found.high) == pytest.approx((1.5 - half, 1.5 + half))
    assert found.p == pytest.approx(2 * stats.t.sf(1.5 / found.se, df))


def test_luck_of_the_seeds_on_pictures_counts_once():
    rng = np.random.default_rng(0)
    only_luck = [compare_scores(*draw_scores(rng, seeds=5, seed=0, loss=0, luck=0.1)) for _ in range(100)]
    pictures, seeds = (np.mean([d[place] ** 2 for d in only_luck]) for place in (5, 4))
    assert seeds == pytest.approx(2 * 0.1**2 / 73 / 5, rel=0.25)
    assert pictures < 0.25 * seeds  # not 0: it cannot be negative. Counted twice, it would be as large


def test_picture_noise_is_what_all_seeds_share():
    rng = np.random.default_rng(1)
    found = [compare_scores(*draw_scores(rng, loss=0.1)) for _ in range(100)]
    assert np.mean([d.se_pictures**2 for d in found]) == pytest.approx(2 * 0.1**2 / 73, rel=0.1)


def test_holm_by_hand():
    # in order .005 x 4, .01 x 3, .03 x 2, .04 x 1, and none below the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.2]) == [0.2] and holm([]) == [] and holm([0.6, 0.7]) == [1, 1]


@pytest.mark.parametrize("num_seeds", [6, 7, 10])
def test_sign_flip_is_enumeration(num_seeds):
    differences = np.random.default_rng(num_seeds).normal(0.3, 1, num_seeds).round(1)  # with ties
    signs = np.array(list(itertools.product((1, -1), repeat=num_seeds)))
    reached = np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9
    assert sign_flip(differences) == reached.mean()


def test_sign_flip_needs_six_seeds():
    assert sign_flip(np.ones(6)) == 2 / 64
    assert sign_flip(np.ones(5)) is None and sign_flip(np.ones(21)) is None
    assert sign_flip(np.zeros(6)) == 1
    assert without_pictures(VALUES, BASE).p_sign_flip == sign_flip(VALUES - BASE)
    assert without_pictures(VALUES[:5], BASE[:5]).p_sign_flip is None


# the smallest difference


def test_power_with_known_noise_is_the_textbook_s():
    assert power_factor(0.5, 1000, 5000) == pytest.approx(1.96 + 0.8416, rel=0.01)


@pytest.mark.parametrize("level", [0.05, 0.05 / 3])
@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_power_of_seeds_alone(num_seeds, level):
    # Both standard errors, that which the factor multiplies and that of the other comparison, are drawn.
    rng, df = np.random.default_rng(0), num_seeds - 1
    own, other = np.sqrt(rng.chisquare(df, (2, 400_000)) / df)
    factor, reach = power_factor(1.0, num_seeds, 73, level), stats.t.ppf(1 - level / 2, df)
    assert (factor * own + rng.normal(size=400_000) > reach * other).mean() == pytest.approx(0.8, abs=0.01)


def test_more_comparisons_need_a_larger_difference_and_change_nothing_else():
    scores = np.random.default_rng(0).normal(0.3, 0.05, (2, 5, 30))
    resampled = scores @ resample_weights(30, 50, 0).T / 30
    one, three = (
        compare_paired(*scores.mean(2), *resampled, num_pictures=30, num_comparisons=k) for k in (1, 3)
    )
    assert three.smallest > 1.15 * one.smallest and three._replace(smallest=one.smallest) == one
    share = one.se_seeds**2 / one.se**2
    assert three.smallest == pytest.approx(one.se * power_factor(share, 5, 30, 0.05 / 3))


def test_power_factor_grows_with_the_share_of_the_seeds():
    factors = [power_factor(share, 3, 73) for share in np.linspace(0, 1, 101)]
    assert np.all(np.diff(factors) > 0) and 2.8 < factors[0] < 3


# the edges


def test_one_seed_gives_numbers_only():
    rng = np.random.default_rng(0)
    own, base = draw_scores(rng, seeds=1)
    found = compare_scores(own, base)
    assert found.mean == pytest.approx((own - base).mean())
    assert found.se_pictures == pytest.approx((own - base).std(ddof=1) / math.sqrt(73), rel=0.15)
    assert found._replace(mean=None, se_pictures=None) == NOTHING
    assert verdict(found, found.p, 1) is None


def test_two_seeds_give_an_interval_and_no_verdict():
    found = compare_scores(*draw_scores(np.random.default_rng(0), seeds=2))
    assert found.low < found.mean < found.high and found.smallest > 0 and found.df >= 1
    assert verdict(found, 1e-9, 2) is None


@pytest.mark.parametrize("gain", [0.0, 0.01])
def test_copies_of_a_run_are_no_evidence(gain):
    scores = np.tile(np.random.default_rng(0).random(20), (3, 1))
    found = compare_scores(scores + gain, scores)
    assert found.mean == pytest.approx(gain) and found.p == 1 and found.low is found.high is None
    assert found.se_seeds == pytest.approx(0, abs=1e-12) and found.smallest is None
    assert verdict(found, found.p, 3) == "no evidence"


def test_one_picture_tells_nothing_of_others():
    found = compare_scores(*draw_scores(np.random.default_rng(0), pictures=1))
    assert found.se_seeds > 0 and found.se_pictures is None and found.p is None and found.low is None
    assert verdict(found, None, 3) is None


def test_nothing_to_measure():
    values = np.full(3, math.nan)
    assert compare_paired(values, values, np.ones((3, 9)), np.ones((3, 9)), num_pictures=9) == NOTHING


def test_resamples_without_the_class_are_left_out():
    rng = np.random.default_rng(0)
    values, base, resampled, other = *rng.random((2, 3)), *rng.random((2, 3, 40))
    expected = compare_paired(values, base, resampled[:, 5:], other[:, 5:], num_pictures=9)
    resampled[:, :5] = other[:, :5] = math.nan
    assert compare_paired(values, base, resampled, other, num_pictures=9) == expected
    nothing = np.full((3, 40), math.nan)
    assert compare_paired(values, base, nothing, nothing, num_pictures=9).se_pictures is None


def test_fields_are_plain():
    found = compare_scores(*draw_scores(np.random.default_rng(0), seeds=6))
    assert all(type(value) is float for value in found)


# laws


def test_order_of_seeds_and_pictures_does_not_matter():
    rng = np.random.default_rng(0)
    own, base = draw_scores(rng, seeds=6)
    expected = compare_scores(own, base)
    seeds, pictures = rng.permutation(6), rng.permutation(73)
    assert compare_scores(own[seeds], base[seeds]) == pytest.approx(expected)
    assert compare_scores(own[:, pictures], base[:, pictures], order=pictures) == pytest.approx(expected)


def test_losses_exchanged_change_the_sign_alone():
    own, base = draw_scores(np.random.default_rng(0), seeds=6)
    there, back = compare_scores(own, base), compare_scores(base, own)
    turned = there._replace(mean=-there.mean, low=-there.high, high=-there.low)
    assert back == pytest.approx(turned)


def test_what_seeds_and_pictures_share_cancels():
    rng = np.random.default_rng(0)
    own, base = draw_scores(rng)
    shared = rng.normal(size=(3, 1)) + rng.normal(size=73)
    assert compare_scores(own + shared, base + shared) == pytest.approx(compare_scores(own, base))


@pytest.mark.parametrize(
    ("mean", "p_holm", "seeds", "expected"),
    [
        (0.02, 0.049, 3, "better"),
        (0.02, 0.05, 3, "better"),
        (-0.02, 0.001, 5, "worse"),
        (0.02, 0.051, 5, "no evidence"),
        (-0.02, 1.0, 3, "no evidence"),
        (0.02, 0.001, 2, None),
        (0.02, None, 1, None),
    ],
)
def test_verdicts(mean, p_holm, seeds, expected):
    assert verdict(NOTHING._replace(mean=mean), p_holm, seeds) == expected


def test_without_correction_the_verdict_is_where_the_interval_ends():
    rng = np.random.default_rng(5)
    for _ in range(60):
        found = compare_scores(*draw_scores(rng, true=0.02), num_resamples=100)
        assert (verdict(found, found.p, 3) == "no evidence") == (found.low <= 0 <= found.high)


# simulation; benchmarks.comparison does it at length


def test_intervals_hold_the_true_difference_and_the_smallest_is_found():
    rng, count, loss = np.random.default_rng(0), 400, 0.06
    held = found = 0
    for _ in range(count):
        printed = compare_scores(*draw_scores(rng, loss=loss, true=0.01), num_resamples=100)
        held += printed.low <= 0.01 <= printed.high
        other = compare_scores(*draw_scores(rng, loss=loss, true=printed.smallest), num_resamples=100)
        found += verdict(other, other.p, 3) == "better"
    assert 0.925 <= held / count <= 0.98  # without se_pictures 0.86, and 0.66 where df keeps them
    assert 0.72 <= found / count <= 0.9
