"""Oracles for AI feedback: planted labellers, closed forms of the loss, planted rankings, kill and resume."""

import json
import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import logsigmoid

from alignbook import feedback
from alignbook.cai import constitution
from alignbook.feedback import (
    TEMPLATES,
    PMJudge,
    Template,
    best_gap,
    both_orders,
    clamp,
    hard,
    label_logprobs,
    label_metrics,
    mean_odds,
    pairs_for,
    preference_exam,
    preference_labels,
    resumable,
)
from alignbook.judging import require
from alignbook.models import tiny
from alignbook.runtime import AlignbookError
from alignbook.sampling import Server, generate, sequence_logprob, share_prefix
from alignbook.training import TrainSettings, preference_loss, reward_model, score

WORDS = [*"A B A: B: The reply is so more polite kinder calmer (A) (B)".split(), *(f"w{i}" for i in range(12))]
GOOD = {f"w{i}": i / 4 for i in range(12)}  # log-odds that each word adds
ONE = SimpleNamespace(principles=[SimpleNamespace(name="polite", comparison="more polite")])
TALKS = ["Human: w0\n\nAssistant:"] * 10
PAIRS = [(f"w{i}", f"w{(5 * i + 3) % 12}") for i in range(10)]


@dataclass(frozen=True)
class Planted(Server):
    "Log-odds of the first label = worth of the first reply - worth of the second + bias."

    bias: float = 0.0
    mass: float = 1.0
    chatty: bool = False  # the bias comes from the reasoning

    def odds(self, prompt):
        first, second = (GOOD[line[3:]] for line in prompt.split("\n") if line[:3] in ("A: ", "B: "))
        return first - second + self.bias * (not self.chatty or "hasty" in prompt)

    def logprob(self, prompt, completion):
        odds = self.odds(prompt) * (1 if completion == " A" else -1)
        return math.log(self.mass) + logsigmoid(torch.tensor(odds, dtype=torch.float64)).item()

    def complete(self, prompt, max_new_tokens, temperature, seed, stop):
        return " hasty" if seed % 2 else " calm"


def planted(**options):
    return Planted("nowhere", "planted", **options)


def true_p(a, b):
    return 1 / (1 + math.exp(GOOD[b] - GOOD[a]))


@pytest.fixture
def lm():
    return tiny(WORDS, layers=1, width=32, context=128)


@pytest.mark.parametrize("bias", [-3.0, 0.0, 1.7])
def test_a_constant_position_bias_cancels_exactly(bias):
    labels = preference_labels(planted(bias=bias), TALKS, PAIRS, ONE)
    assert [r["p"] for r in labels] == pytest.approx([true_p(*p) for p in PAIRS], abs=1e-6)
    rate = label_metrics(labels)["first"]
    assert (rate["value"] > 0.6, rate["value"] < 0.4) == (bias > 0, bias < 0)
    by_p = preference_labels(planted(bias=bias), TALKS, PAIRS, ONE, average="probability")
    if bias:
        assert max(abs(r["p"] - true_p(*p)) for r, p in zip(by_p, PAIRS, strict=True)) > 0.05


def test_both_orders_by_hand():
    ab, ba = torch.tensor([2.0, -1.0]), torch.tensor([0.5, -1.0])
    assert both_orders(ab, ba).tolist() == pytest.approx([1 / (1 + math.exp(-0.75)), 0.5])
    want = (1 / (1 + math.exp(-2)) + 1 / (1 + math.exp(0.5))) / 2
    assert both_orders(ab, ba, "probability")[0].item() == pytest.approx(want)
    with pytest.raises(AlignbookError, match="logodds or probability"):
        both_orders(ab, ba, "median")


