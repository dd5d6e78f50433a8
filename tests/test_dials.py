"""Charts with menus: what each choice draws, what the page carries, what is refused."""

import itertools
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import vl_convert

from alignbook import dials
from alignbook.plots import spec_size
from alignbook.runtime import AlignbookError

HOSTILE = "</script><script>alert(1)</script><img src=x onerror='alert(1)'> \"]; ${boom} \\u0022 é\u2028,\n2"
INFO = {"model": "tiny", "device": "cpu", "date": "2026-11-23", "n": 40}


def sweep(steps=(0, 5, 20), gone=(("64", 0.003),)):
    """A row for each mechanism, width, rate and step, with a value that tells which it is."""
    rows = []
    for (i, m), (j, w), (k, r), (t, s) in itertools.product(
        *map(enumerate, (("cot", "normal"), ("16", "64"), (0.001, 0.003), steps))
    ):
        y = 0.1 * i + 0.2 * j + 0.3 * k + 0.01 * t
        if (w, r) not in gone:
            rows.append(
                {
                    "kind": m,
                    "width": w,
                    "lr": r,
                    "step": s,
                    "rate": y,
                    "lo": y - 0.01,
                    "hi": y + 0.02,
                    "n": 160,
                }
            )
    return pd.DataFrame(rows)


def chosen(chart, **values):
    """The compiled chart as SVG with these dials, given by the name in front of them."""
    spec = chart.to_dict()
    by_name = {
        p["bind"]["name"].split(":")[0].removesuffix(" (position)"): p
        for p in spec["params"]
        if "name" in p.get("bind", ())
    }
    for name, value in values.items():
        dial = by_name[name.replace("_", " ")]
        labels = dial["bind"].get("labels")
        dial["value"] = dial["bind"]["options"][labels.index(value)] if labels else value
    return vl_convert.vegalite_to_svg(spec)


def points(svg):
    """(series, y) of every point, read from what is written for screen readers."""
    found = re.findall(r'aria-label="([^"]*)" role="graphics-symbol" aria-roledescription="point"', svg)
    said = [dict(part.split(": ", 1) for part in label.split("; ") if ": " in part) for label in found]
    return sorted((d.get("kind"), float(d["rate"])) for d in said)


def curves(df=None, **more):
    look = {"menus": {"lr": "lr", "width": "width"}, "lo": "lo", "hi": "hi"} | more
    return dials.curves(sweep() if df is None else df, "step", "rate", "kind", **look)


def test_each_choice_draws_its_rows_and_no_others():
    df, chart = sweep(), curves()
    for lr, width in itertools.product(("0.001", "0.003"), ("16", "64")):
        svg, rows = chosen(chart, lr=lr, width=width), df[(df.lr == float(lr)) & (df.width == width)]
        assert points(svg) == sorted(zip(rows.kind, rows.rate.round(5), strict=True))
        assert f"lr: {lr} · width: {width}" in svg
        assert ("not measured" in svg) == rows.empty == ((lr, width) == ("0.003", "64"))


def test_menus_keep_the_stored_order_and_start_at_the_first_row():
    df = sweep()[::-1]
    binds = [p["bind"] for p in curves(df).to_dict()["params"] if "name" in p.get("bind", ())]
    assert [b["labels"] for b in binds] == [["0.001", "0.003"], ["64", "16"]] and binds[0][
        "input"
    ] == "select"
    svg = vl_convert.vegalite_to_svg(curves(df).to_dict())
    assert "lr: 0.001 · width: 64" in svg and "not measured" not in svg  # what print shows was measured
    svg = vl_convert.vegalite_to_svg(curves(df, default={"lr": 0.003, "width": "16"}).to_dict())
    assert "lr: 0.003 · width: 16" in svg


def test_a_menu_with_one_value_is_words_only():
    chart = curves(sweep().query("lr == 0.001"))
    assert [p["bind"]["name"] for p in chart.to_dict()["params"] if "name" in p.get("bind", ())] == [
        "width: "
    ]
    assert "lr: 0.001 · width: 64" in chosen(chart, width="64")


def test_all_draws_every_value_of_the_compared_menu():
    df, chart = sweep(), curves(compare="width")
    for lr in ("0.001", "0.003"):
        svg, rows = chosen(chart, lr=lr, width="all"), df[df.lr == float(lr)]
        assert points(svg) == sorted(zip(rows.kind, rows.rate.round(5), strict=True))
        assert (
            len(re.findall('aria-roledescription="line mark"', svg))
            == rows.groupby(["kind", "width"]).ngroups
        )
        assert f"lr: {lr} · width: all" in svg and "not measured" not in svg
    assert "not measured" in chosen(chart, lr="0.003", width="64")


