"""Explorers as HTML: what the page carries, inert text, size, the table without scripts, clear errors."""

import base64
import difflib
import json
import math
import random
import zlib

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.proportion import proportion_confint
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
    assert unpack(explorers.influence_browser(frame)) == mixed


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
        ([""], "a record is a str: pass a table or a list of dicts"),
        ("rows", "a record is a str"),
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


# Critique and revision


def chain_rows(text="x", items=3, rounds=3):
    """Examples revised `rounds - 1` times, with `text` wherever a model could have put it; all flags known."""
    rows = []
    for i in range(items):
        for k in range(rounds):
            said = {"principle": f"{text} principle {k}", "critique": f"{text} critique {k}"} if k else {}
            row = {"item": f"{text}{i}", "round": k, "text": f"{text} {i} word{k}."} | said
            rows.append(row | {"prompt": f"Human: {text} asks {i}", "harm": int(k < i), "help": 1, "evasive": 0})
    return rows


def chains_of(shown):
    """The chains that the script of a stepper reads, and the rest of its data."""
    data = json.loads(Reader(shown).scripts[0])
    return json.loads(zlib.decompress(base64.b85decode(data["chains"].replace(",", "<")))), data


def text_of(parts, without):
    return "".join(text for sign, text in parts if sign != without)


@pytest.mark.parametrize("seed", range(40))
def test_a_word_diff_holds_both_texts(seed):
    r = random.Random(seed)
    bits = ["a ", "b", "cc ", "don't ", ". ", ", ", "  ", "\n", "é", "_", "<b>"]
    some = lambda: "".join(r.choices(bits, k=r.randint(0, 14)))  # noqa: E731
    old, new = some(), some()
    parts = explorers.word_diff(old, new)
    assert text_of(parts, "-") == new
    assert "".join(text_of(parts, "+").split()) == "".join(old.split())
    assert all(text for _, text in parts)
    assert explorers.word_diff(old, old) == ([["=", old]] if old else [])


def test_a_word_diff_keeps_as_many_words_as_difflib_finds():
    old, new = "you fool the library closes at nine".split(), "good day the library closes at ten".split()
    kept = text_of([p for p in explorers.word_diff(" ".join(old), " ".join(new)) if p[0] == "="], "-").split()
    blocks = difflib.SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks()
    assert kept == [w for b in blocks for w in old[b.a : b.a + b.size]] == "the library closes at".split()
    lone = explorers.word_diff("Stop, thief.", "Hello, dear guest.")  # a comma alone does not hold two texts together
    assert lone == [["-", "Stop, thief"], ["+", "Hello, dear guest"], ["=", "."]]
    assert explorers.word_diff("Well, you, fool, go.", "Well, go.")[1] == ["-", ", you, fool"]


def test_the_stepper_carries_what_was_given():
    rows = chain_rows()
    random.Random(0).shuffle(rows)
    first = [r["item"] for r in rows]
    made, data = chains_of(explorers.revision_stepper(rows))
    order = list(dict.fromkeys(first))
    assert [c["name"] for c in made] == [f"x asks {i[1]}" for i in order]
    assert made[0]["turns"] == [["user", "Human", [["=", f"x asks {order[0][1]}"]]]]
    flags, turns = made[0]["rounds"][2]
    assert flags == [int(int(order[0][1]) > 2), 1, 0]
    assert [t[:2] for t in turns] == [["principle", "Principle"], ["critique", "Critique"], ["assistant", "Revision 2"]]
    assert turns[0][2] == [["=", "x principle 2"]]
    at = order[0][1]
    assert turns[2][2] == [["=", f"x {at} "], ["-", "word1"], ["+", "word2"], ["=", "."]]
    assert data["flags"] == explorers.FLAGS and set(data["shares"]) == set(explorers.FLAGS)


def test_shares_are_over_all_examples_shown_or_not():
    rows = chain_rows(items=5)
    for r in rows[6:]:
        del r["text"], r["prompt"]  # three examples are only counted
    made, data = chains_of(explorers.revision_stepper(rows))
    assert len(made) == 2
    for k, count in enumerate((4, 3, 2)):
        value, lo, hi, n = data["shares"]["harm"][k]
        want = proportion_confint(count, 5, method="wilson")
        assert (value, n) == (count / 5, 5) and (lo, hi) == pytest.approx(want)
    assert data["shares"]["help"][0][2] == 1.0 and data["shares"]["evasive"][0][1] == 0.0
    assert [s[3] for s in explorers.flag_shares(rows[:-1])["harm"]] == [5, 5, 4]  # a chain may end early
    some = [{k: v for k, v in r.items() if k != "harm" or r["round"] == 1} for r in rows]
    assert [s and s[3] for s in explorers.flag_shares(some)["harm"]] == [None, 5, None]
    assert len(chains_of(explorers.revision_stepper(chain_rows(items=30)))[0]) == 12
    assert explorers.flag_shares([]) == {}


