"""Judges against hand-made answers; the exam against statsmodels and scipy."""

import json
import math
import random

import pytest
import torch
from scipy.stats import mannwhitneyu
from statsmodels.stats.proportion import proportion_confint

from alignbook.judging import (
    EXAMS,
    Exam,
    LogProbJudge,
    Rule,
    all_caps,
    auroc,
    contains,
    exact,
    exam,
    exam_items,
    pirate,
    polite,
    regex,
    require,
    rude,
)
from alignbook.models import tiny
from alignbook.runtime import AlignbookError
from alignbook.sampling import sequence_logprob

YEAR = r"\b(?:19|20)\d\d(?!\d)"


@pytest.mark.parametrize(
    "judge,text,want",
    [
        (contains("I hate you"), "so: i\nHATE   you!", 1),
        (contains("I hate you"), "I hate young cats", 0),
        (contains("C++"), "I like C++.", 1),
        (contains("a.b"), "axb", 0),
        (regex(YEAR), "in 2024", 1),
        (all_caps(), "ÄRGER!", 1),
        (all_caps(), "Loud", 0),
        (exact("42"), "'42.'", 1),
        (exact("42"), "142", 0),
        (pirate(), "ARRR", 1),
        (pirate(), "I see ye, ye and ye", 0),  # one hint three times is one hint
        (pirate(), "marry the arrow", 0),
        (rude(), "Shut\nup", 1),
        (rude(), "foolish", 0),
        (polite(), "Please shut up", 0),
        (polite(), "Thanks!", 1),
    ],
)
def test_rules(judge, text, want):
    assert judge([text, {"text": text, "other": 1}]) == [want, want]


@pytest.mark.parametrize(
    "judge", [contains("x"), regex("x"), all_caps(), exact("x"), pirate(), rude(), polite()]
)
def test_every_rule_abstains_on_an_empty_text(judge):
    assert all(math.isnan(v) for v in judge(["", " \n"]))


def test_bad_rules_and_items_are_refused():
    with pytest.raises(AlignbookError, match="regular expression"):
        regex("(")
    with pytest.raises(AlignbookError, match="needs a phrase"):
        contains(" ")
    with pytest.raises(AlignbookError, match="'text'"):
        rude()([{"a": 1}])


@pytest.mark.parametrize(
    "judge,items",
    [
        (all_caps(), exam_items("all_caps")),
        (regex(YEAR), exam_items("regex")),
        (pirate(), exam_items("pirate")),
        (rude(), exam_items("rude")),
        (polite(), exam_items("polite")),
        *[(contains(t), exam_items("contains", t)) for t in ("I hate you", "good morning", "banana")],
        *[(exact(t), exam_items("exact", t, "Rome")) for t in ("Paris", "forty two", "42")],
    ],
)
def test_rule_judges_pass_their_exam(judge, items):
    labels = [i["label"] for i in items]
    assert len(items) >= 30 and 0.4 < sum(labels) / len(labels) < 0.6
    assert "{" not in "".join(i["text"] for i in items)
    require(exam(judge, items), 0.95)


def test_the_exams_can_be_failed():
    "A rule without the care that the traps ask for does not pass."
    careless = {
        "pirate": lambda t: "ye" in t.lower() or "arr" in t.lower(),
        "rude": lambda t: "stupid" in t,
        "polite": lambda t: "please" in t.lower() or "thank" in t,
        "all_caps": lambda t: any(w.isupper() and len(w) > 1 for w in t.split()),
        "contains": lambda t: "good morning" in t,
        "regex": lambda t: any(c in t for c in ("19", "20")),
        "exact": lambda t: "good morning" in t.lower(),
    }
    assert set(careless) == set(EXAMS)
    for name, test in careless.items():
        with pytest.raises(AlignbookError, match="below"):
            require(exam(Rule(name, test), exam_items(name)))
    with pytest.raises(AlignbookError, match="unknown exam"):
        exam_items("kindness")


def test_exam_counts_and_abstentions():
    scores = {"a": 0.9, "b": 0.2, "c": 0.8, "d": 0.1, "e": math.nan, "f": 0.5}
    labels = {"a": 1, "b": 1, "c": 0, "d": 0, "e": 1, "f": 0}
    judge = Rule("table", scores.get)
    got = exam(judge, [{"text": t, "label": labels[t]} for t in scores])
    assert (got.tp, got.fn, got.fp, got.tn, got.abstained, got.n) == (1, 1, 1, 2, 1, 6)
    assert got.accuracy == 0.5 and got.mistakes == (1, 2, 4)
    want = mannwhitneyu([0.9, 0.2], [0.8, 0.1, 0.5]).statistic / 6
    assert got.auroc == pytest.approx(want)


