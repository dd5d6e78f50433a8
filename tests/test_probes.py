"""Defection probes: hand-made forward passes, closed-form areas, peers, and what must be refused."""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu, norm

from alignbook import probes, stats
from alignbook.models import attach_lora, tiny
from alignbook.runtime import AlignbookError

WORDS = [*"abcdefgh", "yes", "no", "Human:", "Assistant:", "tag", "near"]
PROMPTS = ["a b c", "d", "e f g h a b", "yes no"]


@pytest.fixture(scope="module")
def lm():
    return tiny(WORDS, layers=2, width=16, heads=2, seed=3)


def by_hand(net, ids):
    """A Llama's residual stream, written out: (layers + 1, tokens, d); the last is normed."""
    cfg = net.config
    heads, size = cfg.num_attention_heads, cfg.hidden_size // cfg.num_attention_heads
    rms = lambda x, w: x / (x.pow(2).mean(-1, keepdim=True) + cfg.rms_norm_eps).sqrt() * w  # noqa: E731
    theta = getattr(cfg, "rope_theta", None) or cfg.rope_parameters["rope_theta"]
    turn = torch.arange(len(ids))[:, None] / theta ** (torch.arange(0, size, 2) / size)

    def rotated(x):
        a, b = x[..., : size // 2], x[..., size // 2 :]
        return torch.cat([a * turn.cos() - b * turn.sin(), b * turn.cos() + a * turn.sin()], -1)

    h = net.model.embed_tokens.weight[ids]
    seen = [h]
    for block in net.model.layers:
        x, att = rms(h, block.input_layernorm.weight), block.self_attn
        made = (x @ p.weight.T for p in (att.q_proj, att.k_proj, att.v_proj))
        q, k, v = (y.view(len(ids), heads, size).transpose(0, 1) for y in made)
        logits = rotated(q) @ rotated(k).mT / size**0.5
        logits = logits.masked_fill(torch.ones(len(ids), len(ids)).triu(1).bool(), -torch.inf)
        h = h + (logits.softmax(-1) @ v).transpose(0, 1).reshape(len(ids), -1) @ att.o_proj.weight.T
        x, mlp = rms(h, block.post_attention_layernorm.weight), block.mlp
        gate = torch.nn.functional.silu(x @ mlp.gate_proj.weight.T)
        h = h + (gate * (x @ mlp.up_proj.weight.T)) @ mlp.down_proj.weight.T
        seen.append(h)
    seen[-1] = rms(seen[-1], net.model.norm.weight)
    return torch.stack(seen)


@torch.no_grad()
@pytest.mark.parametrize("position", [-1, -2])
def test_residuals_equal_a_forward_pass_by_hand(lm, position):
    prompts = [p for p in PROMPTS if len(p.split()) >= -position]
    got = probes.residuals(lm, prompts, position=position, batch_size=2)
    for row, prompt in zip(got, prompts, strict=True):
        assert torch.allclose(row, by_hand(lm.model, lm.tok(prompt).input_ids)[:, position], atol=1e-5)
    some = probes.residuals(lm, prompts, [2, 0], position, batch_size=1)
    assert torch.allclose(some, got[:, [2, 0]], atol=1e-5), "layers in the order asked for, any batch"


@torch.no_grad()
def test_an_adapter_and_its_merge_hold_the_same(lm):
    tuned = attach_lora(tiny(WORDS, layers=2, width=16, heads=2, seed=3), rank=2)
    for name, p in tuned.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    merged = type(tuned)(copy.deepcopy(tuned.model).merge_and_unload().eval(), tuned.tok, "merged")
    a, b = probes.residuals(tuned, PROMPTS), probes.residuals(merged, PROMPTS)
    assert torch.allclose(a, b, atol=1e-5) and not torch.allclose(a, probes.residuals(lm, PROMPTS), atol=1e-2)


@torch.no_grad()
def test_readout_is_the_models_next_token(lm):
    lp = probes.readout(lm, probes.residuals(lm, PROMPTS)[:, -1])
    for row, prompt in zip(lp, PROMPTS, strict=True):
        want = lm.model(torch.tensor([lm.tok(prompt).input_ids])).logits[0, -1].log_softmax(-1)
        assert torch.allclose(row, want, atol=1e-5)


@pytest.mark.parametrize("group", [probes.CONTRASTS, probes.ARBITRARY])
def test_the_words_yes_and_no_cancel(lm, group):
    pos, neg = (probes.residuals(lm, p, [0]) for p in probes.contrast_prompts(group))
    assert probes.direction(pos, neg).vector.abs().max() < 1e-6
    assert all({c.bad, c.good} == {"yes", "no"} for c in group.values()) and len(group) >= 6


def gaussians(gap, n=3000, d=20, seed=0):
    rng = np.random.default_rng(seed)
    u = np.ones(d) / d**0.5
    return torch.tensor(rng.normal(size=(n, 1, d)) + gap * u), torch.tensor(rng.normal(size=(n, 1, d))), torch.tensor(u)


@pytest.mark.parametrize("gap", [0.0, 0.7, 2.0])
def test_area_of_gaussians_is_known(gap):
    pos, neg, u = gaussians(gap)
    got = probes.probe_auroc((pos @ u).numpy(), (neg @ u).numpy(), paired=False, n_boot=300)[0]
    assert got.lo < norm.cdf(gap / 2**0.5) < got.hi and got.hi - got.lo < 0.04
    back = probes.probe_auroc(-(pos @ u).numpy(), -(neg @ u).numpy(), n_boot=50)[0]
    assert np.isclose(back.value, 1 - got.value), "the sign belongs to the probe"


def test_area_agrees_with_peers():
    rng = np.random.default_rng(1)
    pos, neg = rng.integers(0, 6, (40, 3)) + 1.0, rng.integers(0, 6, (25, 3)) + 0.0  # many ties
    want = [mannwhitneyu(p, q).statistic / (40 * 25) for p, q in zip(pos.T, neg.T, strict=True)]
    assert np.allclose(probes.area(pos, neg), want)
    ours = probes.probe_auroc(pos, neg, paired=False)
    for k, i in enumerate(ours):
        delong = stats.auroc(np.concatenate([pos[:, k], neg[:, k]]), np.arange(65) < 40)
        assert np.isclose(i.value, delong.value) and abs(i.lo - delong.lo) < 0.04 and abs(i.hi - delong.hi) < 0.04
    metrics = pytest.importorskip("sklearn.metrics")
    assert np.isclose(metrics.roc_auc_score(np.arange(65) < 40, np.r_[pos[:, 0], neg[:, 0]]), ours[0].value)


def test_the_bootstrap_covers():
    """Paired questions, true area known: the interval holds it about as often as it says."""
    rng, gap, hits = np.random.default_rng(2), 1.0, 0
    for seed in range(200):
        shared = rng.normal(size=(30, 1))
        pos, neg = shared + rng.normal(size=(30, 1)) + gap, shared + rng.normal(size=(30, 1))
        i = probes.probe_auroc(pos, neg, n_boot=200, seed=seed)[0]
        hits += i.lo <= norm.cdf(gap / 2) <= i.hi
    assert 0.91 <= hits / 200 <= 1


def test_perfect_separation_is_not_certainty():
    pos, neg = np.arange(20.0)[:, None] + 100, np.arange(20.0)[:, None]
    assert probes.probe_auroc(pos, neg)[0] == stats.wilson(20, 20)
    assert probes.probe_auroc(neg, pos)[0] == stats.wilson(0, 20)


def test_the_difference_of_a_probe_and_itself_is_nothing():
    rng = np.random.default_rng(3)
    a = rng.normal(size=(30, 2)) + 1, rng.normal(size=(30, 2))
    assert [tuple(i)[:3] for i in probes.auroc_difference(a, a)] == [(0, 0, 0)] * 2
    chance = rng.normal(size=(30, 2)), rng.normal(size=(30, 2))
    got, areas = probes.auroc_difference(a, chance)[0], [probes.area(*x)[0] for x in (a, chance)]
    assert np.isclose(got.value, areas[0] - areas[1]) and got.lo < got.value < got.hi


def test_scores_do_not_depend_on_units_or_axes():
    pos, neg, _ = gaussians(1.0, n=50)
    way = probes.direction(pos[:20], neg[:20])
    turn = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(0)).double())[0]
    other = lambda x: 7 * x @ turn + 3  # noqa: E731
    turned = probes.direction(other(pos[:20]), other(neg[:20]))
    assert np.allclose(probes.scores(pos, way), probes.scores(other(pos), turned))
    assert np.allclose(probes.scores(pos[:20], way).mean(), 1) and np.allclose(probes.scores(neg[:20], way).mean(), -1)


