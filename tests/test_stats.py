import itertools

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats as sps
from statsmodels.stats.proportion import proportion_confint

from alignbook import stats
from alignbook.runtime import AlignbookError


def width(interval):
    return interval.hi - interval.lo


def test_interval_prints_and_excludes():
    i = stats.Interval(0.416, 0.3149, 0.551, 60)
    assert repr(i) == "0.416 [0.315, 0.551], n=60" and i.excludes(0.3) and not i.excludes(0.5)
    assert repr(stats.Interval(1, 0, 2)) == "1 [0, 2]"


@pytest.mark.parametrize("k, n", [(0, 20), (7, 60), (60, 60)])
def test_wilson_solves_its_equation(k, n):
    w, z = stats.wilson(k, n), sps.norm.ppf(0.975)
    for end in {w.lo, w.hi} - {0.0, 1.0}:
        assert abs(k / n - end) == pytest.approx(z * np.sqrt(end * (1 - end) / n))
    assert 0 <= w.lo <= k / n <= w.hi <= 1
    with pytest.raises(AlignbookError, match="not a rate"):
        stats.wilson(5, 4)


def test_bootstrap_of_a_mean_is_close_to_the_t_interval():
    x = np.random.default_rng(0).normal(3, 2, 12)
    ours, t = stats.bootstrap(x, n_boot=20_000), sps.t.interval(0.95, 11, x.mean(), sps.sem(x))
    assert (ours.lo, ours.hi) == pytest.approx(t, abs=0.15) and ours.value == pytest.approx(x.mean()) and ours.n == 12
    assert width(stats.bootstrap(x, level=0.99)) > width(ours)
    assert stats.bootstrap(x, seed=1) == stats.bootstrap(x, seed=1)


def test_bootstrap_coverage_with_few_units():
    rng = np.random.default_rng(1)
    for units in (3, 5, 12):  # plain percentile intervals hold 75, 87 and 92 %
        hits = [not stats.bootstrap(rng.normal(size=units), n_boot=300, seed=i).excludes(0) for i in range(300)]
        assert sum(hits) >= 270
    rates = stats.bootstrap([1.0, 1.0, 0.0])
    assert (rates.lo, rates.hi) == (0, 1)  # as wide as can be, and still a rate


def test_clusters_are_the_unit():
    x = np.random.default_rng(2).normal(size=20)
    copied = stats.bootstrap(np.repeat(x, 6), cluster=np.repeat(np.arange(20), 6))
    assert copied == pytest.approx(stats.bootstrap(x))
    shuffled = np.random.default_rng(3).permutation(120)  # order of the rows does not matter
    again = stats.bootstrap(np.repeat(x, 6)[shuffled], cluster=np.repeat(np.arange(20), 6)[shuffled], n_boot=8000)
    assert width(again) == pytest.approx(width(copied), rel=0.1)
    alone = stats.bootstrap(x, cluster=np.zeros(20))
    assert np.isnan(alone.lo) and alone.n == 1


def test_paired_bootstrap_is_the_bootstrap_of_the_difference():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=30), rng.normal(size=30)
    assert stats.bootstrap(a, paired=b) == pytest.approx(stats.bootstrap(a - b))
    median = stats.bootstrap(a + 9, np.median, paired=a)
    assert median.value == pytest.approx(9) and width(median) < 1e-12
    with pytest.raises(AlignbookError, match="as many"):
        stats.bootstrap(a, paired=b[:5])


def crossed(rng, seeds, prompts, sd_seed, sd_prompt, sd_row):
    s, p = np.divmod(np.arange(seeds * prompts), prompts)
    y = sd_seed * rng.normal(size=seeds)[s] + sd_prompt * rng.normal(size=prompts)[p] + sd_row * rng.normal(size=s.size)
    return pd.DataFrame({"seed": s, "prompt": p, "y": y})


@pytest.mark.parametrize("sd", [(0.0, 1.0, 0.3), (1.0, 0.3, 0.3), (0.5, 1.0, 1.0)])  # seed, prompt, row
def test_hierarchical_bootstrap_covers_crossed_designs(sd):
    rng, hits, naive = np.random.default_rng(5), 0, 0
    for i in range(200):
        df = crossed(rng, 5, 40, *sd)
        hits += not stats.hierarchical_bootstrap(df, "y", n_boot=300, seed=i).excludes(0)
        naive += abs(df.y.mean()) < 1.96 * df.y.sem()
    assert hits >= 180 > naive  # at most chance below 95 %; rows as units fail


def test_hierarchical_bootstrap_with_one_seed_is_the_plain_bootstrap():
    df = crossed(np.random.default_rng(6), 1, 50, 1, 1, 0)
    ours, plain = stats.hierarchical_bootstrap(df, "y", n_boot=8000), stats.bootstrap(df.y, n_boot=8000)
    assert (ours.lo, ours.hi) == pytest.approx((plain.lo, plain.hi), abs=0.05) and ours.n == 50


