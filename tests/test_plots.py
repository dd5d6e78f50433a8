"""Charts: what they carry, what they refuse, and that no network is named in what reaches a page."""

import json
import math
import subprocess
import sys

import altair as alt
import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.proportion import proportion_confint

from alignbook import plots
from alignbook.runtime import AlignbookError

INFO = {"model": "tiny", "device": "cpu", "date": "2026-11-23", "n": 1200}
LAWS = pd.DataFrame(
    {
        "shots": [1, 2, 4, 8] * 2,
        "nll": [2.0, 1.5, 1.1, 0.8, 1.0, 0.7, 0.5, 0.35],
        "lo": [1.9, 1.4, 1.0, 0.7, 0.9, 0.6, 0.4, 0.3],
        "hi": [2.1, 1.6, 1.2, 0.9, 1.1, 0.8, 0.6, 0.4],
        "model": ["small"] * 4 + ["large"] * 4,
        "task": ["a", "a", "b", "b"] * 2,
        "unused": "x" * 5000,
    }
)


def charts():
    one = LAWS[LAWS.shots == 1]
    forecasts = pd.DataFrame({"p": np.linspace(0, 1, 40), "y": [0, 1] * 20, "who": ["a"] * 20 + ["b"] * 20})
    counts = pd.DataFrame({"k": [1, 5], "n": [10, 10], "shots": [1, 2], "who": ["a", "b"]})
    yield plots.curves(LAWS, "shots", "nll", "model", "lo", "hi", logx=2, title="t", info=INFO)
    yield plots.curves(LAWS, "shots", "nll", "model", "lo", "hi", facet="task", points=False)
    yield plots.curves(one, "shots", "nll", logx=False, logy=False)
    yield plots.dots(one, "model", "nll", "lo", "hi", ref=0, title="t")
    yield plots.dots(LAWS, "shots", "nll", "lo", "hi", "model", logx=True)
    yield plots.bars(one, "task", "nll", "model", "lo", "hi", info=INFO)
    yield plots.rates(counts, "k", "n", "shots", logx=2)
    yield plots.rates(counts, "k", "n", "who")
    yield plots.reliability(forecasts, "p", "y", "who")
    yield plots.heat(LAWS[LAWS.model == "small"], "shots", "task", "nll", mid=1, title="t")
    yield plots.heat(LAWS[LAWS.model == "small"], "shots", "task", "nll", text=False)


@pytest.fixture
def renderers(monkeypatch):
    """Leave Altair as we found it."""
    before, theme = alt.renderers.active, alt.theme.active
    options = dict(alt.renderers.options)
    yield monkeypatch
    alt.renderers.enable(before, **options)
    alt.theme.enable(theme)


def test_every_chart_compiles_to_vega_and_stays_small(renderers):
    import vl_convert

    renderers.setenv("ALIGNBOOK_STATIC", "1")
    assert plots.enable_charts() == "book"
    for chart in charts():
        spec = chart.to_dict()
        assert vl_convert.vegalite_to_vega(spec)["marks"]
        assert plots.spec_size(spec) < 15_000  # columns that are not drawn are not carried
        assert spec["config"]["range"]["category"] == plots.PALETTE


def test_book_output_is_inert_json_and_a_picture(renderers):
    renderers.setenv("ALIGNBOOK_STATIC", "1")
    plots.enable_charts()
    hostile = "</script><img src=x onerror=alert(1)>"
    frame = LAWS.assign(model=hostile)
    bundle = plots.curves(frame, "shots", "nll", "model", title=hostile)._repr_mimebundle_()
    html = bundle["text/html"]
    assert html.startswith('<div class="vega-lite-chart"') and html.count("</script>") == 1
    assert "<img" not in html and "cdn" not in html
    spec = json.loads(html.partition('json">')[2].removesuffix("</script></div>"))["spec"]
    assert spec["title"]["text"] == hostile
    png = bundle["image/png"]
    assert png.startswith(b"\x89PNG") or png[:8] == "iVBORw0K"


def test_outside_the_book_the_renderer_needs_no_network(renderers):
    renderers.delenv("ALIGNBOOK_STATIC", raising=False)
    assert plots.enable_charts() == "jupyter"
    assert alt.renderers.options["offline"] is True


def test_missing_packages_give_a_sentence_not_a_crash(renderers):
    renderers.delenv("ALIGNBOOK_STATIC", raising=False)
    renderers.setattr(plots.importlib.util, "find_spec", lambda name: None)
    assert plots.enable_charts() == "missing"
    shown = plots.curves(LAWS, "shots", "nll", "model")._repr_mimebundle_()
    assert "pip install" in str(shown) and "text/html" not in shown