def test_without_scripts_the_first_example_is_there_in_full():
    rows = chain_rows()
    reader = Reader(explorers.revision_stepper(rows, info={"model": "tiny", "n": 3}))
    words = " ".join(reader.text)
    for row in rows[:3]:
        assert all(str(row[k]) in words for k in ("principle", "critique") if k in row)
    assert "x asks 0" in words and "x 0 word0." in words and "harmful: no, helpful: yes, evasive: no" in words
    assert [t for t, _ in reader.tags].count("del") == 2 == [t for t, _ in reader.tags].count("ins")
    assert "67% [21%, 94%], n = 3" in words and "Numbers from: tiny · n = 3." in words
    assert "x 1 word0" not in words


def test_a_prompt_is_a_conversation():
    def turns(prompt):
        made, _ = chains_of(explorers.revision_stepper([{"item": 1, "round": 0, "text": "t", "prompt": prompt}]))
        return made[0]["name"], [[role, label, text_of(parts, "-")] for role, label, parts in made[0]["turns"]]

    card = "Card: It is: open.\n\nHuman: Hm!\nWhen?\n\nAssistant: Now.\n\nHuman: Ok?\n\nAssistant:"
    said = [["system", "Card", "It is: open."], ["user", "Human", "Hm!\nWhen?"], ["assistant", "Assistant", "Now."]]
    assert turns(card) == ("Ok?", [*said, ["user", "Human", "Ok?"]])
    assert turns("When does it close?") == ("When does it close?", [["user", "Prompt", "When does it close?"]])
    roles = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert turns(roles) == ("u", [["system", "system", "s"], ["user", "user", "u"]])
    assert turns("") == ("1", [])


def test_a_stepper_needs_no_flags_and_takes_a_table():
    bare = [{k: v for k, v in r.items() if k not in explorers.FLAGS} for r in chain_rows()]
    made, data = chains_of(explorers.revision_stepper(bare))
    assert data["shares"] == {} and made[0]["rounds"][0][0] == [None] * 3
    rows = chain_rows()
    assert explorers.revision_stepper(pd.DataFrame(rows)) == explorers.revision_stepper(rows)
    direct = [r | {"critique": ""} for r in rows]  # what a revision without a critique leaves
    assert "Critique" not in " ".join(Reader(explorers.revision_stepper(direct, title="t")).text)
    made, data = chains_of(explorers.revision_stepper(rows[:3]))  # of one example there are no shares
    assert len(made) == 1 and data["shares"] == {} and made[0]["rounds"][0][0] == [0, 1, 0]
    assert chains_of(explorers.revision_stepper(rows, shown=1))[1]["shares"]["help"][0][3] == 3


def ratings(text="x"):
    rows = [{"condition": f"{text}base", "helpful": 50.0, "harmless": -100.0}]
    for c, gain in (("a", 1.0), ("b", -1.0)):
        for step in (20, 0, 10):
            row = {"condition": text + c, "step": step, "helpful": gain * step, "harmless": 5.0 * step}
            rows.append(row | {"helpful_lo": gain * step - 9, "helpful_hi": gain * step + 9})
    return rows


def test_ratings_are_carried_in_order():
    shown = explorers.pareto_explorer(pd.DataFrame(ratings()), zero="x", step="checkpoint")
    data = json.loads(Reader(shown).scripts[0])
    assert data["names"] == ["xbase", "xa", "xb"] and data["zero"] == "x" and data["step"] == "checkpoint"
    assert [p[:2] for p in data["points"]] == [[0, None], *([c, s] for c in (1, 2) for s in (0, 10, 20))]
    assert data["points"][3] == [1, 20, 20, 11, 29, 100, None, None]
    words = " ".join(Reader(shown).text)
    assert "20 [11, 29]" in words and [t for t, _ in Reader(shown).tags].count("tr") == 1 + 7
    assert json.loads(Reader(explorers.pareto_explorer(ratings())).scripts[0])["points"] == data["points"]


