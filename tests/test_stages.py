"""Oracles for comparisons: closed form of two players, Bradley-Terry as a logistic regression, known length effects."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import statsmodels.api as sm

from alignbook.judging import LogProbJudge, Rule, rude
from alignbook.models import LM, attach_lora, copy_lm, tiny
from alignbook.runtime import AlignbookError
from alignbook.sampling import Server
from alignbook.stages import compare, independent, matches, stage_elo


def duel(wins, n, ties=0):
    good = lambda i, s: 0 if i >= n - ties else int((i < wins) == (s == "new"))  # noqa: E731
    return [{"stage": s, "item": i, "good": good(i, s)} for i in range(n) for s in ("new", "old")]


@pytest.mark.parametrize("wins,n,ties", [(60, 80, 0), (30, 40, 0), (20, 40, 10)])
def test_elo_of_two_stages_is_the_closed_form(wins, n, ties):
    w = (wins + ties / 2) / n
    table = stage_elo(duel(wins, n, ties), "good", anchor="old", prior=0.0, n_boot=200)
    assert table.loc["new", "value"] == pytest.approx(400 * math.log10(w / (1 - w)), abs=1e-4)
    new = table.loc["new"]
    assert table.loc["old", "value"] == 0 and new.lo < new.value < new.hi


def test_elo_of_four_stages_is_the_logistic_regression_of_statsmodels():
    rng, strength = np.random.default_rng(0), {"a": 0.0, "b": 0.5, "c": 1.0, "d": -0.5}
    rows = [{"stage": s, "item": i, "good": rng.gumbel() + v} for i in range(300) for s, v in strength.items()]
    m, names = matches(rows, "good"), list(strength)
    X = np.stack([(m.a == s).astype(float) - (m.b == s).astype(float) for s in names[1:]], 1)
    fit = sm.GLM(m.score.to_numpy(), X, family=sm.families.Binomial()).fit()
    table = stage_elo(rows, "good", anchor="a", prior=0.0, n_boot=20)
    assert table.loc[names[1:], "value"].tolist() == pytest.approx((fit.params * 400 / math.log(10)).tolist(), abs=0.05)


def test_matches_by_hand():
    rows = [
        {"stage": s, "item": i, "harm": h, "evasive": e, "words": w}
        for s, i, h, e, w in (
            ("x", 0, 0, 1, 5), ("y", 0, 0, 0, 3), ("x", 1, 1, 0, 2), ("y", 1, 0, 0, 2), ("x", 2, 0, 0, 1),
        )
    ]  # fmt: skip
    assert matches(rows, "-harm").score.tolist() == [0.5, 0]
    both = matches(rows, ["-harm", "-evasive"])
    assert both.score.tolist() == [0, 0] and both.words.tolist() == [2, 0] and both["item"].tolist() == [0, 1]
    assert matches(rows, "harm").score.tolist() == [0.5, 1]
    nan = [r | {"harm": math.nan} if r["item"] == 1 else r for r in rows]
    assert matches(nan, "-harm")["item"].tolist() == [0]
    samples = [{"stage": s, "item": 0, "sample": k, "good": k} for s in "xy" for k in range(3)]
    assert matches(samples, "good").score.tolist() == [0.5] * 3  # sample meets its counterpart
    with pytest.raises(AlignbookError, match="no 'help'"):
        matches(rows, "help")
    with pytest.raises(AlignbookError, match="nothing to compare"):
        matches(rows[:1], "harm")


def test_compare_counts_and_equal_lengths_change_nothing():
    rows = [{"item": i, "good": int(i < 60), "words": 7} for i in range(100)]
    other = [{"item": i, "good": int(i >= 80), "words": 7} for i in range(100)]
    got = compare(rows, other, "good")
    assert (got.win, got.tie, got.loss) == (60, 20, 20) and got.rate.value == 0.7 and got.rate.n == 100
    assert got.equal_length.value == pytest.approx(0.7, abs=0.002) and not got.rate.excludes(0.7)
    back = compare(other, rows, "good")
    assert (back.win, back.loss) == (20, 60) and back.equal_length.value == pytest.approx(1 - got.equal_length.value)


@pytest.mark.parametrize("edge", [0.0, 1.0])
def test_length_control_recovers_the_rate_at_equal_length(edge):
    rng, n = np.random.default_rng(1), 4000
    d = rng.normal(4, 4, n)
    won = rng.random(n) < 1 / (1 + np.exp(-(edge + 2 * np.tanh(d / d.std()))))
    a = [{"item": i, "good": int(w), "words": x} for i, (w, x) in enumerate(zip(won, d, strict=True))]
    b = [{"item": i, "good": 1 - r["good"], "words": 0.0} for i, r in enumerate(a)]
    got = compare(a, b, "good", n_boot=50)
    assert got.equal_length.value == pytest.approx(1 / (1 + math.exp(-edge)), abs=0.04)
    assert got.rate.value > got.equal_length.value + 0.1


def test_intervals_are_over_items():
    "Ten copies of each reply carry no more information than one."
    one = [{"item": i, "sample": 0, "good": int(i % 3 > 0)} for i in range(30)]
    ten = [r | {"sample": k} for r in one for k in range(10)]
    zero = lambda rows: [r | {"good": 1 - r["good"]} for r in rows]  # noqa: E731
    few, many = (compare(r, zero(r), "good").rate for r in (one, ten))
    assert many.n == 30 and (many.lo, many.hi) == pytest.approx((few.lo, few.hi), abs=0.02)


@pytest.fixture
def feedback():
    return tiny(["A", "B"], layers=1, width=32, seed=1)


def test_a_judge_built_on_the_feedback_model_is_refused(feedback):
    ask = "{first} {second}"

    @dataclass
    class Wraps:
        inner: object

    hidden = lambda lm: lambda items: [lm.size for _ in items]  # noqa: E731
    for judge in (
        feedback, copy_lm(feedback), LogProbJudge(feedback, ask), LogProbJudge(copy_lm(feedback), ask),
        hidden(feedback), Wraps([LogProbJudge(feedback, ask)]), Rule("sly", hidden(feedback)),
        {"help": LogProbJudge(feedback, ask)}, LogProbJudge(feedback, ask).__call__,
    ):  # fmt: skip
        with pytest.raises(AlignbookError, match="gave the training signal"):
            independent(judge, feedback)


def test_a_model_trained_from_the_feedback_model_is_refused_by_name(feedback):
    named = LM(feedback.model, feedback.tok, "smollm2-135m")
    child = LM(tiny(["A"], seed=5).model, feedback.tok, "smollm2-135m+sft")
    for judge in (child, attach_lora(copy_lm(named)), Server("http://a/v1", "smollm2-135m")):
        with pytest.raises(AlignbookError, match="another model or a rule"):
            independent(LogProbJudge(judge, "{first}"), rude(), named)


def test_other_judges_pass(feedback):
    other = LogProbJudge(tiny(["A", "B"], layers=1, width=32, seed=2), "{first} {second}")
    for judge in (rude(), other, LogProbJudge(Server("http://a/v1", "large"), "{first}")):
        assert independent(judge, feedback, Server("http://b/v1", "small")) is judge
