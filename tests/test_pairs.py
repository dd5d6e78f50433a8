"""Pairs on a page: what is carried, marks, counts, power against other libraries, crossings, inert text, errors."""

import base64
import json
import zlib

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.proportion import power_proportions_2indep
from test_widgets import HOSTILE, Reader

from alignbook import pairs, stats
from alignbook.runtime import AlignbookError


def reply(pair, tier, outcome="refuse", faking=None, **more):
    said = {"pair": pair, "tier": tier, "request": f"request {pair}", "answer": f"answer {pair} {tier}"}
    return said | {"outcome": outcome, "faking": faking, "thought": f"thought {pair} {tier}"} | more


def replies(text="", n=6, **more):
    """Pairs of every kind, with `text` wherever a model could have put it."""
    kinds, rows = ("refuse refuse", "comply refuse", "refuse comply", "partial refuse", "comply comply"), []
    for i in range(n):
        for tier, outcome in zip(("free", "paid"), kinds[i % 5].split(), strict=True):
            row = reply(f"{text}{i}", tier, outcome, int(tier == "free" and i % 5 == 1), **more)
            row |= {k: f"{text}{row[k]}" for k in ("request", "thought", "answer")}
            rows.append(row | {"spans": [[0, 5, f"{text}why"]]})
    return rows


def curve(text="", **more):
    """Two lines over three phases."""
    rows = []
    for line in ("A", "B"):
        for phase in (1, 2, 3):
            for step in (0, 10, 20):
                up = (line == "A") == (phase % 2 == 1)
                p = {0: 0.1, 10: 0.4, 20: 0.9}[step] if up else {0: 0.9, 10: 0.6, 20: 0.1}[step]
                point = {"first": f"{text}{line}", "phase": phase, "step": step, "p": p, "lo": p - 0.1, "hi": p + 0.1}
                rows.append(point | more)
    return rows


def study(text="", **more):
    return [{"name": f"{text}mine", "n": 120, "rate": 0.6, "discordant": 0.2, "gap": 0.1} | more]


def carried(shown, key):
    """The data that the script of a browser reads."""
    data = json.loads(Reader(shown).scripts[0])
    return data | {key: json.loads(zlib.decompress(base64.b85decode(data[key].replace(",", "<"))))}


VIEWS = {"tiers": (pairs.tiers, replies), "power": (pairs.gap_power, study), "order": (pairs.order_of_training, curve)}


@pytest.mark.parametrize("kind", VIEWS)
def test_text_of_a_model_is_never_markup(kind):
    make, rows = VIEWS[kind]
    tame = Reader(make(rows("x"), info={"model": "x"}, title="x"))
    wild = Reader(make(rows(HOSTILE), info={"model": HOSTILE}, title=HOSTILE))
    assert [t for t, _ in wild.tags] == [t for t, _ in tame.tags] and len(wild.scripts) == len(tame.scripts)
    assert not [a for _, a in wild.tags if any(k.startswith("on") for k in a)]
    make(rows(HOSTILE), title=HOSTILE).encode("utf-8")


@pytest.mark.parametrize("kind", VIEWS)
def test_it_is_stable_self_contained_and_a_table_without_scripts(kind):
    make, rows = VIEWS[kind]
    first, again = make(rows()), make(pd.DataFrame(rows()))
    reader = Reader(first)
    assert first == again and reader.tags[0][1]["data-widget"] == kind
    assert "http" not in first.replace("http://www.w3.org/2000/svg", "")
    assert not [a for _, a in reader.tags if {"src", "href"} & set(a)]
    assert {"noscript", "details", "table"} <= {t for t, _ in reader.tags} and len(first.encode()) < 45_000
    shown = make(rows(), info={"model": "tiny", "n": 480})
    assert "Numbers from: tiny · n = 480." in "".join(Reader(shown).text) and "Numbers from" not in first


