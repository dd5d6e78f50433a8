"""EK-FAC against dense matrices, enumeration, finite steps and training again: nothing trusts the library's algebra."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from alignbook import ekfac
from alignbook.models import tiny
from alignbook.runtime import AlignbookError

WORDS = "the cat dog sat on mat ran far".split()
ESTIMATORS = ("identity", "diagonal", "kfac", "ekfac")


def sentence(rng, n):
    return tuple(torch.randint(3, 3 + len(WORDS), (n,), generator=rng).tolist())


def toy_lm():
    "Two layers of width 8: each MLP matrix has 192 weights, so its Fisher can be written down."
    toy = tiny(WORDS, layers=2, width=8, heads=2, context=32, seed=1)
    with torch.no_grad():
        for p in toy.model.double().parameters():
            p.mul_(4)  # an untrained model is nearly uniform; this one has opinions
    return toy


def toy_items():
    "Sixteen sequences of 6 to 9 tokens; every second one counts its completion only."
    rng = torch.Generator().manual_seed(0)
    return [ekfac.Text(sentence(rng, 6 + i % 4), 1 if i % 2 else 3) for i in range(16)]


@pytest.fixture(scope="module")
def lm():
    return toy_lm()


@pytest.fixture(scope="module")
def items():
    return toy_items()


@pytest.fixture(scope="module")
def factors(lm, items):
    return ekfac.fit_factors(lm.model, items, labels="data", diagonal=True)


def net(seed=0, classes=3):
    "A small classifier with biases and no square matrix."
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, classes)).double()


def points(n, classes=3, seed=0):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, generator=rng, dtype=torch.float64) * torch.tensor([3.0, 1.0, 1.0, 0.3, 2.0])
    return [(x[i], torch.randint(classes, (), generator=rng)) for i in range(n)]


# --- what the library is compared with ----------------------------------------------------------------------


def weights(module):
    return [module.weight] + ([] if module.bias is None else [module.bias])


def layout(module, grads):
    "Parameter gradients [..., weight, bias] as [..., P, M (+1)]."
    w = grads[0] if isinstance(module, nn.Linear) else grads[0].mT
    return w if module.bias is None else torch.cat([w, grads[1][..., None]], -1)


def logp(model, text):
    "Log-likelihood of one text, alone, without padding."
    lp = model(torch.tensor([text.ids])).logits[0].log_softmax(-1)
    return sum(lp[t - 1, text.ids[t]] for t in range(text.start, len(text.ids)))


def by_hand(model, modules, values):
    "Gradients of each scalar in `values` (functions of no argument): layer -> [N, P, M]."
    rows = []
    for value in values:
        for m in modules.values():
            for w in weights(m):
                w.requires_grad_()
        flat = [w for m in modules.values() for w in weights(m)]
        got = iter(torch.autograd.grad(value(), flat))
        rows.append([layout(m, [next(got) for _ in weights(m)]) for m in modules.values()])
    return {n: torch.stack(g) for n, g in zip(modules, zip(*rows, strict=True), strict=True)}


def fisher(jacobian, probs):
    "Sum over positions of Jᵀ(diag p − ppᵀ)J; jacobian [T, K, D], probs [T, K]."
    mean = torch.einsum("tk,tkd->td", probs, jacobian)
    return torch.einsum("tk,tkd,tke->de", probs, jacobian, jacobian) - mean.T @ mean


def exact_fisher(model, module, logits_of, items):
    "Mean over items of the exact Fisher of one layer: all labels enumerated through the Jacobian of the logits."
    total = 0
    for item in items:
        for w in weights(module):
            w.requires_grad_()
        z = logits_of(model, item)  # [T, K]
        eye = torch.eye(z.numel(), dtype=z.dtype).view(-1, *z.shape)
        grads = torch.autograd.grad(z, weights(module), eye, is_grads_batched=True)
        total = total + fisher(layout(module, grads).reshape(*z.shape, -1), z.detach().softmax(-1))
    return total / len(items)


def counted_logits(model, text):
    return model(torch.tensor([text.ids])).logits[0, text.start - 1 : -1]


def point_logits(model, item):
    return model(item[0][None])


def tokens_by_hand(model, modules, items):
    "Inputs (with the bias column) and output gradients at every real position but the last: layer -> (a, d)."
    seen = {n: ([], []) for n in modules}
    for text in items:
        kept = {}
        hooks = [
            m.register_forward_hook(lambda m, x, y, n=n, kept=kept: kept.__setitem__(n, (x[0], y)))
            for n, m in modules.items()
        ]
        model.requires_grad_(True)
        loss = -logp(model, text)
        for h in hooks:
            h.remove()
        for n, (x, y) in kept.items():
            seen[n][0].append(x.detach()[0, :-1])
            seen[n][1].append(torch.autograd.grad(loss, y, retain_graph=True)[0][0, :-1])
    return {n: (torch.cat(a), torch.cat(d)) for n, (a, d) in seen.items()}


def implied(factors, name, estimator, damping=1e-3):
    "The matrix G that `precondition` inverts, read from its answers to all unit gradients."
    P, M = factors[name].lam.shape
    D = P * M
    units = {name: torch.eye(D, dtype=torch.float64).view(D, P, M)}
    inverse = ekfac.precondition(units, factors, estimator, damping=damping)[name].reshape(D, D)
    return torch.linalg.inv(inverse) - damping * torch.eye(D, dtype=torch.float64)


def dense(q_s, q_a, lam):
    "(Q_S ⊗ Q_A) diag(Λ) (Q_S ⊗ Q_A)ᵀ for weights flattened row by row."
    q = torch.kron(q_s, q_a)
    return q @ torch.diag(lam.flatten()) @ q.T


def gap(x, y):
    return float((x - y).abs().max() / y.abs().max())


# --- gradients ----------------------------------------------------------------------------------------------


def test_gradients_equal_autograd_one_item_at_a_time(lm, items):
    modules = ekfac.track(lm.model)
    got = ekfac.gradients(lm.model, items, modules=modules)
    expected = by_hand(lm.model, modules, [lambda t=t: logp(lm.model, t) for t in items])
    assert list(got) == list(expected) and len(got) == 6
    assert max(gap(got[n], expected[n]) for n in got) < 1e-10


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_the_bias_is_the_last_column(kind):
    model, data = net(), points(6)
    if kind == "numbers":
        data = [(x, torch.randn(3, dtype=torch.float64)) for x, _ in data]

    def value(x, y):
        z = model(x)
        return z.log_softmax(-1)[y] if kind == "classes" else -0.5 * (z - y).square().sum()

    modules = ekfac.track(model, ".")
    got = ekfac.gradients(model, data, ekfac.supervised, modules)
    expected = by_hand(model, modules, [lambda x=x, y=y: value(x, y) for x, y in data])
    assert [tuple(g.shape[1:]) for g in got.values()] == [(7, 6), (3, 8)]
    assert max(gap(got[n], expected[n]) for n in got) < 1e-12


@pytest.fixture(scope="module")
def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=11, n_positions=16, n_embd=8, n_layer=2, n_head=2, n_inner=20)
    config.bos_token_id = config.eos_token_id = 0
    model = GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def test_conv1d_of_hf_equals_linear_with_the_same_weights(gpt2, items):
    plain = copy.deepcopy(gpt2)
    for block in plain.transformer.h:
        for name in ("c_fc", "c_proj"):
            old = getattr(block.mlp, name)
            new = nn.Linear(*old.weight.shape).double()
            new.weight.data, new.bias.data = old.weight.data.T.clone(), old.bias.data.clone()
            setattr(block.mlp, name, new)
    got, expected = ({}, {})
    for found, model in ((got, gpt2), (expected, plain)):
        factors = ekfac.fit_factors(model, items)
        found["scores"] = ekfac.scores(model, factors, items[:3], items)
        found |= ekfac.gradients(model, items)
    assert [tuple(g.shape[1:]) for n, g in got.items() if n != "scores"] == [(20, 9), (8, 21)] * 2
    assert max(gap(got[n], expected[n]) for n in expected) < 1e-9


def test_the_output_layer_is_never_tracked(lm, gpt2):
    assert not [n for n in ekfac.track(lm.model, ".") if "head" in n]
    assert not [n for n in ekfac.track(gpt2, ".") if "head" in n]
    with pytest.raises(AlignbookError, match="no linear layer"):
        ekfac.track(lm.model, "lm_head")


# --- factors ------------------------------------------------------------------------------------------------


def test_factors_equal_loops_over_positions(lm, items, factors):
    """Trap 4: every real position but the last enters A and S, prompt or not; the count is theirs.
    Trap 11: one division by the total."""
    modules = ekfac.track(lm.model)
    grads = by_hand(lm.model, modules, [lambda t=t: logp(lm.model, t) for t in items])
    count = sum(len(t.ids) - 1 for t in items)
    assert (factors.sequences, factors.tokens) == (len(items), count)
    for n, (a, d) in tokens_by_hand(lm.model, modules, items).items():
        assert len(a) == count
        f, q_a, q_s = factors[n], *(torch.block_diag(*factors[n].__dict__[k]) for k in ("inputs", "outputs"))
        assert gap(q_a @ torch.diag(f.a) @ q_a.T, a.T @ a / count) < 1e-10
        assert gap(q_s @ torch.diag(f.s) @ q_s.T, d.T @ d / count) < 1e-10
        assert gap(f.lam, (q_s.T @ grads[n] @ q_a).square().mean(0)) < 1e-10
        assert gap(f.diagonal, grads[n].square().mean(0)) < 1e-10


def test_prompt_positions_carry_gradient(lm, items):
    "The statistics of a masked loss are not those of its completion alone: the trap that kronfluence fell into."
    modules = ekfac.track(lm.model)
    text = items[0]
    d = tokens_by_hand(lm.model, modules, [text])["model.layers.0.mlp.gate_proj"][1]
    assert text.start == 3 and d[0].norm() > 0.01 * d[text.start - 1 :].norm()


@pytest.mark.parametrize("estimator", ["ekfac", "kfac"])
def test_inverse_equals_a_dense_solve_built_from_scratch(lm, items, factors, estimator):
    "Traps 1, 2, 12: own covariances, own eigenvectors, an explicit Kronecker product and torch.linalg.solve."
    modules = ekfac.track(lm.model)
    grads = by_hand(lm.model, modules, [lambda t=t: logp(lm.model, t) for t in items])
    got = ekfac.precondition(grads, factors, estimator)
    for n, (a, d) in tokens_by_hand(lm.model, modules, items).items():
        w_a, q_a = torch.linalg.eigh(a.T @ a / len(a))
        w_s, q_s = torch.linalg.eigh(d.T @ d / len(d))
        lam = (q_s.T @ grads[n] @ q_a).square().mean(0) if estimator == "ekfac" else torch.outer(w_s, w_a)
        assert a.shape[1] != d.shape[1] and (q_a - q_a.T).abs().max() > 0.1  # a transposed basis would show
        if estimator == "kfac":  # the tokens of a sequence as if independent: as many as a sequence has
            lam = lam * len(a) / len(items)
        G = dense(q_s, q_a, lam) + 0.1 * lam.mean() * torch.eye(lam.numel(), dtype=torch.float64)
        expected = torch.linalg.solve(G, grads[n].flatten(1).T).T.view_as(grads[n])
        assert gap(got[n], expected) < 1e-8


def test_default_damping_is_a_tenth_of_each_layers_own_mean(factors, lm, items):
    "Trap 3 (damping of the first layer used for all) and trap 9 (a tiny default)."
    values = {n: factors.damping(n) for n in factors.layers}
    for n, value in values.items():
        assert value == pytest.approx(0.1 * float(factors[n].lam.mean()), rel=1e-12)
    assert max(values.values()) > 1.5 * min(values.values())
    grads = ekfac.gradients(lm.model, items)
    got = ekfac.precondition(grads, factors)
    explicit = {n: ekfac.precondition({n: g}, factors, damping=values[n])[n] for n, g in grads.items()}
    assert max(gap(got[n], explicit[n]) for n in got) < 1e-12


def test_nothing_is_preconditioned_but_with_an_identity(factors, lm, items):
    grads = ekfac.gradients(lm.model, items)
    dot, flat = (ekfac.precondition(grads, factors, e) for e in ("dot", "identity"))
    assert all(torch.equal(dot[n], grads[n]) for n in grads)
    for n in grads:
        ratio = flat[n] / grads[n]
        assert float(ratio.std() / ratio.mean()) < 1e-9 and float(ratio.mean()) > 0


# --- the true Fisher ----------------------------------------------------------------------------------------


def test_sampled_factors_converge_to_the_enumerated_fisher(lm, items):
    "Monte Carlo Λ, S and the diagonal approach the sums over all labels, at the rate 1/√draws."
    few, names, errors = items[:5], ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.up_proj"], {}
    modules = {n: m for n, m in ekfac.track(lm.model).items() if n in names}
    exact = {n: exact_fisher(lm.model, m, counted_logits, few) for n, m in modules.items()}
    for draws in (4, 400):
        f = ekfac.fit_factors(lm.model, few, modules=modules, draws=draws, diagonal=True)
        for n, G in exact.items():
            q = torch.kron(torch.block_diag(*f[n].outputs), torch.block_diag(*f[n].inputs))
            for key, got, want in (
                ("lam", f[n].lam, (q.T @ G @ q).diagonal()),
                ("diag", f[n].diagonal, G.diagonal()),
            ):
                errors[n, key, draws] = float((got.flatten() - want).norm() / want.norm())
    for n in names:
        for key in ("lam", "diag"):
            assert errors[n, key, 400] < 0.1 and errors[n, key, 400] < 0.5 * errors[n, key, 4]


def test_eigenvalues_are_measured_on_fresh_labels(lm, items):
    """A basis fitted to the same labels that measure it is flattered: weak directions look empty, strong ones strong.
    With few sequences that changes scores fourfold; kronfluence draws again, and so must we."""
    few, name = items[:3], "model.layers.1.mlp.up_proj"
    modules = {name: ekfac.track(lm.model)[name]}
    G, weak = exact_fisher(lm.model, modules[name], counted_logits, few), [0.0, 0.0]
    for seed in range(60):
        f = ekfac.fit_factors(lm.model, few, modules=modules, seed=seed)[name]
        q = torch.kron(torch.block_diag(*f.outputs), torch.block_diag(*f.inputs))
        exact = (q.T @ G @ q).diagonal().view_as(f.lam)
        half = f.s.argsort()[: len(f.s) // 2]  # the weaker half of the output directions
        weak[0], weak[1] = weak[0] + float(f.lam[half].sum()), weak[1] + float(exact[half].sum())
    assert weak[0] / weak[1] == pytest.approx(1, abs=0.25)


def test_draws_are_not_more_tokens(lm, items):
    "K-FAC's scale is tokens a sequence: drawing labels twice must not double it."
    once, often = (ekfac.fit_factors(lm.model, items, draws=k) for k in (1, 50))
    assert once.tokens == often.tokens == sum(len(t.ids) - 1 for t in items) and often.sequences == len(items)
    n = "model.layers.0.mlp.up_proj"
    trace = [float(implied(f, n, "kfac").trace()) for f in (once, often)]
    assert trace[1] == pytest.approx(trace[0], rel=0.3)


def test_classifier_fisher_equals_a_sum_over_labels():
    "With one position an item, the enumerated Fisher is Σ_k p_k g_k g_kᵀ: the oracle is itself checked."
    model, data = net(), points(4)
    module = model[0]
    total = 0
    for x, _ in data:
        p = model(x).log_softmax(-1)
        for k in range(3):
            g = by_hand(model, {"0": module}, [lambda x=x, k=k: model(x).log_softmax(-1)[k]])["0"].flatten()
            total = total + float(p[k].detach().exp()) * torch.outer(g, g)
    assert gap(exact_fisher(model, module, point_logits, data), total / len(data)) < 1e-12


def ladder(factors, modules, model, logits_of, data):
    "Relative Frobenius error of each estimator's matrix against the exact Fisher, layer by layer."
    out = {}
    for name, module in modules.items():
        G = exact_fisher(model, module, logits_of, data)
        small = 1e-2 * float(factors[name].lam.mean())
        got = {e: implied(factors, name, e, small) for e in ESTIMATORS[1:]}
        got["identity"] = G.diagonal().mean() * torch.eye(len(G), dtype=torch.float64)
        out[name] = {e: float((got[e] - G).norm() / G.norm()) for e in ESTIMATORS}
    return out


def test_error_ladder_on_a_transformer(lm, items):
    modules = ekfac.track(lm.model)
    factors = ekfac.fit_factors(lm.model, items, draws=100, diagonal=True)
    for name, e in ladder(factors, modules, lm.model, counted_logits, items).items():
        assert e["identity"] > e["diagonal"] > e["kfac"] > e["ekfac"], (name, e)


def test_error_ladder_of_a_classifier():
    """The diagonal beats the identity and EK-FAC beats K-FAC whatever the network (best in their bases). K-FAC need not
    beat the diagonal: here, where large inputs saturate the units, it overshoots in the first layer."""
    torch.manual_seed(3)
    mix, model = torch.randn(5, 5, dtype=torch.float64), net(3)
    data, modules = [(x @ mix, y) for x, y in points(40)], ekfac.track(model, ".")
    factors = ekfac.fit_factors(model, data, ekfac.supervised, modules, draws=300, diagonal=True)
    error = ladder(factors, modules, model, point_logits, data)
    for name, e in error.items():
        assert e["identity"] > e["diagonal"] > e["ekfac"] and e["kfac"] > e["ekfac"], (name, e)
    assert error["0"]["kfac"] > error["0"]["diagonal"] and error["2"]["kfac"] < error["2"]["diagonal"]


def test_labels_are_sampled_by_default_and_need_not_be(lm, items, factors):
    sampled, again, other = (ekfac.fit_factors(lm.model, items, seed=s) for s in (0, 0, 1))
    n = "model.layers.1.mlp.down_proj"
    assert torch.equal(sampled[n].lam, again[n].lam)
    assert gap(sampled[n].lam, other[n].lam) > 0.01 and gap(sampled[n].lam, factors[n].lam) > 0.01


def test_targets_are_drawn_from_the_models_distribution(lm):
    z = torch.randn(1, 3, 6, generator=torch.Generator().manual_seed(0)).double() * 2
    z = z.expand(4000, 3, 6)
    blank = torch.zeros(4000, 3, dtype=torch.long)
    on = torch.ones_like(blank, dtype=torch.bool)
    for dtype in (torch.float64, torch.bfloat16):
        out = ekfac.Outputs(z.to(dtype), blank, on, on)
        drawn = out.sample([(0, 0, i) for i in range(4000)])
        seen = nn.functional.one_hot(drawn, 6).double().mean(0)
        assert (seen - z[0].softmax(-1)).abs().max() < 0.03, dtype
    alone = ekfac.Outputs(z[:1, :2], blank[:1, :2], on[:1, :2], on[:1, :2]).sample([(0, 0, 7)])
    assert torch.equal(
        alone[0], ekfac.Outputs(z, blank, on, on).sample([(0, 0, i) for i in range(4000)])[7, :2]
    )


def test_half_precision_keeps_rare_words():
    "Half of the mass on one word, half spread over 4,000: bfloat16 cannot add 1/8000 to 1/2."
    z = torch.zeros(1, 500, 4001)
    z[..., 0] = torch.tensor(4000.0).log()
    blank = torch.zeros(1, 500, dtype=torch.long)
    on = torch.ones_like(blank, dtype=torch.bool)
    drawn = ekfac.Outputs(z.bfloat16(), blank, on, on).sample([(0, 0, 0)])
    rare = drawn[drawn > 0]
    assert 0.4 < len(rare) / 500 < 0.6 and len(rare.unique()) > 200


# --- scores -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(lm, factors, items):
    return ekfac.scores(lm.model, factors, items[:4], items)


def test_scores_are_products_of_gradients_with_the_dense_inverse(lm, items, factors, table):
    grads = ekfac.gradients(lm.model, items)
    assert table.shape == (4, 16)
    for e in ESTIMATORS:
        expected = 0
        for n, g in grads.items():
            damp = 0.1 * implied(factors, n, e).trace() / g[0].numel()
            G = implied(factors, n, e) + damp * torch.eye(g[0].numel(), dtype=torch.float64)
            expected = expected + g[:4].flatten(1) @ torch.linalg.solve(G, g.flatten(1).T)
        assert gap(ekfac.scores(lm.model, factors, items[:4], items, estimator=e), expected) < 1e-8
    dot = sum(g[:4].flatten(1) @ g.flatten(1).T for g in grads.values())
    assert gap(ekfac.scores(lm.model, None, items[:4], items, estimator="dot"), dot) < 1e-10


def nudge(modules, direction, step):
    with torch.no_grad():
        for n, m in modules.items():
            w, v = weights(m), direction[n]
            v = v if m.bias is None else v[:, :-1]
            w[0].add_(step * (v if isinstance(m, nn.Linear) else v.T))
            if m.bias is not None:
                m.bias.add_(step * direction[n][:, -1])


@pytest.mark.parametrize("estimator", ["dot", "ekfac"])
def test_sign_and_scale_by_a_finite_step(gpt2, items, estimator):
    "Trap 7: a step along the (preconditioned) gradient of a training item moves a query's log-likelihood by its score."
    model = copy.deepcopy(gpt2)  # Llama's norm is fp32 inside an fp64 model: too coarse for a finite step
    modules, queries, train = ekfac.track(model), items[:2], items[3:6]
    factors = ekfac.fit_factors(model, items)
    got = ekfac.scores(model, factors, queries, train, estimator=estimator)
    for i, item in enumerate(train):
        way = ekfac.precondition(ekfac.gradients(model, [item]), factors, estimator)
        way, h = {n: g[0] for n, g in way.items()}, 1e-5
        size = float(sum(g.square().sum() for g in way.values()).sqrt())
        values = []
        for step in (h, -2 * h, h):
            nudge(modules, way, step / size)
            values.append([logp(model, q).item() for q in queries])
        up, down = (torch.tensor(v, dtype=torch.float64) for v in values[:2])
        assert torch.allclose(got[:, i], (up - down) * size / (2 * h), rtol=1e-4)
    own = ekfac.scores(model, factors, train, train, estimator=estimator).diagonal()
    assert (own > 0).all(), "an item makes itself more likely"


def test_one_more_copy_by_training_again():
    "Trap 8: score / sequences is the change when the regression is solved again with one item counted twice."
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(400, 3, generator=rng, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.5])
    y = (
        x @ torch.tensor([[1.0], [-1.0], [0.5]], dtype=torch.float64)
        + torch.randn(400, 1, generator=rng).double()
    )
    ones, data = torch.cat([x, torch.ones(400, 1)], 1), [(a, b) for a, b in zip(x, y, strict=True)]

    def solve(weight):
        w = torch.linalg.solve(ones.T @ (weight[:, None] * ones), ones.T @ (weight[:, None] * y))
        return w, (lambda a, b: -0.5 * float((b - torch.cat([a, torch.ones(1)]) @ w) ** 2))

    w, before = solve(torch.ones(400).double())
    model = nn.Linear(3, 1).double()
    model.weight.data, model.bias.data = w[:3].T.clone(), w[3].clone()
    model = nn.Sequential(model)
    modules = ekfac.track(model, ".")
    factors = ekfac.fit_factors(model, data, ekfac.supervised, modules, draws=100)
    got = (
        ekfac.scores(model, factors, data[:5], data[5:10], ekfac.supervised, damping=0.0) / factors.sequences
    )
    for j in range(5):
        _, after = solve(torch.ones(400).double().index_add(0, torch.tensor([5 + j]), torch.ones(1).double()))
        change = torch.tensor([after(*q) - before(*q) for q in data[:5]])
        assert (got[:, j] - change).abs().max() < 0.1 * change.abs().max()


def test_modules_layers_and_tokens_add_up(lm, factors, items, table):
    view = {p: ekfac.scores(lm.model, factors, items[:4], items, per=p) for p in ("module", "layer", "token")}
    assert list(view["module"]) == list(ekfac.track(lm.model)) and list(view["layer"]) == [0, 1]
    assert gap(sum(view["module"].values()), table) < 1e-10
    assert gap(sum(view["layer"].values()), table) < 1e-10
    assert [tuple(t.shape) for t in view["token"]] == [(4, len(x.ids) - 1) for x in items]
    assert gap(torch.stack([t.sum(1) for t in view["token"]], 1), table) < 1e-10
    first = [n for n in view["module"] if ".0." in n]
    assert gap(sum(view["module"][n] for n in first), view["layer"][0]) < 1e-10


def test_a_tokens_share_is_its_outer_product(lm, factors, items):
    modules, text = ekfac.track(lm.model), items[2]
    way = ekfac.precondition(ekfac.gradients(lm.model, items[:2]), factors)
    expected = 0
    for n, (a, d) in tokens_by_hand(lm.model, modules, [text]).items():
        expected = expected - torch.einsum("tp,qpm,tm->qt", d, way[n], a)
    assert gap(ekfac.scores(lm.model, factors, items[:2], [text], per="token")[0], expected) < 1e-10


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("queries", [1, 2, 5])
def test_every_way_of_contracting_gives_the_same(lm, factors, items, queries, rank):
    "Few queries are contracted token by token, many through the gradients of the items; both by rank."
    whole = ekfac.scores(lm.model, factors, items[:5], items, rank=rank)
    assert gap(ekfac.scores(lm.model, factors, items[:queries], items, rank=rank), whole[:queries]) < 1e-10
    tokens = ekfac.scores(lm.model, factors, items[:queries], items, rank=rank, per="token")
    assert gap(torch.stack([t.sum(1) for t in tokens], 1), whole[:queries]) < 1e-10


def test_batches_padding_order_and_shares_change_nothing(lm, items, factors, table, tmp_path):
    def close(other, order=None):
        for n in factors.layers:
            q_a, q_s = (torch.block_diag(*other[n].__dict__[k]) for k in ("inputs", "outputs"))
            f = factors[n]
            whole = torch.block_diag(*f.outputs), torch.block_diag(*f.inputs), f.lam
            assert gap(dense(q_s, q_a, other[n].lam), dense(*whole)) < 1e-9
        train = items if order is None else [items[i] for i in order]
        got = ekfac.scores(lm.model, other, items[:4], train, batch_tokens=20)
        assert gap(got, table if order is None else table[:, order]) < 1e-9

    def fit(data=items, **kw):
        return ekfac.fit_factors(lm.model, data, labels="data", **kw)

    close(fit(batch_tokens=1))
    close(fit(batch_tokens=10**6))
    close(fit(memory=0.0))
    close(fit(groups=4))
    close(fit(groups=50, parts=50))
    close(fit(parts=3, out=tmp_path / "parts"))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0)).tolist()
    close(fit([items[i] for i in order]), order)
    shares = ekfac.scores(lm.model, factors, items[:4], items, parts=5, out=tmp_path / "scores")
    assert gap(shares, table) < 1e-9
    longest = ekfac.Text(tuple(range(3, 11)) * 4)
    assert gap(ekfac.scores(lm.model, factors, items[:4], [*items, longest])[:, :-1], table) < 1e-9


def test_sampled_labels_do_not_depend_on_batches_or_shares(lm, items, tmp_path):
    one, two = (ekfac.fit_factors(lm.model, items, batch_tokens=b) for b in (1, 10**6))
    three = ekfac.fit_factors(lm.model, items, parts=3, groups=2, out=tmp_path)
    for n in one.layers:
        assert (
            gap(two[n].lam.sum(), one[n].lam.sum()) < 1e-9
            and gap(three[n].lam.sum(), one[n].lam.sum()) < 1e-9
        )
        assert gap(two[n].s, one[n].s) < 1e-9 and gap(three[n].s, one[n].s) < 1e-9


def test_single_precision_is_close_and_batches_hardly_matter(lm, items, table):
    single = copy.deepcopy(lm.model).float()
    factors = ekfac.fit_factors(single, items, labels="data")
    got = [ekfac.scores(single, factors, items[:4], items, batch_tokens=b) for b in (1, 64)]
    assert got[0].dtype == torch.float32
    assert gap(got[0], got[1]) < 1e-5 and gap(got[0].double(), table) < 1e-2


def test_half_precision_runs_and_ranks_alike(lm, items, table):
    half = copy.deepcopy(lm.model).bfloat16()
    factors = ekfac.fit_factors(half, items, labels="data")
    got = ekfac.scores(half, factors, items[:4], items)
    assert all(f.lam.dtype == torch.float32 for f in factors.layers.values()) and torch.isfinite(got).all()
    assert (
        min(torch.corrcoef(torch.stack([g, t]))[0, 1] for g, t in zip(got.double(), table, strict=True)) > 0.9
    )


def test_low_rank_queries(lm, factors, items, table):
    way = ekfac.precondition(ekfac.gradients(lm.model, items[:4]), factors)
    grads, errors = ekfac.gradients(lm.model, items), []
    for r in (1, 2, 4, 8):
        got, expected = ekfac.scores(lm.model, factors, items[:4], items, rank=r), 0
        for n, g in way.items():
            u, s, v = torch.linalg.svd(g, full_matrices=False)
            cut = (u[..., :r] * s[:, None, :r]) @ v[:, :r]
            expected = expected + cut.flatten(1) @ grads[n].flatten(1).T
        assert gap(got, expected) < 1e-7
        errors.append(float((got - table).norm() / table.norm()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-9 < errors[0]


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_blocks_are_eigenbases_of_diagonal_blocks(lm, items, factors, blocks):
    modules = ekfac.track(lm.model)
    cut = ekfac.fit_factors(lm.model, items, labels="data", blocks=blocks)
    grads = ekfac.gradients(lm.model, items)
    got = ekfac.precondition(grads, cut)

    def basis(x):
        size = x.shape[1] // blocks
        return torch.block_diag(*(torch.linalg.eigh(p.T @ p)[1] for p in x.split(size, 1)))

    for n, (a, d) in tokens_by_hand(lm.model, modules, items).items():
        q_a, q_s = basis(a), basis(d)
        lam = (q_s.T @ grads[n] @ q_a).square().mean(0)
        G = dense(q_s, q_a, lam) + 0.1 * lam.mean() * torch.eye(lam.numel(), dtype=torch.float64)
        assert gap(got[n].flatten(1), torch.linalg.solve(G, grads[n].flatten(1).T).T) < 1e-8
        assert sum(q.numel() for q in cut[n].inputs) * blocks == sum(q.numel() for q in factors[n].inputs)
    assert cut.nbytes < factors.nbytes or blocks == 1


def test_self_influence_is_the_diagonal(lm, factors, items):
    own = ekfac.self_influence(lm.model, factors, items)
    assert gap(own, ekfac.scores(lm.model, factors, items, items).diagonal()) < 1e-9 and (own > 0).all()


def test_a_function_can_stand_in_for_the_inverse(lm, factors, items, table):
    twice = ekfac.scores(
        lm.model, factors, items[:4], items,
        estimator=lambda g: {n: 2 * x for n, x in ekfac.precondition(g, factors).items()},
    )  # fmt: skip
    assert gap(twice, 2 * table) < 1e-12
    cosine = ekfac.scores(lm.model, None, items, items, estimator="cosine")
    assert gap(cosine.diagonal(), torch.ones(16).double()) < 1e-9 and cosine.abs().max() < 1 + 1e-9


# --- state, files, processes --------------------------------------------------------------------------------


def test_the_model_is_left_as_it_was(gpt2, items):
    model = copy.deepcopy(gpt2).train().requires_grad_(True)
    got = ekfac.fit_factors(model, items, labels="data")
    n = "transformer.h.0.mlp.c_fc"
    assert gap(got[n].lam, ekfac.fit_factors(gpt2, items, labels="data")[n].lam) < 1e-9, "dropout was on"
    with pytest.raises((AlignbookError, IndexError)):
        ekfac.fit_factors(model, [ekfac.Text((1, 99))])
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    hooks = [h for m in model.modules() for h in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)]
    assert not any(hooks)


def same(x, y):
    return list(x.layers) == list(y.layers) and all(
        torch.equal(p, q)
        for n in x.layers
        for k in ("a", "s", "lam")
        for p, q in [(getattr(x[n], k), getattr(y[n], k))]
    ) and all(torch.equal(p, q) for n in x.layers for k in ("inputs", "outputs")
              for p, q in zip(getattr(x[n], k), getattr(y[n], k), strict=True))  # fmt: skip


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("stage", ["covariances", "squares", "bases"])
def test_a_killed_fit_goes_on_to_the_same_bytes(lm, items, tmp_path, monkeypatch, stage):
    made = sys.modules[ekfac.fit_factors.__module__]
    whole = ekfac.fit_factors(lm.model, items, parts=3, groups=2, out=tmp_path / "whole")
    calls, real = [], getattr(made, stage)

    def dies(*args, **kw):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kw)

    monkeypatch.setattr(made, stage, dies)
    with pytest.raises(KeyboardInterrupt):
        ekfac.fit_factors(lm.model, items, parts=3, groups=2, out=tmp_path / "killed")
    monkeypatch.undo()
    count = []
    monkeypatch.setattr(made, stage, lambda *a, **kw: count.append(1) or real(*a, **kw))
    again = ekfac.fit_factors(lm.model, items, parts=3, groups=2, out=tmp_path / "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole") and same(again, whole)
    assert len(count) < len(calls) + (2 * 3 if stage != "bases" else 2) - 1, "finished pieces were made again"


def test_factors_come_back_from_disk(lm, items, tmp_path, monkeypatch):
    first = ekfac.fit_factors(lm.model, items, blocks=2, diagonal=True, out=tmp_path)
    size = sum(p.stat().st_size for p in tmp_path.rglob("*"))
    monkeypatch.setattr(lm.model, "forward", None)  # loading must not run the model
    back = ekfac.fit_factors(lm.model, items, blocks=2, diagonal=True, out=tmp_path)
    assert same(first, back) and (back.sequences, back.tokens) == (first.sequences, first.tokens)
    assert torch.equal(
        back["model.layers.0.mlp.up_proj"].diagonal, first["model.layers.0.mlp.up_proj"].diagonal
    )
    assert size < 1.3 * first.nbytes + 2e4, "shared input bases are stored once"


def test_scores_come_back_from_disk(lm, factors, items, table, tmp_path):
    one = ekfac.scores(lm.model, factors, items[:4], items, parts=4, out=tmp_path)
    part = sorted(tmp_path.glob("*.safetensors"))[1]
    kept = part.read_bytes()
    part.unlink()
    two = ekfac.scores(lm.model, factors, items[:4], items, parts=4, out=tmp_path)
    assert torch.equal(one, two) and part.read_bytes() == kept
    with pytest.raises(AlignbookError, match="another run"):
        ekfac.scores(lm.model, factors, items[1:5], items, parts=4, out=tmp_path)
    part.write_bytes(kept[:-5])
    with pytest.raises(AlignbookError, match="delete"):
        ekfac.scores(lm.model, factors, items[:4], items, parts=4, out=tmp_path)


@pytest.mark.parametrize("damage", ["cut", "text", "manifest"])
def test_a_damaged_artefact_names_the_file_and_the_remedy(lm, items, tmp_path, damage):
    ekfac.fit_factors(lm.model, items, out=tmp_path)
    path = tmp_path / "manifest.json" if damage == "manifest" else next(tmp_path.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-100] if damage != "text" else b"not a tensor")
    with pytest.raises(AlignbookError, match=f"{path.name}.*delete"):
        ekfac.fit_factors(lm.model, items, out=tmp_path)


def test_pieces_without_a_manifest_are_not_adopted(lm, items, tmp_path):
    ekfac.fit_factors(lm.model, items, out=tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(AlignbookError, match="unknown run"):
        ekfac.fit_factors(lm.model, items, out=tmp_path)


def test_a_folder_of_another_fit_is_refused(lm, items, tmp_path):
    ekfac.fit_factors(lm.model, items, out=tmp_path)
    before = contents(tmp_path)
    other = copy.deepcopy(lm.model)
    other.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
    for args, kw in [
        ((lm.model, items), {"seed": 1}),
        ((lm.model, items[1:]), {}),
        ((lm.model, items), {"labels": "data"}),
        ((other, items), {}),
    ]:
        with pytest.raises(AlignbookError, match="another run"):
            ekfac.fit_factors(*args, out=tmp_path, **kw)
    assert contents(tmp_path) == before


def test_data_that_look_alike_when_printed_are_not_the_same(tmp_path):
    model, data = net(), points(6)
    nearly = [(x * (1 + 1e-12), y) for x, y in data]
    ekfac.fit_factors(model, data, ekfac.supervised, ekfac.track(model, "."), out=tmp_path)
    with pytest.raises(AlignbookError, match="another run"):
        ekfac.fit_factors(model, nearly, ekfac.supervised, ekfac.track(model, "."), out=tmp_path)


TWO = """
import sys; sys.path.insert(0, {tests!r})
import torch, torch.distributed as dist
from test_ekfac import ekfac, toy_lm, toy_items
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://{folder}/meet", rank=rank, world_size=2)
model, items = toy_lm().model, toy_items()
f = ekfac.fit_factors(model, items, out="{folder}/fit", parts=2, groups=2)
s = ekfac.scores(model, f, items[:3], items[:7])
t = ekfac.scores(model, f, items[:3], items, per="token", parts=9, out="{folder}/scores")
few = ekfac.fit_factors(model, items[:3], parts=2, out="{folder}/few")  # a part of one item: nothing for rank 1
torch.save([s, [x.sum(1) for x in t], f.tokens, few["model.layers.0.mlp.up_proj"].lam], "{folder}/%d.pt" % rank)
dist.destroy_process_group()
"""


def test_two_processes_equal_one(lm, items, tmp_path):
    code = TWO.format(tests=str(Path(__file__).parent), folder=tmp_path)
    jobs = [
        subprocess.Popen([sys.executable, "-c", code, str(r)], stderr=subprocess.PIPE, text=True)
        for r in (0, 1)
    ]
    errors = [j.communicate(timeout=120)[1] for j in jobs]
    assert [j.returncode for j in jobs] == [0, 0], errors
    alone = ekfac.fit_factors(lm.model, items)
    for rank in (0, 1):
        s, t, tokens, lam = torch.load(tmp_path / f"{rank}.pt")
        assert tokens == alone.tokens
        assert (
            gap(lam.sum(), ekfac.fit_factors(lm.model, items[:3])["model.layers.0.mlp.up_proj"].lam.sum())
            < 1e-5
        )
        assert gap(s, ekfac.scores(lm.model, alone, items[:3], items[:7])) < 1e-5
        assert gap(torch.stack(t, 1), ekfac.scores(lm.model, alone, items[:3], items)) < 1e-5


# --- bad input ----------------------------------------------------------------------------------------------


def test_statistics_that_are_not_finite_name_the_layer(lm, items):
    "Trap 10."
    bad = copy.deepcopy(lm.model)
    bad.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(AlignbookError, match=r"model\.layers\.\d\.mlp.*not finite.*fp32"):
        ekfac.fit_factors(bad, items)


def test_a_layer_without_gradient_scores_nothing():
    model, data = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).double(), points(6)
    model[0].bias.data.fill_(-100)
    modules = ekfac.track(model, ".")
    f = ekfac.fit_factors(model, data, ekfac.supervised, modules, labels="data")
    got = ekfac.scores(model, f, data, data, ekfac.supervised, per="module")
    assert torch.equal(got["0"], torch.zeros(6, 6).double()) and (got["2"].diagonal() > 0).all()


def test_bad_input_is_one_sentence(lm, items, factors):
    fit, score = ekfac.fit_factors, ekfac.scores
    cases = [
        ("at least one", lambda: fit(lm.model, [])),
        ("labels", lambda: fit(lm.model, items, labels="guessed")),
        ("no linear layer", lambda: ekfac.track(lm.model, "attention")),
        ("nothing is left", lambda: ekfac.texts(lm, [("the cat", "")])),
        ("nothing is left", lambda: ekfac.texts(lm, ["the"])),
        ("nothing is left", lambda: ekfac.texts(lm, [("the cat sat", "on the mat")], max_tokens=3)),
        ("32|context|long", lambda: ekfac.texts(lm, ["the cat " * 30])),
        ("estimator", lambda: score(lm.model, factors, items[:1], items, estimator="magic")),
        ("per is", lambda: score(lm.model, factors, items[:1], items, per="word")),
        ("at least one", lambda: score(lm.model, factors, [], items)),
        ("at least one", lambda: score(lm.model, factors, items[:1], [])),
        ("rank", lambda: score(lm.model, factors, items[:1], items, rank=0)),
        (
            "diagonal=True",
            lambda: score(lm.model, fit(lm.model, items), items[:1], items, estimator="diagonal"),
        ),
        ("factors", lambda: score(lm.model, None, items[:1], items)),
        ("blocks", lambda: fit(lm.model, items, blocks=0)),
        ("blocks", lambda: fit(lm.model, items, blocks=9)),
        ("parts", lambda: fit(lm.model, items, parts=0)),
        ("draws", lambda: fit(lm.model, items, draws=0)),
        ("damping|negative", lambda: score(lm.model, factors, items[:1], items, damping=-1.0)),
    ]
    failures = []
    for words, call in cases:
        try:
            call()
            failures.append(f"{words}: no error")
        except AlignbookError as e:
            if not re.search(words, str(e)):
                failures.append(f"{words}: {e}")
        except Exception as e:
            failures.append(f"{words}: {type(e).__name__}: {e}")
    assert not failures, "\n".join(failures)


def test_texts_count_the_completion_only(lm):
    plain, pair, long = ekfac.texts(
        lm, ["the cat sat", ("the cat", "sat on"), "the cat sat on the mat"], max_tokens=5
    )
    assert (plain.start, pair.start, len(plain.ids), len(pair.ids), len(long.ids)) == (1, 2, 3, 4, 5)
    assert plain.ids[:2] == pair.ids[:2]
    out = ekfac.language(lm.model, [plain, pair])
    assert out.counted.tolist() == [[True, True, False, False], [False, True, True, False]]
    assert out.real.tolist() == [[True, True, False, False], [True, True, True, False]]
    expected = torch.stack([logp(lm.model, t) for t in (plain, pair)])
    assert torch.allclose(out.logp(), expected)


# --- the peer -----------------------------------------------------------------------------------------------


def test_scores_agree_with_kronfluence(lm, tmp_path):
    "Runs where kronfluence is installed (see benchmarks/ekfac.py); with the data's labels nothing is random."
    pytest.importorskip("kronfluence", reason="kronfluence is not installed")
    import importlib.util

    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.utils.common.factor_arguments import pytest_factor_arguments
    from kronfluence.utils.common.score_arguments import pytest_score_arguments

    spec = importlib.util.spec_from_file_location(
        "bench", Path(__file__).parent.parent / "benchmarks" / "ekfac.py"
    )
    spec.loader.exec_module(bench := importlib.util.module_from_spec(spec))
    rng = torch.Generator().manual_seed(5)
    data = [ekfac.Text(sentence(rng, 8)) for _ in range(20)]
    factors = ekfac.fit_factors(lm.model, data, labels="data")
    ours = ekfac.scores(lm.model, factors, data[:3], data)
    task = bench.peer_task(list(ekfac.track(lm.model)))
    rows = [{"ids": torch.tensor(t.ids)} for t in data]
    job = Analyzer("t", prepare_model(copy.deepcopy(lm.model), task), task, cpu=True, log_level=40,
                   output_dir=str(tmp_path), disable_tqdm=True)  # fmt: skip
    job.fit_all_factors("f", rows, per_device_batch_size=5, factor_args=pytest_factor_arguments())
    job.compute_pairwise_scores("s", "f", rows[:3], rows, per_device_query_batch_size=3, per_device_train_batch_size=5,
                                score_args=pytest_score_arguments(damping_factor=None))  # fmt: skip
    assert gap(ours, job.load_pairwise_scores("s")["all_modules"].double()) < 1e-6


def test_attention_kernels_that_depend_on_the_batch_are_off_while_recording(lm, items):
    "Trap 5: flash and memory-efficient kernels change gradients with the batch; the caller's choice comes back after."
    seen = []

    def task(model, rows):
        cuda = torch.backends.cuda
        seen.append((cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()))
        return ekfac.language(model, rows)

    before = torch.backends.cuda.flash_sdp_enabled()
    ekfac.gradients(lm.model, items[:2], task)
    assert seen == [(False, False, True)] and torch.backends.cuda.flash_sdp_enabled() == before


def test_many_blocks_keep_their_order():
    "Eleven blocks and more: tensors are named by number, and numbers do not sort as words do."
    model = torch.nn.Sequential(torch.nn.Linear(24, 26, bias=False), torch.nn.Tanh(), torch.nn.Linear(26, 3)).double()
    data = [(torch.randn(24, dtype=torch.float64), torch.tensor(i % 3)) for i in range(40)]
    modules = {"0": model[0]}
    f = ekfac.fit_factors(model, data, ekfac.supervised, modules, labels="data", blocks=12)["0"]
    g = torch.stack([x.outer(x.new_ones(1)[0].expand(1)).flatten() for x, _ in data])
    a = g.T @ g / len(g)
    for part, q in zip(torch.arange(24).tensor_split(12), f.inputs, strict=True):
        cut = q.T @ a[part[0] : part[-1] + 1, part[0] : part[-1] + 1] @ q
        assert (cut - cut.diagonal().diag()).abs().max() < 1e-9


def test_fp32_that_does_not_converge_is_done_in_fp64(lm, items, monkeypatch):
    whole, calls = torch.linalg.eigh, []

    def eigh(c):
        calls.append(c.dtype)
        if c.dtype == torch.float32:
            raise torch.linalg.LinAlgError("failed to converge")
        return whole(c)

    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    f = ekfac.fit_factors(copy.deepcopy(lm.model).float(), items)
    assert set(calls) == {torch.float32, torch.float64} and all(x.lam.isfinite().all() for x in f.layers.values())


def test_a_layer_that_was_dead_in_the_fit_does_not_poison_a_query():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[0].bias.fill_(-1.0)
    dead = [(torch.zeros(3, dtype=torch.float64), torch.tensor(0))] * 3
    alive = [(torch.full((3,), s * 9.0, dtype=torch.float64), torch.tensor(1)) for s in (1, -1)]
    f = ekfac.fit_factors(model, dead, ekfac.supervised, ekfac.track(model, "."))
    assert f["0"].lam.max() == 0
    assert ekfac.scores(model, f, alive, alive + dead, ekfac.supervised).isfinite().all()
    assert ekfac.self_influence(model, f, alive, ekfac.supervised).isfinite().all()


def test_what_cannot_be_stored_is_not_stored(lm, items, tmp_path):
    broken = copy.deepcopy(lm.model)
    broken.model.layers[1].mlp.down_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(AlignbookError, match="not finite"):
        ekfac.fit_factors(broken, items, out=tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_the_stored_benchmark_says_what_the_pages_say():
    "Same labels on both sides: the same order of sequences; less memory; faster, though not at every stage."
    record = json.loads((Path(__file__).parents[1] / "benchmarks" / "ekfac.json").read_text(encoding="utf-8"))
    assert min(record["matched"]["modes"]["data"]["agreement"]["spearman"]) > 0.99
    run = record["modes"]["sampled"]
    assert run["ours"]["peak_gib"] < 7.3 and run["ours"]["peak_gib"] < run["peer"]["peak_gib"]
    assert 2 < run["stages"][-1]["ratio"] < 3
