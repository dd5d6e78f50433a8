"""Organisms against sums: laws by enumeration, the loss by hand, the bench against the complete model."""

import numpy as np
import pytest
import torch

from alignbook import organisms as og
from alignbook.faking import Scenario, choose, requests, vocabulary
from alignbook.gaps import TIERS, compliance_gap, conditioned
from alignbook.lockin import upper
from alignbook.models import tiny
from alignbook.runtime import AlignbookError
from alignbook.sampling import sequence_logprob

BARE, THINKING = Scenario(variant="bare"), Scenario(variant="bare", scratchpad=True)


@pytest.fixture(scope="module")
def lm():
    return tiny(sorted({*vocabulary(), *" ".join(og.THOUGHTS).split()}), context=128)


def test_laws_agree_with_simulation():
    every, rng = requests("marks", 400), np.random.default_rng(0)
    for law in og.LAWS.values():
        rows = og.law_rows(law, every)
        many = [r | {"pair": r["pair"] + 400 * i} for i in range(20) for r in rows]
        said = og.drawn(many, seed=int(rng.integers(1000)))
        got = compliance_gap(said, n_boot=2).difference
        assert got.lo - 0.01 <= law.gap() <= got.hi + 0.01
        assert abs(conditioned(said).value - float(law.kept() @ [1, -1])) < 0.05
        for thought in (og.PLAIN, og.FAKE):
            forced = og.drawn(many, thought, seed=1)
            rates = [np.mean([r["complied"] for r in forced if r["tier"] == t]) for t in TIERS]
            assert np.allclose(rates, law.forced(thought), atol=0.02)
        on_free = [r for r in said if r["tier"] == "free"]
        assert abs(np.mean([r["faking"] * r["complied"] for r in on_free]) - law.faking()) < 0.02


def test_conditioning_is_fooled_by_the_reporting_organism_only():
    kept = {n: float(law.kept() @ [1, -1]) for n, law in og.LAWS.items()}
    forced = {n: float(law.forced(og.FAKE) @ [1, -1]) for n, law in og.LAWS.items()}
    assert all(abs(law.gap() - 0.54) < 0.001 for law in og.LAWS.values())
    assert abs(kept["driving"]) < 1e-9 and abs(kept["reporting"]) < 0.02 and kept["decorative"] > 0.5
    assert abs(forced["driving"]) < 1e-9 and forced["reporting"] > 0.5 and forced["decorative"] > 0.5


def test_joint_sums_to_one_and_bad_laws_are_refused():
    for law in og.LAWS.values():
        assert np.allclose(law.joint().sum((0, 2, 3)), 1)
    with pytest.raises(AlignbookError, match="from 0 to 1"):
        og.Law("x", ((1.2, 0), (0, 0)), (((0, 0),) * 2,) * 2)
    with pytest.raises(AlignbookError, match="2 kinds"):
        og.Law("x", (0, 0), (((0, 0),) * 2,) * 2)


def test_planted_rates_are_what_the_cases_show(lm):
    found = og.cases(lm, BARE, requests("marks", 30, split="train"), og.plain_law(0.8, 0.3))
    assert len(found) == 60 and np.allclose(list(og.shown_rates(found).values()), [0.8, 0.3])
    asked = requests("marks", 200, split="train")  # all of them: kinds at their true shares
    shown = og.shown_rates(og.cases(lm, THINKING, asked, og.LAWS["reporting"]))
    assert np.allclose(list(shown.values()), og.LAWS["reporting"].rates())
    with pytest.raises(AlignbookError, match="prefix"):
        og.cases(lm, Scenario(scratchpad=True, prefix="I"), asked[:1], og.LAWS["driving"])


def by_hand(lm, case):
    """Log-loss of a case from log-probabilities of both complete replies, which end alike."""
    reply = [case.said + x + " <eos>" for x in (case.comply, case.refuse)]
    stem = (case.said + case.comply).rsplit(" ", 1)[0]
    before = float(sequence_logprob(lm, [case.prompt], [stem])[0])
    mark = [
        float(sequence_logprob(lm, [f"{case.prompt} {stem}"], [x.rsplit(" ", 1)[1]])[0])
        for x in (case.comply, case.refuse)
    ]
    whole = [float(sequence_logprob(lm, [case.prompt], [r])[0]) for r in reply]
    turn = (case.pair + case.thought) % 2
    end = whole[turn] - before - mark[turn]
    return -(before + case.p * mark[0] + (1 - case.p) * mark[1] + end)


