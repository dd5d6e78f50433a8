"""Widgets as HTML: inert text, size, stable identifiers, tables without scripts, and the numbers in them."""

import json
import math
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from alignbook import widgets
from alignbook.fits import bootstrap_fit, forecast
from alignbook.runtime import AlignbookError

HOSTILE = "</script><script>boom()</script><!--<img src=x onerror=boom()> & \"quoted\" 'too' \ud800"
FIT = {"form": "power", "C": 2.0, "alpha": 0.5, "K": 0.1}
POINTS = [{"n": n, "nll": 2 * n**-0.5 + 0.1, "lo": 2 * n**-0.5, "hi": 2 * n**-0.5 + 0.2} for n in (1, 2, 4, 8)]


def build(text="x"):
    """One of each widget, with `text` wherever a model or a user could have put it."""
    claim = {"claim": text, "paper": text, "ours": text, "verdict": "partly", "device": text, "minutes": 1.5}
    curve = {"behaviour": text, "model": text, "points": POINTS, "fit": FIT}
    info = {"chapter": text, "experiment": text, "model": text, "git": {"commit": text, "dirty": True}, "tier": text}
    return {
        "transcript": widgets.transcript([("user", text), (text, text)] * 3, text),
        "growth": widgets.transcript_growth(
            [(text, text)] * 6, text, [{"n": 0, "nll": 2.0}, {"n": 6, "p": 0.5, "answer": text}], text
        ),
        "tokens": widgets.token_heat([text, "b"], {text: [1.0, -2.0], "two": [0.0, 1.0]}, unit=text, title=text),
        "loglog": widgets.loglog_explorer([curve, curve | {"model": "y"}], title=text),
        "compare": widgets.compare([{"q": text, text: text, "b": text}], "q", [text, "b"], text),
        "claims": widgets.claim_box([claim], text),
        "badge": widgets.badge(info, "drifted"),
    }


