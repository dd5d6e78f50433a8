"""Retraining, leave-k-out, Shapley values and LDS, against closed forms and enumeration."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats as sps
from torch import nn

from alignbook.influence import FisherProduct, dense_fisher, flatten, solve
from alignbook.models import tiny
from alignbook.retraining import (
    each,
    lds,
    leave_k_out,
    leave_one_out,
    random_subsets,
    retrain,
    retrained_value,
    shapley,
)
from alignbook.runtime import AlignbookError
from alignbook.tape import Text, gradients, language, supervised

F64 = torch.float64


def numbers(n=14, inputs=3, seed=0):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, inputs, generator=rng, dtype=F64)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=F64) + 0.3 * torch.randn(n, 1, generator=rng, dtype=F64)
    return x, y, list(zip(x, y, strict=True))


def make(seed):
    torch.manual_seed(seed)
    return nn.Linear(3, 1).double()


def least_squares(x, y, rows, queries):
    """Log-likelihoods of (x, y) rows `queries` under the least-squares line through `rows`."""
    Z = torch.cat([x, torch.ones(len(x), 1, dtype=F64)], 1)
    w = torch.linalg.lstsq(Z[rows], y[rows]).solution
    return -0.5 * (y[queries] - Z[queries] @ w)[:, 0] ** 2


def test_retraining_finds_the_least_squares_line_of_each_subset():
    x, y, items = numbers()
    subsets = [list(range(14)), [0, 2, 4, 6, 8, 10], list(range(5, 14))]
    got = retrain(make, items, subsets, supervised, steps=600, lr=0.1)
    assert got.loss[-1] < got.loss[0]
    for s, rows in enumerate(subsets):
        assert torch.allclose(got.logp(items)[s], least_squares(x, y, rows, list(range(14))), atol=1e-5)
    before = retrain(make, items, [()], supervised, steps=5, seeds=3).logp(items)[0]
    assert torch.equal(before, supervised(make(3), items).logp().detach()), "an empty set trains nothing"


def test_leave_one_out_of_a_regression_in_closed_form():
    x, y, items = numbers()
    Z = torch.cat([x, torch.ones(14, 1, dtype=F64)], 1)
    value = retrained_value(make, items, items, supervised, steps=800, lr=0.1)
    found = leave_one_out(value, 14)
    hat = Z @ torch.linalg.solve(Z.T @ Z, Z.T)
    rest = (y - hat @ y)[:, 0]
    for i in range(14):  # without item i, residual j is r_j + h_ij r_i / (1 - h_ii)
        without = rest + hat[:, i] * rest[i] / (1 - hat[i, i])
        assert torch.allclose(found[:, i], 0.5 * without**2 - 0.5 * rest**2, atol=1e-4)
    assert torch.allclose(leave_one_out(value, 14, [3, 5]), found[:, [3, 5]], atol=1e-6)


def test_influence_predicts_leave_one_out_of_a_regression():
    """At the optimum of a linear model the influence is the first order of the closed form."""
    x, y, items = numbers(60)
    net = retrain(make, items, [range(60)], supervised, steps=800, lr=0.1).model(0)
    g = gradients(net, items, supervised, {"": net})
    G = dense_fisher(FisherProduct(net, items, supervised, {"": net}))
    score = flatten(g) @ flatten(solve(g, G, 1e-9)).T / 60
    truth = leave_one_out(each(lambda s: least_squares(x, y, list(s), list(range(60)))), 60)
    assert np.corrcoef(score.flatten(), truth.flatten())[0, 1] > 0.99
    assert float((score - truth).norm() / truth.norm()) < 0.2


def test_networks_side_by_side_train_as_if_alone():
    words = [f"w{i}" for i in range(6)]
    lm = lambda seed: tiny(words, layers=1, width=8, heads=2, context=8, seed=seed).model  # noqa: E731
    items = [Text((3, 4, 5)), Text((6, 7, 8, 3), start=2), Text((4, 4)), Text((8, 7, 6))]
    subsets = [(0, 1), (0, 1, 2, 3), (2,)]
    both = retrain(lm, items, subsets, language, seeds=[0, 1, 0], steps=12)
    alone = [retrain(lm, items, [s], language, seeds=k, steps=12) for s, k in zip(subsets, (0, 1, 0), strict=True)]
    assert torch.allclose(both.logp(items), torch.cat([a.logp(items) for a in alone]), atol=1e-4)
    assert torch.allclose(language(both.model(1), items).logp(), both.logp(items)[1], atol=1e-4)
    assert both.loss[-1] < both.loss[0]


def test_values_average_seeds_and_do_not_depend_on_chunks():
    _, _, items = numbers(6)
    subsets = [(0, 1), (2, 3, 4), ()]
    options = dict(steps=3, lr=0.1)
    one = retrained_value(make, items, items[:2], supervised, seeds=2, **options)(subsets)
    cut = retrained_value(make, items, items[:2], supervised, seeds=2, chunk=2, **options)(subsets)
    alone = [retrain(make, items, subsets, supervised, seeds=k, **options) for k in (0, 1)]
    by_hand = torch.stack([a.logp(items[:2]) for a in alone])
    assert torch.allclose(one, cut, atol=1e-12) and torch.allclose(one, by_hand.mean(0), atol=1e-12)


def game(n, seed=0):
    """A random game: a number for each subset."""
    rng = np.random.default_rng(seed)
    table = {s: rng.normal(size=2) for k in range(n + 1) for s in itertools.combinations(range(n), k)}
    return table, each(lambda s: torch.tensor(table[tuple(s)]))


def test_shapley_is_the_mean_over_all_orders():
    table, value = game(4)
    expected = np.zeros((2, 4))
    for order in itertools.permutations(range(4)):
        for t, i in enumerate(order):
            expected[:, i] += table[tuple(sorted(order[: t + 1]))] - table[tuple(sorted(order[:t]))]
    exact = shapley(value, 4)
    assert np.allclose(exact.value, expected / math.factorial(4)) and exact.evaluations == 16
    assert np.allclose(exact.value.sum(1), table[0, 1, 2, 3] - table[()]), "efficiency"
    walked = shapley(value, 4, orders=600)
    assert np.allclose(walked.value.sum(1), table[0, 1, 2, 3] - table[()]), "efficiency, order by order"
    assert ((walked.value - exact.value).abs() < 4.5 * walked.se + 1e-9).all() and float(walked.se.min()) > 0


def test_shapley_symmetry_dummy_and_additivity():
    worth = torch.tensor([2.0, 2.0, 0.0, -1.0, 5.0], dtype=F64)
    value = each(lambda s: worth[list(s)].sum() + 3.0 * (0 in s and 1 in s))
    found = shapley(value, 5).value[0]
    assert torch.allclose(found, torch.tensor([3.5, 3.5, 0, -1, 5], dtype=F64))
    assert torch.allclose(leave_one_out(value, 5)[0], torch.tensor([5, 5, 0, -1, 5], dtype=F64))
    assert torch.allclose(leave_k_out(value, 5, [(0, 1), (2, 3, 4)])[0], torch.tensor([7, 4], dtype=F64))


def test_truncation_saves_evaluations_and_only_changes_small_gains():
    value = each(lambda s: 1 - 0.5 ** len(s))
    whole, cut = shapley(value, 12, orders=20), shapley(value, 12, orders=20, tolerance=0.01)
    assert cut.evaluations < 0.7 * whole.evaluations
    assert float((cut.value - whole.value).abs().sum()) < 0.011 + 1e-9
    assert float(cut.value.sum()) == pytest.approx(1 - 0.5**12, abs=0.01)


def test_lds_is_one_for_an_additive_model_and_a_rank_correlation_otherwise():
    rng = torch.Generator().manual_seed(1)
    worth, other = torch.randn(4, 20, generator=rng, dtype=F64), torch.randn(4, 20, generator=rng, dtype=F64)
    value, subsets = each(lambda s: torch.exp(worth[:, list(s)].sum(1))), random_subsets(20, 50, seed=3)
    assert {len(s) for s in subsets} == {10} and len(set(subsets)) == 50
    found = lds(worth, subsets, value(subsets))
    assert np.allclose(found.per_query, 1), "ranks do not mind a monotone map"
    assert np.allclose(lds(-worth, subsets, value(subsets)).per_query, -1)
    mixed = lds(other, subsets, value(subsets))
    sums = [[other[q, list(s)].sum() for s in subsets] for q in range(4)]
    by_hand = [sps.spearmanr(a, b).statistic for a, b in zip(sums, value(subsets).T, strict=True)]
    assert np.allclose(mixed.per_query, by_hand) and mixed.mean.lo < mixed.mean.value < mixed.mean.hi


def test_mistakes_are_named():
    value = each(lambda s: float(len(s)))
    with pytest.raises(AlignbookError, match="512 trainings"):
        shapley(value, 9)
    with pytest.raises(AlignbookError, match="some in and some out"):
        random_subsets(10, 5, alpha=1.0)
    with pytest.raises(AlignbookError, match="at least 3 subsets"):
        lds(torch.ones(1, 4), [(0, 1)], torch.ones(1, 1))
