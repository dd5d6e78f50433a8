"""Rankings of influence scores against planted exponents, hand calculations and brute force."""

import itertools

import numpy as np
import pytest
from scipy import integrate
from scipy import stats as sps

from alignbook.ranking import (
    RIVALS,
    Bm25,
    _rival,
    alternatives,
    candidates,
    centre_of_mass,
    concentration,
    hits,
    overlap,
    pareto_mle,
    sequences_needed,
    sparseness,
    tail,
    thirds,
    too_sparse,
)
from alignbook.runtime import AlignbookError


def pareto(alpha, n, seed):
    return np.random.default_rng(seed).pareto(alpha, n) + 1


def test_filter_by_hand():
    docs = [[7, 7, 7, 8], [8, 9], [9], [10, 11]]
    idf = {7: np.log(3.5 / 1.5 + 1), 8: np.log(2.5 / 2.5 + 1), 3: np.log(4.5 / 0.5 + 1)}
    index = Bm25(docs)
    assert np.allclose([index.idf(t) for t in idf], list(idf.values()))
    assert np.allclose(index.scores([7, 8, 3]), [idf[7] + idf[8], idf[8], 0, 0]), "presence, not counts"
    assert np.allclose(index.scores([8, 8]), [2 * idf[8], 2 * idf[8], 0, 0]), "a query token counts each time"


def test_filter_equals_the_formula_in_a_loop():
    rng = np.random.default_rng(0)
    docs = [rng.integers(0, 40, rng.integers(1, 30)).tolist() for _ in range(60)]
    query, k1 = rng.integers(0, 50, 12).tolist(), 1.5
    expected = []
    for d in docs:
        total = 0.0
        for t in query:
            n, here = sum(t in x for x in docs), int(t in d)
            total += (k1 + 1) * here / (k1 + here) * np.log((60 - n + 0.5) / (n + 0.5) + 1)
        expected.append(total)
    assert np.allclose(Bm25(docs, k1).scores(query), expected)
    best = candidates(query, docs, keep=10)
    assert len(best) == 10 and sorted(np.array(expected)[best]) == sorted(sorted(expected)[-10:])
    with pytest.raises(AlignbookError, match="no documents"):
        Bm25([])


def test_overlap_and_hits():
    assert overlap([1, 2, 3], [3, 2, 1]) == 1 and overlap([1, 2, 3], [3, 2, 1], n=2) == 0
    assert overlap([1, 2, 1, 2], [5, 1, 2], n=2) == 1 / 2
    assert hits([2, 0, 1], ["a cat", "dog", "CAT dog"], ["cat"], k=1) == 1
    with pytest.raises(AlignbookError, match="lower n"):
        overlap([1], [1, 2], n=2)


def test_sparse_tokens():
    assert np.isclose(sparseness(np.ones(16)), 1 / 4) and sparseness([0.0, 0.0]) == 0
    assert np.isclose(sparseness([3.0, -4.0]), 5 / 7) and too_sparse([3.0, -4.0])
    assert not too_sparse([3.0, -4.0], limit=0.72)


def test_concentration():
    assert np.allclose(concentration(np.full(300, 2.0), [0.01, 0.1, 1]), [0.01, 0.1, 1])
    one = np.zeros(1000)
    one[17] = 3
    assert concentration(one, [0.001])[0] == 1 and concentration(one, [0.0])[0] == 0
    assert np.allclose(concentration([4.0, 3.0, 2.0, 1.0, -50.0], [0.2, 0.4]), [0.4, 0.7]), "negatives add nothing"
    with pytest.raises(AlignbookError, match="no score is positive"):
        concentration([-1.0, 0.0])


def test_mle_is_the_maximum_and_matches_scipy():
    x = pareto(1.7, 400, 1)
    alpha = float(pareto_mle(np.log(x)))
    assert np.isclose(alpha, sps.pareto.fit(x, floc=0, fscale=1)[0])
    near = [sps.pareto.logpdf(x, b).sum() for b in alpha * np.array([0.99, 1, 1.01])]
    assert near[1] == max(near)


def test_tail_conditions_on_the_next_score():
    x = np.array([10.0, 8.0, 6.0, 5.0, 4.0, 2.0, 1.0, -3.0])
    fit = tail(x, top=5, n_boot=50)
    assert fit.xmin == 2 and fit.total == 8
    assert np.isclose(fit.alpha.value, 5 / np.log(x[:5] / 2).sum())
    assert np.isclose(fit.density.value, fit.alpha.value + 1) and np.isclose(fit.density.lo, fit.alpha.lo + 1)
    assert np.isclose(fit.survival(2.0), 5 / 8) and np.isclose(fit.survival(4.0), 5 / 8 * 2**-fit.alpha.value)
    d = sps.kstest(x[:5], lambda v: 1 - (v / 2) ** -fit.alpha.value).statistic
    assert np.isclose(fit.ks, d)


