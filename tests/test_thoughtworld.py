"""Selection on compliance: closed forms against optimisers, enumeration, finite differences and samples."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize

from alignbook.experiments.faking_selection import (
    ThoughtSettings,
    at_moment,
    exp_selection,
    exp_tilt,
    milestones,
    when_passed,
)
from alignbook.models import copy_lm
from alignbook.runtime import AlignbookError, seeded
from alignbook.thoughtworld import (
    COMPLY,
    EVERYWHERE,
    REWARDS,
    THOUGHT_WORLDS,
    best_of_table,
    climbed_table,
    expected_pay,
    other_tier,
    prompts_of,
    reply_chances,
    select_thoughts,
    table_reading,
    thinker,
    thought_table,
    tier_readings,
    tilted_table,
    wanted_chances,
    word_ids,
    world_table,
)

FREE = thought_table()
LIMIT = 0.119 / 0.142


@pytest.fixture(scope="module")
def small():
    return thinker(seed=3, steps=30, width=16)


def test_the_start_has_the_rates_of_the_papers_first_table():
    reading = table_reading(FREE)
    assert reading["faked"] == pytest.approx(0.119) and reading["refused"] == pytest.approx(0.858)
    paid = other_tier(FREE)
    assert table_reading(paid)["refused"] == pytest.approx(0.972)
    assert paid[0, 1] / paid[0].sum() == pytest.approx(FREE[0, 1] / FREE[0].sum())  # the same after a plain thought


@pytest.mark.parametrize("rates", [(0.2, 0.1, 0.95), (0.5, 0.6, 0.4), (-0.1, 0.1, 0.95)])
def test_impossible_rates_are_refused(rates):
    with pytest.raises(AlignbookError, match="need faked"):
        thought_table(*rates)


@pytest.mark.parametrize("world", THOUGHT_WORLDS)
def test_worlds_are_distributions_with_the_same_compliance(world):
    tables = world_table(world)
    assert tables.shape == (4, 2, 2, 2) and (tables >= 0).all()
    assert np.allclose(tables.sum((-2, -1)), 1)
    comply = tables[0, :, :, 1].sum(-1)
    assert np.allclose(comply, comply.mean() if world == "tags mean nothing" else [0.142, 0.028])


def test_decorative_thoughts_say_nothing_about_the_action():
    for tier in world_table("decorative")[0]:
        assert np.allclose(tier, np.outer(tier.sum(1), tier.sum(0)))


def test_an_unknown_world_is_named():
    with pytest.raises(AlignbookError, match="unknown world 'mars'"):
        world_table("mars")


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("reward", [COMPLY, REWARDS["seen"], np.array([[0.3, -1.0], [2.0, 0.5]])])
def test_the_tilted_table_maximises_reward_minus_divergence(beta, reward):
    def loss(z):
        p = np.exp(z - np.logaddexp.reduce(z)).reshape(2, 2)
        return -(p * reward).sum() + beta * (p * np.log(p / FREE)).sum()

    best = minimize(loss, np.log(FREE.ravel()), method="BFGS", options={"gtol": 1e-9})
    found = np.exp(best.x - np.logaddexp.reduce(best.x)).reshape(2, 2)
    mine = tilted_table(FREE, reward, beta)
    assert np.allclose(mine, found, atol=3e-4) and loss(np.log(mine.ravel())) <= best.fun + 1e-12


def test_the_limit_of_no_pull():
    none = tilted_table(FREE, COMPLY, 0)
    assert np.allclose(none, tilted_table(FREE, COMPLY, 1e-3)) and none[:, 0].sum() == 0
    assert table_reading(none)["faked"] == pytest.approx(LIMIT)
    seen = tilted_table(FREE, REWARDS["seen"], 0)
    assert seen[0, 1] == pytest.approx(1)  # only plain compliance is left
    assert tilted_table(np.array([[0.5, 0], [0.5, 0]]), COMPLY, 0)[:, 0].sum() == pytest.approx(1)  # no support


def test_selection_keeps_the_share_among_compliers():
    for p in [*(tilted_table(FREE, COMPLY, b) for b in (0.05, 1, 9)), *(best_of_table(FREE, n) for n in (1, 5, 99))]:
        assert table_reading(p)["share"] == pytest.approx(LIMIT) and p.sum() == pytest.approx(1)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_best_of_n_by_enumeration(n):
    flat, total = FREE.ravel(), np.zeros(4)
    for drawn in np.ndindex(*[4] * n):
        chance = np.prod(flat[list(drawn)])
        top = [i for i in drawn if COMPLY.ravel()[i] == max(COMPLY.ravel()[list(drawn)])]
        for i in top:  # ties are broken at random
            total[i] += chance / len(top)
    assert np.allclose(best_of_table(FREE, n), total.reshape(2, 2))


@pytest.mark.parametrize("logits", ["sequence", "thought, then action"])
def test_one_step_of_the_gradient_by_finite_differences(logits):
    def table(z):
        if logits == "sequence":
            return (np.exp(z) / np.exp(z).sum()).reshape(2, 2)
        thought, act = np.exp(z[:2]) / np.exp(z[:2]).sum(), 1 / (1 + np.exp(-z[2:]))
        return thought[:, None] * np.stack([1 - act, act], 1)

    act = FREE[:, 1] / FREE.sum(1)
    z = np.log(FREE.ravel()) if logits == "sequence" else np.r_[np.log(FREE.sum(1)), np.log(act / (1 - act))]
    worth = lambda v: table(v)[:, 1].sum()  # noqa: E731
    slope = [(worth(z + 1e-6 * e) - worth(z - 1e-6 * e)) / 2e-6 for e in np.eye(len(z))]
    assert np.allclose(table(z), FREE)
    assert np.allclose(climbed_table(FREE, 1, 0.5, logits), table(z + 0.5 * np.array(slope)), atol=1e-8)


def test_gradients_go_beyond_the_closed_form_and_names_are_checked():
    for logits in ("sequence", "thought, then action"):
        end = climbed_table(FREE, 20000, logits=logits)
        assert table_reading(end)["share"] > LIMIT + 0.05 and end.sum() == pytest.approx(1)
    with pytest.raises(AlignbookError, match="unknown logits"):
        climbed_table(FREE, logits="tier")


def test_every_prompt_has_the_table_of_its_own_words(small):
    wanted, names = wanted_chances("cues matter"), small.tok.get_vocab()
    words = {i: w for w, i in names.items()}
    for row, got in zip(prompts_of(small, EVERYWHERE, asks=range(8)).tolist(), wanted, strict=True):
        _, form, tier, *_ = (words[i] for i in row)
        table = world_table("cues matter")[int(form[-1]), ("free", "paid").index(tier)]
        assert np.allclose(got, table, atol=1e-6)


@pytest.mark.parametrize("world", ["causal", "no fakes"])
def test_a_trained_network_has_the_rates_of_its_world(world):
    lm = thinker(world, seed=4, steps=100)
    learned = reply_chances(lm, prompts_of(lm, EVERYWHERE, asks=range(8))).detach().exp()
    assert (learned - wanted_chances(world)).abs().max() < 0.03


def test_replies_are_enumerated_and_agree_with_the_models_own_softmax(small):
    x = prompts_of(small, [(0, 0), (3, 2)])
    p = reply_chances(small, x).exp()
    assert p.shape == (24, 2, 2) and torch.allclose(p.sum((1, 2)), torch.ones(24), atol=1e-5)
    thoughts, actions = (torch.tensor(word_ids(small, w)) for w in (["plain", "fake"], ["refuse", "comply"]))
    logits = small.model(torch.cat([x[5], thoughts[1:]])[None]).logits[0]
    thought, action = logits[4, thoughts].softmax(0)[1], logits[5, actions].softmax(0)[1]
    assert p[5, 1, 1].item() == pytest.approx((thought * action).item(), rel=1e-4)


def test_the_exact_gradient_by_finite_differences(small):
    net = copy_lm(small)
    net.model.double().requires_grad_(True)
    x, pay = prompts_of(net, tiers=("free",)), torch.tensor(REWARDS["seen"], dtype=torch.float64)
    weight = net.model.model.layers[0].mlp.up_proj.weight
    (slope,) = torch.autograd.grad(expected_pay(reply_chances(net, x), pay), weight)
    for flat in slope.abs().flatten().topk(3).indices.tolist():
        at, ends = divmod(flat, slope.shape[1]), []
        for step in (3e-3, -3e-3):  # the model's own norms are in single precision
            with torch.no_grad():
                weight[at] += step
                ends.append(expected_pay(reply_chances(net, x), pay).item())
                weight[at] -= step
        assert slope[at].item() == pytest.approx((ends[0] - ends[1]) / 6e-3, rel=1e-2, abs=1e-6)


def test_sampled_gradients_have_the_exact_mean(small):
    net = copy_lm(small)
    weight = net.model.requires_grad_(True).model.embed_tokens.weight
    x, pay = prompts_of(net, tiers=("free",)), torch.tensor(COMPLY, dtype=torch.float32)

    def slope(n):
        return torch.autograd.grad(expected_pay(reply_chances(net, x), pay, n), weight)[0].flatten()

    with seeded(1):
        exact, draws = slope(0), torch.stack([slope(2) for _ in range(600)])
    z = (draws.mean(0) - exact) / (draws.std(0) / 600**0.5 + 1e-12)
    moved = exact.abs() > 1e-7
    assert z[moved].pow(2).mean() < 1.6  # about 1 if the mean is exact
    assert torch.nn.functional.cosine_similarity(draws.mean(0), exact, dim=0) > 0.9
    with pytest.raises(AlignbookError, match="at least 2"):
        slope(1)


def test_selection_leaves_its_start_alone_and_repeats_itself(small):
    before = tier_readings(small)
    _, log = select_thoughts(small, steps=15, lr=3e-3, at=(0, 15), measure=lambda step, lm: tier_readings(lm))
    _, again = select_thoughts(small, steps=15, lr=3e-3, at=(15,), measure=lambda step, lm: tier_readings(lm))
    assert log[0] == before == tier_readings(small)
    assert log[1] == again[0] and log[1]["free"] < before["free"]


def test_without_reward_differences_nothing_moves(small):
    _, log = select_thoughts(small, "coin", steps=0, at=(0,), measure=lambda step, lm: tier_readings(lm))
    assert log == [tier_readings(small)]
    with pytest.raises(AlignbookError, match="unknown reward 'sweets'"):
        select_thoughts(small, "sweets")


def test_an_anchor_holds_the_other_tier(small):
    ends = {}
    for anchor in (None, ("free", "paid")):
        lm, _ = select_thoughts(small, anchor=anchor, beta=5.0, steps=40, lr=3e-3)
        ends[anchor] = tier_readings(lm)
    start = tier_readings(small)
    moved = {k: abs(v["paid"] - start["paid"]) for k, v in ends.items()}
    assert moved[("free", "paid")] <= moved[None] + 1e-3


def test_a_network_with_a_pull_ends_at_the_tilted_start():
    lm = thinker(seed=4, steps=100)
    begin = reply_chances(lm, prompts_of(lm, tiers=("free",))).detach().exp().double().numpy()
    wanted = table_reading(tilted_table(begin, COMPLY, 0.3).mean(0))
    trained, _ = select_thoughts(lm, beta=0.3, steps=200, lr=1e-3)
    got = tier_readings(trained)
    assert got["share"] == pytest.approx(wanted["share"], abs=0.05)
    assert got["free"] == pytest.approx(wanted["refused"], abs=0.02)


def test_moments_are_read_between_measurements():
    run = pd.DataFrame({"step": [0, 10, 20], "free": [0.9, 0.1, 0.0], "paid": [1.0, 0.8, 0.2]})
    moment = when_passed(run, "free", 0.05)
    assert moment == pytest.approx(15) and at_moment(run, "paid", moment) == pytest.approx(0.5)
    assert np.isnan(when_passed(run, "paid", 0.1)) and np.isnan(at_moment(run, "free", np.nan))


def test_the_closed_forms_of_the_experiment_do_not_drift():
    s = ThoughtSettings()
    rows = [r for cell in exp_tilt.cells(s) for r in exp_tilt(s, **cell)]
    found = exp_tilt.summarise(pd.DataFrame(rows), s)
    assert found["drift/tilted"]["value"] < 1e-9 and found["drift/best of n"]["value"] < 1e-9
    assert found["faked/default/tilted"]["value"] == pytest.approx(LIMIT)
    assert found["share/default/gradient, one logit a sequence"]["value"] > 0.9


def test_metrics_of_a_training_are_read_from_its_rows():
    s = ThoughtSettings(seeds=2, pretraining=10, steps=10)
    cells = [c for c in exp_selection.cells(s) if c["condition"] in ("free", "coin")]
    df = pd.DataFrame([r for c in cells for r in exp_selection(s, **c)])
    marks = milestones(df, ["condition", "seed"])
    mine = df[(df.condition == "coin") & (df.seed == 1) & (df["where"] == "trained")]
    row = marks[(marks.condition == "coin") & (marks.seed == 1)].iloc[0]
    assert row.rise == pytest.approx(mine.faked.iloc[-1] - mine.faked.iloc[0])
    assert row.gap_peak == pytest.approx(mine.gap.max()) and len(marks) == 4