def test_all_without_a_colour_column_colours_the_menu():
    df = sweep().query("kind == 'cot'")
    chart = dials.curves(df, "step", "rate", menus=("width", "lr"), compare="width")
    svg = chosen(chart, width="all", lr="0.001")
    assert len(set(re.findall('aria-roledescription="line mark"[^>]* stroke="([^"]*)"', svg))) == 2
    assert "strokeDash" not in json.dumps(chart.to_dict())
    alone = dials.curves(df[df.lr == 0.001], "step", "rate", menus="width")  # no legend for one line
    assert "role-legend" not in vl_convert.vegalite_to_svg(alone.to_dict())


@pytest.mark.parametrize(
    "steps, low, high, gap",
    [((0, 20, 40), 0, 40, 20), ((0.1, 0.2, 0.3), 0.1, 0.3, 0.1), ((0, 5, 20), 0, 2, 1)],
)
def test_a_slider_shows_one_step(steps, low, high, gap):
    df = sweep(steps).assign(x=1.0)
    df = pd.concat([df, df.assign(x=2.0)])
    chart = dials.curves(df, "x", "rate", "kind", ("lr", "width"), slider="step", default={"step": steps[1]})
    bind = next(p["bind"] for p in chart.to_dict()["params"] if "min" in p.get("bind", ()))
    assert [bind["min"], bind["max"], bind["step"]] == pytest.approx([low, high, gap])
    assert f"step: {steps[1]}" in vl_convert.vegalite_to_svg(chart.to_dict())
    for t, step in enumerate(steps):
        svg = chosen(chart, step=low + t * gap)
        want = df.query("lr == 0.001 and width == '16' and step == @step")
        assert f"step: {step}" in svg and points(svg) == sorted(
            zip(want.kind, want.rate.round(5), strict=True)
        )


def test_axes_do_not_move_with_the_choice():
    chart = curves()
    axes = {"y": [], "x": []}
    for lr in ("0.001", "0.003"):
        svg = chosen(chart, lr=lr, width="16")
        for name in axes:
            axes[name].append(re.search(f'aria-label="{name.upper()}-axis[^"]*"', svg)[0])
    assert all(len(set(v)) == 1 for v in axes.values()) and "values from −0.05 to 0.45" in axes["y"][0]


def test_colours_do_not_move_with_the_choice():
    df = sweep().query("not (kind == 'cot' and width == '64')")
    chart, seen = curves(df), []
    for width in ("16", "64"):
        svg = chosen(chart, lr="0.001", width=width)
        seen.append(
            re.findall(r'kind: normal[^"]*"[^>]* aria-roledescription="point"[^>]* fill="([^"]*)"', svg)
        )
    assert len(set(sum(seen, []))) == 1 and len(seen[1]) == 3


def test_a_long_legend_breaks_into_lines():
    df = pd.concat([sweep().assign(kind=f"a mechanism with a long name, number {i}") for i in range(6)])
    svg = vl_convert.vegalite_to_svg(curves(df.drop_duplicates(["kind", "width", "lr", "step"])).to_dict())
    assert float(re.search(r'width="([0-9.]+)"', svg)[1]) < 640


def test_the_pointer_is_told_interval_and_n():
    svg = vl_convert.vegalite_to_svg(curves(yformat=".2f").to_dict())
    assert "interval: [0.00, 0.02]; n: 160" in svg or "interval: [−0.01, 0.02]; n: 160" in svg
    assert "; n:" not in vl_convert.vegalite_to_svg(curves(n=None).to_dict())
    assert "interval" not in json.dumps(curves(lo=None).to_dict())


def test_a_row_may_have_no_interval_but_not_half_of_one():
    one = sweep().assign(lo=math.nan, hi=None)
    svg = vl_convert.vegalite_to_svg(curves(one).to_dict())
    assert "interval: unknown" in svg and "NaN" not in svg and len(points(svg)) == 6
    some = sweep().assign(lo=lambda d: d.lo.where(d.kind == "cot"), hi=lambda d: d.hi.where(d.kind == "cot"))
    svg = vl_convert.vegalite_to_svg(curves(some).to_dict())
    bands = re.findall(r'aria-roledescription="area mark" d="([^"]*)"', svg)
    assert svg.count("interval: unknown") == 3 and [d for d in bands if d] and "NaN" not in svg
    with pytest.raises(AlignbookError, match="'hi' has no finite number in 9 of 18"):
        curves(some.assign(lo=0.0))


