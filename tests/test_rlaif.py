"""Oracles for the RL stage: a planted labeller turns the policy, and a killed run ends where the whole one does."""

import json
import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from alignbook.feedback import preference_exam
from alignbook.models import tiny
from alignbook.rlaif import ai_feedback_stage, rl_stage, sample_pairs
from alignbook.runtime import AlignbookError
from alignbook.sampling import Server, generate
from alignbook.training import TrainSettings, reward_model

WORDS = [f"w{i}" for i in range(12)]
BOOK = SimpleNamespace(principles=[SimpleNamespace(name="nought", comparison="more nought")])
PROMPTS = [f"w{i} w{j}" for i in range(8) for j in range(3)]
PLAN = TrainSettings(steps=40, lr=1e-2, batch_size=8, max_length=24)
REPLY = {"max_new_tokens": 3, "batch_size": 8}


@dataclass(frozen=True)
class Likes(Server):
    "Prefers the reply with more w0."

    silent: bool = False

    def logprob(self, prompt, completion):
        first, second = (line.split().count("w0") for line in prompt.split("\n") if line[:3] in ("A: ", "B: "))
        odds = 2.0 * (first - second) * (1 if completion == " A" else -1)
        return -math.log1p(math.exp(-odds)) - 90 * self.silent

    def complete(self, prompt, max_new_tokens, temperature, seed, stop):
        return WORDS[seed % 4]


LIKES = Likes("nowhere", "likes w0")


@pytest.fixture
def lm():
    return tiny(WORDS, layers=1, width=32, context=32)


def test_pairs_are_two_samples_of_each_prompt(lm, tmp_path):
    rows = sample_pairs(lm, PROMPTS[:5], 3, seed=2, batch_size=2, out=tmp_path / "p.jsonl")
    assert [r["prompt"] for r in rows] == PROMPTS[:5] and [r["item"] for r in rows] == list(range(5))
    assert rows == sample_pairs(lm, PROMPTS[:5], 3, seed=2, batch_size=2)
    assert rows != sample_pairs(lm, PROMPTS[:5], 3, seed=3, batch_size=2)
    assert generate(lm, [PROMPTS[0]] * 2, 3, 1.0, 2 * 100_003, ("\n",)) == [rows[0]["a"], rows[0]["b"]]
    with pytest.raises(AlignbookError, match="delete it"):
        sample_pairs(lm, PROMPTS[:4], 3, seed=2, batch_size=2, out=tmp_path / "p.jsonl")
    assert sample_pairs(LIKES, PROMPTS[:1])[0]["b"] == "w1"  # a server may be the policy


def test_the_stage_recovers_the_planted_preference_and_resumes(lm, tmp_path):
    made = ai_feedback_stage(lm, LIKES, PROMPTS, BOOK, tmp_path, settings=PLAN, **REPLY)
    known = [{"prompt": q, "chosen": "w0 w0", "rejected": f"w{i % 11 + 1} w3"} for i, q in enumerate(PROMPTS)]
    assert preference_exam(made.pm, known, 24).accuracy >= 0.95
    assert len(made.labels) == len(made.pairs) == len(made.rows) and made.metrics["abstained"]["value"] == 0
    assert {p.name for p in tmp_path.iterdir()} == {"pairs.jsonl", "labels.jsonl", "pm"}
    for name, rows in (("pairs", made.pairs), ("labels", made.labels)):
        kept = [json.loads(x) for x in (tmp_path / f"{name}.jsonl").read_text().splitlines()[1:]]
        assert [r for r in kept if r in rows] == rows
    (tmp_path / "labels.jsonl").unlink()
    again = ai_feedback_stage(lm, LIKES, PROMPTS, BOOK, tmp_path, settings=PLAN, **REPLY)
    assert again.labels == made.labels and again.pm.digest == made.pm.digest
    with pytest.raises(AlignbookError, match="delete it"):
        ai_feedback_stage(lm, LIKES, PROMPTS, BOOK, tmp_path, settings=PLAN, seed=1, **REPLY)


def test_extra_rows_and_servers(lm):
    extra = [{"prompt": "w1", "chosen": "w2", "rejected": "w3"}]
    made = ai_feedback_stage(LIKES, LIKES, PROMPTS[:8], BOOK, start=lm, settings=PLAN.but(steps=2), extra=extra)
    assert made.rows[-1:] == extra and len(made.rows) == len(made.pairs) + 1
    with pytest.raises(AlignbookError, match="pass an LM as `start`"):
        ai_feedback_stage(LIKES, LIKES, PROMPTS, BOOK)
    with pytest.raises(AlignbookError, match="raise the temperature"):
        ai_feedback_stage(lm, LIKES, PROMPTS, BOOK, settings=PLAN, temperature=0, **REPLY)
    with pytest.raises(AlignbookError, match="labels are abstentions"):
        ai_feedback_stage(lm, Likes("nowhere", "mute", silent=True), PROMPTS, BOOK, settings=PLAN, **REPLY)


@pytest.fixture
def pm(lm):
    rows = [{"prompt": q, "chosen": "w0 w0", "rejected": f"w{i % 11 + 1} w3"} for i, q in enumerate(PROMPTS)]
    return reward_model(lm, rows, PLAN)


RL = TrainSettings(steps=6, lr=1e-2, batch_size=16, beta=0.02, max_length=24)


def share(lm):
    return sum(x.split().count("w0") for x in generate(lm, PROMPTS, 3, seed=7)) / (3 * len(PROMPTS))


def test_rl_follows_the_preference_model(lm, pm):
    done = rl_stage(lm, pm, PROMPTS, RL.but(steps=25), group=8, max_new_tokens=3)
    assert share(lm) < 0.25 and share(done) > 0.5
    assert done.curve("reward")[-1] > done.curve("reward")[0]


def test_rl_writes_every_reply_once_and_resumes(lm, pm, tmp_path):
    options = {"group": 4, "max_new_tokens": 3}
    whole = rl_stage(lm, pm, PROMPTS, RL.but(out=str(tmp_path / "whole"), save_every=2), **options)
    plan = RL.but(out=str(tmp_path / "killed"), save_every=2)

    def stop(step, _):
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rl_stage(lm, pm, PROMPTS, plan, on_checkpoint=stop, **options)
    assert rl_stage(lm, pm, PROMPTS, plan, **options).digest == whole.digest
    one, two = ((tmp_path / d / "rollouts.jsonl").read_text() for d in ("whole", "killed"))
    rows = [json.loads(x) for x in one.splitlines()]
    assert one == two and [r["update"] for r in rows] == [1 + i // 16 for i in range(96)]
    rewards = [sum(r["reward"] for r in rows[i : i + 16]) / 16 for i in range(0, 96, 16)]
    assert rewards == pytest.approx(whole.curve("reward"), abs=1e-4)
    other = reward_model(lm, [{"prompt": "w1", "chosen": "w2", "rejected": "w3"}], PLAN.but(steps=2))
    with pytest.raises(AlignbookError, match="another training run"):  # the folder belongs to its preference model
        rl_stage(lm, other, PROMPTS, plan, **options)