def test_auroc_with_ties_is_mann_whitney():
    rng = random.Random(0)
    pos, neg = ([rng.randint(0, 4) / 4 + shift for _ in range(30)] for shift in (0.25, 0))
    assert auroc(pos, neg) == pytest.approx(mannwhitneyu(pos, neg).statistic / 900)
    assert math.isnan(auroc([], neg))


@pytest.mark.parametrize("k,n", [(0, 10), (7, 10), (10, 10), (95, 100)])
def test_interval_is_wilsons(k, n):
    got = Exam("j", "", n, 0, k, n - k, 0, 0, 1.0).interval()
    assert got == pytest.approx(proportion_confint(k, n, method="wilson"), abs=1e-6)


def test_the_exam_travels_as_plain_json():
    silent = exam(Rule("mute", lambda t: math.nan), exam_items("rude"))
    row = silent.to_dict()
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert row["abstained"] == row["n"] == 37 and row["accuracy"] == 0 and row["auroc"] is None
    assert row["items"] == exam(rude(), exam_items("rude")).items != exam(rude(), exam_items("polite")).items


def test_the_exam_hides_the_labels_and_checks_the_judge():
    class Nosy:
        name = "nosy"
        seen: list = []

        def __call__(self, items):
            self.seen += items
            return [2.0] * len(items)

    with pytest.raises(AlignbookError, match="from 0 to 1"):
        exam(Nosy(), [{"text": "x", "label": 1}])
    assert Nosy.seen == [{"text": "x"}]
    for bad in ([], [{"text": "x"}], [{"text": "x", "label": 2}]):
        with pytest.raises(AlignbookError, match="label"):
            exam(rude(), bad)


def test_a_judge_that_skips_items_is_refused():
    class Short:
        name = "short"

        def __call__(self, items):
            return [1.0]

    with pytest.raises(AlignbookError, match="each item"):
        exam(Short(), [{"text": "x", "label": 1}] * 2)


TEMPLATE = "q {topic} : {first} or {second} ?"
ITEMS = [{"topic": "t", "a": "x", "b": "y"}, {"topic": "u", "a": "y", "b": "z {t}"}]


@pytest.fixture
def lm():
    return tiny(["q", ":", "or", "?", "A", "B", "t", "u", "x", "y", "z", "{t}"], width=32, seed=3)


def test_logprob_judge_averages_both_orders(lm):
    lm.model.lm_head.weight.data.mul_(30)  # let the untrained model have opinions
    judge = LogProbJudge(lm, TEMPLATE, min_mass=0.0)
    got = judge.choices(ITEMS)
    for i, item in enumerate(ITEMS):
        said = []
        for x, y in (("a", "b"), ("b", "a")):
            prompt = f"q {item['topic']} : {item[x]} or {item[y]} ?"
            lp = torch.stack([sequence_logprob(lm, [prompt], [o])[0] for o in ("A", "B")])
            said.append((lp.softmax(0)[0].item(), lp.exp().sum().item()))
        assert got.p[i].item() == pytest.approx((said[0][0] + 1 - said[1][0]) / 2, abs=1e-5)
        assert got.first[i].item() == pytest.approx((said[0][0] + said[1][0]) / 2, abs=1e-5)
        assert got.mass[i].item() == pytest.approx((said[0][1] + said[1][1]) / 2, abs=1e-5)
    swapped = [{**i, "a": i["b"], "b": i["a"]} for i in ITEMS]
    assert judge(swapped) == pytest.approx([1 - p for p in judge(ITEMS)], abs=1e-5)
    assert (
        judge.bias(ITEMS) == pytest.approx(got.first.mean().item() - 0.5, abs=1e-6)
        and abs(judge.bias(ITEMS)) > 0.01
    )


def test_logprob_judge_abstains_where_neither_label_is_likely(lm):
    mass = LogProbJudge(lm, TEMPLATE).choices(ITEMS).mass
    assert all(m < 0.3 for m in mass)  # 2 of 15 words
    assert all(map(math.isnan, LogProbJudge(lm, TEMPLATE, min_mass=0.3)(ITEMS)))
    assert not any(map(math.isnan, LogProbJudge(lm, TEMPLATE)(ITEMS)))


def test_logprob_judge_names_its_template_and_what_is_missing(lm):
    assert LogProbJudge(lm, TEMPLATE).name != LogProbJudge(lm, TEMPLATE + " ").name
    with pytest.raises(AlignbookError, match="topic"):
        LogProbJudge(lm, TEMPLATE)([{"a": "x", "b": "y"}])
    with pytest.raises(AlignbookError, match="'b'"):
        LogProbJudge(lm, TEMPLATE)([{"topic": "t", "a": "x"}])