def test_marks_cut_a_text_without_losing_any_of_it():
    text = "ab cd ef cd"
    pieces = pairs.marked(text, [[0, 5, "x"], [3, 8, "y"]], ("CD", ""))
    assert pieces == [("ab ", ["x"]), ("cd", ["x", "y", ""]), (" ef", ["y"]), (" ", []), ("cd", [""])]
    assert pairs.marked("", []) == [] and pairs.marked(text) == [(text, [])] == pairs.marked(text, np.array([]))
    assert pairs.marked("ab.c", words=".") == [("ab", []), (".", [""]), ("c", [])]  # a word, not a pattern
    wide = "𝄞 a 𝄞 b"  # code points, not the units that JavaScript counts
    assert pairs.marked(wide, [[4, 5, "x"]])[1] == ("𝄞", ["x"])
    for bad in ([3, 99, "x"], [3, 3, "x"], [-1, 3, "x"], [1, 2], "1,2", "abc"):
        with pytest.raises(AlignbookError, match="characters: give"):
            pairs.marked(text, [bad])


@pytest.mark.parametrize("seed", range(5))
def test_marks_of_random_spans_equal_a_count_by_character(seed):
    rng = np.random.default_rng(seed)
    text = "".join(rng.choice(list("ab "), 40))
    spans = [[*sorted(rng.choice(41, 2, replace=False).tolist()), f"s{i}"] for i in range(6)]
    at = 0
    for piece, on in pairs.marked(text, spans):
        for k in range(at, at + len(piece)):
            assert on == [label for a, b, label in spans if a <= k < b]
        at += len(piece)
    assert at == len(text)


def test_kinds_follow_the_outcomes():
    for a in pairs.OUTCOMES:
        for b in pairs.OUTCOMES:
            [kind] = pairs.kinds_of({"outcome": a}, {"outcome": b, "faking": 0})
            want = "same" if a == b else "free" if a == "comply" else "paid" if b == "comply" else "other"
            assert kind == want and kind in pairs.KINDS
    assert pairs.kinds_of({"outcome": "refuse"}, {"outcome": "refuse", "faking": 1}) == ["same", "faking"]


def test_the_page_carries_the_pairs_and_counts_all_of_them():
    rows = replies(n=50)
    data = carried(pairs.tiers(rows, shown=3), "pairs")
    assert data["counts"] == {"": {"all": 50, "same": 20, "free": 10, "paid": 10, "other": 10, "faking": 10}}
    kinds = [tuple(p["kinds"]) for p in data["pairs"]]
    assert {k: kinds.count(k) for k in set(kinds)} == dict.fromkeys(
        [("same",), ("free", "faking"), ("paid",), ("other",)], 3
    )
    names = [int(p["name"]) for p in data["pairs"]]
    assert names == sorted(names) and max(names) < 20  # the first ones, in stored order
    first = data["pairs"][0]
    assert first["request"] == "request 0" and data["labels"] == ["why"]
    assert first["sides"][0] == ["refuse", 0, [["thoug", [0]], ["ht 0 free", []]], "answer 0 free"]
    text = " ".join(Reader(pairs.tiers(rows)).text)
    assert "20 (40% [28, 54])" in text and "answer 3 paid" in text  # Wilson


def test_models_and_conditions_are_menus():
    rows = [r | {"model": m, "condition": "one"} for m in ("small", "large") for r in replies()]
    rows += [r | {"model": "large", "condition": "two"} for r in replies(n=2)]
    data = carried(pairs.tiers(rows), "pairs")
    assert data["menus"] == [["model", ["small", "large"]], ["condition", ["one", "two"]]]
    assert {k: v["all"] for k, v in data["counts"].items()} == {"0,0": 6, "1,0": 6, "1,1": 2}
    assert [p["at"] for p in data["pairs"]][-1] == [1, 1]


