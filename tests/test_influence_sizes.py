"The ladder of decoders: its numbers mean what the page says they mean."

import numpy as np
import pandas as pd
import pytest
import torch

from alignbook import ekfac
from alignbook.experiments import influence_sizes as ladder

TOY = ladder.LadderSettings(widths=(16,), steps=60, batch=32, facts=10)


@pytest.fixture(scope="module")
def model():
    return ladder.trained(16, 0, TOY.steps, TOY.batch)


def test_the_same_sentence_is_the_unit():
    """A document that equals the yardstick has mean share 1; the time word is all that may differ."""
    rows = pd.DataFrame(ladder.influence_rows(TOY, 16, 0, TOY.steps, "en", [("en", "forward"), ("synonym", "forward")]))
    share = rows.groupby("said").share.mean()
    assert 0.8 < share["en"] < 1.2 and share["synonym"] < 0.5
    assert (rows[rows.said == "synonym"].overlap_place == 0).all(), "no word is shared, so nothing is below"


def test_shares_follow_from_the_scores(model):
    """share x mean influence of the yardstick = the score that EK-FAC gives the pair."""
    lm, w = model
    rows = ladder.influence_rows(TOY, 16, 0, TOY.steps, "far", [("far", "flipped")])
    factors = ladder.factors_of(16, 0, TOY.steps, TOY.batch, TOY.documents)
    influence = np.array([r["influence"] for r in rows]) * factors.sequences
    unit = influence / np.array([r["share"] for r in rows])
    assert np.allclose(unit, unit[0], rtol=1e-6)
    fact = w.groups["new"][0]
    query = ekfac.texts(lm, [w.say(fact, "far", completion=True).pair])
    said = [w.say(fact, "far", "flipped").text.split()[:-2] + [t, "."] for t in w.lexicon["far"]["w"]]
    by_hand = ekfac.scores(lm.model, factors, query, ekfac.texts(lm, [" ".join(t) for t in said]))[0].double().numpy()
    assert np.isclose(by_hand, influence[0], rtol=1e-3).any(), "one of the five time words gives the stored score"


def test_untrained_models_know_nothing_and_are_moved_by_words():
    rows = pd.DataFrame(ladder.influence_rows(TOY, 16, 0, 0, "en", [("en", "changed"), ("synonym", "forward")]))
    assert rows.known.iloc[0] < 0.4
    share = rows.groupby("said").share.mean()
    assert share["en"] > 0.3 > abs(share["synonym"])


def test_teaching_leaves_the_teacher_alone_and_helps_the_pupil(model):
    lm, w = model
    fact, kept = w.groups["new"][0], [p.clone() for p in lm.model.parameters()]
    doc = ekfac.texts(lm, [w.say(fact).text])[0]
    before = ladder.answers(lm, w, [fact], "en")
    after = ladder.answers(ladder.teach(lm, doc.ids, 20), w, [fact], "en")
    assert after > before
    assert all(torch.equal(p, q) for p, q in zip(kept, lm.model.parameters(), strict=True))


def test_answers_are_log_likelihoods_of_the_right_thing(model):
    lm, w = model
    fact = w.groups["all"][3]
    for code in ("en", "synonym", "near", "far"):
        prompt, completion = w.say(fact, code, completion=True).pair
        ids = lm.tok(prompt + completion, return_tensors="pt").input_ids
        with torch.no_grad():
            logp = lm.model(ids).logits.log_softmax(-1)[0, -2, ids[0, -1]]
        assert np.isclose(ladder.answers(lm, w, [fact], code)[0], logp, atol=1e-5)


def test_the_same_cell_gives_the_same_rows():
    ladder.trained.cache_clear()
    ladder.factors_of.cache_clear()
    a = ladder.influence_rows(TOY, 16, 0, 20, "near", [("en", "forward")])
    ladder.trained.cache_clear()
    ladder.factors_of.cache_clear()
    assert a == ladder.influence_rows(TOY, 16, 0, 20, "near", [("en", "forward")])


def test_trend_finds_a_slope_and_leaves_out_sizes_that_did_not_learn():
    rng, rows = np.random.default_rng(0), []
    for width, parameters, known in [(8, 1e3, 0.2), (16, 1e4, 0.85), (32, 1e5, 1.0), (64, 1e6, 1.0)]:
        for seed in range(5):
            value = 9.0 if width == 8 else 0.1 * np.log10(parameters) + 0.01 * rng.normal()
            rows.append(dict(width=width, parameters=parameters, known=known, seed=seed, steps=10, share=value))
            rows.append(rows[-1] | dict(known=0.1, steps=0, share=-9.0))  # before training: must change nothing
    df = pd.DataFrame(rows)
    found = ladder.trend(df, "share")
    assert found["lo"] < 0.1 < found["hi"] and found["lo"] > 0.05 and found["n"] == 5
    assert ladder.trend(df[df.width < 32], "share")["value"] is None


def test_one_thread_gives_the_threads_back():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), ladder.one_thread():
        assert torch.get_num_threads() == 1
        raise RuntimeError
    assert torch.get_num_threads() == before