def test_mcnemar_by_enumeration():
    a, b = np.array([1] * 9 + [0] * 2 + [1] * 20 + [0] * 5), np.array([0] * 9 + [1] * 2 + [1] * 20 + [0] * 5)
    coin = np.array([sum(flips) for flips in itertools.product((0, 1), repeat=11)])
    exact = np.mean((coin <= 2) | (coin >= 9))
    assert stats.mcnemar(a, b, mid_p=False).p == pytest.approx(exact)
    assert stats.mcnemar(a, b).p == pytest.approx(2 * (np.mean(coin < 2) + 0.5 * np.mean(coin == 2)))
    assert stats.mcnemar(a, b).statistic == -7 and stats.mcnemar(a, a).p == 1


def test_two_proportions():
    z = stats.two_proportion_z(45, 100, 30, 100)
    chi2 = sps.chi2_contingency([[45, 55], [30, 70]], correction=False)
    assert z.p == pytest.approx(chi2.pvalue) and z.statistic**2 == pytest.approx(chi2.statistic)
    d = stats.newcombe(45, 100, 30, 100)
    (l1, u1), (l2, u2) = (proportion_confint(k, 100, method="wilson") for k in (45, 30))
    assert d.lo == pytest.approx(0.15 - np.hypot(0.45 - l1, u2 - 0.30))
    assert d.hi == pytest.approx(0.15 + np.hypot(u1 - 0.45, 0.30 - l2))


def test_tost_p_value_agrees_with_its_interval():
    for k1, n, margin in ((50, 100, 0.12), (300, 500, 0.05), (300, 500, 0.08), (70, 100, 0.05)):
        t = stats.tost_proportions(k1, n, int(0.6 * n), n, margin)
        assert t.equivalent == (t.p < 0.05) and t.margin == margin
    wide = stats.tost_proportions(300, 500, 300, 500, 0.1)
    at_p = stats.newcombe(300, 500, 300, 500, 1 - 2 * wide.p)
    assert max(-at_p.lo, at_p.hi) == pytest.approx(0.1)
    assert "equivalent" in repr(wide)


def test_tost_power_against_simulation():
    n = stats.tost_sample_size(0.3, 0.1, power=0.8)
    assert stats.tost_power(0.3, n, 0.1) >= 0.8 > stats.tost_power(0.3, n - 1, 0.1)
    rng = np.random.default_rng(7)
    def share(p1, p2):
        pairs = zip(rng.binomial(n, p1, 400), rng.binomial(n, p2, 400), strict=True)
        return np.mean([stats.tost_proportions(int(a), n, int(b), n, 0.1).equivalent for a, b in pairs])
    assert share(0.3, 0.3) == pytest.approx(0.8, abs=0.06)
    assert share(0.3, 0.4) < 0.09  # size: at most 5 % when the true difference is the margin
    with pytest.raises(AlignbookError, match="no sample"):
        stats.tost_sample_size(0.3, 0.1, diff=0.1)


def test_minimal_difference_has_the_power_it_says():
    d, rng = stats.minimal_difference(0.2, 100), np.random.default_rng(8)
    found = [stats.two_proportion_z(int(rng.binomial(100, 0.2 + d)), 100, int(rng.binomial(100, 0.2)), 100).p < 0.05
             for _ in range(600)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.06)
    assert np.isnan(stats.minimal_difference(0.9, 5))


def games(strength, each, seed=0):
    rng = np.random.default_rng(seed)
    pairs = [(p, q) for p, q in itertools.combinations(strength, 2)] * each
    won = [float(rng.random() < 1 / (1 + 10 ** ((strength[q] - strength[p]) / 400))) for p, q in pairs]
    return [p for p, _ in pairs], [q for _, q in pairs], won


def test_two_players_have_a_closed_form():
    a, b, won = ["x"] * 40, ["y"] * 40, [1.0] * 30 + [0.0] * 10
    for method in ("bt", "lsq"):
        t = stats.elo(a, b, won, method, anchor="y", prior=0, n_boot=50)
        assert t.value["x"] == pytest.approx(400 * np.log10(3), abs=1e-3) and t.value["y"] == 0
    log_odds = stats.bradley_terry(a, b, won, anchor="y", prior=0, n_boot=50)
    assert log_odds.value["x"] == pytest.approx(np.log(3), abs=1e-6)


def test_bradley_terry_is_logistic_regression():
    a, b, won = games({"p": 150, "q": 40, "r": 0, "s": -90}, 30)
    names = ["p", "q", "r", "s"]
    D = np.array([[(n == i) - (n == j) for n in names[1:]] for i, j in zip(a, b, strict=True)], float)
    ref = sm.Logit(won, D).fit(disp=0).params
    ours = stats.bradley_terry(a, b, won, anchor="p", prior=0, n_boot=20).value
    assert ours[names[1:]].to_numpy() == pytest.approx(ref, abs=1e-4)


