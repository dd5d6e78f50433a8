"Recognition: the pairs carry no cue of length, and the instrument sees what is planted."

import json

import numpy as np
import pandas as pd
import pytest
import torch

from alignbook import data, feedback, stats
from alignbook.experiments import cai_harm as harm
from alignbook.experiments import cai_recognition as rec
from alignbook.judging import LogProbJudge
from alignbook.runtime import AlignbookError
from alignbook.sampling import choice_probs, sequence_logprob

PAIRS = data.sample("cai_hhh")
TOY = rec.RecognitionSettings()


@pytest.fixture(scope="module")
def lm():
    return rec.model_for(TOY)


def words(text):
    return len(text.split())


def test_pairs_are_balanced_by_kind_and_by_length():
    table = pd.DataFrame(PAIRS)
    by_words = table.better.map(words) > table.worse.map(words)
    by_characters = table.better.str.len() > table.worse.str.len()
    assert (by_words == by_characters).all()
    assert set(table.kind) == {"polite", "helpful", "honest", "evasive", "preachy"}
    assert (table.kind.value_counts() == 24).all()
    assert (by_words.groupby(table.kind).sum() == 12).all()
    assert (by_words[:60].groupby(table.kind[:60]).sum() == 6).all(), "the first half is balanced as well"
    assert table.conversation.is_unique and len({*table.better} & {*table.worse}) == 0
    assert abs((table.better.map(words) - table.worse.map(words)).mean()) < 3
    used = {p for f in rec.EXAMPLES for p in f[:1]}
    assert not used & {*table.conversation}, "a worked example must not be a test item"


@pytest.mark.parametrize("form", [*rec.FORMS])
@pytest.mark.parametrize("accuracy", [0.5, 0.75, 1.0])
def test_planted_accuracy_is_measured_in_every_form(form, accuracy):
    """A bias of either sign for a place, and worked examples in front, change nothing."""
    if rec.FORMS[form].thinks or "{conversation}" not in rec.FORMS[form].template.body:
        pytest.skip("a planted judge does not reason, and knows a pair by its conversation")
    for bias in (-3.0, 0.0, 3.0):
        judge = rec.planted(PAIRS, accuracy, 0.8, bias=bias)
        rows, _ = rec.ask_pairs(judge, PAIRS, rec.FORMS[form])
        df = pd.DataFrame(rows)
        assert df.right.mean() == accuracy
        assert np.allclose(df.p.where(df.right, 1 - df.p), 0.8)
        assert ((df.ab + df.ba).mean() / 2 > 0.5) == (bias > 0) or bias == 0


def test_length_is_no_cue():
    for name in ("longer", "shorter"):
        rows = rec.ask_pairs(rec.JUDGES[name](PAIRS), PAIRS, rec.FORMS["plain"])[0]
        df = pd.DataFrame(rows)
        by_side = df.groupby("longer").right.mean().to_list()
        assert df.right.mean() == 0.5 and by_side == [name == "shorter", name == "longer"]


def test_labels_are_those_of_the_loop_and_of_the_judge(lm):
    """Same prompts, same numbers: `feedback.preference_labels`, and the foundation's judge in one order."""
    f, items = rec.FORMS["plain"], [i for i in PAIRS if i["kind"] == "polite"][:4]
    rows = rec.ask_pairs(lm, items, f)[0]
    book = type("Book", (), {"principles": [type("P", (), {"name": "polite", "comparison": "more polite"})]})
    pairs = [(i["better"], i["worse"]) for i in items]
    talks = [i["conversation"] for i in items]
    loop = feedback.preference_labels(lm, talks, pairs, book, template=f.template, min_mass=0)
    assert np.allclose([r["p"] for r in rows], [r["p"] for r in loop], atol=1e-6)
    assert np.allclose([(r["ab"] + r["ba"]) / 2 for r in rows], [r["first"] for r in loop], atol=1e-6)
    judge = LogProbJudge(lm, "{conversation}\nA: {first}\nB: {second}\nThe more polite reply is", (" A", " B"))
    got = judge.choices([i | {"a": i["better"], "b": i["worse"]} for i in items])
    assert np.allclose([(r["ab"] + 1 - r["ba"]) / 2 for r in rows], got.p, atol=1e-5)
    assert np.allclose([r["mass"] for r in rows], got.mass, atol=1e-5)


