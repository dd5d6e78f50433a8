"""Oracles for training: hand-computed losses, resume to the same weights, rewards that rise."""

import json
import math
import socket
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import cross_entropy, logsigmoid

from alignbook.models import attach_lora, copy_lm, detach_lora, load_lora, save_lora, tiny, weight_digest
from alignbook.runtime import AlignbookError
from alignbook.sampling import generate, sequence_logprob
from alignbook.training import (
    TrainSettings,
    dpo,
    halves,
    preference_loss,
    pretrain,
    reward_model,
    rl,
    score,
    sft,
)

WORDS = [f"w{i}" for i in range(12)]
EXAMPLES = [
    {
        "prompt": f"w{i} w{(i + 1) % 12}",
        "completion": " ".join(f"w{(i + 2 + j) % 12}" for j in range(i % 3 + 1)),
    }
    for i in range(12)
]
PAIRS = [
    {"prompt": f"w{i}", "chosen": f"w{(i + 1) % 12} w0", "rejected": f"w{(i + 5) % 12}"} for i in range(8)
]
QUICK = TrainSettings(steps=12, lr=3e-3, batch_size=4)


@pytest.fixture
def lm():
    return tiny(WORDS, layers=1, width=32, context=32)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    "Any attempt to reach another machine, from any thread, fails the test."
    tried = []

    def refuse(*args, **_):
        tried.append(args)
        raise OSError("no network in tests")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert not tried


def chain(step):
    start = torch.randint(0, 12, (16, 1))
    ids = (start + torch.arange(8)) % 12 + 3
    return ids, ids.masked_fill(torch.arange(8) < 1, -100)


def logp(lm, head, tail):
    "log p(tail | head) from the logits, nothing shared with the code under test."
    with torch.no_grad():
        logits = lm.model(torch.tensor([head + tail])).logits[0].log_softmax(-1)
    return sum(logits[len(head) + i - 1, t].item() for i, t in enumerate(tail))


def test_pretrain_learns_repeats_and_respects_the_mask(lm):
    twin = copy_lm(lm)
    first = pretrain(lm, chain, 60, lr=1e-2)
    assert abs(first[0] - math.log(12)) < 1 and first[-1] < 0.2
    assert pretrain(twin, chain, 60, lr=1e-2) == first
    blind = tiny(WORDS, layers=1, width=32)
    ids = torch.tensor([[3, 4, 5, 6]])
    got = pretrain(blind, lambda _: (ids, torch.tensor([[-100, -100, 5, -100]])), 1)
    fresh = tiny(WORDS, layers=1, width=32).model(ids).logits
    assert got[0] == pytest.approx(cross_entropy(fresh[:, 1], torch.tensor([5])).item(), abs=1e-5)
    with pytest.raises(AlignbookError, match="frozen"):
        blind.model.requires_grad_(False)
        pretrain(blind, chain, 1)


def test_halves_cuts_and_ends(lm):
    assert halves(lm, "w0 w1", "w2", 9) == ([3, 4], [5, lm.tok.eos_token_id])
    assert halves(lm, "w0 w1", "w2 <eos>", 9) == ([3, 4], [5, lm.tok.eos_token_id])
    assert halves(lm, "w0 w1", "w2 w3", 3) == ([3, 4], [5])
    with pytest.raises(AlignbookError, match="max_length"):
        halves(lm, "w0 w1", "w2", 2)


def test_sft_loss_is_the_masked_cross_entropy(lm):
    parts = [halves(lm, e["prompt"], e["completion"], 32) for e in EXAMPLES]
    want = -sum(logp(lm, h, t) for h, t in parts) / sum(len(t) for _, t in parts)
    before = weight_digest(lm.model)
    got = sft(lm, EXAMPLES, QUICK.but(steps=1, batch_size=12)).curve()[0]
    accumulated = sft(lm, EXAMPLES, QUICK.but(steps=1, batch_size=3, grad_accum=4)).curve()[0]
    assert got == pytest.approx(want, abs=1e-4) and accumulated == pytest.approx(want, abs=1e-4)
    assert weight_digest(lm.model) == before