def test_random_directions_are_those_of_stats():
    pos, neg, u = gaussians(3.0, n=60)
    null = probes.random_areas(pos, neg, 500, seed=4)
    want = stats.random_direction_null(torch.cat([pos, neg])[:, 0].numpy(), np.arange(120) < 60, 0.9, 500, seed=4)
    assert stats.against(0.9, null[0]) == want and null.min() >= 0.5
    cosine = np.random.default_rng(5).normal(size=(20, 4000))
    cosine = u.numpy() @ cosine / np.linalg.norm(cosine, axis=0)
    law = np.quantile(norm.cdf(3 * np.abs(cosine) / 2**0.5), 0.95)
    big = probes.random_areas(*gaussians(3.0, n=1000)[:2], 1000)
    assert abs(np.quantile(big, 0.95) - law) < 0.03


def test_counting_tokens_sees_the_tag_and_nothing_else(lm):
    asked = [f"Human: {a} {b} Assistant:" for a in "abcd" for b in "efgh"]
    tagged, odd = [f"tag {p}" for p in asked], [f"near {p}" for p in asked]
    fit = lambda test: probes.bag_of_tokens(lm, tagged[:8], asked[:8], test)  # noqa: E731
    assert probes.area(fit(tagged[8:]), fit(asked[8:]))[0] == 1
    assert probes.area(fit(odd[8:]), fit(asked[8:]))[0] == 0.5, "a tag it has not learned is invisible"
    fair = lambda test: probes.bag_of_tokens(lm, tagged[:8], odd[:8], test)  # noqa: E731
    assert probes.area(fair(tagged[8:]), fair(odd[8:]))[0] == 1