def test_neither_torch_nor_nbdev_is_imported():
    code = "import sys, alignbook.plots, alignbook.widgets; print({'torch', 'nbdev'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_caption_reads_a_hand_written_dict_and_a_run_record():
    assert plots.caption(INFO) == "tiny · cpu · 2026-11-23 · n = 1,200"
    record = {"model": None, "notes": {"model": {"name": "m", "digest": "0"}}, "machine": {"device": "H100"}}
    record |= {"end": "2026-11-23T10:00:00+00:00", "n_rows": 7}
    assert plots.caption(record) == "m · H100 · 2026-11-23 · n = 7"
    assert plots.caption(None) == "" and plots.caption({"n": 0}) == "n = 0"
    spec = plots.curves(LAWS, "shots", "nll", title="Law", info=INFO).to_dict()
    assert spec["title"] == {"text": "Law", "subtitle": plots.caption(INFO)}
    assert spec["description"].startswith("Law. tiny")


def test_axes_say_their_unit_and_the_legend_is_clickable():
    spec = plots.curves(LAWS, "shots", "nll", "model", xtitle="shots", ytitle="cost (nats)", logx=2).to_dict()
    line = next(x for x in spec["layer"] if x["mark"]["type"] == "line")
    assert line["encoding"]["x"]["title"] == "shots" and line["encoding"]["y"]["title"] == "cost (nats)"
    assert line["encoding"]["x"]["scale"] == {"type": "log", "nice": False, "base": 2}
    assert [p["bind"] for p in spec["params"]] == ["legend"]


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: plots.curves(LAWS, "shot", "nll"), "no column 'shot'"),
        (lambda: plots.curves(LAWS.assign(shots=0), "shots", "nll"), "logx=False"),
        (lambda: plots.curves(LAWS.assign(lo=-1.0), "shots", "nll", lo="lo", hi="hi"), "column 'lo'"),
        (lambda: plots.curves(LAWS[:0], "shots", "nll"), "no rows"),
        (lambda: plots.rates(pd.DataFrame({"k": [3], "n": [2], "x": ["a"]}), "k", "n", "x"), "3 successes of 2"),
        (lambda: plots.rates(pd.DataFrame({"k": [0], "n": [0], "x": ["a"]}), "k", "n", "x"), "0 successes of 0"),
        (lambda: plots.reliability(pd.DataFrame({"p": [1.2], "y": [1]}), "p", "y"), "0 to 1"),
        (lambda: plots.reliability(pd.DataFrame({"p": [0.2], "y": [0.5]}), "p", "y"), "0 or 1"),
        (
            lambda: plots.dots(LAWS.assign(model=[str(i) * 9999 for i in range(8)]), "model", "nll", "lo", "hi"),
            "limit 80 KB",
        ),
    ],
)
def test_a_user_error_is_one_sentence(call, words):
    with pytest.raises(AlignbookError, match=None) as caught:
        call()
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_rates_carry_wilson_intervals():
    counts = pd.DataFrame({"k": [0, 1, 7, 10], "n": [10, 10, 10, 10]})
    table = plots.rate_table(counts, "k", "n")
    low, high = proportion_confint(counts.k, counts.n, method="wilson")
    np.testing.assert_allclose(table.lo, low, atol=1e-12)
    np.testing.assert_allclose(table.hi, high, atol=1e-12)


def test_reliability_draws_one_dot_per_bin():
    frame = pd.DataFrame({"p": [0.05, 0.09, 0.15, 1.0], "y": [0, 1, 1, 1]})
    spec = plots.reliability(frame, "p", "y").to_dict()
    rows = max(spec["datasets"].values(), key=lambda d: len(d[0]))
    assert [(r["forecast"], r["rate"], r["n"]) for r in rows] == [(0.07, 0.5, 2), (0.15, 1, 1), (1, 1, 1)]


def test_heat_centres_its_colours_on_the_neutral_value():
    cells = pd.DataFrame({"x": ["a", "b"], "y": ["c", "c"], "v": [-0.5, 2.0]})
    scale = plots.heat(cells, "x", "y", "v", mid=1).to_dict()["layer"][0]["encoding"]["color"]["scale"]
    assert scale["domain"] == [-0.5, 2.5] and scale["domainMid"] == 1
    constant = plots.heat(cells.assign(v=1.0), "x", "y", "v", mid=1).to_dict()
    assert all(math.isfinite(v) for v in constant["layer"][0]["encoding"]["color"]["scale"]["domain"])


def test_book_doc_has_no_rule_that_sphinx_refuses():
    text = plots.BookDoc(plots.caption)._repr_markdown_()
    assert text.startswith("**caption**") and "---" not in text.splitlines()


def test_dots_in_color_have_one_legend():
    spec = plots.dots(LAWS, "shots", "nll", "lo", "hi", "model").to_dict()
    shapes = [layer["encoding"]["shape"]["legend"] for layer in spec["layer"] if "shape" in layer["encoding"]]
    assert shapes == [None]