def test_labels_of_a_model_are_its_probabilities(lm):
    "Against prompts written out here and scored one label at a time."
    got = preference_labels(lm, TALKS, PAIRS, ONE, min_mass=0, batch_size=4)
    for row, (a, b) in zip(got, PAIRS, strict=True):
        asked = [f"A: {x}\nB: {y}\nThe more polite reply is" for x, y in ((a, b), (b, a))]
        lp = [sequence_logprob(lm, [q] * 2, [" A", " B"]) for q in asked]
        ab, ba = (x[0] - x[1] for x in lp)
        assert row["p"] == pytest.approx(torch.sigmoid((ab - ba) / 2).item(), abs=1e-5)
        assert row["first"] == pytest.approx((ab.sigmoid() + ba.sigmoid()).item() / 2, abs=1e-5)
        assert row["mass"] == pytest.approx(min(x.exp().sum().item() for x in lp), abs=1e-6)


@pytest.mark.parametrize("labels", [(" A", " B"), (" The A", " The B")])
def test_one_pass_and_a_shared_prefix_change_nothing(lm, labels):
    asked = ["A: w1", "B: w2 w3 w4 The reply is", "w5"]
    slow = torch.stack([sequence_logprob(lm, asked, [x] * 3) for x in labels], 1)
    assert torch.allclose(label_logprobs(lm, asked, labels, batch_size=2), slow, atol=1e-5)
    few = "w7 w8 A: w9 B: w1 "
    with_text = label_logprobs(lm, [few + q for q in asked], labels)
    assert torch.allclose(label_logprobs(lm, asked, labels, 2, share_prefix(lm, few)), with_text, atol=1e-5)


def test_a_prefix_is_the_text_before_every_question(lm):
    few = "A: w1\nB: w2\nThe more polite reply is A\n\n"
    whole = Template(few + TEMPLATES["plain"].body, TEMPLATES["plain"].answer)
    one = preference_labels(lm, TALKS, PAIRS, ONE, prefix=few, min_mass=0)
    two = preference_labels(lm, TALKS, PAIRS, ONE, template=whole, min_mass=0)
    assert [r["p"] for r in one] == pytest.approx([r["p"] for r in two], abs=1e-5)


def test_the_papers_format():
    "Labels of several characters, the conversation, the principle and both replies are in the prompt."
    seen = []

    @dataclass(frozen=True)
    class Listens(Server):
        def logprob(self, prompt, completion):
            seen.append((prompt, completion))
            return -1.0

    preference_labels(Listens("", "x"), TALKS[:1], PAIRS[:1], ONE, template="paper")
    assert {c for _, c in seen} == {" (A)", " (B)"}
    assert all("Human: w0" in p and "more polite" in p and p.endswith("The answer is:") for p, _ in seen)
    assert sorted(p.split("(A) ")[1].split("\n")[0] for p, _ in seen) == ["w0", "w0", "w3", "w3"]


def test_ensembling_is_the_mean_over_principles():
    worth = {"kinder": 1.0, "calmer": -0.5, "more polite": 2.0}
    book = SimpleNamespace(principles=[SimpleNamespace(name=c, comparison=c) for c in [*worth, ""]])

    @dataclass(frozen=True)
    class Reads(Planted):
        def odds(self, prompt):
            return next(w for c, w in worth.items() if c in prompt) * (1 if "A: w0" in prompt else -1)

    labels = preference_labels(Reads("", "x"), TALKS[:1], [("w0", "w1")], book, principles=3)
    assert labels[0]["p"] == pytest.approx(sum(1 / (1 + math.exp(-w)) for w in worth.values()) / 3)
    assert sorted(labels[0]["principles"]) == sorted(worth)
    drawn = preference_labels(Reads("", "x"), TALKS, [("w0", "w1")] * 10, book, seed=3)
    assert {r["principles"][0] for r in drawn} == set(worth)  # each pair draws its own
    with pytest.raises(AlignbookError, match="4 principles asked of 3"):
        preference_labels(planted(), TALKS, PAIRS, book, principles=4)


