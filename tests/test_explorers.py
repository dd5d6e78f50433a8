"""Explorers as HTML: what the page carries, inert text, size, the table without scripts, clear errors."""

import base64
import json
import math
import random
import zlib

import numpy as np
import pandas as pd
import pytest
from test_widgets import Reader

from alignbook import explorers
from alignbook.runtime import AlignbookError

HOSTILE = "</script><script>boom()</script><!--<img src=x onerror=boom()> & \"quoted\" 'too' \ud800 ~ \x7f\x1e"
HEATS = {"a": [0.5, -0.25, 1.0], "b": [0.0, 0.0, -2.0], "c": [0.1, 0.2, 0.3]}


def small(text="x"):
    """Two queries, two estimators, three sequences, with `text` wherever a model could have put it."""
    rows = [{"doc": d, "tokens": [f"{text} ", "two ", "three"], "kind": f"{text}{d}"} for d in HEATS]
    rows += [{"query": f"{text}{q}", "prompt": f"{text} asks", "completion": f" {text} answers"} for q in (1, 2)]
    for q in (1, 2):
        for estimator, order in (("ekfac", "acb"), ("dot", "cba")):
            for rank, doc in zip((1, 2, -1), order, strict=True):
                hit = {"query": f"{text}{q}", "estimator": estimator, "rank": rank, "doc": doc}
                rows.append(hit | {"score": sum(HEATS[doc]) * q, "heat": HEATS[doc], "by_layer": [0.5, -1.0]})
    return rows


def unpack(shown):
    """The data that the script of a browser reads."""
    data = json.loads(Reader(shown).scripts[0])
    read = lambda text: json.loads(zlib.decompress(base64.b85decode(text.replace(",", "<"))))  # noqa: E731
    return data | {k: read(data[k]) for k in ("about", "hits", "heat", "layers", "tokens")}


def test_the_page_carries_what_was_given():
    data = unpack(explorers.influence_browser(small(), unit="nats"))
    assert data["about"]["estimators"] == ["EK-FAC", "dot product"] and data["about"]["thirds"] == ["all layers"]
    assert data["about"]["queries"][0] == ["x1", "x asks", " x answers"] and data["unit"] == "nats"
    assert data["about"]["views"] == [[0, 0, 0, 3], [0, 1, 0, 3], [1, 0, 0, 3], [1, 1, 0, 3]]
    texts = [t.split("\x7f") for t in data["tokens"].split("\x1e")]
    assert texts == [["x ", "two ", "three"]] * 3
    names, levels = data["about"]["names"], data["about"]["levels"][0]
    for doc, rank, score, far, heat in zip(
        *(data["hits"][k] for k in ("doc", "rank", "score", "far")), data["heat"].split("~"), strict=True
    ):
        want = HEATS[names[doc]]
        assert score in (pytest.approx(sum(want)), pytest.approx(2 * sum(want))) and rank in (1, 2, -1)
        got = [far * (ord(c) - 79) / levels for c in heat]
        assert got == pytest.approx(want, abs=far / levels / 2 + 1e-3)


def test_one_record_for_all_is_the_same_as_records_apart():
    apart, about = small(), {}
    for r in apart:
        if "rank" not in r:
            about.setdefault(r.get("doc") or r["query"], {}).update(r)
    tidy = [about[r["query"]] | about[r["doc"]] | r for r in apart if "rank" in r]
    frame = pd.DataFrame(apart).sample(frac=1, random_state=0).sort_values("rank", kind="stable")
    assert unpack(explorers.influence_browser(tidy)) == unpack(explorers.influence_browser(apart))
    mixed = unpack(explorers.influence_browser(frame.to_dict("records")))  # absent keys are not-a-number here
    assert sorted(mixed["hits"]["score"]) == sorted(unpack(explorers.influence_browser(apart))["hits"]["score"])


