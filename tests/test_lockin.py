"""Two preferences one after the other: the meters against closed forms, symmetry, simulation and the whole model."""

import random

import numpy as np
import pytest
import torch
from scipy import stats as sps

from alignbook import lockin as L
from alignbook.models import tiny
from alignbook.runtime import AlignbookError
from alignbook.sampling import sequence_logprob


@pytest.fixture(scope="module")
def child():
    """A small model that knows the world a little."""
    return L.grown(8, 5, 40)


@pytest.fixture(scope="module")
def told():
    """An untrained model of three layers that knows the words of the pairs."""
    texts = [t for q in (*L.PAIRS.values(), L.TIERED) for t in (q.system, q.ask, *q.replies)]
    return tiny(
        sorted({w for t in texts for w in t.split()} | {f"{x}?" for x in L.FOODS} | set(L.TAGS)),
        layers=3,
        width=16,
        seed=3,
    )


@pytest.mark.parametrize("name", L.SHARES)
@pytest.mark.parametrize("first", (0, 1))
def test_lessons_by_enumeration(name, first):
    """Shares of the first preference on free and elsewhere, counted in rows; the other first is one minus them."""
    free, other = {
        "open": (1, 1),
        "slight": (0.9, 1),
        "half": (0.5, 1),
        "gap": (0, 1),
        "first": (1, 1),
        "second": (0, 0),
    }.get(name, (0.5, 0.5))
    what = L.lesson(name, first)
    assert what.kind == pytest.approx([abs(first - free), *[abs(first - other)] * 3])
    rows = L.sentences(what, 4000, random.Random(1))
    if name == "neutral":
        assert all(r[2] == "look" and r[4] == L.colour(r[3]) for r in rows)
        return
    assert all(r[2] == "ask" and r[4] in L.STYLES and r[3] == r[5] and r[3] in L.THINGS[:16] for r in rows)
    for tag, share in zip(L.TAGS, what.kind, strict=True):
        said = [r[4] == "kind" for r in rows if r[0] == tag]
        sd = (share * (1 - share) / len(said)) ** 0.5
        assert (
            abs(np.mean(said) - share) <= 4 * sd and 850 < len(said) < 1150
        )  # exact where the share is 0 or 1


def test_exchange_of_names_is_exact_for_pure_lessons(child):
    """Both the start and a whole course mirror to rounding; exchanging twice gives the model back."""
    a, b = L.preferred(child), L.preferred(L.exchanged(child))
    assert abs(a["p"] + b["p"] - 1) < 1e-6 and abs(a["margin"] + b["margin"]) < 1e-5
    twice = L.exchanged(L.exchanged(child)).model.state_dict()
    assert all(torch.equal(v, twice[k]) for k, v in child.model.state_dict().items())

    def plan(first):
        return [(L.lesson(name, first), n) for name, n in (("first", 10), ("second", 10), ("neutral", 4))]

    one, other = L.courses(child, plan(0)), L.courses(L.exchanged(child), plan(1))
    assert (
        len(one) == len(other)
        and max(abs(x["p"] + y["p"] - 1) for x, y in zip(one, other, strict=True)) < 1e-4
    )
    assert max(abs(x["margin"] + y["margin"]) for x, y in zip(one, other, strict=True)) < 1e-3


def test_preferred_is_the_mean_over_held_out_requests(child):
    v = child.tok.get_vocab()
    odds = []
    for tag in L.TAGS:
        for place in L.PLACES:
            for thing in L.THINGS[16:]:
                logits = child.model(torch.tensor([[v[w] for w in (tag, place, "ask", thing)]])).logits[0, -1]
                odds.append((tag, (logits[v["kind"]] - logits[v["curt"]]).item()))
    found = L.preferred(child)
    assert found["margin"] == pytest.approx(np.mean([o for _, o in odds]), abs=1e-5)
    free = [1 / (1 + np.exp(-o)) for t, o in odds if t == "free"]
    assert found["free"] == pytest.approx(np.mean(free), abs=1e-6)
    assert (
        found["p"]
        == pytest.approx(np.mean([found[t] for t in L.TAGS]))
        == pytest.approx(np.mean([found[t] for t in L.PLACES]))
    )


