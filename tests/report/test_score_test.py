"""The score test of paired scores: by hand, at its ends, and how often its bounds cover."""

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.special import ndtri

from prunelit.report.score_test import PairedScores, ScoreTest, critical_value


def answers(both: int, dense: int, pruned: int, none: int, floor: float = 0.0) -> PairedScores:
    """Right answers of both models, of one, and of none."""
    ones = [1.0] * (both + dense) + [0.0] * (pruned + none)
    others = [1.0] * both + [0.0] * dense + [1.0] * pruned + [0.0] * none
    return PairedScores(np.array(ones), np.array(others), np.full(len(ones), floor))


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_simulation", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_z_by_hand() -> None:
    # v is -1, 0 or 1 with the loss 0; the pseudo-items of both corners without a flip stay 0.
    # Under the null hypothesis gains and losses are equally likely: q = (b + 1/2 + c + 1/2) / 2.
    test = ScoreTest(answers(both=10, dense=6, pruned=2, none=2))
    weights = np.array([6.5, 2.5]) / 22
    # The tilted weights are w / (1 + l v) with sum q v = 0: here l = (w+ - w-) / (w+ + w-).
    lam = (weights[1] - weights[0]) / weights.sum()
    tilted = np.array([weights[0] / (1 - lam), weights[1] / (1 + lam)])
    tilted /= tilted.sum() + 13 / 22
    assert tilted[0] == pytest.approx(tilted[1])
    assert test.loss_z(0.0) == pytest.approx(-4 / 20 / math.sqrt(tilted.sum() / 20))


def test_the_bounds_are_where_the_test_rejects() -> None:
    test = ScoreTest(answers(130, 50, 6, 30, floor=0.25))
    for keep in (0.5, 0.65, 0.95):
        low, high = test.share_bounds(keep)
        assert low < (136 / 216 - 0.25) / (180 / 216 - 0.25) < high
        assert test.share_z(low) == pytest.approx(critical_value(0.05), abs=1e-6)
        assert test.share_z(high) == pytest.approx(-critical_value(0.05), abs=1e-6)
    low, high = test.difference_bounds(0.1)
    assert test.loss_z(-low) == pytest.approx(critical_value(0.05), abs=1e-6)
    assert test.loss_z(-high) == pytest.approx(-critical_value(0.05), abs=1e-6)


def test_a_smaller_level_gives_wider_bounds() -> None:
    test = ScoreTest(answers(30, 8, 2, 10))
    (low, high), (lower, higher) = (test.share_bounds(0.95, level) for level in (0.05, 0.01))
    assert lower < low < high < higher


def test_no_event_leaves_a_width_that_falls_with_the_items() -> None:
    widths = []
    for n in (20, 40, 400):
        low, high = ScoreTest(answers(n, 0, 0, 0, floor=0.25)).share_bounds(0.95)
        assert low < 1 < high
        widths.append(high - low)
    assert widths[0] > widths[1] > widths[2]
    assert widths[2] < 0.05


def test_a_share_below_nothing_is_excluded_where_the_floor_is_nothing() -> None:
    low, high = ScoreTest(answers(0, 30, 0, 20)).share_bounds(0.95)
    assert low == pytest.approx(0, abs=1e-9)
    assert 0 < high < 0.2


def test_without_a_lead_no_share_is_rejected() -> None:
    test = ScoreTest(answers(6, 4, 4, 6, floor=0.5))
    assert test.lead_z() == 0
    assert test.share_bounds(0.95) == (-math.inf, math.inf)


def test_a_dense_model_that_is_never_right_has_no_lead() -> None:
    test = ScoreTest(answers(0, 0, 3, 5))
    assert test.lead_z() == 0
    assert test.share_bounds(0.95)[1] == math.inf