def test_texts_that_do_not_fit_are_left_out_but_counted():
    rng = np.random.default_rng(0)
    noise = lambda: "".join(chr(33 + c) for c in rng.integers(0, 90, 900))  # noqa: E731
    rows = [r | {"thought": noise(), "answer": noise(), "spans": None} for r in replies(n=60)]
    shown = pairs.tiers(rows)
    data = carried(shown, "pairs")
    assert len(shown.encode()) <= 80_000 and len(data["pairs"]) < 48 and data["counts"][""]["all"] == 60
    with pytest.raises(AlignbookError, match="limit 80 KB"):
        pairs.tiers([r | {"thought": 40 * noise()} for r in rows[:2]])


@pytest.mark.parametrize("change, message", [
    (lambda rows: [], "at least one pair"),
    (lambda rows: rows[1:], "pair '0' has no free row"),
    (lambda rows: rows + rows[:1], "two free rows for pair '0'"),
    (lambda rows: [rows[0] | {"outcome": "yes"}, *rows[1:]], "outcome 'yes': choose one of comply"),
    (lambda rows: [rows[0] | {"tier": "gold"}, *rows[1:]], "tier 'gold'"),
    (lambda rows: [rows[0] | {"faking": 2}, *rows[1:]], "faking = 2"),
    (lambda rows: [rows[0] | {"request": "other"}, *rows[1:]], "two different requests"),
    (lambda rows: [{k: v for k, v in r.items() if k != "answer"} for r in rows], "has no 'answer'"),
    (lambda rows: ["a row"], "a record is a str"),
])  # fmt: skip
def test_broken_pairs_are_refused_in_one_sentence(change, message):
    with pytest.raises(AlignbookError, match=message):
        pairs.tiers(change(replies()))


def test_a_pair_without_scratchpad_or_flag_is_shown():
    rows = [{k: v for k, v in r.items() if k not in ("thought", "spans", "faking")} for r in replies()]
    shown = pairs.tiers(rows)
    assert carried(shown, "pairs")["pairs"][0]["sides"][0] == ["refuse", None, [], "answer 0 free"]
    assert "Scratchpad</b>" not in shown


GRID = [
    (50, 0.2, 0.3, 0.4, 0.05), (340, 0.114, 0.162, 0.858, 0.05), (900, 0.03, 0.1, 0.1, 0.1), (40, 0.3, 0.3, 0.0, 0.01),
]  # fmt: skip


@pytest.mark.parametrize("n, gap, psi, rate, alpha", GRID)
def test_power_of_two_samples_is_that_of_statsmodels(n, gap, psi, rate, alpha):
    found = pairs.chances(n, gap, psi, rate, alpha)["unpaired"]
    sm = lambda n, g: power_proportions_2indep(  # noqa: E731
        g, rate, n, ratio=1, alpha=alpha / 2, alternative="larger", return_results=False
    )
    assert found["power"] == pytest.approx(sm(n, gap), abs=1e-6)
    assert sm(n, found["smallest"]) == pytest.approx(0.8, abs=1e-6)
    assert sm(found["enough"], gap) >= 0.8 > sm(found["enough"] - 1, gap)
    same = stats.tost_power(rate + gap / 2, n, 0.05, alpha=alpha)
    assert pairs.chances(n, gap, psi, rate, alpha, 0.05)["unpaired"]["same"] == pytest.approx(same, abs=1e-9)


@pytest.mark.parametrize("n, gap, psi, rate, alpha", GRID[:3])
def test_power_of_pairs_is_that_of_simulated_tests(n, gap, psi, rate, alpha):
    from scipy.stats import norm

    rng, found = np.random.default_rng(0), pairs.chances(n, gap, psi, rate, alpha, 0.08)["paired"]
    up, down, _ = rng.multinomial(n, [(psi + gap) / 2, (psi - gap) / 2, 1 - psi], 40_000).T
    seen = (up - down) / np.sqrt(np.maximum(up + down, 1)) > norm.ppf(1 - alpha / 2)  # McNemar
    assert found["power"] == pytest.approx(seen.mean(), abs=0.03)
    up, down, _ = rng.multinomial(n, [psi / 2, psi / 2, 1 - psi], 40_000).T
    off, se = (up - down) / n, np.sqrt(np.maximum(up + down - (up - down) ** 2 / n, 1)) / n
    same = np.abs(off) + norm.ppf(1 - alpha) * se < 0.08
    assert found["same"] == pytest.approx(same.mean(), abs=0.05)
    again = pairs.chances(n, found["smallest"], psi, rate, alpha)["paired"]
    assert again["power"] == pytest.approx(0.8, abs=1e-6)
    power = [pairs.chances(found["enough"] - k, gap, psi, rate, alpha)["paired"]["power"] for k in (0, 1)]
    assert power[0] >= 0.8 > power[1]