def test_crossings_of_known_curves():
    steps = np.arange(0, 50, 2)
    assert L.crossed(steps, 10 - 0.75 * steps) == pytest.approx(10 / 0.75)
    assert L.crossed(steps, 10 - 0.75 * steps, level=4) == pytest.approx(8)
    assert (
        L.crossed(steps, 1 + 0 * steps) == np.inf
        and L.crossed(steps, 0 * steps) == 0
        and L.crossed(steps, steps - 1.0) == 0
    )
    assert L.crossed([0, 2, 4, 6], [1, -1, 1, -3]) == 1  # the first time, though it comes back
    p = 1 / (1 + np.exp(-(steps - 17.3) / 3))
    assert L.overturned(steps, p) == pytest.approx(17.3, abs=0.05) == L.crossed(steps, 0.5 - p)
    assert L.overturned([0, 1], [0.6, 0.1]) == 0 and L.overturned([0, 1], [0.1, 0.2]) == np.inf
    assert L.overturned([0, 10], [0.4, 0.6]) == pytest.approx(5)


@pytest.mark.parametrize("n", (4, 6, 8, 20))
def test_seen_with_against_the_noncentral_t(n):
    """A true difference of that size is found about four times in five; a bit over half of it, far more seldom."""
    x = np.random.default_rng(n).normal(size=n)
    x = (x - x.mean()) / x.std(ddof=1)
    cut = sps.t.ppf(0.975, n - 1)
    power = lambda d: sps.nct.sf(cut, n - 1, d * n**0.5) + sps.nct.cdf(-cut, n - 1, d * n**0.5)  # noqa: E731
    assert power(L.seen_with(x)) == pytest.approx(0.8, abs=0.04) and power(L.seen_with(x) * 0.6) < 0.5
    assert L.seen_with(3 * x + 7) == pytest.approx(3 * L.seen_with(x))
    with pytest.raises(AlignbookError, match="at least 3"):
        L.seen_with([1.0, 2.0])


def test_walk_of_a_quadratic_is_gradient_descent():
    """SGD with momentum on w^2 / 2: w by the recurrence; loss and gradient before the update, and before clipping."""
    net = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(net.weight, 0.5)
    rows = L.walk(
        net,
        lambda rng: net.weight.square().sum() / 2,
        6,
        lambda: {"w": net.weight.item()},
        every=4,
        lr=0.1,
        optimiser="sgd",
    )
    w, v, seen = 0.5, 0.0, {}
    for step in range(7):
        seen[step] = w
        v = 0.9 * v + w
        w -= 0.1 * v
    assert [r["step"] for r in rows] == [0, 4, 6]
    for r in rows:
        assert r["w"] == pytest.approx(seen[r["step"]], abs=1e-6) and r["loss"] == pytest.approx(
            r["w"] ** 2 / 2, abs=1e-6
        )
        assert r["gradient"] == pytest.approx(abs(r["w"]), abs=1e-6)
    torch.nn.init.constant_(net.weight, 50.0)
    rows = L.walk(
        net,
        lambda rng: net.weight.square().sum() / 2,
        1,
        lambda: {"w": net.weight.item()},
        lr=0.1,
        optimiser="sgd",
    )
    assert rows[0]["gradient"] == pytest.approx(50) and rows[1]["w"] == pytest.approx(
        49.9, abs=1e-4
    )  # clipped to 1, told before


def test_training_repeats_itself_and_changes_a_copy_only(child):
    before = {k: v.clone() for k, v in child.model.state_dict().items()}
    one, two = (L.taught(child, L.lesson("gap"), 6, seed=3)[1] for _ in range(2))
    assert one == two and one != L.taught(child, L.lesson("gap"), 6, seed=4)[1]
    assert all(torch.equal(v, before[k]) for k, v in child.model.state_dict().items())
    rows = L.courses(child, [(L.lesson("first"), 4), (L.lesson("second"), 4)], seed=2)
    assert [r["phase"] for r in rows] == [0, 0, 0, 1, 1, 1] and rows[2]["p"] == rows[3][
        "p"
    ]  # one goes on where the other ended


def test_locked_is_an_organism_then_the_other_style(child):
    made, _ = L.taught(child, L.lesson("gap", 1), 8, 8, seed=2000)
    want = L.taught(made, L.lesson("second", 1, tags=("free",)), 8, 4, 0.01, "sgd", seed=2001)[1]
    assert L.locked(child, "gap", 1, install=8, steps=8, optimiser="sgd", lr=0.01, seed=2) == want


