import numpy as np
import pytest
import statsmodels.api as sm
from scipy.optimize import least_squares, nnls

from alignbook import fits
from alignbook.runtime import AlignbookError

N = np.unique(np.geomspace(1, 256, 24).round())
PLANTED = {"power": {"alpha": 0.6}, "bounded_power": {"alpha": 0.8, "n_c": 6.0}, "exponential": {"r": 0.03},
           "logistic": {"s": 1.3, "n0": 20.0}}


def curve(form, n=N, C=2.0, K=0.5):
    return C * fits.SHAPES[form].value(n, *PLANTED[form].values()) + K


def strings(S, C, alpha, K, seed, level=0.3, height=0.2, noise=0.3):
    rng = np.random.default_rng(seed)
    mean = C * (1 + height * rng.normal(size=(S, 1))) * N**-alpha + K
    return mean + level * rng.normal(size=(S, 1)) + noise * rng.normal(size=(S, N.size))


def test_height_and_floor_are_nonnegative_least_squares():
    rng = np.random.default_rng(0)
    for _ in range(300):
        b, y, w = np.exp(-rng.random() * N), rng.normal(rng.normal(), 1, N.size), rng.random(N.size)
        y += max(0, 0.01 - y.min())  # costs
        w /= w.sum()
        C, K, rss = (float(v[0, 0]) for v in fits._project(b[None, None], y[None], w))
        ref, norm = nnls(np.sqrt(w)[:, None] * np.column_stack([b, np.ones_like(b)]), np.sqrt(w) * y)
        assert np.allclose([C, K], ref, atol=1e-8) and np.isclose(rss, norm**2)


@pytest.mark.parametrize("form", PLANTED)
def test_exact_curves_are_recovered(form):
    n = N if form == "power" else np.append(0, N)
    fit = fits.fit_curve(n, curve(form, n), form, weights=np.random.default_rng(0).random(n.size))
    assert fit.params == pytest.approx({"C": 2.0, "K": 0.5, **PLANTED[form]}, rel=5e-3)
    assert fit.predict(n) == pytest.approx(curve(form, n), abs=1e-3)


@pytest.mark.parametrize("form", PLANTED)
def test_optimum_is_as_good_as_scipys(form):
    rng = np.random.default_rng(1)
    Y, w = curve(form) + 0.1 * rng.normal(size=(20, N.size)), rng.random(N.size)
    found = fits.fit_curves(N, Y, form, w)
    names = fits.SHAPES[form].names
    for i, y in enumerate(Y):
        def residual(p, y=y):
            return np.sqrt(w) * (p[0] * fits.SHAPES[form].value(N, *np.exp(p[2:])) + p[1] - y)
        box = ([0, 0] + [-8] * len(names), np.inf)
        for start in ([np.log(found[k][i]) for k in names], np.log([*PLANTED[form].values()])):
            best = least_squares(residual, [1, 0.1, *start], bounds=box, max_nfev=2000).cost
            assert found["rss"][i] * w.sum() / N.size <= 2 * best * (1 + 1e-5)


def test_many_curves_equal_one_by_one():
    Y = curve("power") + 0.1 * np.random.default_rng(2).normal(size=(7, N.size))
    many = fits.fit_curves(N, Y, "bounded_power")
    for i, y in enumerate(Y):
        assert fits.fit_curve(N, y, "bounded_power").params == pytest.approx(
            {k: many[k][i] for k in ("C", "K", "alpha", "n_c")}, rel=1e-9)


def test_floor_may_be_negative_only_on_request():
    y = 2 * N**-0.3 - 0.4
    assert fits.fit_curve(N, y, nonneg=False).params == pytest.approx({"C": 2, "K": -0.4, "alpha": 0.3}, rel=1e-2)
    assert fits.fit_curve(N, y).params["K"] == 0


def test_information_criteria_match_statsmodels_up_to_a_constant():
    y = 1 + 0.2 * np.random.default_rng(3).normal(size=N.size)
    null, ols = fits.fit_curve(N, y, "constant"), sm.OLS(y, np.ones_like(y)).fit()
    shift = N.size * (np.log(2 * np.pi) + 1)  # ours drops it and counts the variance as a parameter
    assert null.aic == pytest.approx(ols.aic + 2 - shift)
    assert null.bic == pytest.approx(ols.bic + np.log(N.size) - shift)
    assert null.params["K"] == pytest.approx(y.mean())


@pytest.mark.parametrize("n, y, form, hint", [
    ([0, 1, 2, 4], [3, 2, 1, 1], "power", "bounded_power"), ([1, 2, 3], [1, np.nan, 1], "power", "finite"),
    ([1, 2], [1, 2], "power", "at least 3"), ([1, 2, 3], [1, 2], "power", "one finite cost"),
    ([1, 2, 3], [3, 2, 1], "cubic", "logistic")])