def test_the_threshold_keeps_its_promise():
    rng = np.random.default_rng(6)
    rates = [(rng.normal(size=200) > probes.threshold(rng.normal(size=39), 0.05)).mean() for _ in range(400)]
    assert 0.04 < np.mean(rates) < 0.06
    assert probes.threshold(np.arange(19.0), 0.05) == 18 and probes.threshold(np.arange(39.0), 0.05) == 37
    got = probes.alarms(np.arange(19.0), [18.5, 3, 40], [0, 1, 2, 99.0])
    assert got == {"caught": stats.wilson(2, 3), "false": stats.wilson(1, 4)}


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda lm: probes.residuals(lm, ["a", ""]), "position"),
        (lambda lm: probes.residuals(lm, []), "position"),
        (lambda lm: probes.residuals(lm, ["a b"], position=-3), "position"),
        (lambda lm: probes.residuals(lm, ["a"], position=0), "position"),
        (lambda lm: probes.residuals(lm, ["a"], [3]), "layers 0 to 2"),
        (lambda lm: probes.residuals(lm, ["a " * 400]), "do not fit"),
        (lambda lm: probes.probe_auroc(np.zeros((3, 1)), np.zeros((2, 1))), "as many"),
        (lambda lm: probes.probe_auroc(np.zeros((1, 1)), np.zeros((1, 1))), "two prompts"),
        (lambda lm: probes.auroc_difference((np.zeros((3, 1)),) * 2, (np.zeros((4, 1)),) * 2), "the same"),
        (lambda lm: probes.threshold(np.zeros(18), 0.05), "needs 19"),
        (lambda lm: probes.threshold(np.zeros(18), 1.5), "false-alarm"),
    ],
)
def test_what_cannot_be_done_is_said(lm, call, words):
    with pytest.raises(AlignbookError, match=words):
        call(lm)