def test_pseudo_values_get_a_t_test() -> None:
    rng = np.random.default_rng(0)
    dense = rng.normal(0.8, 0.5, 12)
    pruned = dense - 0.3 + rng.normal(0, 0.2, 12)
    test = ScoreTest(PairedScores(dense, pruned, 0 * dense, bounded=False))
    low, high = test.difference_bounds(0.0)
    change = pruned - dense
    half = 1.7958848 * change.std(ddof=1) / math.sqrt(12)  # 95% quantile of t with 11 degrees
    assert (low, high) == pytest.approx((change.mean() - half, change.mean() + half), abs=1e-6)


@pytest.mark.parametrize(("n", "keeps"), [(1, False), (3, False), (40, True)])
def test_equal_pseudo_values_are_no_proof(n: int, keeps: bool) -> None:
    one = np.ones(n)
    test = ScoreTest(PairedScores(one, one, 0 * one, bounded=False))
    for z in (test.lead_z(), test.share_z(0.5), test.loss_z(0.5)):
        assert math.isfinite(z)
        assert (z >= critical_value(0.05)) == keeps
    if n > 1:
        low, high = test.share_bounds(0.5)
        assert low < 1 < high
        assert (low >= 0.5) == keeps


def test_the_items_of_pseudo_values_are_those_of_their_error() -> None:
    rng = np.random.default_rng(0)
    dense = rng.normal(0.8, 0.5, 50)
    for change in (-0.06, 0.06):  # as far above the margin as below
        pruned = dense - 0.05 + change + rng.normal(0, 0.2, 50)
        test = ScoreTest(PairedScores(dense, pruned, 0 * dense, bounded=False))
        own = pruned - dense + 0.05
        n = ((1.645 + 0.842) * own.std() / own.mean()) ** 2
        assert test.items_for_loss(0.05) == pytest.approx(n, rel=0.05)


def test_items_that_differ_in_their_floor_are_tested_with_their_own() -> None:
    floor = np.array([0.25, 0.5] * 20)
    scores = answers(30, 6, 0, 4)
    mixed = ScoreTest(PairedScores(scores.dense, scores.pruned, floor))
    low, high = mixed.share_bounds(0.95)
    share = (scores.pruned.mean() - 0.375) / (scores.dense.mean() - 0.375)
    assert low < share < high
    assert mixed.lead_z() > 0


def test_more_items_are_needed_for_a_smaller_effect() -> None:
    clear = ScoreTest(answers(60, 40, 0, 0)).items_for_share(0.95)
    close = ScoreTest(answers(92, 8, 0, 0)).items_for_share(0.95)
    assert clear is not None
    assert close is not None
    assert 5 < clear < close
    assert ScoreTest(answers(95, 5, 0, 0)).items_for_share(0.95) is None  # no effect at all


def test_items_with_weights_are_a_weighted_mean() -> None:
    # 30 items of one answer and 10 of another: the mean over both answers.
    weights = np.repeat([40 / 60, 40 / 20], [30, 10])
    dense = np.repeat([1.0, 0.0, 1.0, 0.0], [24, 6, 9, 1])
    pruned = np.repeat([1.0, 0.0, 1.0, 0.0], [21, 9, 6, 4])
    scores = PairedScores(dense, pruned, np.full(40, 0.5), weights=weights)
    means = [float(column.mean()) for column in scores.weighted()]
    assert means == pytest.approx([(0.8 + 0.9) / 2, (0.7 + 0.6) / 2, 0.5])
    low, high = ScoreTest(scores).share_bounds(0.95)
    assert low < (means[1] - 0.5) / (means[0] - 0.5) < high
    even = PairedScores(dense, pruned, np.full(40, 0.5), weights=np.ones(40))
    alone = PairedScores(dense, pruned, np.full(40, 0.5))
    assert ScoreTest(even).share_bounds(0.95) == ScoreTest(alone).share_bounds(0.95)
    assert low < ScoreTest(alone).share_bounds(0.95)[0]  # ten items decide half of it
    change, rise = ScoreTest(scores).difference_bounds(0.05)
    assert change < means[1] - means[0] < rise