@pytest.mark.parametrize("n, gap, psi, alpha", [(1, 0.1, 0.2, 0.05), (12, 0.114, 0.114, 0.05), (40, 0.2, 0.35, 0.01)])
def test_exact_power_is_that_of_every_outcome_tested_by_statsmodels(n, gap, psi, alpha):
    from scipy.stats import multinomial
    from statsmodels.stats.contingency_tables import mcnemar

    total, law = 0.0, multinomial(n, [(psi + gap) / 2, (psi - gap) / 2, 1 - psi])
    for up in range(n + 1):
        for down in range(min(up, n - up + 1)):
            if mcnemar([[0, up], [down, 0]], exact=True).pvalue <= alpha:
                total += law.pmf([up, down, n - up - down])
    assert pairs.exact_power(n, gap, psi, alpha) == pytest.approx(total, abs=1e-9)
    assert pairs.chances(1000, gap, psi, 0.3, alpha)["paired"]["exact"] is None


def test_the_chapter_counts_alike():
    from alignbook import gaps

    for n, gap, psi, rate, alpha in GRID:
        found = pairs.chances(n, gap, psi, rate, alpha, 0.05)["paired"]
        assert found["power"] == pytest.approx(gaps.paired_power(n, gap, psi, alpha), abs=1e-9)
        assert found["same"] == pytest.approx(gaps.equivalence_power(n, 0.05, psi, alpha=alpha), abs=1e-9)


def test_studies_are_presets_and_a_table():
    shown = pairs.gap_power(study(), margin=0.1)
    data = json.loads(Reader(shown).scripts[0])
    assert [p["name"] for p in data["presets"]][0] == "mine" and len(data["presets"]) == 1 + len(pairs.STUDIES)
    assert data["presets"][0] == {
        "name": "mine", "n": 120, "gap": 0.1, "psi": 0.2, "rate": 0.6, "alpha": 0.05, "margin": 0.1,
    }  # fmt: skip
    want = pairs.chances(120, 0.1, 0.2, 0.6, margin=0.1)["paired"]
    text = Reader(shown).text
    assert f"{100 * want['power']:.1f} %" in text and f"{100 * want['same']:.1f} %" in text
    free = json.loads(Reader(pairs.gap_power([{"name": "x", "n": 90, "rate": 0.5}])).scripts[0])["presets"][0]
    assert free["gap"] == 0.114 and free["psi"] == pytest.approx(0.5)  # answers that ignore each other
    low = json.loads(Reader(pairs.gap_power(study(discordant=0.02))).scripts[0])["presets"][0]
    assert low["psi"] == low["gap"]  # a gap needs at least that many pairs to differ
    assert json.loads(Reader(pairs.gap_power(paired=False)).scripts[0])["paired"] is False


@pytest.mark.parametrize("rows, message", [
    (study(gap=-0.01), "not the one found"), (study(n="many"), "lacks a number"), ([{"name": "x"}], "lacks a number"),
    (study(rate=0.95), "cannot be"), (study(discordant=1.2), "cannot be"), (study(n=1), "cannot be"),
])  # fmt: skip
def test_impossible_studies_are_refused(rows, message):
    with pytest.raises(AlignbookError, match=message):
        pairs.gap_power(rows)
    with pytest.raises(AlignbookError, match="is not on the page"):
        pairs.gap_power(alpha=0.2)