def test_steps_are_exact_at_zero_and_at_the_ends():
    far, text = explorers.steps(np.array([-4.0, 4.0, 0.0, 1.0, math.nan]), levels=8)
    assert far == 4.0 and [ord(c) - 79 for c in text[:4]] == [-8, 8, 0, 2] and text[4] == " "
    assert explorers.steps([0.0, None]) == [0.0, "O "] and explorers.steps([]) == [0, ""]
    assert "~" not in explorers.steps([1.0, -1.0], levels=46)[1]


def test_sparse_sequences_are_marked():
    a = np.random.default_rng(0).normal(size=12)
    assert explorers.sparsity(a) == pytest.approx(np.linalg.norm(a, 2) / np.linalg.norm(a, 1))
    assert explorers.sparsity([0.0, None]) == 0.0
    shown = explorers.influence_browser(small())
    data = unpack(shown)
    sparse = {data["about"]["names"][d]: s for d, s in zip(data["hits"]["doc"], data["hits"]["sparse"], strict=True)}
    assert sparse == {"a": None, "b": 1.0, "c": None}
    assert [t for t in Reader(shown).text if "too sparse" in t] == ["xb · too sparse"] * 2
    given = [r | {"sparsity": 0.1} if "rank" in r else r for r in small()]
    assert set(unpack(explorers.influence_browser(given))["hits"]["sparse"]) == {None}


def test_rank_elsewhere_comes_from_the_records_or_is_unknown():
    first = [{"doc": "a", "rank": 1, "ranks": {"K-FAC": 70}}, {"doc": "z", "rank": -1, "ranks": {}}]
    views = {
        ("q", "EK-FAC", "all"): first,
        ("q", "dot", "all"): [{"doc": "a", "rank": -2, "ranks": {}}],
        ("q", "dot", "lower"): [{"doc": "z", "rank": 5, "ranks": {}}],
        ("p", "cosine", "all"): [{"doc": "a", "rank": 1, "ranks": {}}],
    }
    at = ("q", "EK-FAC", "all")
    assert explorers.elsewhere(views, at, views[at][0]) == {"dot": -2, "K-FAC": 70}
    assert explorers.elsewhere(views, at, views[at][1]) == {"dot": None}


def test_text_of_a_model_is_never_markup():
    tame, wild = (Reader(explorers.influence_browser(small(t), unit=t, title=t)) for t in ("x", HOSTILE))
    assert [t for t, _ in wild.tags] == [t for t, _ in tame.tags]
    assert not [a for _, a in wild.tags if any(k.startswith("on") for k in a)]
    assert len(wild.scripts) == len(tame.scripts)
    shown = explorers.influence_browser(small(HOSTILE), title=HOSTILE)
    shown.encode("utf-8")
    tokens = [t.split("\x7f") for t in unpack(shown)["tokens"].split("\x1e")]
    assert len(tokens) == 3 and all(len(t) == 3 for t in tokens)  # a token cannot break the joints
    assert tokens[0][0].startswith("</script><script>boom()") and "~" in tokens[0][0]


def test_it_is_stable_self_contained_and_a_table_without_scripts():
    first, again = (explorers.influence_browser(small(), title="T") for _ in range(2))
    reader = Reader(first)
    assert first == again and reader.tags[0][1]["id"].startswith("ab-influence-")
    assert not [a for _, a in reader.tags if {"src", "href"} & set(a)]
    tags = [t for t, _ in reader.tags]
    assert "noscript" in tags and tags.count("details") == 2 and tags.count("tr") == 1 + 2 + 1 + 6
    words = " ".join(reader.text)
    assert "rank, dot product" in words and "x two three" in words and " x answers" in words


def test_it_says_where_the_numbers_come_from():
    info = {"model": "tiny", "machine": {"device": "cpu"}, "end": "2026-11-23T10:00:00", "n_rows": 480}
    shown = explorers.influence_browser(small(), info=info)
    assert "Numbers from: tiny · cpu · 2026-11-23 · n = 480." in "".join(Reader(shown).text)
    assert "Numbers from" not in explorers.influence_browser(small())