@pytest.mark.parametrize(
    ("counts", "dense", "share"), [((36, 4), 0.97, 0.3), ((80, 15, 5), 0.6, 1)]
)
def test_the_bounds_of_balanced_accuracy_cover(
    counts: tuple[int, ...], dense: float, share: float
) -> None:
    rng, draws, n = np.random.default_rng(0), 300, sum(counts)
    weights = np.concatenate([np.full(c, n / (len(counts) * c)) for c in counts])
    floor = 1 / len(counts)
    normal = rng.standard_normal((2, draws, n))
    normal[1] = 0.9 * normal[0] + math.sqrt(1 - 0.81) * normal[1]
    chances = dense, floor + share * (dense - floor)
    answers = [
        (own < ndtri(chance)).astype(float) for own, chance in zip(normal, chances, strict=True)
    ]
    tests = [
        ScoreTest(PairedScores(one, other, np.full(n, floor), weights=weights))
        for one, other in zip(answers[0], answers[1], strict=True)
    ]
    z = np.array([test.share_z(share) for test in tests])
    least = 0.93 - 3 * math.sqrt(0.93 * 0.07 / draws)
    assert (z <= critical_value(0.05)).mean() > least
    assert (z >= -critical_value(0.05)).mean() > least


@pytest.mark.parametrize(("n", "share"), [(40, 0.95), (100, 0.6)])
def test_the_bounds_of_a_rank_correlation_cover(n: int, share: float) -> None:
    # Normal scores; the true rank correlation is 6 / pi asin(r / 2) for a correlation r.
    rng, draws, r = np.random.default_rng(0), 200, 0.8
    other = 2 * math.sin(share * math.asin(r / 2))
    covariance = [[1, r, other], [r, 1, 0.85], [other, 0.85, 1]]
    sample = rng.multivariate_normal([0, 0, 0], covariance, (draws, n))  # (draws, n, 3)
    z = []
    for one in sample:
        kept = np.array([np.delete(one, item, 0) for item in range(n)])
        ranks = [np.argsort(np.argsort(part, axis=-2), axis=-2) for part in (one[None], kept)]
        models = (np.concatenate([_correlate(part, k) for part in ranks]) for k in (1, 2))
        pseudo = [n * own[0] - (n - 1) * own[1:] for own in models]
        z.append(ScoreTest(PairedScores(*pseudo, np.zeros(n), bounded=False)).share_z(share))
    least = 0.93 - 3 * math.sqrt(0.93 * 0.07 / draws)
    assert (np.array(z) <= critical_value(0.05)).mean() > least
    assert (np.array(z) >= -critical_value(0.05)).mean() > least


def _correlate(ranks: np.ndarray, model: int) -> np.ndarray:
    """Correlate the ranks (m, n, 3) of one column with those of the first."""
    centred = ranks - ranks.mean(1, keepdims=True)
    return (centred[..., 0] * centred[..., model]).sum(1) / (centred[..., 0] ** 2).sum(1)


@pytest.mark.parametrize("graded", [False, True])
def test_the_bounds_cover(simulation: ModuleType, graded: bool) -> None:
    cells = [cell for cell in simulation.grid(graded) if cell.n <= 50][:: 79 if graded else 29]
    assert len(cells) >= 5
    rng, draws = np.random.default_rng(0), 100 if graded else 300
    found = np.array([simulation.coverage(cell, rng, draws) for cell in cells])
    # 93% is required of each cell; three standard errors of its simulation are allowed below.
    assert found.min() > 0.93 - 3 * math.sqrt(0.93 * 0.07 / draws)
    assert (found.mean(0) > 0.935).all()


def test_the_items_foretold_decide(simulation: ModuleType) -> None:
    cells = [
        simulation.Cell(30, 0.25, 0.8, 0.7, 0.8),
        simulation.Cell(30, 0.0, 0.6, 0.8, 0.3),
        simulation.Cell(30, 0.25, 0.9, 1.0, 0.95),
    ]
    rng = np.random.default_rng(0)
    shares = [simulation.deciding_share(cell, 0.95, rng, 100) for cell in cells]
    assert all(0.68 < share < 0.95 for share in shares), shares