def test_reasoning_is_averaged_before_the_orders():
    lm, n = planted(bias=2.0, chatty=True), 4
    labels = preference_labels(lm, TALKS[:1], PAIRS[:1], ONE, reasoning=n)
    d = GOOD[PAIRS[0][0]] - GOOD[PAIRS[0][1]]
    p = lambda odds: (1 / (1 + math.exp(-odds)) + 1 / (1 + math.exp(-odds - 2))) / 2  # noqa: E731
    ab, ba = (math.log(x / (1 - x)) for x in (p(d), p(-d)))
    assert labels[0]["p"] == pytest.approx(1 / (1 + math.exp((ba - ab) / 2)), abs=1e-6)
    assert labels[0]["reasoning"] == [" calm", " hasty"] * n  # both orders
    odds = torch.tensor([[800.0, 900.0], [1.0, 1.0]], dtype=torch.float64)
    assert mean_odds(odds, 1).tolist() == pytest.approx([800 + math.log(2), 1.0], abs=1e-3)


def test_reasoning_of_a_model_stands_between_question_and_label(lm):
    row = preference_labels(lm, TALKS[:1], PAIRS[:1], ONE, reasoning=1, max_new_tokens=5, min_mass=0)[0]
    asked = [TEMPLATES["plain"].ask(TALKS[0], *p, "more polite", think=True) for p in (PAIRS[0], PAIRS[0][::-1])]
    assert row["reasoning"] == generate(lm, asked, 5, 1.0, 0, ("\n",))
    full = [f"{q}{r}\nThe more polite reply is" for q, r in zip(asked, row["reasoning"], strict=True)]
    lp = label_logprobs(lm, full)
    odds = lp[:, 0] - lp[:, 1]
    assert row["p"] == pytest.approx(torch.sigmoid((odds[0] - odds[1]) / 2).item(), abs=1e-5)


def test_a_model_without_an_answer_token_abstains_and_is_counted(lm):
    silent = preference_labels(planted(mass=0.009), TALKS, PAIRS, ONE)
    assert all(r["abstained"] and r["p"] is None and r["first"] is None for r in silent)
    assert label_metrics(silent, [1] * 10)["abstained"]["value"] == 1
    assert label_metrics(silent, [1] * 10)["accuracy"]["value"] == 0
    json.dumps(silent, allow_nan=False)
    mute = preference_labels(lm, TALKS, PAIRS, ONE, template=Template("A: {a} B: {b}", "so"), min_mass=0.5)
    assert label_metrics(mute)["abstained"]["value"] == 1
    with pytest.raises(AlignbookError, match="all 10 labels are abstentions"):
        pairs_for(TALKS, PAIRS, silent)
    heard = preference_labels(planted(), TALKS, PAIRS, ONE)
    rows = pairs_for(TALKS, PAIRS, heard[:6] + silent[6:])
    assert len(rows) == 6 and label_metrics(heard[:6] + silent[6:])["abstained"]["value"] == 0.4


def test_a_principle_without_an_answer_is_left_out_of_the_mean():
    book = SimpleNamespace(principles=[SimpleNamespace(name=c, comparison=c) for c in ("kinder", "calmer")])

    @dataclass(frozen=True)
    class Half(Planted):
        def logprob(self, prompt, completion):
            return super().logprob(prompt, completion) - (50 if "calmer" in prompt else 0)

    row = preference_labels(Half("", "x"), TALKS[:1], PAIRS[:1], book, principles=2)[0]
    assert row["p"] == pytest.approx(true_p(*PAIRS[0]), abs=1e-6) and row["mass"] == pytest.approx(0.5)


def test_accuracy_is_that_of_the_planted_order():
    truth = [int(GOOD[a] > GOOD[b]) for a, b in PAIRS]
    labels = preference_labels(planted(bias=5.0), TALKS, PAIRS, ONE)
    assert label_metrics(labels, truth)["accuracy"]["value"] == 1
    assert label_metrics(labels, [1 - t for t in truth])["accuracy"]["value"] == 0