def test_bad_input_is_named(n, y, form, hint):
    with pytest.raises(AlignbookError, match=hint):
        fits.fit_curve(n, y, form)


@pytest.mark.parametrize("form", PLANTED)
def test_solve_for_inverts_predict(form):
    fit = fits.fit_curve(N, curve(form), form)
    for n in (2.0, 30.0, 900.0 if form != "exponential" else 90.0):
        assert fits.solve_for(fit, float(fit.predict(n))) == pytest.approx(n, rel=1e-6)
    assert fits.solve_for(fit, 0.1) == np.inf
    assert fits.solve_for(fit, 99) == fits.SHAPES[form].start


def test_loglog_r2():
    assert fits.loglog_r2(np.append(0, N), np.append(9, 3 * N**-0.4)) == pytest.approx(1)
    y = curve("bounded_power")
    assert fits.loglog_r2(N, y) == pytest.approx(np.corrcoef(np.log(N), np.log(y))[0, 1] ** 2)


def test_weights_follow_noise_not_level():
    rng = np.random.default_rng(4)
    sd = np.where(N < 10, 1.0, 0.1)
    w = fits.string_weights(5 * rng.normal(size=(200, 1)) + sd * rng.normal(size=(200, N.size)))
    assert w[N < 10].max() < w[N >= 10].min()
    assert w.min() > 200 / (0.5 * 1.5 + 0.5 * 1.5)  # a level of sd 5 would give 200/25


def test_cluster_bootstrap_counts_clusters_not_rows():
    Y = strings(20, 2, 0.5, 0.3, seed=5)
    plain = fits.bootstrap_fit(N, Y)
    copied = fits.bootstrap_fit(N, np.repeat(Y, 5, 0), cluster=np.repeat(np.arange(20), 5))
    assert copied["alpha"] == pytest.approx(plain["alpha"]) and copied["alpha"].n == 20
    fooled = fits.bootstrap_fit(N, np.repeat(Y, 5, 0))["alpha"]
    assert fooled.hi - fooled.lo < 0.6 * (plain["alpha"].hi - plain["alpha"].lo)
    with pytest.raises(AlignbookError, match="at least 3"):
        fits.bootstrap_fit(N, Y, cluster=np.arange(20) % 2)


def test_bootstrap_is_reproducible_and_its_spread_is_right():
    a, b = (fits.bootstrap_fit(N, strings(30, 2, 0.5, 0.3, seed=6), seed=s) for s in (1, 1))
    assert all((a.draws[k] == b.draws[k]).all() for k in a.draws)
    truth = [fits.fit_curve(N, strings(30, 2, 0.5, 0.3, seed=1000 + s).mean(0)).params["alpha"] for s in range(200)]
    assert 0.6 < a.draws["alpha"].std() / np.std(truth) < 1.5
    band = a.band([1, 256])
    assert (band.lo < band.value).all() and (band.value < band.hi).all()
    assert list(a.table().columns) == ["value", "lo", "hi", "n"] and "alpha" in repr(a)


@pytest.mark.parametrize("kw", [
    {"S": 25, "C": 2, "alpha": 0.5, "K": 0.3}, {"S": 20, "C": 3, "alpha": 0.25, "K": 0.5},  # weakly identified
    {"S": 20, "C": 2, "alpha": 0.4, "K": 0, "level": 0.1, "noise": 0.2}])                   # floor on the boundary
def test_planted_parameters_are_covered(kw):
    runs = [fits.bootstrap_fit(N, strings(**kw, seed=[r, kw["S"]]), n_boot=400) for r in range(100)]
    truth = {**{k: kw[k] for k in ("C", "alpha", "K")}, "intercept": kw["C"] + kw["K"]}
    held = {k: sum(ci[k].lo <= v <= ci[k].hi for ci in runs) for k, v in truth.items()}
    assert min(held.values()) >= 90, held


