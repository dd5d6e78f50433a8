"Policies over the finite world: closed forms against optimisers, simulation and enumeration."

import random

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import norm

from alignbook import frontdesk, policies, stats
from alignbook.runtime import AlignbookError

RNG = np.random.default_rng(0)
FEW, REWARD = RNG.dirichlet(np.ones(7)), RNG.normal(size=7)


@pytest.mark.parametrize("beta", [0.1, 0.7, 3.0])
def test_the_tilt_maximises_reward_minus_divergence(beta):
    def policy(z):
        return np.exp(z - z.max()) / np.exp(z - z.max()).sum()

    def loss(z):
        p = policy(z)
        return -(p @ REWARD - beta * policies.divergence(p, FEW))

    found = policy(minimize(loss, np.log(FEW), tol=1e-12).x)
    assert np.allclose(policies.tilted(FEW, REWARD, beta), found, atol=1e-5)


def test_no_policy_at_the_same_distance_has_more_reward():
    best, beta = policies.tilted_at(FEW, REWARD, 0.4)
    assert np.isclose(policies.divergence(best, FEW), 0.4) and beta > 0
    near = 0
    for p in np.random.default_rng(1).dirichlet(best * 200, 4000):
        if policies.divergence(p, FEW) <= 0.4:
            near += 1
            assert p @ REWARD <= best @ REWARD + 1e-9
    assert near > 100


def test_a_distance_out_of_reach_is_an_error():
    with pytest.raises(AlignbookError, match="smaller target"):
        policies.tilted_at(FEW, REWARD, 50.0)
    with pytest.raises(AlignbookError, match="cannot take the policy"):
        policies.tilted_at(FEW, np.zeros(7), 0.1)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_best_of_n_is_what_sampling_gives(n):
    reward = np.round(REWARD)  # with ties
    assert len(set(reward)) < 7
    draws = np.random.default_rng(n).choice(7, (200_000, n), p=FEW)
    chance = 1e-6 * np.random.default_rng(9).random(draws.shape)
    winner = draws[np.arange(len(draws)), (reward[draws] + chance).argmax(1)]
    assert np.allclose(
        policies.best_of(FEW, reward, n), np.bincount(winner, minlength=7) / len(draws), atol=5e-3
    )


def test_best_of_n_stays_below_the_known_bound_and_reaches_it_without_atoms():
    for n in (2, 8, 64):
        bound = np.log(n) - (n - 1) / n
        assert policies.divergence(policies.best_of(FEW, REWARD, n), FEW) <= bound
        fine = np.full(20_000, 1 / 20_000)
        assert np.isclose(
            policies.divergence(policies.best_of(fine, np.arange(20_000.0), n), fine), bound, atol=0.01
        )


def test_the_start_and_the_rules_are_in_the_order_of_the_replies():
    item, t = frontdesk.items(1, 77)[0], policies.traits()
    listed = frontdesk.replies(item)
    assert np.isclose(policies.START.sum(), 1) and len(policies.START) == len(listed) == 48
    for j, reply in enumerate(listed):
        found = frontdesk.axes(reply, item)
        assert all(t[k][j] == found[k] for k in ("harm", "help", "evasive", "boilerplate"))
        assert t["gold"][j] == frontdesk.gold(reply, item)
        assert t["fool"][j] + t["stupid"][j] + t["away"][j] == found["harm"]
    assert np.isclose(policies.START @ t["harm"], 0.45) and np.isclose(policies.START @ t["help"], 0.65)
    assert np.isclose(policies.START @ t["evasive"], 0.10)


def test_rules_that_depend_on_the_visitor_are_an_error(monkeypatch):
    policies.traits.cache_clear()
    first = frontdesk.items(1, 1)[0]
    monkeypatch.setattr(frontdesk, "gold", lambda reply, item: float(item == first))
    with pytest.raises(AlignbookError, match="differently for two visitors"):
        policies.traits()
    monkeypatch.undo()
    policies.traits.cache_clear()


def test_comparisons_are_draws_of_the_start_that_differ():
    d = policies.desk(4000, 3)
    i, a, b = policies.comparisons(d, np.random.default_rng(0))
    gold = policies.traits()["gold"]
    assert (i == np.arange(4000)).all() and (np.abs(gold[a] - gold[b]) > 1e-9).all()
    either = policies.START[:, None] * policies.START * (np.abs(gold[:, None] - gold) > 1e-9)
    assert np.allclose(np.bincount(a, minlength=48) / 4000, either.sum(1) / either.sum(), atol=0.025)