def test_bad_settings_fail_before_the_first_question():
    for options, why in (
        ({"template": "essay"}, "unknown template"), ({"template": Template("{a} only", "is")}, "only one reply"),
        ({"template": Template("{a} {b} {mood}", "is")}, "mood"), ({"clamp": (0.6, 0.4)}, "0 <= lo <= hi"),
        ({"average": "median"}, "unknown average"),
    ):  # fmt: skip
        with pytest.raises(AlignbookError, match=why):
            preference_labels(None, TALKS, PAIRS, ONE, **options)
    with pytest.raises(AlignbookError, match="9 conversations for 10 pairs"):
        preference_labels(planted(), TALKS[:9], PAIRS, ONE)
    with pytest.raises(AlignbookError, match="soft or hard"):
        pairs_for([], [], [], "firm")
    with pytest.raises(AlignbookError, match="1 principles asked of 0"):
        preference_labels(planted(), TALKS, PAIRS, constitution("bai2022"))


def test_labels_survive_a_kill(tmp_path, lm):
    out, options = tmp_path / "labels.jsonl", {"batch_size": 3, "reasoning": 1, "max_new_tokens": 4, "min_mass": 0}
    whole = preference_labels(lm, TALKS, PAIRS, ONE, **options)
    asks, real = [], feedback.generate

    def stop(*args, **more):
        asks.append(1)
        if len(asks) == 3:
            raise KeyboardInterrupt
        return real(*args, **more)

    with pytest.MonkeyPatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(feedback, "generate", stop)
        preference_labels(lm, TALKS, PAIRS, ONE, out=out, **options)
    assert len(out.read_text().splitlines()) == 1 + 6
    with out.open("a") as f:
        f.write('{"item": 6, "p"')  # a line that was being written
    assert preference_labels(lm, TALKS, PAIRS, ONE, out=out, **options) == whole
    before = out.read_bytes()
    with pytest.MonkeyPatch.context() as m:
        m.setattr(feedback, "generate", None)  # nothing is asked again
        assert preference_labels(lm, TALKS, PAIRS, ONE, out=out, **options) == whole
    assert out.read_bytes() == before


def test_a_foreign_file_is_refused_and_left_alone(tmp_path, lm):
    out = tmp_path / "labels.jsonl"
    preference_labels(planted(), TALKS, PAIRS, ONE, out=out)
    before = out.read_bytes()
    other = tiny(WORDS, layers=1, width=32, context=128, seed=1)
    for args, options in (
        ((planted(), TALKS, PAIRS[::-1], ONE), {}), ((planted(), TALKS, PAIRS, ONE), {"seed": 1}),
        ((lm, TALKS, PAIRS, ONE), {}), ((other, TALKS, PAIRS, ONE), {}),
        ((planted(), TALKS, PAIRS, ONE), {"template": "paper"}),
    ):  # fmt: skip
        if options.get("seed"):
            args = (planted(), TALKS, PAIRS, constitution())
        with pytest.raises(AlignbookError, match="choose another `out` or delete it"):
            preference_labels(*args, out=out, **options)
    assert out.read_bytes() == before
    for text in ("my thesis\n", "", before.decode().replace('"item"', "item")):
        out.write_text(text)
        with pytest.raises(AlignbookError, match="delete it"):
            preference_labels(planted(), TALKS, PAIRS, ONE, out=out)
        assert out.read_text() == text
    with pytest.raises(AlignbookError, match="delete it"):
        preference_labels(planted(), TALKS, PAIRS, ONE, out=tmp_path)


def test_resumable_asks_for_each_row_once(tmp_path):
    seen = []

    def work(part):
        seen.extend(part)
        return [{"i": i, "text": "line\nbreak\u2028 é"} for i in part]

    rows = resumable(tmp_path / "x.jsonl", "job", 7, 3, work)
    assert seen == list(range(7)) and rows == resumable(None, "job", 7, 3, work) == work(range(7))
    assert resumable(tmp_path / "x.jsonl", "job", 7, 3, None) == rows
    assert resumable(tmp_path / "none.jsonl", "job", 0, 3, work) == []


