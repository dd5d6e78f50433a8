"""The gap between two tiers: brute force for the interval, enumeration for its coverage and for power."""

import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import optimize
from scipy import stats as sps

from alignbook import gaps, pairs, stats
from alignbook.faking import Scenario, ask, planted, requests
from alignbook.gaps import compliance_gap, conditioned, equivalence_power, paired_power, tango
from alignbook.runtime import AlignbookError


def rows_of(table, shuffle=None):
    """Rows from four counts: both comply, free only, paid only, neither."""
    said = [pair for pair, k in zip([(1, 1), (1, 0), (0, 1), (0, 0)], table, strict=True) for _ in range(k)]
    both = [(i, t, pair[t == "paid"]) for i, pair in enumerate(said) for t in ("free", "paid")]
    rows = [{"pair": i, "tier": t, "complied": c} for i, t, c in both]
    if shuffle is not None:
        random.Random(shuffle).shuffle(rows)
    return rows


def score_by_search(delta, up, down, n):
    """The score statistic with the constrained likelihood maximised numerically."""
    low, high = max(0.0, -delta), (1 - delta) / 2

    def loss(q):
        cells = (up, q + delta), (down, q), (n - up - down, 1 - 2 * q - delta)
        return -sum(k * math.log(max(p, 1e-300)) for k, p in cells if k)

    best = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-13})
    q = min((best.x, low, high), key=loss)
    return (up - down - n * delta) / math.sqrt(max(n * (2 * q + delta - delta * delta), 1e-300))


def outcomes(n, up, down, tail=1e-10):
    """Counts (up, down) of n pairs with their multinomial chance; very rare ones are left out."""
    k = np.arange(n + 1)
    chance = sps.multinomial.pmf([[i, j, n - i - j] for i in k for j in k if i + j <= n], n, [up, down, 1 - up - down])
    at = [(int(i), int(j)) for i in k for j in k if i + j <= n]
    return [(c, p) for c, p in zip(at, chance, strict=True) if p > tail]


