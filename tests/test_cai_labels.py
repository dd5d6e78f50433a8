"The label study: labels, ensembles, over-optimisation, RL and revisions against closed forms."

import dataclasses
import math
import random
import time

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from alignbook import frontdesk, policies
from alignbook.experiments import cai_labels as labels
from alignbook.experiments import cai_revisions as revisions

EXPERIMENTS = [
    labels.exp_ensembles,
    revisions.exp_rounds,
    revisions.exp_principle_count,
]  # the others: test_results


@pytest.mark.parametrize("exp", EXPERIMENTS, ids=lambda e: e.name)
def test_toy_runs_are_quick_and_give_flat_rows_and_metrics(exp):
    start, rows = time.process_time(), []
    for cell in exp.cells(exp.settings):
        rows += [cell | r for r in exp(exp.settings, **cell)]
    found = exp.summarise(pd.DataFrame(rows), exp.settings)
    assert time.process_time() - start < 12
    assert all(isinstance(v, (int, float, str, type(None))) for r in rows for v in r.values())
    assert found and all({"value", "lo", "hi", "n"} <= set(m) for m in found.values())
    assert exp.settings.at("cpu") != exp.settings and exp.minutes["cpu"] > 0


def test_the_same_cell_gives_the_same_rows():
    for exp, cell in (
        (labels.exp_label_types, dict(reader="text", labeller="graded", q=0.75, seed=3)),
        (labels.exp_ensembles, dict(way="afresh", m=4, seed=3)),
        (revisions.exp_rounds, dict(reviser="stubborn", q=0.5, seed=3)),
    ):
        assert exp(exp.settings, **cell) == exp(exp.settings, **cell)


def test_labels_keep_the_preference_and_change_the_size():
    p = np.array([0.02, 0.3, 0.45, 0.55, 0.7, 0.98])
    told = {k: np.array([f(x) for x in p]) for k, f in labels.LABELS.items()}
    for v in told.values():
        assert ((v > 0.5) == (p > 0.5)).all() and np.allclose(v + v[::-1], 1)
    assert np.allclose(told["CoT"], expit(labels.SHARPER * logit(p)))
    assert told["CoT 40-60"].min() == 0.4 and told["CoT 20-80"].max() == 0.8
    assert np.isfinite([labels.sharper(0.0), labels.sharper(1.0)]).all()


def test_clamping_caps_the_margin_of_a_trained_decoder():
    """One comparison again and again: the reward gap goes to the logit of its label, and not beyond."""
    d = policies.desk(1, 4)
    s = dataclasses.replace(labels.LabelSettings(), steps=120, width=16)
    pairs = tuple(np.array([x] * 32) for x in (0, 0, 12))
    found = labels.text_rewards(d, pairs, np.full(32, 0.6), d, s, 0)[0]
    assert found[0] - found[12] == pytest.approx(logit(0.6), abs=0.02)


def test_a_bag_with_clamped_labels_has_no_gap_above_the_cap():
    s = labels.LabelSettings(pairs=200)
    rows = labels.exp_label_types(s, reader="bag", labeller="flat", q=0.9, seed=1)
    margin = {r["label"]: r["margin"] for r in rows}
    assert margin["soft 40-60"] < logit(0.6) < margin["soft"] < min(logit(0.9), margin["hard"])


def test_for_an_uninformative_confidence_clamping_is_a_change_of_beta():
    s = labels.LabelSettings(pairs=300)
    rows = pd.DataFrame(labels.exp_label_types(s, reader="bag", labeller="flat", q=0.75, seed=2))
    far = rows[rows.target == 1.0].set_index("label").gold
    assert abs(far["soft"] - far["soft 40-60"]) < 0.02
    near = rows[rows.point == "beta"].set_index("label").kl
    assert near["soft"] > 2 * near["soft 40-60"]


def test_all_principles_together_rank_as_gold_does_and_one_alone_does_not():
    views, t = labels.views(), policies.traits()
    assert views.shape == (16, 48) and len(labels.PRINCIPLES) == 16
    agreement = [np.corrcoef(v, t["gold"])[0, 1] for v in (views.mean(0), *views[[0, 2, 4]])]
    assert agreement[0] > 0.75 > max(agreement[1:])
    courtesy = {
        k: views[i].mean(0) @ (t["boilerplate"] - t["boilerplate"].mean()) for k, i in labels.ARMS.items()
    }
    assert courtesy["without the three"] > 0 > courtesy["all 16"], "the bias is small and its sign is known"