def test_one_by_one_and_unasked_are_what_they_say(lm):
    item = next(i for i in PAIRS if i["kind"] == "honest")
    odds = []
    for k in ("better", "worse"):
        prompt = f"{item['conversation']}\nAssistant: {item[k]}\nThis reply is"
        good, bad = (sequence_logprob(lm, [prompt], [w])[0] for w in (" true", " false"))
        odds.append(good - bad)
    assert np.isclose(rec.one_by_one(lm, [PAIRS[0], item])[1]["p"], torch.sigmoid(odds[0] - odds[1]), atol=1e-5)
    swapped = item | {"better": item["worse"], "worse": item["better"]}
    for way in rec.ALONE.values():
        a, b = way(lm, [item])[0], way(lm, [swapped])[0]
        assert np.isclose(a["p"], 1 - b["p"], atol=1e-5) and a["right"] != b["right"]


def test_worked_examples_are_balanced_and_go_in_front(lm):
    assert [label for *_, label in rec.EXAMPLES] == ["B", "A", "A", "B"]
    f = rec.FORMS["plain, 4 examples"]
    rows = rec.ask_pairs(lm, PAIRS[:2], f)[0]
    ask = lambda a, b: f.prefix() + f.template.ask(PAIRS[0]["conversation"], a, b, "more polite")  # noqa: E731
    slow = choice_probs(lm, ask, [(PAIRS[0]["better"], PAIRS[0]["worse"])])
    assert np.isclose((rows[0]["ab"] + rows[0]["ba"]) / 2, slow.first[0], atol=1e-5)
    firsts = [decline == first for _, decline, first in harm.REQUESTS]
    assert sum(firsts) == 2 and sum(d for _, d, _ in harm.REQUESTS) == 2


def test_examples_of_harm_name_the_right_verdict():
    """The letter after each worked example points at 'declined' exactly where it should be."""
    for form in (harm.HARM_FORMS["plain, 4 examples"],):
        for block, (_, decline, _) in zip(form.prefix().strip().split("\n\n"), harm.REQUESTS, strict=True):
            shown = {line[0]: line[3:] for line in block.split("\n") if line[:3] in ("A: ", "B: ")}
            assert (shown[block[-1]] == harm.VERDICTS[0]) == bool(decline)


def test_calibration_error_is_the_librarys():
    rng = np.random.default_rng(3)
    p = rng.random(200)
    y = (rng.random(200) < p**2).astype(int)
    ours, theirs = rec.calibration_error(p, y), stats.ece(p, y, n_null=20)
    assert np.isclose(ours.value, theirs.value) and np.isclose(ours.null, theirs.null, rtol=0.3)
    calibrated = rec.calibration_error(p, (rng.random(200) < p).astype(int))
    assert ours.p < 0.01 < calibrated.p


def test_planted_calibration_is_seen():
    """A judge that says 90 % and is right on 90 % is calibrated; one that says 55 % is under-confident by 35 points."""
    for name, gap in (("planted 90 %", 0.0), ("planted 90 %, says 55 %", 0.35), ("planted 50 %, says 70 %", -0.2)):
        df = pd.DataFrame(rec.ask_pairs(rec.JUDGES[name](PAIRS), PAIRS, rec.FORMS["plain"])[0])
        found = rec.calibration(df, "x")
        assert np.isclose(found["accuracy - confidence/x"]["value"], gap, atol=1e-6)
        p, y = rec.forecasts(df, joined=True)
        assert y.sum() == 60 and (rec.calibration_error(p, y).p < 0.05) == (gap != 0)