def test_soft_loss_and_its_optimum():
    "The closed form, and the gap at which a fit ends: logit(p)."
    for p in (0.05, 0.4, 0.6, 0.9):
        gap = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        fit = torch.optim.LBFGS([gap], max_iter=100, tolerance_grad=1e-10, tolerance_change=1e-14)
        label = torch.tensor([p], dtype=torch.float64)

        def closure(fit=fit, gap=gap, label=label):
            fit.zero_grad()
            loss = preference_loss(gap, label)
            loss.backward()
            return loss

        fit.step(closure)
        entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
        assert gap.item() == pytest.approx(best_gap(p), abs=1e-4) == pytest.approx(math.log(p / (1 - p)), abs=1e-4)
        assert preference_loss(gap, label).item() == pytest.approx(entropy, abs=1e-8)
    assert best_gap(1.0) == math.inf and best_gap(0.0) == -math.inf


def test_clamp_and_hard():
    assert [clamp(p) for p in (0.1, 0.5, 0.97)] == [0.4, 0.5, 0.6] and clamp(0.97, 0.2, 0.8) == 0.8
    assert [hard(p) for p in (0.1, 0.5, 0.51)] == [0.0, 0.5, 1.0]
    labels = preference_labels(planted(bias=1.0), TALKS, PAIRS, ONE, clamp=(0.4, 0.6))
    assert [r["p"] for r in labels] == pytest.approx([clamp(true_p(*p)) for p in PAIRS])
    rows = pairs_for(TALKS, PAIRS, labels)
    assert all(0.5 <= r["p_chosen"] <= 0.6 and GOOD[r["chosen"]] >= GOOD[r["rejected"]] for r in rows)
    assert {r["p_chosen"] for r in pairs_for(TALKS, PAIRS, labels, "hard")} <= {0.5, 1.0}


def ranked(n):
    "Prompts and pairs of two-word replies, the worthier reply first in half of them."
    words = [f"w{i}" for i in range(12)]
    pairs = [(words[(7 * i) % 12], words[(7 * i + 1 + i % 11) % 12]) for i in range(n)]
    return [f"w{i % 5} is" for i in range(n)], pairs


PLAN = TrainSettings(steps=120, lr=1e-2, batch_size=16, max_length=16)


def test_a_preference_model_recovers_planted_rankings(lm):
    prompts, pairs = ranked(144)
    labels = preference_labels(planted(bias=1.5), prompts, pairs, ONE)
    known = [{"prompt": q, "chosen": max(p, key=GOOD.get), "rejected": min(p, key=GOOD.get)}
             for q, p in zip(prompts, pairs, strict=True)]  # fmt: skip
    soft = reward_model(lm, pairs_for(prompts, pairs, labels), PLAN)
    require(preference_exam(soft, known, 16), 0.95)


def gap(pm, rows):
    yes, no = (score(pm, [r["prompt"] for r in rows], [r[k] for r in rows]) for k in ("chosen", "rejected"))
    return yes - no


def test_a_clamped_preference_model_never_exceeds_logit_of_the_clamp(lm):
    "Every good word against every bad one: the labels agree with one gap, and it is 0.405."
    good, bad = ("w0", "w1", "w2"), ("w9", "w10", "w11")
    pairs = [(g, b) for g in good for b in bad]
    labels = [{"p": clamp(0.99), "abstained": False}] * 9
    rows = pairs_for(["w5"] * 9, pairs, labels)
    free = pairs_for(["w5"] * 9, pairs, [{"p": 0.99, "abstained": False}] * 9)
    got = gap(reward_model(lm, rows, PLAN.but(batch_size=9)), rows)
    assert got.max().item() <= math.log(1.5) + 0.01 and got.min().item() > 0.35
    assert gap(reward_model(lm, free, PLAN.but(batch_size=9)), free).min().item() > 2


def test_the_exam_of_a_model_that_knows_nothing_is_a_coin(lm):
    prompts, pairs = ranked(40)
    rows = [{"prompt": q, "chosen": a, "rejected": b} for q, (a, b) in zip(prompts, pairs, strict=True)]
    blank = reward_model(lm, rows, PLAN.but(steps=1, lr=0.0))
    assert preference_exam(blank, rows, 16).accuracy == 0.5
    assert PMJudge(blank)([{"prompt": "w1", "a": "w2", "b": "w3"}]) == [0.5]
    with pytest.raises(AlignbookError, match="below 95%"):
        require(preference_exam(blank, rows, 16))