def test_difference_pairs_rows():
    base = strings(25, 2, 0.5, 0.3, seed=8)
    moved = 2 * base + 0.05 * np.random.default_rng(9).normal(size=base.shape)
    a, b = fits.bootstrap_fit(N, base), fits.bootstrap_fit(N, moved)
    pair, lone = fits.difference(a, b, paired=True)["alpha"], fits.difference(a, b)["alpha"]
    assert pair.hi - pair.lo < 0.3 * (lone.hi - lone.lo) and not pair.excludes(0)
    assert all(v.lo == v.hi == 0 for v in fits.difference(a, a, paired=True).values())
    back = fits.difference(b, a, paired=True)["C"]
    there = fits.difference(a, b, paired=True)["C"]
    assert (back.value, back.lo, back.hi) == pytest.approx((-there.value, -there.hi, -there.lo))
    log = fits.difference(a, b, paired=True)["log_intercept"]
    assert log.lo < np.log(2) < log.hi or abs(log.value - np.log(2)) < 0.02
    with pytest.raises(AlignbookError, match="equal ones"):
        fits.difference(a, fits.bootstrap_fit(N, moved, seed=1), paired=True)
    with pytest.raises(AlignbookError, match="one form"):
        fits.difference(a, fits.bootstrap_fit(N, moved, "exponential"))


def test_intercept_only_has_three_verdicts():
    kw = {"noise": 0.1, "level": 0.1, "height": 0.1}
    a = fits.bootstrap_fit(N, strings(30, 2, 0.5, 0.3, seed=10, **kw))
    up = fits.bootstrap_fit(N, strings(30, 6, 0.5, 0.3, seed=11, **kw))
    flat = fits.bootstrap_fit(N, strings(30, 2, 0.2, 0.3, seed=12, **kw))
    few = fits.bootstrap_fit(N, strings(5, 2, 0.5, 0.3, seed=13, noise=1.0))
    same = fits.intercept_only(a, up, margin=0.1)
    assert same.verdict == "equivalent" and same.log_intercept.excludes(0) and "intercept moved" in repr(same)
    assert fits.intercept_only(a, flat, margin=0.1).verdict == "different"
    assert fits.intercept_only(a, few, margin=0.1).verdict == "undecided"  # no evidence is not equality


def test_compare_forms_names_the_planted_form():
    rng = np.random.default_rng(14)
    for form in ("power", "exponential", "logistic"):
        Y = curve(form) + 0.3 * rng.normal(size=(30, 1)) + 0.05 * rng.normal(size=(30, N.size))
        table = fits.compare_forms(N, Y, n_max=64, n_boot=200)
        assert table.bic.is_monotonic_increasing and table.index[0] == form
        assert table.p_best.sum() == pytest.approx(1) and table.p_best["constant"] == 0
    by_hand = fits.fit_curve(N[N <= 64], Y.mean(0)[N <= 64], "logistic", fits.string_weights(Y)[N <= 64])
    error = np.log(by_hand.predict(N[N > 64]) / Y.mean(0)[N > 64])
    assert table.tail_rmse["logistic"] == pytest.approx(np.sqrt((error**2).mean()))
    assert "tail_rmse" not in fits.compare_forms(N, Y, holdout="none")
    with pytest.raises(AlignbookError, match="n_max"):
        fits.compare_forms(N, Y, n_max=999)


def test_forecast_says_never():
    ci = fits.bootstrap_fit(N, strings(25, 2, 0.5, 0.3, seed=15))
    soon, never, edge = (fits.forecast(ci, t) for t in (1.0, 0.0, ci["K"].value))
    assert soon.lo < soon.n < soon.hi < 100 and soon.p_never == 0
    assert soon.n == fits.solve_for(ci.fit, 1.0)
    assert never.p_never == 1 and never.lo == np.inf
    assert 0.2 < edge.p_never < 0.8 and edge.hi == np.inf
    wide = fits.forecast(ci, 1.0, level=0.99)
    assert wide.lo < soon.lo and wide.hi > soon.hi


def test_half_life_and_retention():
    t = np.arange(0, 200, 5)
    assert fits.half_life(t, 0.25 + 0.5 * np.exp(-t / 40), floor=0.25) == pytest.approx(40 * np.log(2), abs=0.1)
    assert fits.half_life([0, 10], [1.0, 0.0]) == 5 and fits.half_life(t, np.ones(t.size)) == np.inf
    assert fits.retention([[0.9, 0.7, 0.5]], floor=0.5).tolist() == [pytest.approx([1, 0.5, 0])]
    Y = np.exp(-t / 40) * (1 + 0.1 * np.random.default_rng(13).normal(size=(20, 1))) + 0.02
    life = fits.half_life_interval(t, Y, floor=0.02)
    assert life.lo <= 40 * np.log(2) + 0.1 and life.hi >= 40 * np.log(2) - 0.1 and life.n == 20
    stays = np.vstack([np.exp(-t / 40)] * 3 + [np.ones(t.size)] * 3)
    assert fits.half_life_interval(t, stays).hi == np.inf
    with pytest.raises(AlignbookError, match="floor"):
        fits.half_life(t, np.zeros(t.size))