def test_ensemble_labels_are_the_mean_over_the_principles_asked():
    pairs = (np.zeros(2000, int), np.zeros(2000, int), np.full(2000, 12))  # polite against "You fool!"
    blind = labels.ensemble_labels(pairs, np.full((2000, 1), 2), np.random.default_rng(0))
    assert (blind == 0.5).all(), "belittling does not see name-calling"
    sees = labels.ensemble_labels(pairs, np.full((2000, 1), 0), np.random.default_rng(0))
    both = labels.ensemble_labels(pairs, np.tile([0, 2], (2000, 1)), np.random.default_rng(1))
    assert both.mean() == pytest.approx((sees.mean() + 0.5) / 2, abs=0.01) and sees.mean() > 0.8


def test_blind_spots_find_the_trait_that_is_missed():
    t = policies.traits()
    cost = t["fool"] + t["stupid"] + t["evasive"] + t["boilerplate"] - 0.01 * t["away"]
    found = labels.blind_spots(-np.stack([cost] * 2))
    assert (
        found["sees fool"] == found["sees evasion"] == pytest.approx(1)
        and found["worst"] == found["sees away"] == 0
    )


def test_spread_is_the_variance_between_seeds():
    scores = np.random.default_rng(0).normal(size=(30, 48))
    rows = [{"seed": i, "reply": j, "score": scores[i, j]} for i in range(30) for j in range(48)]
    assert labels.spread(pd.DataFrame(rows)).value == pytest.approx(scores.var(0, ddof=1) @ policies.START)


def test_differences_are_paired_by_seed():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=20) * 10
    rows = [
        {"seed": i, "label": k, "gold": noise[i] + a} for i in range(20) for k, a in (("x", 1.0), ("y", 0.25))
    ]
    found = labels.paired(pd.DataFrame(rows), "label", "x", "y", "gold")
    assert found.value == pytest.approx(0.75) and found.hi - found.lo < 1e-9


def test_the_start_policy_is_learnt_and_its_probabilities_are_a_distribution():
    lm, d = labels.start_policy(dataclasses.replace(labels.LabelSettings(), lessons=220), 5)
    probs = labels.reply_probs(lm, d)
    assert probs.shape == (6, 48) and (probs.sum(1) < 1).all() and probs.sum(1).mean() > 0.7
    assert policies.divergence(probs / probs.sum(1, keepdims=True), policies.START).mean() < 0.2


def test_a_policy_on_the_frontier_has_all_of_the_gain_and_others_less():
    reward = np.stack([policies.traits()["gold"]] * 3)
    best = policies.tilted(np.stack([policies.START] * 3), reward, 0.4)
    assert labels.on_the_frontier(best, policies.START, reward, 0.4)["share"] == pytest.approx(1, abs=1e-6)
    mixed = 0.5 * best + 0.5 * policies.START
    found = labels.on_the_frontier(mixed, policies.START, reward, 0.4)
    assert found["share"] < 0.99 and found["goal_kl"] > found["kl"]


@pytest.mark.parametrize("reviser", ["independent", "stubborn"])
def test_survival_is_what_a_long_simulation_gives(reviser):
    item, rng, n = frontdesk.items(1, 6)[0], random.Random(0), 4000
    found = np.zeros((5, 2))
    for _ in range(n):
        c = revisions.CONCENTRATION
        q = 0.6 if reviser == "independent" else rng.betavariate(0.6 * c, 0.4 * c)
        reply = frontdesk.clerk(item, rng, "rude")
        for k in range(5):
            axes = frontdesk.axes(reply, item)
            found[k] += axes["harm"] / n, axes["help"] / n
            reply = frontdesk.noisy_revision(reply, item, q, rng, revisions.LOST)
    law = np.array([revisions.survival(0.6, k, reviser) for k in range(5)])
    assert np.abs(found - law).max() < 0.03


def test_survival_at_its_ends():
    assert revisions.survival(1.0, 3) == (0, 1) and revisions.survival(0.3, 0) == (1, 1)
    assert revisions.survival(0.0, 2) == pytest.approx((0.75**2, 0.75**2))
    for k in (1, 2, 4):
        assert revisions.survival(0.7, k)[0] <= revisions.survival(0.7, k, "stubborn")[0] + 1e-12


def test_diversity_of_known_lists():
    assert (
        revisions.distinct(["a b c", "a b d"]) == 3 / 4
        and revisions.distinct([]) == revisions.distinct(["a"]) == 0
    )
    assert (
        revisions.entropy_of(list("aabb")) == pytest.approx(math.log(2))
        and revisions.entropy_of(["x"] * 5) == 0
    )
    rng = random.Random(0)
    one = revisions.revised_by([3], "all", 1.0, 200, rng)
    assert {w for _, w in one} == {revisions.WORDINGS[3]} and {i for i, _ in one} == {""}
    narrow = revisions.revised_by([0], "one", 1.0, 3000, rng)
    assert np.mean([i != "" for i, _ in narrow]) == pytest.approx(2 / 3, abs=0.03), (
        "one of three insults is seen"
    )