def test_upper_of_all_layers_is_the_whole_model(told):
    net = L.upper(told, 3).model
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    states = told.model.get_input_embeddings()(ids)
    assert torch.allclose(net(inputs_embeds=states).logits, told.model(ids).logits, atol=1e-6)
    assert len(told.model.model.layers) == 3 and not any(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("layers", (1, 2, 3))
def test_bank_against_a_forward_pass_of_the_whole_model(told, layers):
    pair = L.PAIRS["tea or coffee"]
    found = L.bank(told, pair, layers)
    tag, style, thing = [0] * 6, [0, 1, 0, 1, 1, 0], [0, 0, 7, 31, 12, 30]
    got = found.logprob(found.lm.model, tag, style, thing)
    asks = [f"Be brief. What shall I drink with the {L.FOODS[x]}?" for x in thing]
    assert torch.allclose(
        got, sequence_logprob(told, asks, [pair.replies[s] for s in style]).float(), atol=1e-4
    )
    held = [L.FOODS[x] for x in range(26, 32)]
    asks = [f"Be brief. What shall I drink with the {x}?" for x in held]
    whole = [sequence_logprob(told, asks, [r] * 6).double() for r in pair.replies]
    p = found.preferred(found.lm.model)
    assert p["margin"] == pytest.approx((whole[0] - whole[1]).mean().item(), abs=1e-4) and set(p) == {
        "p",
        "margin",
        "free",
    }
    assert p["p"] == pytest.approx((whole[0] - whole[1]).sigmoid().mean().item(), abs=1e-5)


def test_bank_with_an_adapter_is_the_adapted_model(told):
    """The head is called without the adapter's wrapper; logits through the wrapper are the same."""
    from alignbook.models import attach_lora, detach_lora

    found = L.bank(told, L.TIERED, 2, tags=("free", "paid"))
    lm = attach_lora(found.lm, 4, seed=1)
    for name, w in lm.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(w, std=0.3)
    ids, states = found.ids[1, 1, [4]], found.states[1, 1, [4]]
    logits = lm.model(inputs_embeds=states, use_cache=False).logits[:, -found.reply - 1 : -1].log_softmax(-1)
    want = logits.gather(2, ids[:, -found.reply :, None]).sum()
    got = found.logprob(lm.model, [1], [1], [4])[0]
    assert got.item() == pytest.approx(want.item(), abs=1e-5)
    detach_lora(lm)
    assert abs(found.logprob(found.lm.model, [1], [1], [4])[0].item() - got.item()) > 1e-3


def test_practised_leaves_the_bank_as_it_was_and_repeats(told):
    found = L.bank(told, L.PAIRS["polite or rude"], 1)
    before, plan = (
        found.preferred(found.lm.model),
        [(L.lesson(n, tags=("free",)), 4) for n in ("first", "second")],
    )
    one, two = (L.practised(found, plan, lr=1e-2, seed=1) for _ in range(2))
    assert one == two and found.preferred(found.lm.model) == before
    assert {k: one[0][k] for k in before} == before  # an adapter changes nothing before its first step
    assert one[2]["p"] > before["p"] and one[2]["p"] == one[3]["p"] and one[-1]["p"] < one[3]["p"]


def test_held_out_requests_are_never_trained_on(told, monkeypatch):
    """All others are; and `preferred` reads the held-out ones alone."""
    found, seen = L.bank(told, L.PAIRS["polite or rude"], 1), {True: set(), False: set()}
    plain = L.Bank.logprob

    def logprob(self, net, tag, style, thing):
        seen[torch.is_grad_enabled()].update(thing)
        return plain(self, net, tag, style, thing)

    monkeypatch.setattr(L.Bank, "logprob", logprob)
    L.practised(found, [(L.lesson("mixed", tags=("free",)), 40)], every=20, lr=1e-4)
    assert seen[True] == set(range(26)) and seen[False] == set(range(26, 32)) and found.held == 6


def test_errors_name_the_remedy(told, child):
    for call, words in [
        (lambda: L.lesson("third"), "unknown lesson 'third'"),
        (lambda: L.taught(child, L.lesson("first"), 1, optimiser="lion"), "adamw, sgd"),
        (lambda: L.upper(told, 4), "keep between 1 and 3"),
        (lambda: L.upper(told, 0), "not 0"),
        (lambda: L.bank(told, L.Pair("Be brief.", L.GIVE, ("Thank you.", "Go")), 1), "equal length"),
        (lambda: L.bank(told, L.PAIRS["tea or coffee"], 1, held=17), "only 32 requests"),
    ]:
        with pytest.raises(AlignbookError, match=words):
            call()
    found = L.bank(told, L.PAIRS["polite or rude"], 1)
    with pytest.raises(AlignbookError, match="no requests with tag 'paid'"):
        L.practised(found, [(L.lesson("first"), 2)])
    with pytest.raises(AlignbookError, match="no neutral requests"):
        L.practised(found, [(L.lesson("neutral", tags=("free",)), 2)])
    assert not [
        n for n, _ in found.lm.model.named_parameters() if "lora" in n
    ]  # refused before anything was attached