@pytest.mark.parametrize("rank", [0, 4])
def test_sft_resumes_to_the_same_weights(lm, tmp_path, rank):
    whole = sft(lm, EXAMPLES, QUICK.but(lora_rank=rank))
    plan, seen = QUICK.but(lora_rank=rank, out=str(tmp_path / "run"), save_every=4), []

    def stop(step, _):
        if step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sft(lm, EXAMPLES, plan, stop)
    assert (tmp_path / "run/checkpoint-4/seal.json").exists() and not (tmp_path / "run/checkpoint-8").exists()
    resumed = sft(lm, EXAMPLES, plan, lambda step, _: seen.append(step))
    assert seen == [8, 12] and resumed.digest == whole.digest and len(resumed.history) == 12
    again = sft(lm, EXAMPLES, plan)
    assert again.digest == whole.digest and again.curve() == resumed.curve()
    assert not list(tmp_path.rglob("*.bin"))


@pytest.mark.parametrize("rank", [0, 4])
def test_a_finished_run_is_not_trained_on(lm, tmp_path, rank):
    "Its last checkpoint lies within an epoch, where transformers would make one more update."
    plan = QUICK.but(steps=3, batch_size=2, save_every=1, lora_rank=rank, out=str(tmp_path / "run"))
    first = sft(lm, EXAMPLES, plan)
    again = sft(lm, EXAMPLES, plan)
    assert again.digest == first.digest and again.history == first.history


def test_a_damaged_checkpoint_is_passed_over(lm, tmp_path):
    plan = QUICK.but(out=str(tmp_path / "run"), save_every=4)
    whole = sft(lm, EXAMPLES, plan)
    weights = tmp_path / "run/checkpoint-12/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    seen = []
    assert sft(lm, EXAMPLES, plan, lambda step, _: seen.append(step)).digest == whole.digest
    assert seen == [12]


def test_a_foreign_folder_is_left_alone(lm, tmp_path):
    plan = QUICK.but(steps=2, out=str(tmp_path))
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(AlignbookError, match="not empty"):
        sft(lm, EXAMPLES, plan)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    plan = plan.but(out=str(tmp_path / "run"))
    sft(lm, EXAMPLES, plan)
    other = tiny(WORDS, layers=1, width=32, context=32, seed=1)
    for args in ((lm, EXAMPLES[:-1], plan), (lm, EXAMPLES, plan.but(lr=1e-5)), (other, EXAMPLES, plan)):
        with pytest.raises(AlignbookError, match="another training run"):
            sft(*args)
    (tmp_path / "run/training.json").write_text("{")
    with pytest.raises(AlignbookError, match="another training run"):
        sft(lm, EXAMPLES, plan)


def test_the_trained_model_is_free_of_its_trainer(lm):
    "TRL ties `forward` to one object; a copy must compute with its own weights."
    during = []
    done = sft(lm, EXAMPLES, QUICK.but(save_every=6), lambda _, now: during.append(copy_lm(now)))
    for model in (done, during[0]):
        copy = copy_lm(model)
        want = sequence_logprob(model, ["w1"], ["w2"])
        torch.nn.init.zeros_(model.model.lm_head.weight)
        assert torch.equal(sequence_logprob(copy, ["w1"], ["w2"]), want)
    assert during[1].digest == "" and weight_digest(during[1].model) == weight_digest(
        sft(lm, EXAMPLES, QUICK).model
    )


def test_measuring_on_the_way_changes_nothing(lm):
    quiet = sft(lm, EXAMPLES, QUICK)
    looked = sft(
        lm, EXAMPLES, QUICK.but(save_every=3), lambda _, now: (generate(now, ["w1"], 4), torch.rand(9))
    )
    assert looked.digest == quiet.digest


def test_training_leaves_the_random_state_alone(lm):
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    sft(lm, EXAMPLES, QUICK.but(steps=1))
    assert torch.equal(torch.rand(3), want)


def test_lora_starts_at_the_model_trains_only_the_adapter_and_detaches(lm, tmp_path):
    full, small = (sft(lm, EXAMPLES, QUICK.but(lora_rank=r)) for r in (0, 4))
    assert small.curve()[0] == pytest.approx(full.curve()[0], abs=1e-5)  # a fresh adapter changes nothing
    want = sequence_logprob(small, ["w1 w2"], ["w3"])
    kept = load_lora(copy_lm(lm), save_lora(small, tmp_path / "adapter"))
    assert torch.allclose(sequence_logprob(kept, ["w1 w2"], ["w3"]), want, atol=1e-5)
    assert weight_digest(detach_lora(small).model) == weight_digest(lm.model)