@pytest.mark.parametrize("kind", ["flat", "graded"])
@pytest.mark.parametrize("q", [0.6, 0.9])
def test_labellers_have_the_accuracy_they_should_and_are_calibrated(kind, q):
    gap = np.random.default_rng(1).choice([-1.2, -0.5, -0.1, 0.1, 0.5, 1.2], 20_000)
    p = policies.beliefs(gap, q, kind, np.random.default_rng(2))
    assert abs(((p > 0.5) == (gap > 0)).mean() - q) < 0.012
    assert stats.ece(p, gap > 0).p > 0.01
    assert (p[gap < -1] > 0.5).any() or q > 0.8, "clear cases are sometimes got wrong"
    if kind == "graded":
        sure = np.maximum(p, 1 - p)
        assert sure[np.abs(gap) > 1].mean() > sure[np.abs(gap) < 0.2].mean() + 0.05
    else:
        assert np.allclose(np.maximum(p, 1 - p), q)


def test_the_observer_follows_signal_detection():
    p = policies.seen(np.full(100_000, 0.8), 1.5, np.random.default_rng(0))
    assert abs((p > 0.5).mean() - norm.cdf(1.2)) < 0.005
    assert (policies.seen(np.zeros(5), 1.5, np.random.default_rng(0)) == 0.5).all(), (
        "nothing seen, nothing said"
    )
    with pytest.raises(AlignbookError, match="flat or graded"):
        policies.beliefs(np.ones(3), 0.8, "stubborn", np.random.default_rng(0))


def test_the_bag_is_at_the_optimum_of_its_loss():
    rng = np.random.default_rng(3)
    x, p = rng.normal(size=(60, 4)), rng.random(60)

    def loss(w):
        m = x @ w
        return -(p * np.log(expit(m)) + (1 - p) * np.log(expit(-m))).sum() + w @ w / 2

    assert np.allclose(policies.logistic(x, p), minimize(loss, np.zeros(4), tol=1e-10).x, atol=1e-4)


@pytest.mark.parametrize("label", [0.6, 0.8])
def test_the_gap_of_an_optimal_model_is_the_logit_of_its_label(label):
    w = policies.logistic(np.ones((50, 1)), np.full(50, label), ridge=1e-9)
    assert np.isclose(w[0], np.log(label / (1 - label)), atol=1e-6)


def test_a_reward_equal_to_gold_is_always_right_and_a_constant_one_half_the_time():
    gold = policies.traits()["gold"]
    found = policies.judged(np.stack([gold, gold]))
    assert found["accuracy"] == pytest.approx(1) and 0.1 < found["margin"] < 2.5
    assert policies.judged(np.stack([-2 * gold]))["accuracy"] == pytest.approx(0)
    assert policies.judged(np.zeros((3, 48))) == {"accuracy": pytest.approx(0.5), "margin": 0}


def test_what_is_said_of_a_policy_agrees_with_sampling_it():
    gold, chance = policies.traits()["gold"], random.Random(0)
    policy = policies.tilted(policies.START, gold, 0.5)
    found = policies.described(policy[None], gold[None])
    item = frontdesk.items(1, 5)[0]
    drawn = chance.choices(frontdesk.replies(item), policy, k=20_000)
    said = {r: frontdesk.axes(r, item) for r in set(drawn)}
    for axis in ("harm", "help", "evasive", "boilerplate"):
        assert abs(np.mean([said[r][axis] for r in drawn]) - found[axis]) < 0.02
    assert found["top"] == pytest.approx(policy.max())
    assert found["proxy"] == pytest.approx((policy - policies.START) @ gold)


def test_the_frontier_leaves_out_what_cannot_be_reached():
    rows = policies.frontier(np.stack([policies.traits()["gold"]] * 2), (0.5, 1.0, 40.0), 0.2)
    assert [r["target"] for r in rows] == [None, 0.5, 1.0]
    assert all(np.isclose(r["kl"], r["target"]) for r in rows[1:]) and rows[1]["gold"] < rows[2]["gold"]
