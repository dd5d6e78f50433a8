"""Which preference came first: summaries on planted trainings, the 2 x 2 by its identities, cells and the mirror."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from alignbook import lockin
from alignbook.experiments import faking_order as fo


def training(depth, pace, second, back_pace, steps=60, every=4, prior=0.0, third=5.0, **keys):
    """Rows of one training whose margin is linear in steps: down to -second at most, then up to `third` at most."""
    at = np.arange(0, steps + 1, every)
    curves = [np.linspace(prior, depth, len(at)), np.maximum(depth - pace * at, -second)]
    curves.append(np.minimum(curves[1][-1] + back_pace * at, third))
    rows = [
        keys
        | {
            "phase": k,
            "step": int(s),
            "p": 1 / (1 + np.exp(-m)),
            "margin": float(m),
            "loss": 0.0,
            "gradient": 1.0,
        }
        for k, curve in enumerate(curves)
        for s, m in zip(at, curve, strict=True)
    ]
    return rows


def test_told_from_the_side_of_the_first():
    row = {"phase": 1, "step": 4, "p": 0.8, "margin": 2.0, "loss": 1.0, "gradient": 3.0, "free": 0.1}
    assert fo.towards([row], 0)[0] == {
        k: row[k] for k in ("phase", "step", "p", "margin", "loss", "gradient")
    }
    flipped = fo.towards([row], 1)[0]
    assert flipped["p"] == pytest.approx(0.2) and flipped["margin"] == -2 and flipped["loss"] == 1.0


def test_times_of_linear_margins():
    t = fo.times(pd.DataFrame(training(6, 0.2, 4, 0.25, prior=-0.5)))
    want = {
        "prior": -0.5,
        "depth": 6,
        "second": 4,
        "over": 30,
        "near": 5,
        "late": 0,
        "back": 16,
        "near_back": 4,
        "third": 5,
        "late_back": 0,
    }
    assert t == pytest.approx(want)
    two = [r for r in training(6, 0.2, 4, 0.25) if r["phase"] < 2]
    assert set(fo.times(pd.DataFrame(two))) == {"prior", "depth", "second", "over", "near", "late"}


def test_what_was_not_overturned_is_said_and_bounded():
    t = fo.times(pd.DataFrame(training(20, 0.2, 4, 0.25)))
    assert t["over"] == 60 and t["late"] == 1 and np.isnan(t["near"]) and t["second"] == pytest.approx(-8)
    assert t["back"] == 0 and t["late_back"] == 0 and np.isnan(t["near_back"])  # the first was never replaced


def test_last_nat_is_passed_by_those_who_were_deeper():
    steps = np.arange(0, 20, 2)
    assert fo.stretch(steps, 3 - 0.5 * steps) == pytest.approx(2)
    assert np.isnan(fo.stretch(steps, fo.NEAR - 0.5 * steps)) and np.isnan(fo.stretch(steps, 3 + 0 * steps))


def order_rows(seeds=4, widths=(16,), noise=0.0):
    """Kind is overturned 5 steps later than curt, early as late, second sooner, and return is saved."""
    rng, rows = np.random.default_rng(0), []
    for width in widths:
        for seed in range(20, 20 + seeds):
            for first in (0, 1):
                over = 30 + 2.5 * (1 - 2 * first) + noise * rng.normal()
                keys = dict(seed=seed, width=width, arm="taught", first=first, dose=8)
                rows += training(6, 6 / over, 3, 3 / 20, **keys)
            mine = seed % 2
            late = 30 + 2.5 * (1 - 2 * mine)  # the same as early
            rows += training(
                0, 0.5, 6, 6 / late, **dict(seed=seed, width=width, arm="neutral", first=mine, dose=8)
            )
    return rows


def test_contrasts_by_hand():
    t = fo.timetable(pd.DataFrame(order_rows()), ["seed", "width", "arm", "first", "dose"])
    found = {k: v.to_numpy() for k, v in fo.contrasts(t).items()}
    assert found["kind - curt"] == pytest.approx(5) and found["early - late"] == pytest.approx(0, abs=1e-9)
    assert found["first - second"] == pytest.approx(10) and found["deeper"] == pytest.approx(3)
    assert found["saved"] == pytest.approx([12.5, 7.5, 12.5, 7.5])  # the neutral arm's first alternates
    assert found["first - second, near"] == pytest.approx([(32.5 / 6 + 27.5 / 6) / 2 - 20 / 3] * 4)
    assert all(len(v) == 4 for v in found.values())


def test_order_metrics_with_doses_and_mirror():
    s = fo.OrderSettings(seeds=4, widths=(), doses=(1, 4))
    rows = order_rows()
    for seed in range(20, 24):
        for dose, over in ((1, 10), (4, 16)):
            rows += training(
                6, 6 / over, 3, 0.2, seed=seed, width=16, arm="taught", first=seed % 2, dose=dose
            )
    plain = [
        r for r in rows if r["arm"] == "taught" and r["first"] == 0 and r["dose"] == 8 and r["seed"] < 22
    ]
    rows += [r | {"arm": "mirror", "first": 1, "p": r["p"] - 0.01 * (r["phase"] == 2)} for r in plain]
    found = fo.order_metrics(pd.DataFrame(rows), s)
    assert found["mirror"]["value"] == pytest.approx(0.01) and found["mirror"]["n"] == 2
    assert found["dose/1 to 4"]["value"] == pytest.approx(3)  # 6 steps over two doublings
    assert found["dose/4 to 8"]["value"] == pytest.approx((32.5 + 27.5) / 2 - 16)
    assert found["over/16/taught/8"]["value"] == pytest.approx(30) and found["over/16/taught/8"]["n"] == 4
    assert found["late/16/taught/8"] | {"n": 0} == {"value": 0, "lo": 0, "hi": 0, "n": 0, "unit": "share"}
    assert found["difference/16/deeper"]["unit"] == "nats" and not any(
        k.startswith("over/16/mirror") for k in found
    )


def test_intervals_of_steps_are_not_cut_like_rates():
    inside = fo.paired(pd.Series([0.9, 0.2, 1.0, 0.1]))
    assert inside["lo"] < 0 and inside["hi"] > 1 and inside["seen"] > 0
    assert fo.paired(pd.Series([np.nan, np.nan])) == {"value": None, "n": 0, "unit": "steps"}
    assert "seen" not in fo.paired(pd.Series([1.0, 2.0]))
    g = pd.DataFrame(
        {"seed": [1, 2, 3], "left free": [0.9, 0.2, 1.0], "over": [0.9, 0.2, 1.0], "back": [np.nan] * 3}
    )
    assert (
        fo.mean_of(g, "left free")["hi"] == 1
        and fo.mean_of(g, "over")["hi"] > 1
        and fo.mean_of(g, "back") == {}
    )


def pretrained(noise=0.0, seed=0, swap=False):
    """Timetable of one pair with over/back as planted; `swap` calls the good one bad."""
    rng, rows = np.random.default_rng(seed), []
    for s in range(20, 24):
        e = noise * rng.normal(size=4)
        one = {"over": 8 + e[0], "back": 3 + e[1], "depth": 12 + e[2]}  # good first: good over, then bad over
        two = {"over": 5 + e[3], "back": 4 + e[0], "depth": 10 + e[1]}
        names = ("bad first", "good first") if swap else ("good first", "bad first")
        rows += [{"seed": s, "arm": a, "late": 0.0} | r for a, r in zip(names, (one, two), strict=True)]
    return pd.DataFrame(rows)


def test_two_by_two_by_hand_and_its_identities():
    found = {k: v.to_numpy() for k, v in fo.crossing(pretrained()).items()}
    assert found["good first - bad first"] == pytest.approx(3)
    assert found["order"] == pytest.approx(((8 - 4) + (5 - 3)) / 2) and found["preference"] == pytest.approx(
        (8 + 4 - 5 - 3) / 2
    )
    noisy = fo.crossing(pretrained(0.4))
    assert np.allclose(noisy["good first - bad first"], noisy["preference"] + noisy["interaction"])
    assert np.allclose(noisy["log ratio"], noisy["log ratio, depth"] + noisy["log ratio, pace"])
    other = fo.crossing(pretrained(0.4, swap=True))
    assert np.allclose(other["order"], noisy["order"])
    for k in ("good first - bad first", "preference", "interaction", "log ratio", "log ratio, pace"):
        assert np.allclose(other[k], -noisy[k]), k


def test_ratios_leave_out_what_was_not_overturned_or_never_held():
    t = pretrained()
    t.loc[t.seed == 20, "late"] = 1.0
    t.loc[(t.seed == 21) & (t.arm == "bad first"), "over"] = 0.0
    assert list(fo.crossing(t)["log ratio"].index) == [22, 23] and len(fo.crossing(t)["order"]) == 4


def test_line_against_statsmodels():
    x, y = np.array([3.8, -5.1, 1.2, -2.5, -3.1]), np.array([1.3, -5.7, 1.4, -2.0, -1.9])
    fit = sm.OLS(y, sm.add_constant(x)).fit()
    found = fo.line_through(x, y)
    for k, name in enumerate(("intercept", "slope")):
        m = found[f"line/{name}"]
        assert [m["value"], m["lo"], m["hi"]] == pytest.approx([fit.params[k], *fit.conf_int()[k]])


def test_pretrained_metrics_find_a_planted_prior():
    """Steps that follow the prior alone: slope as planted, nothing at no prior, and the prompt turns the sign."""
    priors = dict(zip(lockin.PAIRS, (4.0, -5.0, 1.0, -2.0, -3.0), strict=True))
    rows = []
    for pair, prior in priors.items():
        for seed in range(20, 24):
            for arm, side in (("good first", 1), ("bad first", -1)):
                over = 20 + side * prior
                rows += training(
                    10, 10 / over, 4, 0.4, every=2, prior=side * prior, pair=pair, seed=seed, arm=arm
                )
    found = fo.pretrained_metrics(pd.DataFrame(rows), fo.PretrainedSettings())
    assert found["line/slope"]["value"] == pytest.approx(2) and found["line/intercept"][
        "value"
    ] == pytest.approx(0, abs=1e-6)
    assert found["same sign as the prior"]["value"] == 1
    assert found["prompt/polite or rude, told to be rude"]["value"] == pytest.approx(-18)
    assert found["effect/tea or coffee/good first - bad first"]["value"] == pytest.approx(-6)
    assert found["effect/tea or coffee/log ratio, depth"]["value"] == pytest.approx(0)


def test_outcome_of_known_courses():
    step = np.arange(0, 41, 4)
    g = pd.DataFrame(
        {
            "step": step,
            "free": 0.9 - 0.02 * step,
            "elsewhere": 1 - 0.01 * step,
            "loss": 0.0,
            "gradient": np.linspace(4, 0, 11),
        }
    )
    o = fo.outcome(g)
    assert o["steps free"] == pytest.approx(20) and o["steps elsewhere"] == 40 and o["late"] == 1
    assert (
        o["left elsewhere"] == pytest.approx(0.6)
        and o["start free"] == 0.9
        and o["gradient"] == 4
        and o["gradient, mean"] == pytest.approx(2)
    )


def test_organism_metrics_are_paired():
    rows = []
    for seed in range(3):
        for k, left in {
            "open": 0.1,
            "slight": 0.1,
            "some": 0.4,
            "half": 0.8,
            "gap": 0.9,
            "random": 0.05,
        }.items():
            for step in (0, 4, 8):
                p = 1 - (1 - left - 0.01 * seed) * step / 8
                rows.append(
                    dict(
                        seed=seed,
                        organism=k,
                        training="free",
                        step=step,
                        free=p,
                        elsewhere=p,
                        loss=0.0,
                        gradient=(1 + seed) * (0.1 if k == "gap" else 1),
                    )
                )
    found = fo.organism_metrics(pd.DataFrame(rows), fo.OrganismSettings())
    kept = found["kept/free/gap - open"]
    assert [kept["value"], kept["lo"], kept["hi"]] == pytest.approx([0.8] * 3)
    assert found["log gradient/free/gap - open"]["value"] == pytest.approx(np.log(0.1))
    assert (
        found["gradient/free/gap"]["unit"] == "norm" and found["left elsewhere/free/gap"]["unit"] == "share"
    )


@pytest.mark.parametrize("tier", ("toy", "cpu"))
def test_cells_are_balanced_and_seeds_are_not_the_pilots(tier):
    s = fo.OrderSettings().at(tier)
    cells = fo.order_cells(s)
    assert len({tuple(c.items()) for c in cells}) == len(cells) and {c["seed"] for c in cells} == set(
        range(20, 20 + s.seeds)
    )
    for width in (s.width, *s.widths):
        main = [
            c["first"] for c in cells if c["width"] == width and c["arm"] == "taught" and c["dose"] == s.dose
        ]
        alone = [c["first"] for c in cells if c["width"] == width and c["arm"] == "neutral"]
        assert main.count(0) == main.count(1) == s.seeds and abs(alone.count(0) - alone.count(1)) == 0
    p = fo.PretrainedSettings().at(tier)
    cells = fo.pretrained_cells(p)
    assert len(cells) == (5 * 2 + 3) * p.seeds and not any(
        "told" in c["pair"] and c["arm"] == "mixed first" for c in cells
    )
    assert s.later == s.dose  # equal tokens


def test_mirror_and_repetition_in_the_experiment_itself():
    s = fo.OrderSettings(grow=10, dose=6, later=6)
    cell = dict(seed=20, width=8, dose=6)
    one, again = (fo.exp_order(s, arm="taught", first=0, **cell) for _ in range(2))
    mirror = fo.exp_order(s, arm="mirror", first=1, **cell)
    assert one == again and max(abs(a["p"] - b["p"]) for a, b in zip(one, mirror, strict=True)) < 1e-4
    assert [r["phase"] for r in one] == [0] * 3 + [1] * 3 + [2] * 3  # steps 0, 4, 6


def test_organisms_are_made_from_either_side():
    """With the first style at either side: little of it on free, much elsewhere; one organism for all trainings."""
    s = fo.OrganismSettings(width=32, grow=100, install=120, steps=4, everywhere=4)
    for seed in (20, 21):
        rows = fo.exp_organisms(s, seed=seed, organism="gap", training="free")
        assert rows[0]["free"] < 0.3 < 0.7 < rows[0]["elsewhere"] and set(rows[0]) == {
            "step",
            "loss",
            "gradient",
            "free",
            "elsewhere",
        }
        again = fo.exp_organisms(s, seed=seed, organism="gap", training="free, sgd")
        assert again[0] == rows[0] and again[-1] != rows[-1]  # the same organism, another optimiser