def test_token_and_layer_scores_may_be_missing():
    data = unpack(explorers.influence_browser(without("heat", changed(by_layer=[]))))
    assert set(data["heat"]) == {"~"} and set(data["hits"]["far"]) == {""} == {data["hits"]["most"][0]}
    assert data["layers"].split("~")[0] == "" and data["layers"].split("~")[1] != ""


def chapter(words=800, n_docs=300, seed=0):
    """Six queries, three estimators, four choices of layers, 5 + 3 sequences of 64 tokens, 12 layers."""
    r = random.Random(seed)
    vocabulary = ["".join(r.choices("abcdefghijklmnopqrst", k=r.randint(2, 8))) + " " for _ in range(words)]
    weight = [1 / (i + 5) for i in range(words)]
    rows = [{"doc": f"text {i}", "tokens": r.choices(vocabulary, weight, k=64)} for i in range(n_docs)]
    for q in range(6):
        rows.append({"query": f"query {q}", "prompt": "".join(r.choices(vocabulary, k=30)), "completion": "so it is"})
        near = r.sample(range(n_docs), 25)
        for estimator in ("ekfac", "dot", "cosine"):
            for third in explorers.THIRDS:
                for rank, doc in zip([1, 2, 3, 4, 5, -1, -2, -3], r.sample(near, 8), strict=True):
                    heat = [r.gauss(0, 1) * r.expovariate(1) for _ in range(64)]
                    hit = {"query": f"query {q}", "estimator": estimator, "third": third, "rank": rank}
                    layers = [r.gauss(0.3, 1) for _ in range(12)]
                    rows.append(hit | {"doc": f"text {doc}", "score": sum(heat), "heat": heat, "by_layer": layers})
    return rows


def test_a_whole_chapter_fits_on_a_page():
    rows = chapter()
    shown = explorers.influence_browser(rows, unit="nats")
    assert len(shown.encode()) <= 80_000
    data = unpack(shown)
    assert len(data["hits"]["rank"]) == 576 and data["about"]["levels"][0] < explorers.LEVELS[0]
    alone = explorers.influence_browser([r for r in rows if r.get("third", "all") == "all"])
    assert unpack(alone)["about"]["levels"][0] == explorers.LEVELS[0]  # where there is room, finer steps


def test_more_than_fits_is_refused():
    hits = [r | {"estimator": f"{r['estimator']} {k}"} for k in (1, 2, 3) for r in chapter(seed=k) if "rank" in r]
    with pytest.raises(AlignbookError, match="limit 80 KB.*fewer rows"):
        explorers.influence_browser(chapter() + hits)


def without(key, rows):
    return [{k: v for k, v in r.items() if k != key} if "rank" in r else r for r in rows]


def changed(**new):
    rows = small()
    at = next(i for i, r in enumerate(rows) if "rank" in r)
    return rows[:at] + [rows[at] | new] + rows[at + 1 :]


@pytest.mark.parametrize(
    "rows, words",
    [
        ([], "no hit among these records"),
        (small()[:5], "no hit among these records"),
        (pd.DataFrame(small()), "a record is a str.*to_dict"),
        ([""], "a record is a str"),
        (without("score", small()), "rank 1 for query 'x1' has no 'score'"),
        (without("estimator", small()), "has no 'estimator'"),
        (changed(score=math.nan), "has no 'score'"),
        (changed(rank=0), "count ranks 1, 2"),
        (changed(rank=1.5), "count ranks 1, 2"),
        (changed(rank="first"), "count ranks 1, 2"),
        (changed(rank=2), "two sequences have rank 2 for x1, EK-FAC, all layers: keep one run"),
        (changed(heat=[1.0]), "1 scores for 3 tokens of sequence 'a'"),
        (changed(doc="unheard of"), "sequence 'unheard of' has no tokens: add a record"),
        (changed(query="unheard of"), "query 'unheard of' has no completion: add a record"),
    ],
)
def test_a_user_error_is_one_sentence(rows, words):
    with pytest.raises(AlignbookError, match=words):
        explorers.influence_browser(rows)