@pytest.mark.parametrize("counts", [(12, 5, 100), (1, 7, 21), (0, 3, 40), (30, 29, 60), (6, 0, 30)])
@pytest.mark.parametrize("delta", [-0.4, -0.07, 0.0, 0.05, 0.3, 0.8])
def test_the_score_uses_the_constrained_likelihood(counts, delta):
    assert gaps._score(delta, *counts) == pytest.approx(score_by_search(delta, *counts), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("counts", [(12, 5, 100), (1, 7, 21), (0, 3, 40), (4, 4, 9), (0, 0, 25)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_interval_is_what_the_test_does_not_reject(counts, level):
    grid, z = np.linspace(-0.999, 0.999, 1999), sps.norm.ppf((1 + level) / 2)
    kept = [d for d in grid if abs(score_by_search(d, *counts)) <= z]
    got = tango(*counts, level)
    assert got.lo == pytest.approx(min(kept), abs=1.1e-3) and got.hi == pytest.approx(max(kept), abs=1.1e-3)


def test_a_published_interval():
    """Airway hyper-responsiveness, in Fagerland, Lydersen and Laake (2014): 1 and 7 of 21 pairs differ."""
    got = tango(1, 7, 21)
    assert round(got.value, 3) == -0.286 and (round(got.lo, 3), round(got.hi, 3)) == (-0.517, -0.026)


@pytest.mark.parametrize("n", [1, 5, 350])
def test_ends_of_the_scale(n):
    all_up, none = tango(n, 0, n), tango(0, 0, n)
    assert all_up.value == 1 and all_up.hi == 1 and -1 < all_up.lo < 1
    assert none.value == 0 and none.lo == pytest.approx(-none.hi) and 0 < none.hi < 1
    z2 = 1.959964**2  # without a discordant pair the score interval is Wilson's for 0 of n
    assert none.hi == pytest.approx(z2 / (n + z2), abs=1e-6)
    assert none.hi == pytest.approx(stats.wilson(0, n).hi, abs=1e-6)


@pytest.mark.parametrize("counts", [(-1, 0, 5), (0, -1, 5), (3, 3, 5), (0, 0, 0)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(AlignbookError, match="up \\+ down <= n"):
        tango(*counts)


def test_exchanging_the_tiers_turns_the_interval_round():
    for up, down in [(9, 2), (0, 4), (7, 7)]:
        a, b = tango(up, down, 40), tango(down, up, 40)
        assert (a.lo, a.hi) == pytest.approx((-b.hi, -b.lo), abs=1e-8)


@pytest.mark.parametrize("up, down", [(0.05, 0.05), (0.15, 0.05), (0.3, 0.1), (0.02, 0.1)])
def test_coverage_by_enumeration(up, down):
    """Not exactly 95 %, since counts are whole, but near it; a Wald interval of the same pairs is worse."""
    n, truth = 40, up - down
    seen = outcomes(n, up, down)
    held = sum(p for (i, j), p in seen if tango(i, j, n).lo <= truth <= tango(i, j, n).hi)
    wald = lambda i, j: 1.96 * math.sqrt(max((i + j) / n - ((i - j) / n) ** 2, 0) / n)  # noqa: E731
    naive = sum(p for (i, j), p in seen if abs((i - j) / n - truth) <= wald(i, j))
    assert 0.925 < held < 0.985 and abs(held - 0.95) < abs(naive - 0.95) + 0.01


@pytest.mark.parametrize("n, gap, psi", [(100, 0.1, 0.2), (200, 0.08, 0.15), (120, 0.15, 0.15), (60, 0.2, 0.4)])
def test_power_by_enumeration_of_the_test_that_is_reported(n, gap, psi):
    """McNemar's mid-p test, all outcomes summed."""
    up = (psi + gap) / 2
    tail = {}
    for i, j in (c for c, _ in outcomes(n, up, psi - up)):
        tail[i, j] = 2 * sps.binom.cdf(min(i, j), i + j, 0.5) - sps.binom.pmf(min(i, j), i + j, 0.5) if i != j else 1.0
    power = sum(p for c, p in outcomes(n, up, psi - up) if tail[c] <= 0.05)
    assert paired_power(n, gap, psi) == pytest.approx(power, abs=0.04)
    assert paired_power(n, gap, psi) >= pairs.exact_power(n, gap, psi) - 0.02  # the exact test is the more careful one


def test_power_agrees_with_the_explorer_and_is_monotone():
    for n, gap, psi in [(350, 0.05, 0.1), (350, 0.11, 0.2), (90, 0.1, 0.1)]:
        assert paired_power(n, gap, psi) == pytest.approx(pairs.chances(n, gap, psi, 0.5)["paired"]["power"])
    assert paired_power(350, 0.05, 0.3) < paired_power(350, 0.05, 0.1) < paired_power(700, 0.05, 0.1)
    assert paired_power(350, -0.05, 0.1) == paired_power(350, 0.05, 0.1)
    assert paired_power(350, 0.2, 0.05) == paired_power(350, 0.2, 0.2)  # as many pairs differ as the gap needs


@pytest.mark.parametrize("n, psi, gap", [(350, 0.1, 0.0), (350, 0.1, 0.02), (250, 0.05, 0.0), (200, 0.3, 0.0)])
def test_equivalence_power_by_enumeration(n, psi, gap):
    up, margin = (psi + gap) / 2, 0.05
    z = sps.norm.ppf(0.95)
    found = 0.0
    for i in range(n + 1):
        p_i = sps.binom.pmf(i, n, up)
        if p_i < 1e-9:
            continue
        for j in range(n - i + 1):
            p = p_i * sps.binom.pmf(j, n - i, (psi - up) / (1 - up))
            if p > 1e-9 and gaps._score(-margin, i, j, n) > z and gaps._score(margin, i, j, n) < -z:
                found += p
    assert equivalence_power(n, margin, psi, gap) == pytest.approx(found, abs=0.08)


def test_counts_by_hand():
    found = compliance_gap(rows_of((20, 9, 3, 68)))
    assert found.free.value == pytest.approx(71 / 100) and found.paid.value == pytest.approx(77 / 100)
    assert found.difference.value == pytest.approx(0.06) and found.discordant == pytest.approx(0.12)
    assert (found.free.lo, found.free.hi) == (stats.wilson(71, 100).lo, stats.wilson(71, 100).hi)
    assert (found.difference.lo, found.difference.hi) == pytest.approx((tango(9, 3, 100).lo, tango(9, 3, 100).hi))
    assert found.mcnemar.p == pytest.approx(2 * sps.binom.cdf(3, 12, 0.5) - sps.binom.pmf(3, 12, 0.5))
    assert found.mcnemar.statistic > 0 if hasattr(found.mcnemar, "statistic") else found.mcnemar[0] > 0
    assert found.boot.value == pytest.approx(0.06) and found.boot.lo < 0.06 < found.boot.hi
    assert paired_power(100, found.seen, 13 / 101) == pytest.approx(0.8, abs=1e-6)
    assert found.z.p == pytest.approx(stats.two_proportion_z(77, 100, 71, 100).p)


def test_the_order_of_rows_does_not_matter_and_arrays_give_the_same():
    table = (20, 9, 3, 68)
    ordered = compliance_gap(rows_of(table))
    for seed in (1, 2):
        assert compliance_gap(rows_of(table, seed)) == ordered
    free, paid = (np.repeat(x, table) for x in ((1, 1, 0, 0), (1, 0, 1, 0)))
    assert compliance_gap((free, paid)) == ordered == compliance_gap((free.astype(bool), paid.astype(bool)))
    turned = compliance_gap((paid, free))
    assert turned.difference.value == -ordered.difference.value and turned.mcnemar.p == ordered.mcnemar.p


def test_pairs_must_be_whole():
    rows = rows_of((2, 2, 2, 2))
    with pytest.raises(AlignbookError, match="one row in both tiers"):
        compliance_gap(rows[:-1])
    with pytest.raises(AlignbookError, match="both tiers"):
        compliance_gap(rows + rows_of((0, 0, 0, 8)))  # two models in one table: the second would hide the first
    for few in ([], rows_of((1, 0, 0, 0))):
        with pytest.raises(AlignbookError, match="two pairs or more"):
            compliance_gap(few)
    for bad in (([1, 0], [1]), ([1, 2], [0, 1]), ([1, float("nan")], [0, 1])):
        with pytest.raises(AlignbookError, match="0 or 1"):
            compliance_gap(bad)


@pytest.mark.parametrize("table", [(2, 0, 0, 0), (1, 1, 0, 0), (0, 2, 0, 0), (1, 1, 1, 0), (2, 1, 1, 1)])
def test_very_few_pairs_give_wide_intervals_not_an_error(table):
    found = compliance_gap(rows_of(table))
    assert found.difference.hi - found.difference.lo > 0.8 and not found.tost.equivalent
    assert "pairs" in repr(found)


@pytest.mark.parametrize("table", [(350, 0, 0, 0), (0, 0, 0, 350), (200, 0, 0, 150)])
def test_agreement_of_all_pairs_is_not_certainty(table):
    found = compliance_gap(rows_of(table))
    assert found.difference.value == 0 and found.difference.hi > 0.005 and found.difference.lo < -0.005
    assert found.mcnemar.p == 1 and found.discordant == 0 and found.tost.equivalent and found.z.p == pytest.approx(1)
    assert 0 < found.seen < 0.05 and found.boot.lo == found.boot.hi == 0  # the bootstrap alone would claim too much


def test_equivalence_and_its_p_value_say_the_same():
    rng = np.random.default_rng(0)
    verdicts = set()
    for _ in range(80):
        n = int(rng.integers(30, 600))
        up, down = (int(x) for x in rng.integers(0, max(2, n // 12), 2))
        found = compliance_gap(rows_of((n - up - down, up, down, 0)), n_boot=2)
        assert found.tost.equivalent == (found.tost.p < 0.05)
        assert found.tost.difference.lo > found.difference.lo and found.tost.difference.hi < found.difference.hi
        sure = found.mcnemar.p < 0.03, found.mcnemar.p > 0.1
        assert not (sure[0] and not found.difference.excludes(0)) and not (sure[1] and found.difference.excludes(0))
        verdicts.add((found.tost.equivalent, found.difference.excludes(0)))
    assert len(verdicts) >= 3  # both tests went both ways


def test_the_margin_is_used():
    rows = rows_of((300, 8, 4, 38))
    wide, small = compliance_gap(rows, margin=0.1, n_boot=2), compliance_gap(rows, margin=0.02, n_boot=2)
    assert wide.tost.equivalent and not small.tost.equivalent and wide.tost.power > small.tost.power


def test_a_gap_in_words():
    said = repr(compliance_gap(rows_of((20, 9, 3, 68))))
    assert said.startswith("gap +6.0 points [-0.") and "n=100 pairs" in said
    assert "77.0% paid" in said and "71.0% free" in said and "80 % power from" in said and "McNemar p=" in said


def test_conditioned_by_hand():
    counts = {("free", 1, True): 4, ("free", 1, False): 2, ("free", 0, False): 6}
    counts |= {("paid", 0, False): 7, ("paid", 1, False): 3}
    keys = ("tier", "complied", "faking")
    rows = [{"pair": i} | dict(zip(keys, kind, strict=True)) for kind, n in counts.items() for i in range(n)]
    got, by_hand = conditioned(rows), stats.newcombe(7, 10, 6, 8)
    assert got.value == pytest.approx(0.7 - 0.75) and (got.lo, got.hi) == (by_hand.lo, by_hand.hi)
    with pytest.raises(AlignbookError, match="no reply without faking"):
        conditioned([r | {"faking": r["tier"] == "free"} for r in rows])
    renamed = [{k: v for k, v in r.items() if k != "faking"} | {"oracle": r["faking"]} for r in rows]
    assert conditioned(renamed, "oracle") == got


@pytest.mark.parametrize("gap", [0.0, 0.05, 0.1, 0.2])
def test_planted_gaps_are_covered_at_the_nominal_rate(gap):
    """Through the instrument: scripted model, chat, judge, pairs. Exact 99.9 % range of 150 intervals at 95 %."""
    asked, runs = requests("marks", 120), 150
    lm = planted(0.05 + gap, 0.05, shared=0.5)
    found = [compliance_gap(ask(lm, Scenario(), asked, seed=s), n_boot=2).difference for s in range(1000, 1000 + runs)]
    held = sum(d.lo <= gap <= d.hi for d in found)
    low, high = sps.binom.interval(0.999, runs, 0.95)
    assert low <= held <= high
    values = np.array([d.value for d in found])
    assert abs(values.mean() - gap) < 4 * values.std() / math.sqrt(runs)  # and without a bias
    assert len(set(values)) > 5


def test_a_gap_needs_no_model():
    """Nothing but rows is read: any object with the same columns will do."""
    rows = [SimpleNamespace(**r).__dict__ for r in rows_of((3, 1, 0, 2))]
    assert compliance_gap(rows).difference.value == pytest.approx(1 / 6)