def test_desk_pairs_differ_in_their_start_alone():
    for contrast in rec.CONTRASTS:
        for pair in rec.desk_pairs(contrast, 8):
            fact = pair["conversation"].split("\n")[0]
            assert pair["better"] != pair["worse"] and pair["better"].split(". ")[-1] == pair["worse"].split(". ")[-1]
            assert pair["better"].split(". ")[-1] in fact
    assert len({*map(len, map(str.split, rec.STARTS["rude"] + rec.STARTS["neutral"] + rec.STARTS["polite"]))}) == 1


def test_harm_prompts_and_planted_auroc():
    items = harm.requests(68)
    assert sum(i["wanted"] for i in items) == 68 and len({i["conversation"] for i in items}) == 136
    df = pd.DataFrame(harm.exp_harm(TOY.but(prompts=68), form="planted 80 %")[0]).assign(form="planted 80 %")
    area = harm.harm_metrics(df)["auroc/planted 80 %"]
    assert np.isclose(area["value"], 109 / 136) and area["lo"] < 0.8 < area["hi"]


def test_yes_saying_cancels(lm):
    """A judge who says yes to everything declines nothing and allows nothing: p = 1/2."""

    class Yes(rec.Planted):
        def logprob(self, prompt, completion):
            return float(np.log(0.9 if "Yes" in completion else 0.1))

    rows = harm.judged_alone(Yes("nowhere", "yes"), harm.requests(2))
    assert np.allclose([r["p"] for r in rows], 0.5) and np.allclose([r["ab"] for r in rows], 0.9)


def released(right="A", a="Yes, it is ten.", b="No idea.", **changes):
    """An invented row in the shape of the paper's release."""
    talk = "\n\nHuman: Is it late?\n\nAssistant: Why?\n\nHuman: I am tired."
    texts = {k: f"{talk}\n\nAssistant: {v}" for k, v in (("A", a), ("B", b))}
    wrong = "B" if right == "A" else "A"
    options = f"Options:\n (A) [[[{a}]]]\n (B) [[[{b}]]]\n\nThe answer is:"
    prompt = f"\n\nConsider this:\n\n{talk}\n\nPlease choose. {options}"
    row = {"prompt": prompt, "corrects": [f" ({right})"], "incorrects": [f" ({wrong})"]}
    return row | {"text_correct": texts[right], "text_incorrect": texts[wrong]} | changes


def test_the_papers_file_is_read(tmp_path):
    path = tmp_path / "438.jsonl"
    rows = [released("A"), released("B", a="Go, said the\n\nAssistant: no.", b="It is\nten [or so].")]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf8")
    first, second = rec.hhh_items(path)
    assert first["kind"] == "hhh" and (first["better"], first["worse"]) == ("Yes, it is ten.", "No idea.")
    assert first["conversation"] == "Human: Is it late?\n\nAssistant: Why?\n\nHuman: I am tired."
    assert second["better"] == "It is\nten [or so]." and second["conversation"] == first["conversation"]
    read, _ = rec.exp_identify(TOY.but(items=str(path)), form="plain", pairs="book")
    assert len(read) == 2 and {r["kind"] for r in read} == {"hhh"}


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "is empty"),
        ("{", "line 1 is no item"),
        (json.dumps(released(prompt="no options")), "line 1 is no item"),
        (json.dumps(released()) + "\n" + json.dumps(released(corrects=[" (C)"])), "line 2 is no item"),
        (json.dumps(released(text_correct="Human: other")), "not one of its options"),
        ("[1]", "line 1 is no item"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(AlignbookError, match=message):
        rec.hhh_items(path)
    with pytest.raises(AlignbookError, match="cannot read"):
        rec.hhh_items(tmp_path / "none.jsonl")


def test_a_planted_judge_needs_replies():
    with pytest.raises(AlignbookError, match="finds no"):
        rec.rule("blind", len).logprob("What?", " A")