def test_elo_intervals_cover_and_order_is_kept():
    strength, hits = {"p": 120, "q": 30, "r": 0, "s": -100}, 0
    for i in range(60):
        t = stats.elo(*games(strength, 25, seed=i), anchor="r", n_boot=200)
        hits += t.lo["p"] <= 120 <= t.hi["p"]
    assert hits >= 52
    assert list(t.index) == list(t.sort_values("value", ascending=False).index) and t.n["p"] == 75


def test_elo_edges():
    t = stats.elo(["x"] * 5, ["y"] * 5, [1] * 5, n_boot=20)
    assert np.isfinite(t[["value", "lo", "hi"]].to_numpy()).all()  # undefeated, yet finite
    a, b, won = games({"p": 100, "q": 0}, 60)
    question = np.repeat(np.arange(12), 5)
    assert width(stats.elo(a, b, won, cluster=question).loc["p"]) > 0
    with pytest.raises(AlignbookError, match="not connected"):
        stats.elo(["a", "c"], ["b", "d"], [1, 0])
    with pytest.raises(AlignbookError, match="played no match"):
        stats.elo(a, b, won, anchor="z")
    debate = stats.elo(*games({"p": 200, "q": 0, "r": -50}, 400), method="lsq", anchor="q", n_boot=50)
    assert debate.value["p"] == pytest.approx(200, abs=40) and debate.lo["p"] < debate.value["p"] < debate.hi["p"]


def test_reliability_and_ece_by_hand():
    p, y = np.array([0.1, 0.15, 0.8, 0.9, 1.0]), np.array([0, 1, 1, 1, 0])
    t = stats.reliability(p, y, bins=2)
    assert t.p.tolist() == pytest.approx([0.125, 0.9]) and t.n.tolist() == [2, 3]
    assert t.rate.tolist() == pytest.approx([0.5, 2 / 3])
    assert stats.ece(p, y, bins=2).value == pytest.approx(2 / 5 * 0.375 + 3 / 5 * (0.9 - 2 / 3))
    assert stats.brier(p, y) == pytest.approx(np.mean([0.01, 0.7225, 0.04, 0.01, 1]))
    with pytest.raises(AlignbookError, match="probabilities"):
        stats.reliability([0.2, 1.2], [0, 1])


def test_ece_null_separates_calibrated_from_not():
    rng = np.random.default_rng(9)
    p = rng.random(300)
    good, bad = stats.ece(p, rng.random(300) < p), stats.ece(p, rng.random(300) < p**3)
    assert good.p > 0.05 > bad.p and good.null > 0.02


def test_auroc_matches_pair_counting_and_delong():
    rng = np.random.default_rng(10)
    y, s = rng.random(60) < 0.4, rng.integers(0, 6, 60) + 0.0
    s[y] += rng.integers(0, 3, y.sum())
    pairs = np.sign(s[y][:, None] - s[~y]) / 2 + 0.5
    got = stats.auroc(s, y)
    assert got.value == pytest.approx(pairs.mean())
    se = np.sqrt(pairs.mean(1).var(ddof=1) / y.sum() + pairs.mean(0).var(ddof=1) / (~y).sum())
    step = np.array([-1, 1]) * sps.norm.ppf(0.975) * se / got.value / (1 - got.value)
    assert (got.lo, got.hi) == pytest.approx(1 / (1 + np.exp(-np.log(got.value / (1 - got.value)) - step)))
    perfect = stats.auroc(y.astype(float), y)
    assert perfect.value == perfect.hi == 1 and perfect.lo < 0.95
    with pytest.raises(AlignbookError, match="both classes"):
        stats.auroc(s, np.ones(60, bool))


def test_auroc_coverage():
    rng, truth = np.random.default_rng(11), sps.norm.cdf(1.5 / np.sqrt(2))
    y = np.arange(60) < 25
    hits = sum(not stats.auroc(rng.normal(size=60) + 1.5 * y, y).excludes(truth) for _ in range(400))
    assert hits >= 368


def test_random_direction_null():
    rng, y = np.random.default_rng(12), np.arange(200) < 100
    X = rng.normal(size=(200, 50))
    white = stats.random_direction_null(X, y, observed=0.9)
    assert white.null < 0.56 and white.p < 0.01
    X[:, 0] = 30 * (X[:, 0] + 2 * y)
    spiked = stats.random_direction_null(X, y, observed=0.9)
    assert spiked.null > 0.8 and spiked.p > 0.05


def test_multiple_tests_by_definition():
    p = np.array([0.04, 0.001, 0.3, 0.012, 0.02])
    order, m = np.argsort(p), p.size
    bh = np.minimum.accumulate((p[order] * m / np.arange(1, m + 1))[::-1])[::-1]
    holm = np.maximum.accumulate(p[order] * np.arange(m, 0, -1))
    assert stats.fdr(p)[order] == pytest.approx(bh) and stats.holm(p)[order] == pytest.approx(np.minimum(holm, 1))