def test_an_adapter_is_part_of_the_starting_model(lm):
    once = sft(lm, EXAMPLES, QUICK.but(lora_rank=4))
    twice = dpo(once, PAIRS, QUICK.but(steps=1, lora_rank=2))
    assert twice.curve()[0] == pytest.approx(math.log(2), abs=1e-5)
    attached = attach_lora(copy_lm(lm), rank=2)
    assert sft(attached, EXAMPLES, QUICK.but(steps=1)).curve()[0] == pytest.approx(
        sft(lm, EXAMPLES, QUICK.but(steps=1)).curve()[0], abs=1e-5
    )


@pytest.mark.parametrize("rank", [0, 4])
def test_dpo_starts_at_log_2_and_follows_the_closed_form(lm, rank):
    s = QUICK.but(steps=6, lr=1e-2, batch_size=8, beta=0.3, lora_rank=rank, save_every=5)
    at = {}
    done = dpo(lm, PAIRS, s, lambda step, now: at.update({step: copy_lm(now)}))
    assert done.curve()[0] == pytest.approx(math.log(2), abs=1e-5)
    loss = 0.0
    for r in PAIRS:
        head, yes = halves(lm, r["prompt"], r["chosen"], 32)
        no = halves(lm, r["prompt"], r["rejected"], 32)[1]
        delta = logp(at[5], head, yes) - logp(lm, head, yes) - logp(at[5], head, no) + logp(lm, head, no)
        loss -= logsigmoid(torch.tensor(0.3 * delta)).item() / len(PAIRS)
    assert loss < 0.65 and done.curve()[5] == pytest.approx(loss, abs=1e-4)


def test_soft_preference_loss_equals_the_closed_form():
    d, p = torch.tensor([2.0, -1.0, 0.3]), torch.tensor([0.9, 0.4, 1.0])
    want = -(p * logsigmoid(d) + (1 - p) * logsigmoid(-d)).mean()
    assert preference_loss(d, p).item() == pytest.approx(want.item(), abs=1e-6)


@pytest.mark.parametrize("rank", [0, 8])
def test_reward_model_fits_the_log_odds_of_its_labels(lm, rank):
    labels = (0.9, 0.5, 0.2, 0.7)
    pairs = [{**pair, "p_chosen": p} for pair, p in zip(PAIRS, labels, strict=False)]
    rm = reward_model(lm, pairs, QUICK.but(steps=80, lr=1e-2, lora_rank=rank))
    entropy = -sum(p * math.log(p) + (1 - p) * math.log(1 - p) for p in labels) / 4
    assert rm.curve()[0] == pytest.approx(math.log(2), abs=1e-6)
    assert rm.curve()[-1] == pytest.approx(entropy, abs=0.01)
    prompts = [r["prompt"] for r in pairs]
    gap = score(rm, prompts, [r["chosen"] for r in pairs]) - score(
        rm, prompts, [r["rejected"] for r in pairs]
    )
    assert torch.allclose(gap, torch.logit(torch.tensor(labels)), atol=0.3)
    one = torch.cat([score(rm, [p], [r["chosen"]]) for p, r in zip(prompts, pairs, strict=True)])
    assert torch.allclose(
        one, score(rm, prompts, [r["chosen"] for r in pairs]), atol=1e-5
    )  # padding is harmless


def test_hard_labels_are_the_default(lm):
    hard = reward_model(lm, PAIRS, QUICK)
    soft = reward_model(lm, [{**p, "p_chosen": 1.0} for p in PAIRS], QUICK)
    assert hard.digest == soft.digest
    gap = score(hard, ["w1"], [PAIRS[1]["chosen"]]) - score(hard, ["w1"], [PAIRS[1]["rejected"]])
    assert gap.item() > 0


def share(prompts, completions):
    return [c.split().count("w0") / max(1, len(c.split())) for c in completions]


@pytest.mark.parametrize("algo,rank,beta", [("rloo", 0, 0.0), ("grpo", 8, 0.01), ("grpo", 0, 0.0)])
def test_rl_raises_the_reward(lm, algo, rank, beta):
    if rank:  # an adapter does not touch the embeddings: let them tell words apart
        lm.model.lm_head.weight.data.mul_(10)
    s = TrainSettings(steps=25, lr=1e-2, batch_size=16, beta=beta, lora_rank=rank)
    done = rl(lm, ["w1 w2", "w5"], share, s, algo=algo, group=8, max_new_tokens=5)
    start = share(None, generate(lm, ["w1 w2"] * 40, 5))
    end = share(None, generate(done, ["w1 w2"] * 40, 5, seed=1))
    assert sum(start) / 40 < 0.3 and sum(end) / 40 > 0.6
    assert done.curve("reward")[-1] > done.curve("reward")[0]