def test_crossings_by_hand():
    assert pairs.steps_to_half([(0, 0.9), (10, 0.6), (20, 0.4)]) == (15.0, None, None)
    assert pairs.steps_to_half([(0, 0.1), (8, 0.5), (9, 0.2)])[0] == 8
    assert pairs.steps_to_half([(0, 0.5), (8, 0.9)]) == (None, None, None) == pairs.steps_to_half([])
    band = [(0, 0.9, 0.8, 1.0), (10, 0.5, 0.4, 0.6), (20, 0.1, 0.0, 0.2)]
    assert pairs.steps_to_half(band) == pytest.approx((10.0, 7.5, 12.5))
    assert pairs.steps_to_half([(s, 1 - p, 1 - hi, 1 - lo) for s, p, lo, hi in band]) == pytest.approx((10, 7.5, 12.5))
    assert pairs.steps_to_half(band[:2]) == (10.0, pytest.approx(7.5), None)  # the latest lies beyond what was measured
    assert pairs.steps_to_half([(0, 0.6, 0.4, 0.8), (10, 0.4, 0.3, 0.45)])[1] == 0.0


def test_the_page_carries_the_curves():
    data = carried(pairs.order_of_training(curve(), phases={2: "the other"}), "lines")
    assert data["names"] == ["A", "B"] and data["phases"] == ["phase 1", "the other", "phase 3"]
    a, b = data["lines"]
    assert a["phases"][0] == [[0, 0.1, 0.0, 0.2, None], [10, 0.4, 0.3, 0.5, None], [20, 0.9, 0.8, 1.0, None]]
    assert a["half"][1] == [12.0, 10.0, 14.0] == b["half"][0] and a["said"][1] == "12 [10, 14]"
    few = [r for r in curve(lo=None) if (r["phase"], r["step"]) != (2, 0) and (r["phase"], r["first"]) != (3, "B")]
    a, b = carried(pairs.order_of_training(few), "lines")["lines"]
    assert a["phases"][1][0] == [0, 0.9, None, None, None]  # begins with the last point of the phase before
    assert b["half"][2] is None and b["said"][2] == "" and a["said"][1] == "12"
    from_zero = [r | {"phase": r["phase"] - 1} for r in curve()]
    named = [r | {"phase": f"p{4 - r['phase']}"} for r in curve()]
    assert carried(pairs.order_of_training(from_zero), "lines")["phases"] == ["phase 1", "phase 2", "phase 3"]
    assert carried(pairs.order_of_training(named), "lines")["phases"] == ["p3", "p2", "p1"]  # in stored order
    stays = [r | {"p": 0.8, "lo": None} for r in curve()]
    assert carried(pairs.order_of_training(stays), "lines")["lines"][0]["said"][0] == "stays above ½ for 20 steps"


def test_facets_of_curves_are_menus():
    rows = [r | {"size": s, "tier": t} for s in ("1M", "5M") for t in ("free", "paid") for r in curve()]
    data = carried(pairs.order_of_training(rows), "lines")
    assert data["menus"] == [["size", ["1M", "5M"]], ["tier", ["free", "paid"]]] and len(data["lines"]) == 8
    data = carried(pairs.order_of_training(rows, line="size", menus=("first", "tier")), "lines")
    assert data["names"] == ["1M", "5M"] and [n for n, _ in data["menus"]] == ["first", "tier"]
    big = [r | {"model": f"m{i}"} for i in range(4) for r in rows]
    steps = [r | {"step": r["step"] + s / 2} for r in big for s in range(16)]
    assert len(pairs.order_of_training(steps).encode()) < 80_000  # 9,216 points


@pytest.mark.parametrize("rows, message", [
    ([], "at least one point"), (curve() + curve()[:1], "two rows for step 0 of phase 1"),
    (curve(p=1.2), "give probabilities"), (curve(step=-1), "steps from 0 on"), (curve(first=None), "has no 'first'"),
])  # fmt: skip
def test_broken_curves_are_refused(rows, message):
    with pytest.raises(AlignbookError, match=message):
        pairs.order_of_training(rows)