@pytest.mark.parametrize("alpha", [1.2, 2.5, 4.0])
def test_planted_exponents_are_covered(alpha):
    found = [tail(pareto(alpha, 3000, s), top=200, n_boot=1).alpha for s in range(60)]
    covered = sum(i.lo < alpha < i.hi for i in found)
    assert 51 <= covered, "95 % intervals: 51 of 60 or fewer would be a 1 in 1000 accident"
    assert abs(np.median([i.value for i in found]) / alpha - 1) < 0.05


def test_p_is_uniform_under_the_null_and_small_otherwise():
    p = [tail(pareto(2, 1000, s), top=150, n_boot=200).p for s in range(60)]
    assert sps.kstest(p, "uniform").pvalue > 0.01
    for s in range(5):
        rng = np.random.default_rng(s)
        assert tail(rng.exponential(1, 20_000), top=3000, n_boot=200).p < 0.05
        assert tail(rng.lognormal(0, 0.7, 20_000), top=5000, n_boot=200).p < 0.05


def test_p_does_not_depend_on_the_unit_or_the_seed_by_much():
    x = pareto(2, 2000, 3)
    a, b = tail(x, 300, n_boot=400, seed=0), tail(x * 1e-7, 300, n_boot=400, seed=0)
    assert np.isclose(a.alpha.value, b.alpha.value) and a.p == b.p
    assert abs(tail(x, 300, n_boot=400, seed=1).p - a.p) < 0.15


NO_TAIL = [([1.0] * 50, 10), ([1.0, 2.0, -1.0] * 4, 9), ([1.0, 2.0], 5), ([3.0, 2.0, 1.0], 2)]


@pytest.mark.parametrize("scores, top", NO_TAIL)
def test_tails_that_cannot_be_fitted(scores, top):
    with pytest.raises(AlignbookError):
        tail(scores, top)


def test_rivals_are_conditioned_densities():
    "Each rival integrates to one over x > xmin: checked where the fit of an exponential is known."
    y = np.random.default_rng(0).exponential(0.5, 400) + 1
    k, each = _rival("exponential", y)
    assert k == 1 and np.allclose(each, sps.expon.logpdf(y, loc=1, scale=y.mean() - 1), atol=1e-3)
    k, each = _rival("Rayleigh", y)
    s2 = (y**2 - 1).mean() / 2
    assert np.allclose(each, np.log(y / s2) - (y**2 - 1) / (2 * s2), atol=1e-2)
    for name in RIVALS:
        k, each = _rival(name, np.sort(y))
        inside = integrate.trapezoid(np.exp(each), np.sort(y))
        assert 0.8 < inside < 1.05, name


def test_alternatives_choose_the_law_that_made_the_sample():
    power = alternatives(tail(pareto(1.5, 5000, 0), top=400, n_boot=1)).set_index("name")
    assert power.daic.min() > -4 and power.daic[["exponential", "Rayleigh", "Gumbel"]].min() > 20
    assert power.vuong["exponential"] < 0.01 and power.loc["power law", "daic"] == 0
    thin = alternatives(tail(np.random.default_rng(2).exponential(1, 5000), top=1500, n_boot=1))
    assert thin.daic.min() < -10 and thin.name[0] != "power law" and (thin.aic.diff()[1:] >= 0).all()
    few = alternatives(tail(pareto(1.5, 500, 0), top=50, n_boot=1), names=["exponential"])
    assert set(few.name) == {"power law", "exponential"}


def test_search_length():
    hit = 0
    for seed in range(20):
        best = np.sort(pareto(2, 200_000, 100 + seed))[-10:]
        need = sequences_needed(pareto(2, 10_000, seed), best, top=300)
        hit += need.lo < 200_000 < need.hi
    assert hit >= 14, "the interval lacks the noise of the filter's own top ten, so it covers a little less"
    flat = np.arange(1, 101.0)
    need = sequences_needed(flat, np.full(10, 51.0), top=20)
    assert need.value == 20 and need.lo < 20 < need.hi, "half of all scores reach 51"
    with pytest.raises(AlignbookError, match="fewer than items"):
        sequences_needed(flat, [1.0], top=20)


def test_depth():
    assert np.allclose(centre_of_mass(np.eye(5)), np.linspace(0, 1, 5))
    assert np.isnan(centre_of_mass([-1.0, 0.0])) and centre_of_mass([1.0, -9.0, 1.0]) == 0.5
    for n in range(3, 40):
        cuts = thirds(n)
        assert list(itertools.chain(*(range(n)[c] for c in cuts))) == list(range(n))
        assert len(range(n)[cuts[0]]) == len(range(n)[cuts[2]]) == n // 3
    with pytest.raises(AlignbookError):
        thirds(2)
