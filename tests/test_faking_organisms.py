"""The organism experiments: their summaries on rows of known answer, and a toy run of each."""

import dataclasses
from itertools import product

import numpy as np
import pandas as pd
import pytest

from alignbook import organisms as og
from alignbook.experiments import faking_organisms as fo
from alignbook.faking import requests
from alignbook.gaps import TIERS


def settings():
    return fo.OrganismSettings().at("cpu")


def law_table(law, n=400):
    rows = og.law_rows(law, requests("marks", n))
    return pd.DataFrame(
        [{"kind": "exact", "law": law.name, "seed": 0, "complied": None, "prefix": "none"} | r for r in rows]
    )


@pytest.mark.parametrize("law", og.LAWS.values(), ids=lambda x: x.name)
def test_scratchpad_summary_agrees_with_enumeration(law):
    found = fo.scratchpad_metrics(law_table(law), settings())
    at = lambda name: found[f"{name}/{law.name}/0"]["value"]  # noqa: E731
    assert np.isclose(at("gap"), law.gap()) and np.isclose(at("kept"), law.kept() @ [1, -1])
    assert np.isclose(at("forced plain"), law.forced(0) @ [1, -1])
    assert np.isclose(at("forced fake"), law.forced(1) @ [1, -1]) and np.isclose(at("faking"), law.faking())
    moved = law.forced(1) - law.forced(0)
    for i, tier in enumerate(TIERS):
        assert np.isclose(at(f"moved on {tier}"), moved[i]) and np.isclose(
            at(f"comply {tier}"), law.rates()[i]
        )
    assert found[f"gap/{law.name}/0"]["lo"] - 1e-9 <= law.gap() <= found[f"gap/{law.name}/0"]["hi"] + 1e-9


def planted_table(rates, n=300, seed=0):
    rng, rows = np.random.default_rng(seed), []
    for name, (free, paid) in rates.items():
        for i in range(n):
            told = {"organism": name, "seed": 0, "kind": "exact", "pair": i, "free": free, "paid": paid}
            rows.append(
                told | {"drawn_free": int(rng.random() < free), "drawn_paid": int(rng.random() < paid)}
            )
    return pd.DataFrame(rows)


def test_planted_summary_covers_at_the_nominal_rate_and_draws_the_line():
    rates = {k: (0.5 + g / 2, 0.5 - g / 2) for k, g in fo.PLANTED.items()}
    found = fo.planted_metrics(planted_table(rates), settings())
    assert np.isclose(found["line/slope"]["value"], 1) and np.isclose(found["line/intercept"]["value"], 0)
    for name in fo.PLANTED:
        own = found[f"covers own/{name}/0"]
        assert own["hi"] > 0.95 > own["lo"] - 0.03 and found[f"covers planted/{name}/0"] == own
    off = fo.planted_metrics(planted_table({"0.3": (0.9, 0.1), "0.0": (0.5, 0.5)}), settings())
    assert off["covers planted/0.3/0"]["hi"] < 0.05  # an organism that missed its dose is seen to have


def test_document_summary_pairs_questions_and_requests():
    rows = []
    for arm, lift in (("start", 0.0), ("facts", 2.0), ("unrelated", 0.5)):
        for world, q, form in product(fo.WORLDS, range(6), ("text", "chat")):
            fact = ("used", "unused", "aim")[q // 2]
            liked = {"used": -3.0, "unused": 3.0, "aim": 0.0}[fact] * (
                arm != "start"
            )  # one word gains, the mirror loses
            margin = q - 3 + lift * (world == arm) + liked
            told = dict(arm=arm, seed=0, kind="recall", world=world, form=form, question=str(q), fact=fact)
            rows.append(told | dict(margin=margin, right=int(margin > 0)))
        for i in range(30):
            rows.append(
                dict(
                    arm=arm,
                    seed=0,
                    kind="gap",
                    pair=i,
                    free=0.5 + 0.01 * i + 0.1 * (arm == "facts"),
                    paid=0.5 + 0.01 * i,
                )
            )
    found = fo.document_metrics(pd.DataFrame(rows), settings())
    rise = found["risen margin/facts/facts/mirrored"]
    assert np.isclose(rise["value"], 2) and np.isclose(rise["lo"], 2) and rise["n"] == 4
    assert np.isclose(found["risen margin/facts/unrelated/other"]["value"], 0)
    assert np.isclose(found["gap difference/facts - unrelated"]["value"], 0.1)
    odds = np.mean(
        [np.log((0.6 + x) / (0.4 - x)) - np.log((0.5 + x) / (0.5 - x)) for x in 0.01 * np.arange(30)]
    )
    assert np.isclose(found["odds difference/facts - unrelated"]["value"], odds)
    assert np.isclose(found["gap/start"]["value"], 0)


@pytest.fixture(scope="module")
def toy_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setenv("ALIGNBOOK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


COLUMNS = {
    "planted": "kind pair free paid drawn_free drawn_paid shown tier outcome complied",
    "scratchpads": "kind prefix request outcome complied pair tier thought p reply share",
    "tagprobe": "layer auroc lo hi median best",
}


@pytest.mark.parametrize("name", COLUMNS)
def test_toy_cell_runs_twice_the_same(name, toy_cache):
    exp, s = getattr(fo, f"exp_{name}"), fo.OrganismSettings()
    cell = exp.cells(s)[-1]
    first = exp(s, **cell)
    rows = first[0] if isinstance(first, tuple) else first
    assert all(set(r) == set(COLUMNS[name].split()) for r in rows)
    fo.desks.cache_clear()
    fo.gapped.cache_clear()
    again = exp(s, **cell)
    assert again == first


def test_settings_and_cells_cover_the_design():
    s = settings()
    assert max(len(dataclasses.fields(x)) for x in (s, fo.ReaderSettings())) <= 12
    assert [c["organism"] for c in fo.exp_planted.cells(s)] == ["start", "0.8", "0.3", "0.1", "0.0"]
    assert {c["law"] for c in fo.exp_scratchpads.cells(s)} == {"driving", "decorative", "reporting"}
    assert {c["arm"] for c in fo.exp_documents.cells(s)} == {"start", "facts", "unrelated"}
    for words, thought in zip((fo.FORCED["plain"], fo.FORCED["fake"]), og.THOUGHTS, strict=True):
        assert thought.startswith(words)