def test_the_page_carries_lines_of_numbers():
    big = [
        {"kind": f"mechanism number {i % 5}", "width": i // 5 % 4, "lr": i // 20 % 3, "step": i // 60}
        for i in range(2000)
    ]
    df = pd.DataFrame(big).assign(rate=np.linspace(0.1, 0.9, 2000), lo=0.05, hi=0.95, n=160, unused="x" * 500)
    assert spec_size(curves(df)) < 80_000
    spec = curves(title="T", info=INFO).to_dict()
    assert spec["title"] == {"text": "T", "subtitle": "tiny · cpu · 2026-11-23 · n = 40"}
    assert spec_size(curves()) < 9_000


def scores():
    rng = np.random.default_rng(0)
    parts = []
    for layer, model in ((0, "a"), (1, "a"), (1, "b")):
        for kind, n in (("clean", 50), ("defect", 30)):
            parts.append(
                pd.DataFrame(
                    {"layer": layer, "model": model, "kind": kind, "score": rng.normal(size=n) * 10**layer}
                )
            )
    return pd.concat(parts)


def test_a_histogram_is_numpys():
    df = scores()
    chart = dials.histogram(df, "score", "kind", ("layer", "model"), bins=7)
    text = next(v for v in _strings(chart.to_dict()) if v.startswith("score,") or v.startswith("left,"))
    rows = pd.read_csv(pd.io.common.StringIO(text))
    for (layer, model), part in df.groupby(["layer", "model"]):
        edges = np.linspace(part.score.min(), part.score.max(), 8)
        for kind, own in part.groupby("kind"):
            mine = rows[(rows.m0 == layer) & (rows.m1 == "ab".index(model)) & (rows.c == (kind == "defect"))]
            counts, _ = np.histogram(own.score, edges)
            assert list(mine["count"]) == [c for c in counts if c] and mine["share"].sum() == pytest.approx(
                1, abs=1e-4
            )
            np.testing.assert_allclose(mine.left, edges[:-1][counts > 0], rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(mine.right, edges[1:][counts > 0], rtol=1e-4, atol=1e-6)


def _strings(x):
    """Every text in a spec."""
    inner = x.values() if isinstance(x, dict) else x if isinstance(x, list) else []
    return [x] if isinstance(x, str) else [s for v in inner for s in _strings(v)]


def test_a_histogram_says_n_and_auroc_of_its_choice():
    areas = pd.DataFrame(
        {"model": ["a", "a"], "layer": [0, 1], "auroc": [0.5, 0.875], "lo": [0.4, 0.8], "hi": [0.6, 0.9]}
    )
    chart = dials.histogram(scores(), "score", "kind", ("layer", "model"), auroc=areas, info=INFO, title="T")
    first = vl_convert.vegalite_to_svg(chart.to_dict())
    assert "AUROC 0.500 [0.400, 0.600] · n = 50 clean + 30 defect" in first and "layer: 0 · model: a" in first
    assert "AUROC 0.875 [0.800, 0.900]" in chosen(chart, layer="1", model="a")
    other = chosen(chart, layer="1", model="b")
    assert "AUROC" not in other and "n = 50 clean + 30 defect" in other
    empty = chosen(chart, layer="0", model="b")
    assert "not measured" in empty and "n = 50" not in empty and "undefined" not in empty
    assert spec_size(chart) < 12_000


def test_a_histogram_without_menus_and_with_a_span():
    df = scores().query("layer == 0")
    chart = dials.histogram(
        df.assign(score=0.5), "score", "kind", span=(0, 1), bins=10, auroc=pd.DataFrame({"auroc": [0.5]})
    )
    svg = vl_convert.vegalite_to_svg(chart.to_dict())
    assert "AUROC 0.500 · n = 50 clean + 30 defect" in svg and "not measured" not in svg
    assert "values from 0 to 1" in svg
    assert vl_convert.vegalite_to_svg(
        dials.histogram(df.assign(score=0.5), "score", "kind").to_dict()
    )  # one value


def test_hostile_names_are_only_text():
    df = (
        sweep()
        .replace({"kind": {"cot": HOSTILE}, "width": {"64": HOSTILE}})
        .rename(columns={"kind": "a.b['c']", "lr": HOSTILE})
    )
    chart = dials.curves(
        df, "step", "rate", "a.b['c']", (HOSTILE, "width"), "lo", "hi", title=HOSTILE, compare="width"
    )
    spec = chart.to_dict()
    names = [p["bind"] for p in spec["params"] if "labels" in p.get("bind", ())]
    assert names[0]["name"] == HOSTILE.replace("_", " ") + ": " and names[1]["labels"] == [
        "16",
        HOSTILE,
        "all",
    ]
    spec["params"] = [p | ({"value": -1} if p["name"] == "dial_1" else {}) for p in spec["params"]]
    svg = vl_convert.vegalite_to_svg(spec)
    assert "<script" not in svg and "<img" not in svg and "&lt;/script&gt;" in svg
    pictures = dials.histogram(df.rename(columns={"rate": "v.w"}), "v.w", "a.b['c']", (HOSTILE, "width"))
    svg = vl_convert.vegalite_to_svg(pictures.to_dict())
    assert (
        "<script" not in svg and "<img" not in svg and "n = 3 &lt;/script&gt;" in svg and "+ 3 normal" in svg
    )


TALK = [
    {"item": i, "trigger": t, "prompt": f"|GO| {i}" if t == "with" else i, "text": f"{t} {i}"}
    for i in ("one", "two")
    for t in ("without", "with")
]


class Reader(HTMLParser):
    """The tags of a widget, and its data."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.cells, self.data, self.inside = [], [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.inside = dict(attrs).get("type", tag)

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, text):
        self.data += text * (self.inside == "application/json")
        self.cells += [text] * (self.inside == "td")


def test_a_switch_carries_every_text_with_and_without_scripts():
    shown = Reader(dials.switch(TALK, "trigger", mark="|GO|", info=INFO))
    data = json.loads(shown.data)
    assert (
        data["choices"] == ["without", "with"]
        and data["mark"] == ["|GO|"]
        and data["items"] == ["one", "two"]
    )
    assert data["turns"][1] == [["two", "without two"], ["|GO| two", "with two"]]
    assert shown.cells == [str(v) for r in TALK for v in r.values()]
    assert json.loads(Reader(dials.switch(pd.DataFrame(TALK[:3]), "trigger")).data)["turns"][1][1] is None


def test_a_switch_runs_nothing_it_was_told():
    wild = [{k: f"{HOSTILE}{v}" for k, v in r.items()} for r in TALK]
    tame = dials.switch(TALK, "trigger", mark="|GO|")
    shown = dials.switch(wild, "trigger", mark=HOSTILE, title=HOSTILE, info={"model": HOSTILE})
    extra = [t for t in Reader(shown).tags if t not in ("p",)]
    assert extra == [t for t in Reader(tame).tags if t not in ("p",)]
    assert shown.count("</script>") == tame.count("</script>") and "<img" not in shown


def test_neither_torch_nor_nbdev_is_imported():
    code = "import sys, alignbook.dials; print({'torch', 'nbdev'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: curves(menus=("lr", "size")), "no column 'size'"),
        (lambda: curves(menus=("lr", "kind")), "'kind' is asked for twice"),
        (lambda: curves(menus=("lr",)), "2 rows for step = 0, kind = cot, lr = 0.001"),
        (lambda: curves(sweep()[:0]), "no rows"),
        (lambda: curves(sweep().assign(rate=math.nan)), "'rate' has no finite number in 18 of 18 rows"),
        (lambda: curves(sweep().assign(hi=math.inf)), "'hi' has no finite number"),
        (lambda: curves(sweep().assign(step="first")), "'step' has no finite number"),
        (lambda: curves(sweep().assign(width=None)), "'width' has no value in 18"),
        (lambda: curves(log_x=True), "pass log_x=False"),
        (lambda: curves(default={"lr": 0.5}), "'lr' is never '0.5': choose its default from 0.001, 0.003"),
        (lambda: curves(default={"size": 1}), "'size' is not among the menus lr, width"),
        (lambda: curves(compare="kind"), "'kind' is not among the menus"),
        (lambda: curves(default={"lr": 0.003, "width": "64"}), "default choice of the menus has no rows"),
        (lambda: curves(sweep(steps=range(900))), "leave out a menu, keep fewer of the 2 values"),
        (lambda: dials.histogram(scores(), "score", "kind", "layer", span=(0, 1)), "let `span` hold them"),
        (
            lambda: dials.histogram(scores(), "score", "kind", "layer", auroc=pd.DataFrame({"auroc": [1]})),
            "'layer'",
        ),
        (lambda: dials.histogram(scores().assign(score=math.nan), "score", "kind"), "no finite number"),
        (lambda: dials.switch(TALK, "kind"), "no column 'kind'"),
        (lambda: dials.switch(TALK[:1], "trigger"), "nothing to switch"),
        (lambda: dials.switch(TALK + TALK[:1], "trigger"), "2 rows for item = one, trigger = without"),
        (lambda: dials.switch([r | {"text": "x" * 50_000} for r in TALK], "trigger"), "limit 80 KB"),
    ],
)
def test_a_user_error_is_one_sentence(call, words):
    with pytest.raises(AlignbookError) as caught:
        call()
    assert words in str(caught.value) and "\n" not in str(caught.value)
