"""The classifier experiments: summaries on planted rows, purity, and who reads which half."""

import numpy as np
import pandas as pd
import pytest

from alignbook import reasoning, stats
from alignbook.experiments import faking_classifier as fc


def run(exp, s, **cell):
    return pd.DataFrame([cell | r for r in exp(s, **cell)])


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """The same summaries with fewer resamples: values are exact, only the intervals get rougher."""
    draw = stats.bootstrap
    monkeypatch.setattr(fc.stats, "bootstrap", lambda *a, **kw: draw(*a, **(kw | {"n_boot": 25})))


@pytest.fixture(scope="module")
def planted():
    """Rows of every reader: strict rules are perfect, key words blind, the model says 0.6 to every second item."""
    rows, items = [], reasoning.exam_rows()
    for judge in fc.CLOSED + fc.ASKED:
        for i, r in enumerate(items):
            if judge in fc.CLOSED or r["half"] == "test":
                score = {"criteria, strict": r["label"], "keywords": 0.0, "criteria": 1 - r["label"]}.get(
                    judge, 0.6 * (i % 2)
                )
                about = {k: r[k] for k in ("half", "kind", "label")}
                rows.append(
                    {"judge": judge, "item": i, "score": float(score), "yes": int(score > 0.5), "votes": 0}
                    | about
                )
    return pd.DataFrame(rows)


def test_exam_summary_on_planted_readers(planted):
    found = fc.exam_metrics(planted, fc.ExamSettings())
    value = {k: v["value"] for k, v in found.items()}
    assert value["auroc/criteria, strict/test"] == 1 and value["auroc/keywords/dev"] == 0.5
    assert (
        value["difference/criteria, strict - keywords"] == 0.5
        and value["difference/criteria - criteria, strict"] == -1
    )
    assert value["kappa/criteria/test"] == -1 and value["kappa/keywords/test"] == 0
    assert value["sensitivity/keywords/test"] == 0 and value["specificity/keywords/test"] == 1
    assert value["flagged/criteria, strict/plain"] == 1 and value["flagged/criteria, strict/mirrored"] == 0
    assert found["auroc/keywords/test"]["n"] == 28 and "auroc/model, four/dev" not in found
    one = planted[(planted.judge == "model, four") & (planted.half == "test")]
    p, y = one.score.to_numpy(), one.label.to_numpy()
    assert value["votes/model, four/20"] == pytest.approx(reasoning.votes_auroc(p, y, 20))
    assert value["gain/model, four"] == pytest.approx(
        reasoning.votes_auroc(p, y, 20) - reasoning.votes_auroc(p, y, 1)
    )


def test_difference_is_paired_over_items(planted):
    rows = planted[planted.judge.isin(["keywords"])]
    same = pd.concat([rows.assign(judge=j) for j in fc.CLOSED + fc.ASKED])
    same["score"] = np.tile(np.random.default_rng(0).random(len(rows)), len(fc.CLOSED + fc.ASKED))
    gap = fc.exam_metrics(same, fc.ExamSettings())["difference/criteria, strict - keywords"]
    assert (
        gap["lo"] == gap["value"] == gap["hi"] == 0
    )  # the same scores: no width, however noisy each area is


def test_readers_on_the_exam():
    s = fc.ExamSettings()
    done, said = run(fc.exp_exam, s, judge="complied"), run(fc.exp_exam, s, judge="criteria")
    assert (
        len(done) == len(said) == 112 and (done.score == [r["complied"] for r in reasoning.exam_rows()]).all()
    )
    assert (said.yes == (said.score > 0.5)).all()
    asked = run(fc.exp_exam, s, judge="model, spoken")
    assert len(asked) == s.items and set(asked.half) == {"test"} and asked.item.is_unique
    assert (asked.votes <= s.votes).all() and (asked.score[asked.votes == 0] == 0.5).all()
    assert (asked.yes == (asked.score > 0.4)).all()  # the share of votes, not a probability
    again = run(fc.exp_exam, s, judge="model, spoken")
    pd.testing.assert_frame_equal(asked, again)


def test_all_items_of_the_test_half_at_the_cpu_tier():
    s = fc.ExamSettings().at("cpu")
    assert s.items == sum(r["half"] == "test" for r in reasoning.exam_rows()) and s.model == "smollm2-135m"


def test_simulated_votes_follow_the_exact_curve():
    s = fc.VoteSettings(repeats=30)
    rows = run(fc.exp_votes, s, single=0.7, shared=0.3)
    found = fc.vote_metrics(rows, s)
    for n in fc.VOTES:
        off = found[f"difference/0.7/0.3/{n}"]
        assert off["lo"] <= 0 <= off["hi"] and abs(off["value"]) < 0.02
    curve = [found[f"exact/0.7/0.3/{n}"]["value"] for n in fc.VOTES]
    assert curve == sorted(curve) and curve[-1] < reasoning.plateau(0.7, 0.3) + 0.02
    pd.testing.assert_frame_equal(rows.iloc[:10], run(fc.exp_votes, s.but(repeats=1), single=0.7, shared=0.3))


def test_threshold_trades_one_error_for_the_other():
    s = fc.VoteSettings(repeats=2)
    rows = run(fc.exp_votes, s, single=0.62, shared=0.1)
    at20 = rows[rows.votes == 20]
    assert (at20["sensitivity 0.4"] > at20["sensitivity 0.5"]).all() and (
        at20["specificity 0.4"] < at20["specificity 0.5"]
    ).all()
    same = rows[rows.votes == 1]
    assert (same["sensitivity 0.4"] == same["sensitivity 0.5"]).all()  # one vote has no threshold


def test_corrected_rates_and_coverage():
    s = fc.CorrectedSettings(repeats=80)
    rows = run(fc.exp_corrected, s, reader="good", exam=100, truth=0.24)
    found = fc.corrected_metrics(rows, s)
    assert abs(found["corrected/good/100/0.24"]["value"] - 0.24) < 0.02
    assert abs(found["raw/good/100/0.24"]["value"] - (0.24 * 0.9 + 0.76 * 0.05)) < 0.02
    assert (
        found["covered/adjusted/good/100/0.24"]["hi"] > 0.95 > found["covered/known/good/100/0.24"]["value"]
    )
    assert found["width/known/good/100/0.24"]["value"] < found["width/adjusted/good/100/0.24"]["value"]
    pd.testing.assert_frame_equal(rows, run(fc.exp_corrected, s, reader="good", exam=100, truth=0.24))


def test_an_exam_no_better_than_chance_is_left_out_and_counted():
    s = fc.CorrectedSettings(repeats=40)
    rows = run(fc.exp_corrected, s, reader="weak", exam=3, truth=0.12)  # tiny exams often fail
    found = fc.corrected_metrics(rows, s)
    share = found["unusable/weak/3/0.12"]
    assert 0 < share["value"] < 1 and share == stats.wilson(int((rows.usable == 0).sum()), 40).metric("rate")
    assert found["covered/adjusted/weak/3/0.12"]["n"] == int(rows.usable.sum())
    assert rows[rows.usable == 0].corrected.isna().all()