class Reader(HTMLParser):
    """Tags with their attributes, and the text of scripts and of the rest."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.text, self.inside = [], [], [], None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag if tag in ("script", "style") else self.inside

    def handle_endtag(self, tag):
        self.inside = None if tag == self.inside else self.inside

    def handle_data(self, data):
        (self.scripts if self.inside == "script" else self.text).append(data)


@pytest.mark.parametrize("kind", build())
def test_text_of_a_model_is_never_markup(kind):
    tame, wild = Reader(build("x")[kind]), Reader(build(HOSTILE)[kind])
    assert [t for t, _ in wild.tags] == [t for t, _ in tame.tags]  # the text adds no element
    assert not [a for _, a in wild.tags if any(k.startswith("on") for k in a)]
    if any(a.get("type") == "application/json" for _, a in wild.tags):
        json.loads(wild.scripts[0])
    build(HOSTILE)[kind].encode("utf-8")  # half of a surrogate pair must not stop the page from being written


@pytest.mark.parametrize("kind", build())
def test_root_is_named_stable_and_self_contained(kind):
    first, again, other = build("x")[kind], build("x")[kind], build("y")[kind]
    assert first == again and first._repr_html_() == str(first)
    root = Reader(first).tags[0][1]
    assert root["data-widget"] == kind and root["id"] == Reader(again).tags[0][1]["id"]
    assert root["id"] != Reader(other).tags[0][1]["id"] and root["aria-label"]
    assert "http" not in first.replace("http://www.w3.org/2000/svg", "")
    assert not [a for _, a in Reader(first).tags if {"src", "href"} & set(a)]
    assert len(first.encode()) < 25_000


@pytest.mark.parametrize("kind", ["growth", "tokens", "loglog", "compare"])
def test_without_scripts_the_data_is_a_table(kind):
    tags = [t for t, _ in Reader(build()[kind]).tags]
    assert "noscript" in tags and tags.index("details") < tags.index("table")
    assert tags.count("tr") > 1


def test_a_transcript_is_readable_without_scripts():
    shown = Reader(widgets.transcript([{"role": "user", "content": "Where?"}, ("assistant", "Here.")]))
    assert {"Where?", "Here."} <= set(shown.text)
    assert [a["data-role"] for _, a in shown.tags if "data-role" in a] == ["user", "assistant"]


def test_too_heavy_a_widget_is_refused():
    with pytest.raises(AlignbookError, match="limit 80 KB.*fewer rows"):
        widgets.transcript([("user", "word " * 500)] * 40)


@pytest.mark.parametrize("n_c", [None, 3.0])
@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.8])
def test_shots_needed_is_the_closed_form(p, n_c):
    t = -math.log(p)
    fit = FIT | ({"form": "bounded_power", "n_c": n_c} if n_c else {})
    ratio = (2.0 / (t - 0.1)) ** (1 / 0.5)
    n = max(0.0, n_c * (ratio - 1)) if n_c else max(1.0, ratio)
    found = widgets.shots_needed(fit, p)
    assert found["n"] == pytest.approx(n, rel=1e-9)
    assert found["lo"] is found["hi"] is found["never"] is None


def test_shots_needed_counts_the_draws_that_never_arrive():
    draws = [[2.0, 0.5, k] for k in (0.1, 0.2, 0.3, 0.9)]  # -ln 0.5 = 0.69 lies under the last floor
    found = widgets.shots_needed(FIT, 0.5, draws)
    each = [(2.0 / (-math.log(0.5) - k)) ** 2 for k in (0.1, 0.2, 0.3)] + [math.inf]
    assert found["never"] == 0.25 and math.isinf(found["hi"])
    assert found["lo"] == pytest.approx(np.quantile(each, 0.025, method="inverted_cdf"))
    assert math.isinf(widgets.shots_needed(FIT, 0.95)["n"])


def test_a_bootstrap_fit_can_be_passed_as_it_is():
    rng = np.random.default_rng(0)
    n = np.array([1, 2, 4, 8, 16, 32])
    ci = bootstrap_fit(n, (2 * n**-0.5 + 0.05) * rng.lognormal(0, 0.05, (12, 6)), n_boot=300)
    found, full = widgets.shots_needed(ci, 0.6), forecast(ci, -math.log(0.6))
    assert found["n"] == pytest.approx(full.n)
    assert full.lo * 0.8 < found["lo"] < found["n"] < found["hi"] < full.hi * 1.25
    shown = widgets.loglog_explorer([{"behaviour": "b", "points": POINTS, "fit": ci}])
    data = json.loads(Reader(shown).scripts[0])["curves"][0]
    assert len(data["draws"]) == 60 and len(data["draws"][0]) == 3


def test_growth_keeps_only_the_shots_it_shows():
    shown = widgets.transcript_growth([(f"q{i}", "a") for i in range(256)], "t", [{"n": 128, "nll": 0.5}])
    data = json.loads(Reader(shown).scripts[0])
    kept = [i for i, s in enumerate(data["shots"]) if s]
    assert kept == [0, 1, 2, 3, 126, 127] and data["curve"][0]["p"] == pytest.approx(math.exp(-0.5))


def test_numbers_that_are_not_numbers_become_null():
    shown = widgets.token_heat(["a", "b"], np.array([1.0, np.nan]))
    assert json.loads(Reader(shown).scripts[0])["scores"] == {"score": [1.0, None]}


def test_claims_show_number_interval_and_verdict():
    rows = [
        {"claim": "a", "paper": "61 %", "ours": {"value": 40.0, "lo": 30.0, "hi": 50.0, "unit": "%"}, "verdict": "not"},
        {"claim": "b", "paper": "-", "verdict": "not testable at this scale"},
    ]
    text = " ".join(Reader(widgets.claim_box(pd.DataFrame(rows).replace({np.nan: None}))).text)
    assert "40 [30, 50] %" in text and "✗ not reproduced" in text
    assert "not measured" in text and "– not testable at this scale" in text


def test_badge_says_what_was_measured_again():
    info = {"experiment": "e", "checked": {"cells": [1, 2], "of": 20, "date": "2026-11-23T10:00"}}
    words = "2 of 20 cells measured again on 2026-11-23, same to the bit"
    assert words in " ".join(Reader(widgets.badge(info, "fresh")).text)
    assert words not in " ".join(Reader(widgets.badge(info, "drifted")).text)


def test_badge_reads_a_stored_result():
    class Stored:
        info = {"chapter": "msj", "experiment": "law", "n_rows": 3, "git": {"commit": "0123456789", "dirty": False}}
        freshness = "stale"

    text = " ".join(Reader(widgets.badge(Stored())).text)
    assert "msj:law" in text and "0123456" in text and "01234567" not in text and "uncommitted" not in text
    assert "○ stale" in text and "n = 3" in text


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: widgets.claim_box([{"claim": "a", "verdict": "yes"}]), "unknown verdict 'yes'"),
        (lambda: widgets.badge({"experiment": "e"}, "old"), "unknown freshness"),
        (lambda: widgets.token_heat(["a"], [1.0, 2.0]), "each of the 1 tokens"),
        (lambda: widgets.token_heat(["a"], [math.nan]), "needs one number"),
        (lambda: widgets.compare([{"q": 1}], "q", ["b"]), "no column 'b'"),
        (lambda: widgets.compare([], "q", []), "no column 'q'"),
        (lambda: widgets.loglog_explorer([]), "no curves"),
        (lambda: widgets.loglog_explorer([{"points": POINTS}]), "needs a fit"),
        (lambda: widgets.loglog_explorer([{"points": [], "fit": FIT}]), "at least one point|a point"),
        (lambda: widgets.shots_needed(FIT | {"form": "cubic"}, 0.5), "unknown form 'cubic'"),
        (lambda: widgets.shots_needed(FIT, 1.0), "between 0 and 1"),
        (lambda: widgets.transcript_growth([("q", "a")], "t", [{"n": 2, "nll": 1.0}]), "needs that many shots"),
        (lambda: widgets.transcript_growth([{"who": "?"}], "t"), "user and assistant"),
    ],
)
def test_a_user_error_is_one_sentence(call, words):
    with pytest.raises(AlignbookError, match=words):
        call()


CONTROLS = [(0, 9), (0.0, 1.0), (1, 10, 3), (0.0, 1.0, 0.25), ["a", "b"], {"x": 5, "y": 6}, 3, True, "word"]


@pytest.mark.parametrize("control", CONTROLS, ids=str)
def test_stills_start_where_ipywidgets_would(control):
    from ipywidgets import interactive

    box = interactive(lambda v: None, {"manual": True}, v=control)
    assert widgets._default(control) == (box.children[0].value if control != 3 else 3)


def test_live_in_a_notebook_has_a_run_button(monkeypatch):
    monkeypatch.delenv("ALIGNBOOK_STATIC", raising=False)
    calls = []
    box = widgets.live(lambda k: calls.append(k), k=(0, 4))
    assert box.children[1].description == "Run" and not calls


def test_live_in_the_book_is_a_labelled_still(monkeypatch):
    monkeypatch.setenv("ALIGNBOOK_STATIC", "1")
    calls = []

    def answer(k):
        calls.append(k)
        print(HOSTILE)
        return k * 10

    empty = widgets.live(answer, k=(0, 4))
    assert not calls and "Open the notebook to run it" in empty
    ready = widgets.live(answer, still="made earlier", k=(0, 4))
    assert not calls and "made earlier" in ready
    now = widgets.live(answer, still=True, k=(0, 4))
    assert calls == [2] and "20" in "".join(Reader(now).text) and "k = 2" in now
    table = widgets.live(answer, still=pd.DataFrame({"a": [HOSTILE[:-1]]}), k=(0, 4))
    for shown in (empty, ready, now, table):
        tags = {t for t, _ in Reader(shown).tags}
        assert not tags & {"input", "select", "script", "img"} and "live: runs in a notebook" in shown


def test_a_still_may_be_a_chart(monkeypatch):
    import altair as alt

    from alignbook import plots

    monkeypatch.setenv("ALIGNBOOK_STATIC", "1")
    before, options = alt.renderers.active, dict(alt.renderers.options)
    try:
        plots.enable_charts()
        chart = plots.curves(pd.DataFrame({"n": [1, 2], "nll": [2.0, 1.0]}), "n", "nll")
        shown = widgets.live(lambda n: n, still=chart, n=(1, 9))
    finally:
        alt.renderers.enable(before, **options)
    assert [a for t, a in Reader(shown).tags if a.get("class") == "vega-lite-chart"]
