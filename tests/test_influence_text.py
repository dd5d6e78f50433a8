"""The sketch of many queries against scores made one by one; plans, heat and wrong settings."""

import numpy as np
import pytest
import torch

from alignbook import ranking
from alignbook.ekfac import scores
from alignbook.experiments import influence_text as it
from alignbook.runtime import AlignbookError
from alignbook.tape import gradients, texts, track

FULL = it.TextSettings(rank=16, fit=8)


@pytest.fixture(scope="module")
def setting():
    lm, factors = it.begin(FULL)
    queries = texts(lm, [("the two bad", " mice"), ("All human beings are born", " free and equal in dignity")])
    docs = [p.text for p in it.passages("tiny", FULL.tokens)[30:37]]
    return lm, factors, queries, docs, it.survey(FULL, queries, docs)


def close(a, b):
    return torch.allclose(a, b, rtol=2e-3, atol=1e-3 * b.abs().max().item())


def test_survey_equals_the_scores_of_the_library(setting):
    lm, factors, queries, docs, found = setting
    by_layer = scores(lm.model, factors, queries, docs, per="layer")
    assert close(found.layers[0], torch.stack(list(by_layer.values())))
    by_layer = scores(lm.model, None, queries, docs, per="layer", estimator="dot", modules=track(lm.model))
    assert close(found.layers[1], torch.stack(list(by_layer.values())))
    cosine = scores(lm.model, None, queries, docs, estimator="cosine", modules=track(lm.model))
    ours = torch.from_numpy(found.totals()["cosine"])
    assert close(ours / ours.norm(dim=1, keepdim=True), cosine / cosine.norm(dim=1, keepdim=True)), "up to a constant"


def test_norms_are_those_of_the_gradients(setting):
    lm, _, _, docs, found = setting
    grads = gradients(lm.model, docs, modules=track(lm.model))
    assert close(found.norms, sum(g.flatten(1).square().sum(1) for g in grads.values()).sqrt())


def test_heat_is_the_scores_of_tokens_by_third(setting):
    lm, factors, queries, docs, found = setting
    tokens = scores(lm.model, factors, queries, docs, per="layer-token")
    for k, cut in enumerate(ranking.thirds(6)):
        for i, doc in enumerate(docs):
            n = len(doc.ids) - 1
            assert close(found.heat[0, k, :, i, :n], tokens[i][cut].sum(0)), (k, i)
            assert not found.heat[:, k, :, i, n:].any()
    assert np.allclose(found.thirds().sum(0), found.totals()["ekfac"], rtol=1e-3, atol=1e-2)


def test_low_rank_keeps_the_order():
    lm, _ = it.begin(FULL)
    docs = [p.text for p in it.passages("tiny", FULL.tokens)[30:60]]
    queries = texts(lm, [("All human beings are born", " free and equal in dignity")])
    full, cut = (it.survey(s, queries, docs).totals() for s in (FULL, FULL.but(rank=8)))
    assert np.corrcoef(full["ekfac"][0], cut["ekfac"][0])[0, 1] > 0.95
    assert np.allclose(full["dot"], cut["dot"]), "the raw gradient is never cut"


def test_pieces_of_a_scan_are_the_scan():
    s = it.TextSettings()
    docs, ranks = it.plan(s)
    one = it.survey(s, it.ask_all(it.lm_for("tiny"), s.queries), [p.text for p in docs])
    for ours, theirs in zip(it.whole(s), one, strict=True):
        assert close(ours, theirs)
    assert sorted(ranks[0][ranks[0] >= 0]) == list(range(s.filtered)), "the filter's choice is all there"


def test_ends_of_the_ranking_are_its_ends():
    s = it.TextSettings()
    docs, found = it.plan(s)[0], it.whole(s)
    made = it.hits_of(1, found, docs, best=3, worst=1)
    score = np.sort(found.totals()["dot"][1])[::-1]
    dot = [hit["score"] for hit, _, _ in made if hit["estimator"] == "dot"]
    assert np.allclose(dot, [*score[:3], score[-1]])
    for hit, sums, more in made:
        assert np.isclose(sums["token_sum"], hit["score"], rtol=1e-3, atol=1e-3 * abs(score).max())
        assert len(more["heat"]) == len(docs[int(hit["doc"])].text.ids) and more["heat"][-1] is None
        here = hit["rank"] if hit["rank"] > 0 else len(docs) + 1 + hit["rank"]
        assert more.get("ranks", {}).get(hit["estimator"], here) == here


@pytest.mark.parametrize(
    "change, says",
    [(dict(scan=10**6), "tail < scan"), (dict(tail=60), "tail < scan"), (dict(heat=3), "heat=3"),
     (dict(queries=9, heat=1), "queries=9"), (dict(filtered=0), "filtered=0")],
)  # fmt: skip
def test_plans_that_cannot_be(change, says):
    with pytest.raises(AlignbookError, match=says):
        it.plan(it.TextSettings(**change))


@pytest.mark.parametrize("change", [dict(rank=0), dict(fit=0), dict(tokens=1), dict(queries=0)])
def test_settings_that_cannot_be(change):
    with pytest.raises(AlignbookError, match="at least"):
        it.begin(it.TextSettings(**change))