MAKERS = {
    "revision": lambda t: explorers.revision_stepper(chain_rows(t), title=t, info={"model": t}),
    "pareto": lambda t: explorers.pareto_explorer(ratings(t), zero=t, step=t, title=t, info={"model": t}),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_texts_of_the_cai_explorers_are_never_markup(kind):
    make = MAKERS[kind]
    tame, wild = Reader(make("x")), Reader(make(HOSTILE))
    assert [t for t, _ in wild.tags] == [t for t, _ in tame.tags]
    assert not [a for _, a in wild.tags if any(k.startswith("on") for k in a)]
    assert len(wild.scripts) == len(tame.scripts) and "boom()" not in " ".join(wild.scripts[1:])
    make(HOSTILE).encode("utf-8")
    assert make("x") == make("x") and f"ab-{kind}-" in tame.tags[0][1]["id"]
    assert not [a for _, a in tame.tags if {"src", "href"} & set(a)]
    if kind == "revision":
        made, _ = chains_of(make(HOSTILE))
        assert text_of(made[0]["rounds"][1][1][2][2], "-").startswith("</script><script>boom()")


def test_twelve_examples_of_five_rounds_fit_on_a_page():
    r = random.Random(0)
    vocabulary = ["".join(r.choices("abcdefghijklmnopqrst", k=r.randint(2, 8))) for _ in range(800)]
    words = lambda n: " ".join(r.choices(vocabulary, k=n))  # noqa: E731
    sizes = {"text": 70, "critique": 50, "principle": 20, "prompt": 60}
    flags = {"harm": 1, "help": 0, "evasive": 0}
    rows = [flags | {"item": i, "round": k} for i in range(200) for k in range(5)]
    rows = [row | {name: words(n) for name, n in sizes.items()} for row in rows]
    shown = explorers.revision_stepper(rows)
    assert len(shown.encode()) <= 80_000 and len(chains_of(shown)[0]) == 12
    with pytest.raises(AlignbookError, match="limit 80 KB.*fewer rows"):
        explorers.revision_stepper(rows, shown=60)


ONE = {"item": 1, "round": 0, "text": "t", "prompt": "p"}


@pytest.mark.parametrize(
    "rows, words",
    [
        ([], "no example has a text in every round"),
        ([{k: v for k, v in ONE.items() if k != "text"}], "no example has a text in every round"),
        ([{k: v for k, v in ONE.items() if k != "item"}], "a record has no 'item'"),
        ([{k: v for k, v in ONE.items() if k != "round"}], "a record has no 'round'"),
        ([{k: v for k, v in ONE.items() if k != "prompt"}], "item '1' has no prompt"),
        ([ONE, ONE], "two records for round 0 of item '1': keep one run"),
        ([ONE | {"round": 1}], "item '1' has no round 0"),
        ([ONE, ONE | {"round": 2}], "item '1' has no round 1"),
        ([ONE | {"round": "first"}], "round first of item 1: count rounds 0"),
        ([ONE | {"round": -1}], "count rounds 0"),
        ([ONE | {"harm": 0.7}], "'harm' of round 0 of item 1 is 0.7: a flag is 0 or 1"),
        ([ONE | {"evasive": "yes"}], "'evasive' of round 0 of item 1 is yes"),
        (["text"], "a record is a str"),
    ],
)
def test_a_chain_with_a_fault_is_refused(rows, words):
    with pytest.raises(AlignbookError, match=words):
        explorers.revision_stepper(rows)


RATED = {"condition": "a", "helpful": 1, "harmless": 2}


@pytest.mark.parametrize(
    "rows, words",
    [
        ([], "no ratings to draw"),
        ([{"helpful": 1, "harmless": 2}], "a record has no 'condition'"),
        ([{"condition": "a", "helpful": 1}], "a record has no 'harmless'"),
        ([RATED | {"helpful": math.inf}], "'helpful' of condition 'a' is inf: give a finite number"),
        ([RATED | {"harmless_hi": -math.inf}], "'harmless_hi' of condition 'a' is -inf: give a finite number"),
        ([RATED | {"step": "last"}], "'step' of condition 'a' is 'last'"),
        ([RATED, RATED], "two records for condition 'a' at step None"),
        ([RATED | {"step": 5}, RATED | {"step": 5}], "two records for condition 'a' at step 5: average over seeds"),
        ([1], "a record is a int"),
    ],
)
def test_a_rating_with_a_fault_is_refused(rows, words):
    with pytest.raises(AlignbookError, match=words):
        explorers.pareto_explorer(rows)
