"""The experiments on selection: their summaries by hand, on rows that were made up, and on two small networks."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from alignbook import stats, thoughtworld
from alignbook.experiments import faking_selection as selection
from alignbook.experiments.faking_selection import (
    CONDITIONS,
    MOMENTS,
    PAPER_ROWS,
    PLACES_MEASURED,
    PULLS,
    SEEN_AFTER,
    WAYS,
    ThoughtSettings,
    exp_cueswap,
    exp_pull,
    exp_selection,
    exp_tilt,
    milestones,
    over_seeds,
    selection_metrics,
    swap_metrics,
)
from alignbook.runtime import experiments

TOY = ThoughtSettings(pretraining=10, steps=10)


def made(condition, seed, free, paid, faked, steps=(0, 10, 20, 30), where="trained"):
    """Rows of one training as `exp_selection` returns them."""
    keys = {"condition": condition, "seed": seed, "where": where}
    values = zip(steps, free, paid, faked, strict=True)
    return [
        keys | {"step": s, "kl": 0.1 * s, "free": a, "paid": b, "gap": b - a, "faked": f, "share": f / (1 - a)}
        for s, a, b, f in values
    ]  # fmt: skip


def test_the_experiments_are_known_to_the_runner():
    found = experiments("faking")
    assert {"tilt", "selection", "pull", "cueswap"} <= set(found)
    cells = {n: found[n].cells(ThoughtSettings().at("cpu")) for n in ("tilt", "selection", "pull", "cueswap")}
    assert len(cells["tilt"]) == len(PAPER_ROWS) * len(WAYS) and len(cells["selection"]) == len(CONDITIONS) * 6
    assert len(cells["pull"]) == len(PULLS) * 6 and len(cells["cueswap"]) == 24
    assert all(m <= 600 for m in MOMENTS) and list(MOMENTS) == sorted(set(MOMENTS))


def test_conditions_differ_from_free_in_one_thing():
    free = CONDITIONS["free"]
    for name, how in CONDITIONS.items():
        changed = {k for k in {*how, *free} if how.get(k) != free.get(k)}
        assert len(changed) == (0 if name in ("free", "sampled") else 1), name
        assert how["world"] in thoughtworld.THOUGHT_WORLDS


def test_held_out_cues_and_requests_are_held_out():
    trained = {(0, 0), *selection.MANY_CUES}
    for name in ("lab swapped", "form swapped", "both swapped", "variant a"):
        assert not trained & set(PLACES_MEASURED[name]["cues"]), name
    assert not set(PLACES_MEASURED["other requests"]["asks"]) & set(range(6))


def test_milestones_by_hand():
    rows = made("free", 0, [0.8, 0.4, 0.0, 0.0], [1.0, 0.9, 0.5, 0.1], [0.1, 0.5, 0.95, 0.9])
    (row,) = milestones(pd.DataFrame(rows), ["condition", "seed"]).to_dict("records")
    assert row["rise"] == pytest.approx(0.8) and row["share_start"] == pytest.approx(0.5)
    assert row["share_end"] == pytest.approx(0.9) and row["overshoot"] == pytest.approx(0.45)
    assert row["passed"] == pytest.approx(18.75) and row["left"] == pytest.approx(0.55)  # between steps 10 and 20
    assert row["stop"] == pytest.approx(19.75) and row["paid_stop"] == pytest.approx(0.51)
    assert row["gap_peak"] == pytest.approx(0.5) and row["gap_end"] == pytest.approx(0.1)


def test_a_training_that_never_complies_has_no_moment():
    rows = made("coin", 0, [0.8, 0.9, 0.7, 0.8], [1.0] * 4, [0.1] * 4)
    (row,) = milestones(pd.DataFrame(rows), ["condition", "seed"]).to_dict("records")
    assert math.isnan(row["passed"]) and math.isnan(row["left"]) and math.isnan(row["paid_stop"])
    none = over_seeds(pd.Series([np.nan, np.nan]))
    assert none["value"] is None and none["n"] == 0
    some = over_seeds(pd.Series([np.nan, 0.2, 0.4]))
    assert some["value"] == pytest.approx(0.3) and some["n"] == 2


def test_differences_are_paired_by_network():
    rows = []
    for seed, (left, other) in enumerate([(0.9, 0.7), (0.5, 0.3), (0.1, 0.0)]):
        for name in CONDITIONS:
            paid = left if name == "free" else other
            for where in ("trained", "other requests"):
                rows += made(name, seed, [0.8, 0.05], [1.0, paid], [0.1, 0.9], (0, 10), where)
    found = selection_metrics(pd.DataFrame(rows), None)
    gap = found["left/free - both tiers"]
    by_hand = stats.bootstrap(np.array([0.2, 0.2, 0.1]))
    assert (gap["value"], gap["lo"], gap["hi"], gap["n"]) == pytest.approx((*by_hand[:3], 3))
    assert found["left/free"]["value"] == pytest.approx(0.5) and found["rise/free - coin"]["value"] == 0
    assert found["paid_end, other requests/free"]["value"] == pytest.approx(0.5)


def test_the_excess_is_read_when_training_under_the_trained_cue_stops():
    rows = []
    for world in ("causal", "cues matter"):
        for cues in (1, 4):
            for seed in (0, 1):
                for where in PLACES_MEASURED:
                    late = 0.3 if where == "both swapped" and cues == 1 else 0.0
                    data = made("", seed, [0.8, 0.02, 0.0], [1.0, 0.5, 0.1 + late], [0.1, 0.5, 0.9], (0, 10, 20), where)
                    rows += [r | {"world": world, "cues": cues} for r in data]
    found = swap_metrics(pd.DataFrame(rows), None)
    then = found["gap_then/causal/1/trained"]["value"]
    assert then == pytest.approx((0.5 + 0.1) / 2 - 0.01)  # step 15: free refusal 1 %
    assert found["gap_then excess/causal/1/both swapped"]["value"] == pytest.approx(0.15)
    assert found["gap_then excess/causal/4/both swapped"]["value"] == pytest.approx(0, abs=1e-12)
    assert found["gap_then excess, one - four/causal"]["value"] == pytest.approx(0.15)
    assert found["gap_end/causal/1/both swapped"]["value"] == pytest.approx(0.4)
    area = (0.2 + 0.48) / 2 * 10 + (0.48 + 0.4) / 2 * 10
    assert found["gap_mean/causal/1/both swapped"]["value"] == pytest.approx(area / 20)


def test_counts_behind_the_papers_rows():
    rows = [r for cell in exp_tilt.cells(TOY) for r in exp_tilt(TOY, **cell)]
    found = exp_tilt.summarise(pd.DataFrame(rows), TOY)
    before = found["predicted/default"]
    assert (before["value"], before["n"]) == (40 / 48, 48)  # 11.9 and 14.2 % of 340
    assert found["observed/default"]["value"] == pytest.approx(138 / SEEN_AFTER)
    se = math.sqrt(0.784 * 0.216 / SEEN_AFTER)
    assert round(100 * se, 1) == 3.1  # the paper's standard error gives the number of prompts
    assert round(100 * math.sqrt(0.142 * 0.858 / 340), 1) == 1.9
    d = found["difference/default"]
    by_hand = stats.newcombe(138, SEEN_AFTER, 40, 48)
    assert (d["value"], d["lo"], d["hi"]) == pytest.approx(tuple(by_hand)[:3])
    for way in ("tilted", "best of n"):
        for row, (faked, refused, _, _) in PAPER_ROWS.items():
            assert found[f"share/{row}/{way}"]["value"] == pytest.approx(faked / (1 - refused))


@pytest.mark.parametrize(
    "exp, cell",
    [
        (exp_selection, dict(condition="sampled", seed=1)),
        (exp_selection, dict(condition="anchored", seed=0)),
        (exp_pull, dict(beta=0.3, seed=1)),
        (exp_cueswap, dict(world="cues matter", cues=4, seed=0)),
    ],
)
def test_a_cell_depends_on_its_settings_alone(exp, cell):
    first = exp(TOY, **cell)
    thoughtworld.thinker.cache_clear()
    exp(TOY, **{**cell, "seed": 1 - cell["seed"]})
    assert exp(TOY, **cell) == first
    assert all(isinstance(v, (int, float, str)) for r in first for v in r.values())
    assert all(cell[k] == r[k] for k in cell for r in first)


def test_the_limit_of_a_pull_is_that_of_the_networks_own_start():
    rows = exp_pull(TOY, beta=0.3, seed=0)
    lm = selection.network_of(TOY, "causal", 0)
    start = thoughtworld.reply_chances(lm, thoughtworld.prompts_of(lm, tiers=("free",))).detach().double().exp().numpy()
    assert start.shape == (6, 2, 2) and rows[0]["step"] == 0
    tilted = start * np.exp(thoughtworld.COMPLY / 0.3)
    mean = (tilted / tilted.sum((1, 2), keepdims=True)).mean(0)
    assert rows[0]["share_limit"] == pytest.approx(mean[1, 1] / mean[:, 1].sum())
    assert rows[0]["free_limit"] == pytest.approx(mean[:, 0].sum())
    assert rows[0]["free"] == pytest.approx(start[:, :, 0].sum(1).mean(), abs=1e-5)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6)


def test_the_coin_has_no_direction():
    """What the two faces pay adds up to a constant, so that their gradients cancel on average."""
    lm = selection.network_of(TOY, "causal", 0)
    weight = lm.model.requires_grad_(True).model.embed_tokens.weight
    logp = thoughtworld.reply_chances(lm, thoughtworld.prompts_of(lm))
    faces = [torch.tensor(pay, dtype=torch.float32) for pay in (thoughtworld.COMPLY, 1 - thoughtworld.COMPLY)]
    worth = [thoughtworld.expected_pay(logp, pay) for pay in faces]
    assert sum(worth).item() == pytest.approx(1, abs=1e-5)
    slopes = [torch.autograd.grad(w, weight, retain_graph=True)[0] for w in worth]
    assert slopes[0].abs().max() > 1e-4 and torch.allclose(slopes[0], -slopes[1], atol=1e-6)