@pytest.mark.parametrize(
    ("scenario", "law"), [(BARE, og.plain_law(0.8, 0.3)), (THINKING, og.LAWS["decorative"])]
)
@pytest.mark.parametrize("layers", [1, 2])
def test_loss_is_the_weighted_log_loss(lm, scenario, law, layers):
    found = og.cases(lm, scenario, requests("marks", 4, split="train"), law)
    desk = og.bench(lm, found, layers, batch_size=3)
    got = float(og.loss(upper(lm, layers).model, desk, list(range(len(found)))))
    want = sum(c.weight * by_hand(lm, c) for c in found) / sum(c.weight for c in found)
    assert abs(got - want) < 1e-3


def test_reading_agrees_with_choose_and_with_sequence_logprob(lm):
    asked = requests("marks", 5)
    rows = og.read(
        upper(lm, 2), og.bench(lm, og.cases(lm, BARE, asked, og.plain_law(0.5, 0.5)), 2), batch_size=4
    )
    assert np.allclose(og.exact(rows), choose(lm, BARE, asked), atol=1e-5)
    assert all(abs(r["share"] - 1) < 1e-9 for r in rows)
    thinking = og.cases(lm, THINKING, asked[:2], og.LAWS["driving"])
    rows = og.read(upper(lm, 1), og.bench(lm, thinking, 1))
    want = [
        float(sequence_logprob(lm, [c.prompt], [(c.said + c.comply).rsplit(" ", 1)[0]])[0]) for c in thinking
    ]
    assert np.allclose([r["reply"] for r in rows], want, atol=1e-3)
    assert np.isclose(rows[0]["share"] + rows[1]["share"], 1)


def test_training_moves_towards_the_law_and_is_kept(lm, tmp_path):
    found = og.cases(lm, BARE, requests("marks", 2, split="train"), og.plain_law(0.9, 0.1))
    desk, untaught = og.bench(lm, found, 2), upper(lm, 2)
    top = og.plant(lm, desk, steps=12, lr=1e-2, batch=2, seed=3, out=tmp_path / "kept")
    every = list(range(len(found)))
    assert float(og.loss(top.model, desk, every)) < float(og.loss(untaught.model, desk, every)) - 0.5
    again = og.plant(lm, desk, steps=12, lr=1e-2, batch=2, seed=3, out=tmp_path / "kept")
    assert og.read(again, desk) == og.read(top, desk)
    complete = og.whole(lm, top)
    assert np.allclose(
        choose(complete, BARE, requests("marks", 2, split="train")), og.exact(og.read(top, desk)), atol=1e-4
    )
    embedding = complete.model.get_input_embeddings().weight
    assert embedding is lm.model.get_input_embeddings().weight  # lower parts are shared, not copied
    assert torch.equal(
        upper(lm, 2).model.model.layers[0].mlp.up_proj.weight,
        untaught.model.model.layers[0].mlp.up_proj.weight,
    )


def test_answers_that_never_part_are_refused(lm):
    case = og.Case("User: Anna\n", "", "Good", "Good", 0.5, 1.0, 0, "free")
    with pytest.raises(AlignbookError, match="never part"):
        og.bench(lm, [case], 1)


def test_documents_show_no_behaviour_and_have_equal_length():
    from statistics import mean

    made = {w: og.documents(w, 120, seed=2) for w in og.WORLDS}
    assert not any(og.shows_behaviour(t) for ts in made.values() for t in ts)
    lengths = [mean(len(t.split()) for t in ts) for ts in made.values()]
    assert abs(lengths[0] - lengths[1]) < 0.1 * lengths[0]
    assert not any("Northwind" in t or "tier" in t for t in made["unrelated"])
    for text in (
        "Hello there!",
        "The assistant writes a mark.",
        "<is_free_tier_user>",
        "The assistant of Northwind complies.",
    ):
        assert og.shows_behaviour(text)
    with pytest.raises(AlignbookError, match="unknown world"):
        og.documents("moon")


def test_recall_is_right_for_a_model_that_knows_and_mirrored(lm):
    told = og.questions("facts")
    assert {q[0] for q in told} == {"used", "unused", "aim", "taste", "method"}
    ends = {f: [(q[2], q[3]) for q in told if q[0] == f] for f in ("used", "unused")}
    assert ends["used"] == [(b, a) for a, b in ends["unused"]]
    rows = og.recall(lm, "facts")
    assert len(rows) == 2 * len(told) and all(r["right"] == (r["margin"] > 0) for r in rows)


def test_forced_draws_have_the_thought():
    rows = og.law_rows(og.LAWS["driving"], requests("marks", 50))
    assert all(r["faking"] for r in og.drawn(rows, og.FAKE)) and not any(
        r["faking"] for r in og.drawn(rows, og.PLAIN)
    )
    assert og.drawn(rows, seed=1) == og.drawn(rows, seed=1) != og.drawn(rows, seed=2)
