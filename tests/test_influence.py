"""Exact curvature, its inverses and the proximal response, against autograd, dense algebra and closed forms."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call

from alignbook.ekfac import fit_factors, precondition, scores
from alignbook.influence import (
    FisherProduct,
    cg,
    dense_fisher,
    flatten,
    in_double,
    lbfgs,
    lissa,
    matrices,
    pbrf,
    solve,
    top_eigenvalue,
    unflatten,
)
from alignbook.models import tiny
from alignbook.runtime import AlignbookError
from alignbook.tape import Text, gradients, language, supervised, track

F64 = torch.float64


def classes(n=10, inputs=3, kinds=3, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return list(zip(torch.randn(n, inputs, generator=rng, dtype=F64), torch.arange(n) % kinds, strict=True))


def mlp(seed=0, inputs=3, width=4, out=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, out)).double()


@pytest.fixture(scope="module")
def lm():
    return in_double(tiny([f"w{i}" for i in range(8)], layers=1, width=8, heads=2, context=16, seed=0).model)


SEQUENCES = [Text((3, 4, 5, 6)), Text((7, 8, 3), start=2), Text((9, 10, 4, 4, 3), start=3), Text((5, 5))]


def by_jacobian(model, items, task, modules):
    """The Gauss-Newton matrix from the full Jacobian of the logits, item by item, over nn.Linear weights."""
    kinds = [(n, k) for n, m in modules.items() for k in ("weight", "bias") if getattr(m, k) is not None]
    names = [f"{n}.{k}" if n else k for n, k in kinds]
    own = dict(model.named_parameters())
    start = {n: own[n].detach() for n in names}
    total = 0
    for item in items:
        out = task(model, [item])

        def logits(*values, item=item):
            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.model = model

                def forward(self):
                    return task(self.model, [item]).logits[0]

            return functional_call(Net(), {f"model.{n}": v for n, v in zip(names, values, strict=True)}, ())

        parts = dict(zip(names, jacobian(logits, tuple(start.values())), strict=True))
        rows = []
        for n, m in modules.items():
            j = parts[f"{n}.weight" if n else "weight"]
            if m.bias is not None:
                j = torch.cat([j, parts[f"{n}.bias" if n else "bias"][..., None]], -1)
            rows.append(j.flatten(2))
        J, p = torch.cat(rows, -1).detach(), out.logits[0].detach().softmax(-1)
        for t in range(len(J)):
            if out.counted[0, t]:
                H = p[t].diag() - torch.outer(p[t], p[t])
                H = torch.eye(len(H), dtype=F64) if out.targets.is_floating_point() else H
                total = total + J[t].T @ H @ J[t] / len(items)
    return total


def test_product_is_the_hessian_where_the_model_is_linear():
    items, net = classes(), nn.Linear(3, 3).double()
    x, y = torch.stack([a for a, _ in items]), torch.stack([b for _, b in items])
    H = hessian(lambda w: nn.functional.cross_entropy(x @ w[:, :3].T + w[:, 3], y), matrices({"": net})[""])
    G = dense_fisher(FisherProduct(net, items, supervised, {"": net}))
    assert torch.allclose(G, H.reshape(12, 12), atol=1e-12)


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_product_is_jacobian_curvature_jacobian(kind):
    items = classes()
    if kind == "numbers":
        items = [(x, torch.randn(2, dtype=F64)) for x, _ in items]
    net = mlp(out=3 if kind == "classes" else 2)
    modules = track(net, "")
    G = dense_fisher(FisherProduct(net, items, supervised, modules, batch=4), chunk=5)
    assert torch.allclose(G, by_jacobian(net, items, supervised, modules), atol=1e-12)


def test_product_on_sequences_with_masked_prompts_and_padding(lm):
    modules = track(lm)
    expected = by_jacobian(lm, SEQUENCES, language, modules)
    whole = FisherProduct(lm, SEQUENCES, modules=modules)
    v = unflatten(torch.randn(2, len(expected), dtype=F64), whole.weights)
    for product in (whole, FisherProduct(lm, SEQUENCES, modules=modules, batch=1)):
        assert torch.allclose(flatten(product(v)), flatten(v) @ expected, rtol=1e-9, atol=1e-12)
    some = FisherProduct(lm, [SEQUENCES[i] for i in (2, 0)], modules=modules)
    assert torch.allclose(flatten(whole(v, [2, 0])), flatten(some(v)), rtol=1e-9, atol=1e-12)
    name = list(modules)[1]
    sizes = [w.numel() for w in whole.weights.values()]
    at = slice(sizes[0], sizes[0] + sizes[1])
    block = whole({name: v[name]})[name].flatten(1)
    assert torch.allclose(block, v[name].flatten(1) @ expected[at, at], rtol=1e-9, atol=1e-12)


def test_transposed_layers_have_the_same_curvature():
    from transformers.pytorch_utils import Conv1D

    net = mlp()
    other = nn.Sequential(Conv1D(4, 3), nn.Tanh(), Conv1D(3, 4)).double()
    with torch.no_grad():
        for a, b in ((0, 0), (2, 2)):
            other[a].weight.copy_(net[b].weight.T)
            other[a].bias.copy_(net[b].bias)
    G, H = (dense_fisher(FisherProduct(m, classes(), supervised, track(m, ""))) for m in (net, other))
    assert torch.allclose(G, H, atol=1e-12)


def test_the_model_is_left_as_it_was():
    net = mlp().train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    product = FisherProduct(net, classes(), supervised, track(net, ""))
    pbrf(net, classes(), classes()[:1], classes()[:1], supervised, track(net, ""), damping=0.1)
    dense_fisher(product)
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("damping", [0.01, {"0": 0.02, "2": 0.3}])
def test_cg_is_the_dense_solve(damping):
    net, items = mlp(), classes()
    modules = track(net, "")
    product, g = FisherProduct(net, items, supervised, modules), gradients(net, items, supervised, modules)
    g["0"][3], g["2"][3] = 0, 0  # a query without a gradient is no trouble
    exact = solve(g, dense_fisher(product), damping)
    found = cg(g, product, damping, tol=1e-12)
    assert torch.allclose(flatten(found), flatten(exact), rtol=1e-8, atol=1e-9)
    blocks = solve(g, dense_fisher(product, blocks=True), damping)
    alone = {n: cg({n: v}, product, damping, tol=1e-12)[n] for n, v in g.items()}
    assert torch.allclose(flatten(blocks), flatten(alone), rtol=1e-8, atol=1e-9)
    assert not torch.allclose(flatten(blocks), flatten(exact), rtol=1e-2)


def test_cg_says_when_it_did_not_get_there():
    net, items = mlp(), classes()
    modules = track(net, "")
    product, g = FisherProduct(net, items, supervised, modules), gradients(net, items, supervised, modules)
    with pytest.raises(AlignbookError, match="more steps"):
        cg(g, product, 1e-6, tol=1e-10, steps=2)


def test_lissa_converges_and_says_when_it_diverges():
    net, items = mlp(), classes()
    modules = track(net, "")
    product, g = FisherProduct(net, items, supervised, modules), gradients(net, items, supervised, modules)
    G = dense_fisher(product)
    assert top_eigenvalue(product, g, 300) == pytest.approx(float(torch.linalg.eigvalsh(G)[-1]), rel=1e-6)
    exact = flatten(solve(g, G, 0.3))
    off = lambda v: float((flatten(v) - exact).norm() / exact.norm())  # noqa: E731
    assert off(lissa(g, product, 0.3, depth=120, batch=10)) < 1e-6
    few = [off(lissa(g, product, 0.3, depth=60, batch=4, seed=s)) for s in range(3)]
    assert max(few) < 0.5 and off(lissa(g, product, 0.3, depth=60, batch=4, repeats=6)) < min(few)
    with pytest.raises(AlignbookError, match="diverged"):
        lissa(g, product, 0.3, depth=60, batch=10, scale=0.01)


def test_solvers_stand_in_for_an_estimator():
    net, items = mlp(), classes()
    modules = track(net, "")
    product, g = FisherProduct(net, items, supervised, modules), gradients(net, items, supervised, modules)
    G = dense_fisher(product)
    by_cg = partial(cg, product=product, damping=0.1, tol=1e-12)
    found = scores(net, None, items[:2], items, supervised, modules=modules, estimator=by_cg)
    inverse = torch.linalg.inv(G + 0.1 * torch.eye(len(G), dtype=F64))
    assert torch.allclose(found, flatten(g)[:2] @ inverse @ flatten(g).T, rtol=1e-8)


def test_ekfac_is_nearer_to_the_exact_block_inverse_than_poorer_curvature():
    near = dict.fromkeys(("ekfac", "diagonal", "dot"), 0.0)
    for seed in range(4):
        net, items = mlp(seed, width=6), classes(60, seed=seed)
        modules = track(net, "")
        g = gradients(net, items, supervised, modules)
        factors = fit_factors(net, items, supervised, modules, draws=30, diagonal=True)
        lam = {n: factors.damping(n) for n in modules}
        exact = solve(g, dense_fisher(FisherProduct(net, items, supervised, modules), blocks=True), lam)
        for k in near:
            pairs = [(precondition(g, factors, k, lam)[n].flatten(1), exact[n].flatten(1)) for n in modules]
            near[k] += float(torch.cat([torch.cosine_similarity(a, b) for a, b in pairs]).mean()) / 4
    assert near["ekfac"] > 0.8 > 0.6 > max(near["diagonal"], near["dot"]), near


def line(seed=0, inputs=4, n=25):
    torch.manual_seed(seed)
    net, x, y = nn.Linear(inputs, 1).double(), torch.randn(n, inputs, dtype=F64), torch.randn(n, 1, dtype=F64)
    return net, x, y, list(zip(x, y, strict=True)), torch.cat([x, torch.ones(n, 1, dtype=F64)], 1)


@pytest.mark.parametrize("epsilon", [-0.02, 0.02, 1.0])
def test_proximal_response_of_a_linear_model_in_closed_form(epsilon):
    net, x, y, items, Z = line()
    found = pbrf(net, items, items[:4], items[20:], supervised, {"": net}, damping=0.3, epsilon=epsilon, tol=1e-11)
    rest = (y - net(x)).detach()[:, 0]
    for m in range(4):
        H = Z.T @ Z / 25 + 0.3 * torch.eye(5, dtype=F64) + epsilon * torch.outer(Z[m], Z[m])
        step = torch.linalg.solve(H, epsilon * Z[m] * rest[m])
        change = -0.5 * (rest[20:] - Z[20:] @ step) ** 2 + 0.5 * rest[20:] ** 2
        assert torch.allclose(found.change[:, m], change / epsilon, rtol=1e-6, atol=1e-9)


def test_proximal_response_is_the_exact_inverse_in_the_limit(lm):
    modules = track(lm)
    product, lam = FisherProduct(lm, SEQUENCES, modules=modules), {n: 0.2 + i for i, n in enumerate(modules)}
    g = gradients(lm, SEQUENCES, modules=modules)
    exact = flatten(g)[:2] @ flatten(cg(g, product, lam, tol=1e-8)).T
    for speed in (None, lambda v: {n: x / lam[n] for n, x in v.items()}):
        options = dict(damping=lam, epsilon=1e-5, precondition=speed, tol=1e-5)
        r = pbrf(lm, SEQUENCES, SEQUENCES, SEQUENCES[:2], modules=modules, **options)
        assert torch.allclose(r.change, exact, rtol=1e-3, atol=1e-4 * float(exact.abs().max()))
    with pytest.raises(AlignbookError, match="did not converge"):
        pbrf(lm, SEQUENCES, SEQUENCES, SEQUENCES[:1], modules=modules, damping=1e-4, epsilon=1.0, steps=1, tol=1e-8)


def test_minimiser_on_a_curved_valley():
    def rosenbrock(v):
        v = v.detach().requires_grad_()
        f = (1 - v[:, 0]) ** 2 + 100 * (v[:, 1] - v[:, 0] ** 2) ** 2
        return f.detach(), torch.autograd.grad(f.sum(), v)[0]

    starts = torch.tensor([[-1.2, 1.0], [0.0, 0.0], [2.0, -3.0]], dtype=F64)
    x, left, steps = lbfgs(rosenbrock, starts, tol=1e-9)
    assert torch.allclose(x, torch.ones(3, 2, dtype=F64), atol=1e-6) and int(steps.max()) < 100
    alone = [lbfgs(rosenbrock, s[None], tol=1e-9) for s in starts]
    assert [int(a[2]) for a in alone] == steps.tolist(), "neighbours do not disturb each other"


def test_mistakes_are_named():
    net = mlp()
    with pytest.raises(AlignbookError, match="no items"):
        FisherProduct(net, [], supervised, track(net, ""))
    wide = nn.Linear(200, 200)
    with pytest.raises(AlignbookError, match="too large to form"):
        dense_fisher(FisherProduct(wide, classes(), supervised, {"": wide}))
    with pytest.raises(AlignbookError, match="no linear layer"):
        FisherProduct(net, classes(), supervised)