def test_rl_makes_all_updates_with_few_prompts_and_resumes(lm, tmp_path):
    "TRL drops a batch that it cannot fill, and would end without a single update."
    s = TrainSettings(steps=4, lr=1e-2, batch_size=8, beta=0.05)
    whole = rl(lm, ["w1"], share, s, group=2, max_new_tokens=3)
    assert len(whole.history) == 4 and whole.digest != weight_digest(lm.model)
    plan = s.but(out=str(tmp_path / "run"), save_every=2)

    def stop(step, _):
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rl(lm, ["w1"], share, plan, group=2, max_new_tokens=3, on_checkpoint=stop)
    assert rl(lm, ["w1"], share, plan, group=2, max_new_tokens=3).digest == whole.digest


def test_rl_is_held_back_by_the_starting_model(lm):
    s = TrainSettings(steps=15, lr=1e-2, batch_size=16)
    free, held = (rl(lm, ["w1 w2"], share, s.but(beta=b), group=8, max_new_tokens=4) for b in (0.0, 5.0))
    assert held.curve("kl")[0] == pytest.approx(0, abs=1e-4)  # the reference is the starting model
    assert sum(held.curve("reward")[-5:]) < sum(free.curve("reward")[-5:])
    assert held.model.config._name_or_path == lm.model.config._name_or_path


def test_rl_samples_after_the_prompt_exactly_as_written(lm):
    "A tokenizer that adds a start token by itself must not add one here."
    from tokenizers.processors import TemplateProcessing

    lm.tok.backend_tokenizer.post_processor = TemplateProcessing(
        single="<unk> $A", special_tokens=[("<unk>", 1)]
    )
    assert lm.tok("w1").input_ids == [1, 4]
    seen = []

    def spy(prompts, completions):
        seen.extend(prompts)
        return [0.0] * len(completions)

    inputs = []
    forward = type(lm.model).forward

    def watch(self, input_ids=None, **kw):
        inputs.append(input_ids)
        return forward(self, input_ids=input_ids, **kw)

    type(lm.model).forward = watch
    try:
        rl(lm, ["w1 w2"], spy, TrainSettings(steps=1, batch_size=2, beta=0.0), group=2, max_new_tokens=2)
    finally:
        type(lm.model).forward = forward
    assert set(seen) == {"w1 w2"} and inputs[0].tolist() == [[4, 5]] * 2


@pytest.mark.parametrize(
    "call,match",
    [
        (lambda lm: sft(lm, [{"prompt": "w1"}]), "no 'completion'"),
        (lambda lm: sft(lm, []), "no examples"),
        (lambda lm: dpo(lm, [{"prompt": "w1", "chosen": "w2"}]), "no 'rejected'"),
        (lambda lm: reward_model(lm, [{**PAIRS[0], "p_chosen": 1.5}]), "probability"),
        (lambda lm: score(lm, ["w1"], ["w2"]), "no reward model"),
        (lambda lm: rl(lm, ["w1"], share, algo="ppo"), "rloo or grpo"),
        (lambda lm: rl(lm, ["w1"], share, QUICK, group=3), "group"),
        (lambda lm: rl(lm, [], share, QUICK), "no prompts"),
        (lambda lm: rl(lm, ["w1"], lambda p, c: [math.nan] * len(c), QUICK, max_new_tokens=2), "finite"),
        (lambda lm: rl(lm, ["w1"], lambda p, c: [1.0], QUICK, max_new_tokens=2), "finite"),
    ],
)
def test_what_a_user_can_put_right_is_said_in_one_sentence(lm, call, match):
    with pytest.raises(AlignbookError, match=match):
        call(lm)


def test_the_manifest_names_settings_data_and_start(lm, tmp_path):
    sft(lm, EXAMPLES, QUICK.but(steps=1, out=str(tmp_path / "run")))
    manifest = json.loads((tmp_path / "run/training.json").read_text())
    assert (
        manifest["kind"] == "sft"
        and manifest["start"] == weight_digest(lm.model)
        and manifest["lr"] == QUICK.lr
    )


def test_importing_the_module_needs_neither_trl_nor_datasets():
    code = "import alignbook.training, sys; assert not {'trl', 'datasets', 'peft'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
