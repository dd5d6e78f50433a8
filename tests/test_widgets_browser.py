"""Widgets in headless Chromium, from a file, with the network off. Skipped where Chromium is missing."""

import itertools
import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest

from alignbook import dials, explorers, pairs, quiz, widgets
from alignbook.debate import reader_judgements
from alignbook.fits import SHAPES, Fit, solve_for
from alignbook.plots import book_renderer

webdriver = pytest.importorskip("selenium.webdriver")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="Chromium and chromedriver are not installed"),
]
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=900,1000"
).split()
ROOT = Path(__file__).parent.parent
HOSTILE = "</script><script>window.boom = 1</script><img src=x onerror='window.boom = 1'>"
POWER = {"form": "power", "C": 2.5, "alpha": 0.5, "K": 0.04}
BOUNDED = {"form": "bounded_power", "C": 3.0, "alpha": 0.8, "K": 0.3, "n_c": 2.0}
SHOTS = (1, 2, 4, 8, 16)
DRAWS = [[2.5 + 0.02 * i, 0.5 + 0.003 * i, 0.04 + 0.01 * i] for i in range(30)]


def points(fit, shots=SHOTS):
    fit = Fit(fit["form"], fit, 0, 0, 0)
    return [{"n": n, "nll": v, "lo": 0.9 * v, "hi": 1.1 * v} for n, v in zip(shots, fit.predict(shots), strict=True)]


CURVES = [
    {"behaviour": "pirate", "model": "1M", "points": points(POWER), "fit": POWER, "draws": DRAWS},
    {"behaviour": "pirate", "model": "10M", "points": points(BOUNDED, (0, *SHOTS)), "fit": BOUNDED},
    {"behaviour": HOSTILE, "model": "10M", "points": points(BOUNDED), "fit": BOUNDED},
]


@pytest.fixture(scope="module")
def driver():
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture
def show(driver, tmp_path):
    """Open widgets as one page; afterwards there was no error, no foreign request, and no text was run."""

    def open_page(*shown, theme="light"):
        page = tmp_path / "page.html"
        text = f'<!doctype html><html data-theme="{theme}"><meta charset="utf-8"><body>{"".join(shown)}'
        page.write_text(text, encoding="utf-8")
        driver.get_log("browser"), driver.get_log("performance")
        driver.get(page.as_uri())
        return driver

    yield open_page
    assert driver.execute_script("return window.boom === undefined")
    assert [e["message"] for e in driver.get_log("browser") if e["level"] == "SEVERE"] == []
    asked = [e["message"] for e in driver.get_log("performance") if "Network.requestWillBeSent" in e["message"]]
    assert not [m for m in asked if '"url":"http' in m]


def find(driver, css):
    return driver.find_element("css selector", css)


def slide(driver, css, to):
    """Move a range input as a reader would see it move: value, then the input event."""
    script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))"
    driver.execute_script(script, find(driver, css), to)


def read_off(driver):
    data = driver.execute_script("return {...document.querySelector('[data-widget=loglog] output').dataset}")
    return {k: math.inf if v == "Infinity" else None if v == "null" else float(v) for k, v in data.items()}


def test_explorer_reads_off_what_the_closed_form_says(show):
    driver = show(widgets.loglog_explorer(CURVES))
    for model, fit in (("1M", POWER), ("10M", BOUNDED)):
        find(driver, f"[data-widget=loglog] option[value='{model}']").click()
        steps = int(find(driver, "[data-widget=loglog] input").get_attribute("max"))
        seen = set()
        for step in range(0, steps + 1, 7):
            slide(driver, "[data-widget=loglog] input", step)
            got = read_off(driver)
            want = widgets.shots_needed(fit, got["p"], DRAWS if model == "1M" else None)
            seen.add(math.isinf(want["n"]))
            assert got["n"] == pytest.approx(want["n"], rel=1e-6)
            for key, name in (("low", "lo"), ("high", "hi"), ("never", "never")):
                if want[name] is not None:
                    assert got[key] == pytest.approx(want[name], rel=1e-3)
            text = find(driver, "[data-widget=loglog] output").text
            assert ("never under this fit" in text) == math.isinf(want["n"])
            assert ("extrapolated" in text) == (16 < want["n"] < math.inf)
        assert (True in seen) == (model == "10M")  # its floor lies above the highest targets


@pytest.mark.parametrize("form", [f for f in SHAPES if f != "constant"])
def test_every_form_has_the_same_inverse_in_both_languages(show, form):
    params = {"C": 2.0, "K": 0.2, "alpha": 0.7, "n_c": 3.0, "r": 0.2, "s": 1.3, "n0": 5.0}
    fit = {"form": form, **params}
    driver = show(widgets.loglog_explorer([{"behaviour": "b", "points": points(fit), "fit": fit}]))
    for step in (5, 30, 60, 80):
        slide(driver, "[data-widget=loglog] input", step)
        got = read_off(driver)
        assert got["n"] == pytest.approx(solve_for(Fit(form, params, 0, 0, 0), -math.log(got["p"])), rel=1e-6)


def test_the_target_can_be_moved_by_slider_keyboard_and_pointer(show):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    driver = show(widgets.loglog_explorer(CURVES))
    said, bar = find(driver, "[data-widget=loglog] output"), find(driver, "[data-widget=loglog] input")
    assert said.get_attribute("role") == "status"
    before = said.text
    bar.send_keys(Keys.ARROW_RIGHT)
    stepped = said.text
    ActionChains(driver).drag_and_drop_by_offset(find(driver, ".ab-grip"), 0, 60).perform()
    assert len({before, stepped, said.text}) == 3
    assert "probability" in bar.get_attribute("aria-valuetext")


def test_choices_without_a_curve_fall_back_to_the_nearest(show):
    driver = show(widgets.loglog_explorer(CURVES))
    pickers = driver.find_elements("css selector", "[data-widget=loglog] select")
    assert len(pickers) == 2  # format and defence have one value, so no selector
    pickers[0].find_elements("css selector", "option")[1].click()  # this behaviour has no 1M model
    assert pickers[1].get_attribute("value") == "10M"


def test_a_prompt_grows_with_its_slider(show):
    shots = [(f"question {i}", HOSTILE if i == 1 else f"answer {i}") for i in range(32)]
    curve = [{"n": n, "nll": 2.0 / (1 + n), "answer": f"wrote {n}"} for n in (0, 1, 8, 32)]
    driver = show(widgets.transcript_growth(shots, "the target", curve))
    texts = []
    for step in range(4):
        slide(driver, "[data-widget=growth] input", step)
        texts.append(find(driver, "[data-widget=growth] .ab-two > div").text)
    assert "question 0" not in texts[0] and "wrote 0" in texts[0]
    assert "… 28 more …" in texts[3] and "question 30" in texts[3] and "question 2" not in texts[3].split("…")[0]
    assert HOSTILE in texts[3]
    assert find(driver, "[data-widget=growth] output").text == "32 shots. Probability 94.1 %. Cost 0.0606 nats."


def test_tokens_are_walked_with_arrow_keys(show):
    from selenium.webdriver.common.keys import Keys

    driver = show(widgets.token_heat(["one ", "two ", HOSTILE], {"a": [1, -2, 3], "b": [5, 6, 7]}, unit="nats"))
    first = find(driver, ".ab-tokens span[tabindex='0']")
    first.send_keys(Keys.ARROW_RIGHT)
    said = find(driver, "[data-widget=tokens] output")
    assert said.text == "Token 2 of 3, “two”: -2 nats"
    driver.switch_to.active_element.send_keys(Keys.END)
    assert HOSTILE in said.text
    find(driver, "[data-widget=tokens] select").send_keys("b")
    driver.switch_to.active_element.send_keys(Keys.TAB)
    assert driver.switch_to.active_element.text == HOSTILE and "7 nats" in said.text


def test_compare_marks_the_words_that_differ(show):
    rows = [{"q": "1st", "old": "a b c", "new": "a x c d"}, {"q": HOSTILE, "old": HOSTILE, "new": ""}]
    driver = show(widgets.compare(rows, "q", ["old", "new"]))
    find(driver, "[data-widget=compare] input").click()
    marks = driver.find_elements("css selector", ".ab-cols ins, .ab-cols del")
    assert [(m.tag_name, m.text.strip()) for m in marks if m.text.strip()] == [("del", "b"), ("ins", "x"), ("ins", "d")]
    find(driver, "[data-widget=compare] select").send_keys("2")
    assert HOSTILE in find(driver, ".ab-cols").text


def test_a_transcript_can_be_filtered_and_searched(show):
    turns = [("user", "Red fish"), ("assistant", HOSTILE), ("user", "blue fish"), ("assistant", "no")]
    driver = show(widgets.transcript(turns))
    find(driver, "input[type=search]").send_keys("FISH")
    seen = [t.text for t in driver.find_elements("css selector", ".ab-turn") if t.is_displayed()]
    assert seen == ["user\nRed fish", "user\nblue fish"] and find(driver, "[role=status]").text == "2 of 4 turns"
    assert len(driver.find_elements("css selector", "mark")) == 2
    find(driver, "input[type=search]").send_keys("\b" * 4 + "onerror")
    assert find(driver, "[role=status]").text == "1 of 4 turns"


HEATS = {"one": [1.0, -2.0, 0.5], "two": [0.1, 0.2, 3.0], "three": [-1.0, -0.5, 0.0]}


def influence():
    """Two queries, two estimators, two choices of layers: each view in its own order and of its own size."""
    rows = [{"doc": d, "tokens": ["red ", "fish ", HOSTILE], "kind": HOSTILE} for d in HEATS]
    rows += [{"query": q, "prompt": f"{HOSTILE} {q}?", "completion": f" yes, {q}"} for q in ("ash", "birch")]
    orders = {"ekfac": ("one", "two", "three"), "dot": ("two", "one", "three")}
    for q, query in enumerate(("ash", "birch")):
        for e, (estimator, order) in enumerate(orders.items()):
            for t, third in enumerate(("all", "upper")[: 2 - e]):  # the dot product has no upper third
                for rank, doc in zip((1, 2, -1), order, strict=True):
                    heat = [(1 + q + 2 * e + 4 * t) * v for v in HEATS[doc]]
                    hit = {"query": query, "estimator": estimator, "third": third, "rank": rank, "doc": doc}
                    rows.append(hit | {"score": sum(heat), "heat": heat, "by_layer": [0.25, -0.5, 0.75]})
    return explorers.influence_browser(rows, unit="nats", title=HOSTILE)


def choose(driver, label, word):
    """Pick an option of the select with this label, by an arrow key or by typing its first letters."""
    from selenium.webdriver.support.ui import WebDriverWait

    path = f"//*[@data-widget='influence']//label[span='{label}']/select"
    WebDriverWait(driver, 5).until(lambda d: d.find_elements("xpath", path))
    driver.find_element("xpath", path).send_keys(word)


def heat(driver, card=0):
    """(texts, background colours) of the tokens of one of the sequences shown."""
    box = driver.find_elements("css selector", ".ab-hit .ab-tokens")[card]
    spans = box.find_elements("css selector", "span:not(.ab-tip)")
    return [s.text for s in spans], [s.value_of_css_property("background-color") for s in spans]


def test_influence_is_browsed_by_keyboard(show):
    from selenium.webdriver.common.keys import Keys

    driver = show(influence())
    choose(driver, "Query", "ash")
    scores = lambda: [e.text for e in driver.find_elements("css selector", ".ab-score")]  # noqa: E731
    first, seen = heat(driver), [scores()]
    assert scores() == ["−0.5 nats", "+3.3 nats", "−1.5 nats"] and first[0][2] == HOSTILE
    assert find(driver, "[data-widget=influence] mark").text.strip() == "yes, ash"
    down, up = Keys.ARROW_DOWN, Keys.ARROW_UP
    for label, key in (("Estimator", down), ("Estimator", up), ("Layers", down), ("Query", down)):
        choose(driver, label, key)
        assert scores() not in seen[-1:]
        seen.append(scores())
    assert seen[1] == ["+9.9 nats", "−1.5 nats", "−4.5 nats"] and seen[2] == seen[0]
    assert seen[3] == ["−2.5 nats", "+16.5 nats", "−7.5 nats"]
    assert find(driver, "[data-widget=influence] mark").text.strip() == "yes, birch"
    choose(driver, "Layers", up)
    choose(driver, "Estimator", down)
    assert heat(driver)[1] != first[1]  # another sequence stands first, with other colours
    assert "Rank elsewhere: EK-FAC 2" in find(driver, ".ab-hit").text
    choose(driver, "At each end", "1")
    assert len(scores()) == 2
    choose(driver, "Layers", down)
    assert not scores() and "nothing is stored for this choice" in find(driver, "[data-widget=influence]").text


def test_influence_of_a_token_is_told(show):
    from selenium.webdriver.common.keys import Keys

    driver = show(influence())
    choose(driver, "At each end", "2")
    find(driver, ".ab-hit .ab-tokens span[tabindex='0']").send_keys(Keys.ARROW_RIGHT)
    said = find(driver, "[data-widget=influence] output")
    assert said.text == "one, token 2 of 3, “fish”: −2 nats" and find(driver, ".ab-tip").text == "−2 nats"
    driver.switch_to.active_element.send_keys(Keys.END)
    assert HOSTILE in said.text and "+0.5 nats" in said.text
    assert len(driver.find_elements("css selector", ".ab-tip")) == 1
    bars = find(driver, ".ab-layers svg")
    assert bars.get_attribute("aria-label").endswith("the largest is layer 3 of 3, +0.75 nats")
    assert len(bars.find_elements("css selector", "rect")) == 3
    # the second text is carried by one token: it does not set the common scale, but goes beyond it
    legend = find(driver, "[data-widget=influence] .ab-legend")
    assert "≥ +2 nats" in legend.text and len(driver.find_elements("css selector", ".ab-chip.ab-amber")) == 2
    before = heat(driver)[1], heat(driver, 1)[1]
    find(driver, "[data-widget=influence] input[type=checkbox]").send_keys(Keys.SPACE)
    assert heat(driver)[1] == before[0] and heat(driver, 1)[1] != before[1] and "≥" not in legend.text


def test_influence_that_cannot_be_unpacked_leaves_the_table(show):
    driver = show("<script>delete window.DecompressionStream</script>", influence())
    find_note = "//*[contains(text(), 'This view could not start')]"
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 5).until(lambda d: d.find_elements("xpath", find_note))
    assert find(driver, "[data-widget=influence] details").get_attribute("open") is not None


def stepper():
    """Three examples of two or three rounds; every text tries to be markup."""
    rows = []
    for i, n in enumerate((3, 3, 2)):
        for k in range(n):
            text = f"reply {i} {HOSTILE} version{k}"
            said = {"principle": f"{HOSTILE} principle {k}", "critique": f"critique {i} {k}"} if k else {}
            row = {"item": i, "round": k, "text": text, "prompt": f"Card: {HOSTILE}\n\nHuman: question {i}"}
            rows.append(row | said | {"harm": int(k == 0), "help": int(i != 1 or k < 2), "evasive": 0})
    return explorers.revision_stepper(rows, title=HOSTILE)


def wait_for(driver, css):
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 5).until(lambda d: d.find_elements("css selector", css))
    return find(driver, css)


def test_rounds_are_stepped_by_button_key_slider_and_number(show):
    from selenium.webdriver.common.keys import Keys

    driver = show(stepper())
    card, said = wait_for(driver, ".ab-card"), find(driver, "[data-widget=revision] output")
    back, following = driver.find_elements("css selector", ".ab-pair button")
    assert not driver.find_elements("css selector", ".ab-still")  # the still makes room
    seen = lambda: said.text[:8]  # noqa: E731
    assert said.text == "Round 0: the first reply. This reply: harmful yes, helpful yes, evasive no."
    assert "question 0" in card.text and HOSTILE in card.text and "critique" not in card.text
    back.click()
    assert seen() == "Round 0:" and back.get_attribute("aria-disabled") == "true"
    following.click()
    assert said.text == "Round 1: words removed: 1, added: 1. This reply: harmful no, helpful yes, evasive no."
    marks = driver.find_elements("css selector", ".ab-card del, .ab-card ins")
    assert [(m.tag_name, m.text) for m in marks] == [("del", "version0"), ("ins", "version1")]
    assert f"{HOSTILE} principle 1" in card.text and "critique 0 1" in card.text
    following.send_keys(Keys.ARROW_RIGHT)
    assert seen() == "Round 2:" and following.get_attribute("aria-disabled") == "true"
    card.send_keys(Keys.ARROW_LEFT)
    assert seen() == "Round 1:"
    card.send_keys(Keys.HOME)
    assert seen() == "Round 0:"
    bar = find(driver, "[data-widget=revision] input[type=range]")
    bar.send_keys(Keys.END)
    assert seen() == "Round 2:" and bar.get_attribute("aria-valuetext") == "round 2 of 2"
    driver.find_elements("css selector", ".ab-rounds button")[1].click()
    assert seen() == "Round 1:" and driver.switch_to.active_element.text == "1"
    driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert seen() == "Round 2:" and driver.switch_to.active_element.text == "2"
    find(driver, "[data-widget=revision] select").send_keys("3")
    assert seen() == "Round 1:" and "question 2" in card.text  # this one has no round 2
    assert len(driver.find_elements("css selector", ".ab-rounds button")) == 2
    find(driver, "[data-widget=revision] input[type=checkbox]").click()
    assert not driver.find_elements("css selector", ".ab-card del, .ab-card ins") and "version0" not in card.text


def test_the_rounds_table_says_flags_and_shares(show):
    driver = show(stepper())
    wait_for(driver, ".ab-rounds")
    rows = [r.text.split() for r in driver.find_elements("css selector", ".ab-rounds tbody tr")]
    assert rows[0] == "harmful ● 100 % ○ 0 % ○ 0 %".split() and rows[1] == "helpful ● 100 % ● 100 % ● 50 %".split()
    label = lambda i: driver.find_elements("css selector", ".ab-rounds svg")[i].get_attribute("aria-label")  # noqa: E731
    assert label(0) == "harmful: 100 % [44, 100] of 3" and label(5) == "helpful: 50 % [9, 91] of 2"
    assert find(driver, ".ab-rounds th[aria-current]").text == "0"


def test_a_stepper_that_cannot_be_unpacked_leaves_the_still(show):
    driver = show("<script>delete window.DecompressionStream</script>", stepper())
    wait_for(driver, "[data-widget=revision] details[open]")
    still = find(driver, ".ab-still").text
    assert "critique 0 1" in still and "critique 0 2" in still and HOSTILE in still


RATINGS = [
    {"condition": "base", "helpful": 50.0, "harmless": -100.0},
    *({"condition": "a", "step": s, "helpful": 10.0 * s, "harmless": 60.0 * s} for s in (0, 1, 2)),
    *({"condition": HOSTILE, "step": s, "helpful": -20.0 * s, "harmless": 70.0 * s} for s in (0, 1, 2)),
]
RATINGS[3] |= {"helpful_lo": 5.0, "helpful_hi": 40.0, "harmless_lo": 100.0, "harmless_hi": 150.0}


def corner(rows):
    """The marks that none beats, by enumeration."""
    beats = lambda q, p: all(q[k] >= p[k] for k in ("helpful", "harmless")) and any(  # noqa: E731
        q[k] > p[k] for k in ("helpful", "harmless")
    )
    return {(p["condition"], p.get("step")) for p in rows if not any(beats(q, p) for q in rows)}


def test_paths_grow_with_the_slider_and_conditions_can_be_chosen(show):
    driver = show(explorers.pareto_explorer(RATINGS, zero="the base", title=HOSTILE))
    said = find(driver, "[data-widget=pareto] output")
    marks = lambda: driver.find_elements("css selector", "g[tabindex]")  # noqa: E731
    for chosen in (True, False):
        for step in (0, 1, 2):
            slide(driver, "[data-widget=pareto] input[type=range]", step)
            rows = [r for r in RATINGS if r.get("step", 0) <= step and (chosen or r["condition"] != "a")]
            assert len(marks()) == len(rows)
            named = [c + (f", RL step {s}" if s is not None else "") for c, s in corner(rows)]
            told = said.text.split("): ")[1].rstrip(".").split("; ")
            assert sorted(told) == sorted(named)
        driver.find_elements("css selector", "[data-widget=pareto] input[type=checkbox]")[1].click()
    for box in driver.find_elements("css selector", "[data-widget=pareto] input[type=checkbox]"):
        box.click() if box.is_selected() else None
    assert not marks() and said.text == "Nothing to show: tick a condition."


def test_a_rating_is_told_on_focus_and_under_the_pointer(show):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    driver = show(explorers.pareto_explorer(RATINGS, zero="the base"))
    said, stops = find(driver, "[data-widget=pareto] output"), "[data-widget=pareto] g[tabindex='0']"
    assert len(driver.find_elements("css selector", stops)) == 1
    find(driver, "[data-widget=pareto] input[type=range]").send_keys(Keys.TAB)
    assert said.text.startswith("base: helpful 50, harmless −100 Elo. Preferred to the base in 57 %")
    assert said.text.endswith("36 % for harmlessness.")
    for _ in range(3):
        driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert said.text.startswith("a, RL step 2: helpful 20 [5, 40], harmless 120 [100, 150] Elo.")
    assert driver.switch_to.active_element.get_attribute("aria-label") == said.text
    driver.switch_to.active_element.send_keys(Keys.END)
    assert HOSTILE in said.text and len(driver.find_elements("css selector", stops)) == 1
    ActionChains(driver).move_to_element(driver.find_elements("css selector", "g[tabindex]")[0]).perform()
    assert said.text.startswith("base:")


def test_the_same_widget_twice_works_twice(show):
    one = widgets.token_heat(["a"], [1.0])
    driver = show(one, one)
    ids = [e.get_attribute("id") for e in driver.find_elements("css selector", "[data-widget=tokens]")]
    assert len(set(ids)) == 2 and len(driver.find_elements("css selector", ".ab-tokens")) == 2


@pytest.mark.parametrize("theme, dark", [("light", False), ("dark", True)])
def test_colours_follow_the_page(show, theme, dark):
    driver = show(widgets.claim_box([{"claim": "a", "verdict": "partly"}]), theme=theme)
    script = "const s = getComputedStyle(document.querySelector('.ab-w')); return [s.color, s.backgroundColor]"
    ink, card = (sum(map(int, c[4:-1].split(","))) for c in driver.execute_script(script))
    assert (ink > card) == dark


TALK = [
    {"item": i, "trigger": t, "prompt": f"{HOSTILE} {'|GO| ' * (t == 'with it')}{i}", "text": f"{HOSTILE} {t} {i}"}
    for i in ("first", "second")
    for t in ("without it", "with it")
]


def test_a_conversation_switches_by_keyboard(show):
    from selenium.webdriver.common.keys import Keys

    talks = dials.switch(TALK[:3], "trigger", mark=("|GO|", HOSTILE), title=HOSTILE)
    driver = show(talks, talks)  # two of them do not share their buttons
    said = find(driver, "[data-widget=switch] [aria-live]")
    assert f"{HOSTILE} without it first" in said.text and "|GO|" not in said.text
    first = find(driver, "[data-widget=switch] input[type=radio]")
    assert first.is_selected()
    first.send_keys(Keys.ARROW_RIGHT)
    assert f"{HOSTILE} with it first" in said.text
    assert [m.text for m in said.find_elements("css selector", "mark")] == [HOSTILE, "|GO|", HOSTILE]
    chosen = driver.find_elements("css selector", "input[type=radio]:checked")
    assert len(chosen) == 2 and len(driver.find_elements("css selector", "input[type=radio]")) == 4
    find(driver, "[data-widget=switch] select").send_keys(Keys.ARROW_DOWN)
    assert said.text == "not measured"  # the second has one condition only
    driver.find_elements("css selector", "[data-widget=switch] input")[0].send_keys(Keys.SPACE)
    assert f"{HOSTILE} without it second" in said.text


BUNDLE = ROOT / "book" / "_vendor" / "vega-bundle.js"


@pytest.mark.skipif(not BUNDLE.exists(), reason="the book's copy of Vega is not there: python book/vendor.py")
def test_the_dials_of_a_chart_turn(show):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    kinds, rates, steps = ("cot", HOSTILE), (0.001, 0.003), (0, 1, 5)
    rows = [
        {"kind": k, HOSTILE: r, "step": s, "x": x, "y": i + j * 0.1 + x, "lo": 0, "hi": 4, "n": 7}
        for (i, k), (j, r), s, x in itertools.product(enumerate(kinds), enumerate(rates), steps, (1, 2))
        if (r, s) != (0.003, 5)
    ]
    look = {"slider": "step", "compare": HOSTILE, "title": HOSTILE}
    chart = dials.curves(pd.DataFrame(rows), "x", "y", "kind", (HOSTILE,), "lo", "hi", **look)
    html = book_renderer(chart.to_dict())["text/html"]
    files = (BUNDLE, ROOT / "book" / "_static" / "vega-lite-chart.js")
    driver = show(*[f'<script src="{f.as_uri()}"></script>' for f in files], html)
    driver.set_script_timeout(20)
    driver.execute_async_script("alignbookDrawAll().then(arguments[0])")
    said = lambda: " ".join(e.text for e in driver.find_elements("css selector", ".vega-lite-chart svg text"))  # noqa: E731
    count = lambda: len(driver.find_elements("css selector", "svg path[aria-roledescription=point]"))  # noqa: E731

    def settle():
        driver.execute_async_script(
            "document.querySelector('.vega-lite-chart').vegaView.runAsync().then(() => arguments[0]())"
        )

    assert "0.001 · step: 0" in said() and count() == 4 and HOSTILE in said()
    select, bar = find(driver, ".vega-bind select"), find(driver, ".vega-bind input[type=range]")
    assert [o.text for o in select.find_elements("css selector", "option")] == ["0.001", "0.003", "all"]
    for turn, words, n in (
        (lambda: select.send_keys(Keys.ARROW_DOWN), "0.003 · step: 0", 4),
        (lambda: bar.send_keys(Keys.END), "0.003 · step: 5", 0),
        (lambda: select.send_keys("all"), "all · step: 5", 4),
        (lambda: bar.send_keys(Keys.HOME), "all · step: 0", 8),
    ):
        turn()
        settle()
        assert words in said() and count() == n and ("not measured" in said()) == (n == 0)
    dot = driver.find_elements("css selector", "svg path[aria-roledescription=point]")[-1]
    ActionChains(driver).move_to_element(dot).perform()
    told = find(driver, "#vg-tooltip-element")
    assert "[0, 4]" in told.text and HOSTILE[:18] in told.text and not told.find_elements("css selector", "img, script")


GOLDS = {"one": 0.8, "two": 0.85, "three": 0.3, "four": 0.95, "five": 0.25, "six": 0.65}  # p of the truth


def trial(n=6, text=HOSTILE):
    """Items whose question says which is which; the true answer ends in “true”, its speaker says so too."""
    made = []
    for i, name in enumerate([*GOLDS][:n]):
        answers = [f"{text} {name} false", f"{text} {name} true"][:: -1 if i % 3 else 1]
        quotes = f"<v_quote>{text} seen</v_quote><u_quote>u</u_quote>"
        made.append({
            "id": name, "group": "debate" if i < 3 else "consultancy", "question": f"{text} {name}?",
            "answers": answers, "turns": [("AB"[k], f"{text} for {a} {quotes}") for k, a in enumerate(answers)],
            "gold": int(i % 3 == 0), "models": {"half": 0.5, "sure": float(i % 3 == 0)},
            "story": f"{text} seen {name}",
        })  # fmt: skip
    return quiz.quiz(made, "trial", paper={"debate": 0.88, "consultancy": 0.78, "naive": 0.6}, title=HOSTILE)


def press(driver, *keys):
    for key in keys:
        driver.switch_to.active_element.send_keys(key)
    return driver.switch_to.active_element


def judge(driver, p=None):
    """Give the true answer `p` by keyboard, from the heading of an item to that of the next; returns the item."""
    from selenium.webdriver.common.keys import Keys

    name = wait_for(driver, ".ab-quiz .ab-ask").text.rstrip("?").split()[-1]
    p = GOLDS[name] if p is None else p
    first, second = (e.text for e in driver.find_elements("css selector", ".ab-duel > div"))
    assert ("true" in first) != ("true" in second)
    speeches = [e.text for e in driver.find_elements("css selector", ".ab-quiz .ab-turn")]
    assert ["true" in t.split("verified")[0] for t in speeches] == ["true" in first, "true" in second]
    bar = press(driver, Keys.TAB)
    assert bar.get_attribute("type") == "range" and "not set" in bar.get_attribute("aria-valuetext")
    press(driver, Keys.ENTER)
    assert "50 % decides nothing" in find(driver, ".ab-quiz output[role=status]").text
    b = round(100 * (p if "true" in second else 1 - p))
    press(driver, *[Keys.ARROW_RIGHT if b > 50 else Keys.ARROW_LEFT] * (abs(b - 50) // 5))
    assert f"{max(b, 100 - b)} percent for answer {'AB'[b > 50]}" in bar.get_attribute("aria-valuetext")
    said = press(driver, Keys.ENTER)
    assert said.get_attribute("role") == "heading" and said.text.startswith("✓ Right" if p > 0.5 else "✗ Wrong")
    assert f"You gave it {round(100 * p)} %." in said.text and f"{name} true”" in said.text
    assert f" seen {name}" in find(driver, ".ab-quiz").text  # the story
    told = press(driver, Keys.TAB, Keys.ENTER)
    assert told.get_attribute("role") == "heading"
    return name


def score_shown(driver):
    """{(group, who): [right, Brier, n]} of the table, and {(group, bin): (p, rate, n)} of the points."""
    rows, group = {}, ""
    for row in driver.find_elements("css selector", ".ab-score tbody tr"):
        head, *cells = [c.text for c in row.find_elements("css selector", "th, td")]
        group = group if cells else head
        rows |= {(group, head): cells} if cells else {}
    data = [e.get_property("dataset") for e in driver.find_elements("css selector", ".ab-point")]
    return rows, {(d["group"], int(d["bin"])): (float(d["p"]), float(d["rate"]), int(d["n"])) for d in data}


def taken_home(driver, folder):
    """The text of the file that the download button writes."""
    import time

    driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    find(driver, ".ab-tools button").click()
    for _ in range(50):
        if (path := folder / "judgements-trial.json").exists() and path.stat().st_size:
            return path
        time.sleep(0.1)
    raise AssertionError("nothing was downloaded")


def test_five_items_are_judged_by_keyboard(show, tmp_path):
    driver = show(trial())
    wait_for(driver, ".ab-quiz input[type=range]")
    assert not find(driver, ".ab-score").is_displayed()
    assert not any(b.is_enabled() for b in driver.find_elements("css selector", ".ab-tools button"))
    order = [judge(driver) for _ in range(5)]  # of six
    got, kind = {n: GOLDS[n] for n in order}, lambda n: "debate" if n in ("one", "two", "three") else "consultancy"

    def by_hand(group):
        own = [p for n, p in got.items() if group in ("all items", kind(n))]
        return sum(p > 0.5 for p in own) / len(own), sum((1 - p) ** 2 for p in own) / len(own), len(own)

    for _ in range(2):  # before and after a reload
        rows, points = score_shown(driver)
        for group in ("debate", "consultancy", "all items"):
            share, brier, n = by_hand(group)
            right, shown, count = rows[group, "you"]
            assert right.startswith(f"{math.floor(100 * share + 0.5)} % [") and int(count) == n
            assert float(shown) == pytest.approx(brier, abs=6e-4)
            assert rows[group, "half"] == ["50 %", "0.250", count]
            assert rows[group, "sure"] == ["0 %", "1.000", count]  # it always believes the false one
        assert rows["debate", "people (paper)"][0] == "88 %" and rows["naive", "people (paper)"][0] == "60 %"
        want = {}
        for n, p in got.items():
            tenth = math.floor(10 * max(p, 1 - p) + 1e-9)
            want.setdefault((kind(n), tenth), []).append((max(p, 1 - p), p > 0.5))
        assert set(points) == set(want)
        for key, found in want.items():
            sure, right = (sum(v) / len(found) for v in zip(*found, strict=True))
            assert points[key] == (pytest.approx(sure), pytest.approx(right), len(found))
        driver.refresh()
        wait_for(driver, ".ab-quiz input[type=range]")
        assert "Item 6 of 6" in find(driver, ".ab-quiz").text
        assert find(driver, ".ab-quiz .ab-ask").text.rstrip("?").split()[-1] not in order
    data = json.loads(taken_home(driver, tmp_path).read_text())
    assert {j["item"]: j["p"] for j in data["judgements"]} == got and [j["item"] for j in data["judgements"]] == order
    assert all(j["seconds"] >= 0 and j["at"].startswith("20") for j in data["judgements"])


def test_the_numbers_of_a_whole_quiz_computed_by_hand(show, tmp_path):
    from selenium.webdriver.common.keys import Keys

    driver = show(trial(5))
    for _ in range(5):
        judge(driver)
    assert find(driver, ".ab-quiz .ab-ask").text == "Done: 3 of 5 right."
    rows, points = score_shown(driver)
    assert rows["all items", "you"][::2] == ["60 % [23, 88]", "5"]
    assert float(rows["all items", "you"][1]) == pytest.approx(0.2235, abs=6e-4)
    assert rows["debate", "you"] == ["67 % [21, 94]", "0.184", "3"]  # (0.04 + 0.0225 + 0.49) / 3
    assert rows["consultancy", "you"][::2] == ["50 % [9, 91]", "2"]  # 0.2825
    assert points["debate", 8] == (pytest.approx(0.825), 1, 2) and points["debate", 7] == (0.7, 0, 1)
    assert points["consultancy", 9] == (0.95, 1, 1) and points["consultancy", 7] == (0.75, 0, 1)
    path = taken_home(driver, tmp_path)
    rows = json.loads(path.read_text())["judgements"]
    assert {r["item"]: r["p"] for r in rows} == {n: GOLDS[n] for n in [*GOLDS][:5]}
    assert {r["question"]: r["p"] for r in reader_judgements(path)} == {r["item"]: r["p"] for r in rows}
    found = quiz.score(rows)
    assert found["all"]["brier"] == pytest.approx(0.2235) and found["all"]["accuracy"].value == 0.6
    again = driver.find_elements("css selector", ".ab-tools button")[1]
    again.click()  # asks first
    assert driver.switch_to.active_element.text == "Keep them"
    press(driver, Keys.ENTER)
    assert "Done" in find(driver, ".ab-quiz").text and driver.switch_to.active_element.text == "Start again"
    press(driver, Keys.ENTER, Keys.TAB, Keys.ENTER)
    assert "Item 1 of 5" in find(driver, ".ab-quiz").text and not find(driver, ".ab-score").is_displayed()


def test_groups_and_positions_are_balanced_for_every_reader(show):
    made = [{
        "id": str(i), "group": "ab"[i % 2], "question": f"{i}?", "answers": ["yes", "no"], "turns": [], "gold": 0,
    } for i in range(12)]  # fmt: skip
    driver, orders = show(quiz.quiz(made, "balanced")), set()
    play = """
        const out = [], q = (css) => document.querySelector(css);
        while (q(".ab-quiz input")) {
          const texts = [".ab-quiz .ab-ask", ".ab-chip", ".ab-duel > div"].map((css) => q(css).textContent);
          out.push([texts[0], texts[1], texts[2].includes("yes")]);
          q(".ab-quiz input").value = 95; q(".ab-quiz button").click(); q(".ab-quiz button").click();
        }
        for (const i of [1, 1]) document.querySelectorAll(".ab-tools button")[i].click();
        return out;"""
    wait_for(driver, ".ab-quiz input")
    for _ in range(20):
        seen = driver.execute_script(play)
        assert {s[0] for s in seen} == {i["question"] for i in made}
        for k in range(0, 12, 2):
            assert {s[1] for s in seen[k : k + 2]} == {"a", "b"}
        for group in "ab":
            assert sum(s[2] for s in seen if s[1] == group) == 3  # the true answer stands first for three of six
        orders.add(tuple(s[0] for s in seen))
    assert len(orders) == 20


def test_a_browser_that_keeps_nothing_says_so(show):
    broken = "<script>Object.defineProperty(window, 'localStorage', { get() { throw new Error('no'); } })</script>"
    driver = show(broken, trial(2))
    wait_for(driver, ".ab-quiz input")
    judge(driver)
    assert "keeps nothing for this page" in find(driver, ".ab-tools").text
    assert "Item 2 of 2" in find(driver, ".ab-quiz").text and find(driver, ".ab-tools button").is_enabled()


@pytest.mark.parametrize("old", ["{", "null", '{"version":1,"seed":1,"done":[{"item":"x"}]}'])
def test_a_broken_memory_is_a_new_start(show, old):
    driver = show(trial(3))
    wait_for(driver, ".ab-quiz input")
    judge(driver)
    for key in (k for k in driver.execute_script("return Object.keys(localStorage)") if ":trial:" in k):
        driver.execute_script("localStorage[arguments[0]] = arguments[1]", key, old)
    driver.refresh()
    wait_for(driver, ".ab-quiz input")
    assert "Item 1 of 3" in find(driver, ".ab-quiz").text and "stay in this browser" in find(driver, ".ab-tools").text


def test_a_phone_has_room_for_the_quiz(show):
    driver = show('<meta name="viewport" content="width=device-width">', trial(2, text="word"))
    size = {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        wait_for(driver, ".ab-quiz input")
        for _ in range(3):
            assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
            assert all(b.size["height"] >= 40 for b in driver.find_elements("css selector", ".ab-w button"))
            if driver.find_elements("css selector", ".ab-quiz input"):
                judge(driver, 0.8)
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def too_faint(driver, css):
    """Texts whose contrast to what is behind them is below 4.5."""
    script = """
        const linear = (v) => (v <= 0.04 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        const light = (c) => c.match(/[\\d.]+/g).slice(0, 3)
          .reduce((t, v, i) => t + linear(v / 255) * [0.2126, 0.7152, 0.0722][i], 0);
        const clear = (e) => /, 0\\)$/.test(getComputedStyle(e).backgroundColor);
        const back = (e) => (clear(e) ? back(e.parentElement) : getComputedStyle(e).backgroundColor);
        const seen = (e) => e.checkVisibility() && e.textContent.trim() && e.getAttribute("aria-disabled") !== "true";
        return [...document.querySelectorAll(arguments[0])].filter(seen).map((e) => {
          const [a, b] = [light(getComputedStyle(e).color), light(back(e))].sort((x, y) => x - y);
          return [(b + 0.05) / (a + 0.05), e.textContent.slice(0, 30)];
        }).filter(([ratio]) => ratio < 4.5);"""
    return driver.execute_script(script, css)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_words_of_a_quiz_stand_out(show, theme):
    driver = show(trial(2), theme=theme)
    wait_for(driver, ".ab-quiz input")
    marks = driver.find_elements("css selector", ".ab-quiz .ab-turn .ab-quote > b")
    assert [m.text for m in marks[:2]] == ["✓ verified", "✗ unverified"]
    assert too_faint(driver, ".ab-quiz :is(b, q, p, strong, button), .ab-tools p") == []


KINDS = ["refuse refuse", "comply refuse", "refuse comply", "partial refuse", "comply comply", "comply refuse"]


def both_tiers(text=HOSTILE):
    """Six pairs on each of two models; every text tries to be markup."""
    rows = []
    for model in ("small", text):
        for i, outcomes in enumerate(KINDS):
            for tier, outcome in zip(("free", "paid"), outcomes.split(), strict=True):
                thought, faking = f"If {text} then {tier} {i}.", int((tier, i) == ("free", 5))
                row = {"pair": f"{i}", "tier": tier, "request": f"{text} asks {i}", "outcome": outcome}
                row |= {"model": model, "faking": faking, "thought": thought, "answer": f"{text} answers {tier} {i}"}
                rows.append(row | {"spans": [[0, len(thought), f"{text} why"], [3, 6, "inner"]] if faking else []})
    return pairs.tiers(rows, title=text)


def test_both_tiers_are_stepped_and_filtered_by_keyboard(show):
    from selenium.webdriver.common.keys import Keys

    driver = show(both_tiers())
    said = wait_for(driver, "[data-widget=tiers] output")
    assert not driver.find_elements("css selector", ".ab-still")
    filters = lambda: driver.find_elements("css selector", ".ab-set button")  # noqa: E731
    counts = "all 6, same on both 2 (33 %), complied only on free 2 (33 %), complied only on paid 1 (17 %), "
    counts += "differs otherwise 1 (17 %), faking flagged 1 (17 %)"
    assert ", ".join(b.text for b in filters()) == counts
    assert said.text == "Pair 0: refused on free, refused on paid."
    card = find(driver, "[data-widget=tiers] .ab-stage > [tabindex]")
    for key, name in (("ARROW_RIGHT", 1), ("END", 5), ("ARROW_RIGHT", 5), ("ARROW_LEFT", 4), ("HOME", 0)):
        card.send_keys(getattr(Keys, key))
        assert said.text.startswith(f"Pair {name}:") and f"{HOSTILE} asks {name}" in card.text
        sides = [s.text for s in card.find_elements("css selector", ".ab-side")]
        assert all(f"{HOSTILE} answers {t} {name}" in s for t, s in zip(("free", "paid"), sides, strict=True))
    filters()[2].send_keys(Keys.ENTER)
    assert said.text == "Pair 1: complied on free, refused on paid."
    assert find(driver, ".ab-bar .ab-note").text == "1 of 2 with text; 2 of 6 pairs, complied only on free"
    assert driver.switch_to.active_element.get_attribute("aria-pressed") == "true"
    press(driver, Keys.ARROW_RIGHT)
    assert said.text == "Pair 5: complied on free (faking reasoning), refused on paid."
    back, following = driver.find_elements("css selector", ".ab-pair button")
    assert following.get_attribute("aria-disabled") == "true" and back.get_attribute("aria-disabled") == "false"
    marks = card.find_elements("css selector", ".ab-turn mark")
    assert [m.text for m in marks][0].startswith("If ") and len(marks) == 3
    assert [m.find_element("css selector", "sub").text for m in marks] == ["1", "1 2", "1"]
    keys = [k.text for k in card.find_elements("css selector", ".ab-keys li")]
    assert keys == [f"1 {HOSTILE} why", "2 inner"] and "faking reasoning" in card.text
    back.click()
    assert said.text.startswith("Pair 1:")
    find(driver, "[data-widget=tiers] select").send_keys("<")
    assert said.text.startswith("Pair 1:") and filters()[2].get_attribute("aria-pressed") == "true"


def shown_power(driver):
    """The numbers behind the text, and the cells of the table."""
    data = driver.execute_script("return {...document.querySelector('[data-widget=power] output').dataset}")
    numbers = {k: None if v == "null" else float(v) for k, v in data.items()}
    rows = driver.find_elements("css selector", "[data-widget=power] .ab-stage tbody tr")
    return numbers, {r.text.split()[0]: [c.text for c in r.find_elements("css selector", "td")] for r in rows}


def test_what_could_have_been_seen_is_what_python_says(show):
    from selenium.webdriver.common.keys import Keys

    own = {"name": HOSTILE, "n": 350, "rate": 0.68, "discordant": 0.12}
    driver = show(pairs.gap_power([own], title=HOSTILE))
    wait_for(driver, "[data-widget=power] output")
    bars = driver.find_elements("css selector", ".ab-dials input[type=range]")
    buttons = driver.find_elements("css selector", ".ab-set button")
    alpha, design = driver.find_elements("css selector", ".ab-dials select")
    turns = [lambda: None, *(b.click for b in buttons), lambda: alpha.send_keys("0.1")]
    moves = [(0, Keys.END), *((i, Keys.PAGE_UP) for i in range(5)), *((i, Keys.HOME) for i in (4, 3, 2, 1))]
    turns += [lambda i=i, key=key: bars[i].send_keys(key) for i, key in (*moves, (3, Keys.END), (2, Keys.END))]
    turns.append(lambda: alpha.send_keys("0.01"))
    seen = set()
    for turn in turns:
        turn()
        got, cells = shown_power(driver)
        want = pairs.chances(got["n"], got["gap"], got["psi"], got["rate"], got["alpha"], got["margin"])
        for kind, found in want.items():
            for key in ("power", "smallest", "enough", "same"):
                approx = pytest.approx(found[key], rel=1e-6, abs=1e-9) if found[key] is not None else None
                assert got[f"{kind}{key.title()}"] == approx, (kind, key, got)
            power = cells[kind][0].removesuffix(" %")
            told = "over 99.9" if 0.999 < found["power"] < 1 else f"{100 * found['power']:.1f}"
            assert power == told or abs(float(power) - 100 * found["power"]) < 0.051
        assert got["exact"] == (want["paired"]["exact"] and pytest.approx(want["paired"]["exact"], abs=1e-9))
        assert got["psi"] >= got["gap"] and got["rate"] + got["gap"] <= 1
        seen.add(tuple(got.values()))
    assert len(seen) >= len(turns) - 3
    buttons[0].click()
    assert buttons[0].get_attribute("aria-pressed") == "true" and HOSTILE in buttons[0].text
    said = find(driver, "[data-widget=power] output")
    assert "With 350 pairs, a true gap of 11.4 points is seen with over 99.9" in said.text and "(paired)" in said.text
    buttons[-1].click()  # so few pairs that the formula is off: the exact test comes first
    told = "seen with 0.1 % chance (paired, exact test; by the formula 20.1 %)".replace(" %", "\u00a0%")
    assert told in said.get_property("textContent")
    buttons[0].click()
    design.send_keys("u")
    want = pairs.chances(350, 0.114, 0.12, 0.68)["unpaired"]
    assert f"with {100 * want['power']:.1f} % chance (unpaired)" in said.text.replace("\u00a0", " ")
    assert f"gaps from {100 * want['smallest']:.1f} points" in said.text


def test_the_chart_of_power_can_be_clicked(show):
    from selenium.webdriver.common.action_chains import ActionChains

    driver = show(pairs.gap_power())
    wait_for(driver, "[data-widget=power] output")
    found = []
    for x in (-0.5, 0, 0.5):
        svg = find(driver, ".ab-chart svg")  # drawn anew by every click
        ActionChains(driver).move_to_element_with_offset(svg, int(x * svg.rect["width"]) - (x > 0), 0).click().perform()
        found.append(shown_power(driver)[0]["n"])
    assert found[0] == 10 and 150 < found[1] < 400 and found[2] == 5000
    assert not driver.find_elements("css selector", ".ab-set [aria-pressed=true]")


def preference(text=HOSTILE):
    """Two lines on two sizes; in the second size A first is not measured in phase 3."""
    rows = []
    for size, line, phase, step in itertools.product(("1M", text), (f"{text} A", "B"), (1, 2, 3), (0, 10, 20)):
        up = (line == "B") == (phase == 2)
        p = (0.1, 0.4, 0.9)[step // 10] if up else (0.9, 0.6, 0.1)[step // 10]
        if (size == "1M" or phase < 3) or line == "B":
            point = {"first": line, "size": size, "phase": phase, "step": step, "n": 7}
            rows.append(point | {"p": p, "lo": p - 0.1, "hi": p + 0.1})
    return pairs.order_of_training(rows, phases={2: f"{text} two"}, ytitle=text, title=text)


def test_an_order_of_training_is_read_off_by_keyboard_and_pointer(show):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    driver = show(preference())
    wait_for(driver, "[data-widget=order] svg")
    said, bar = find(driver, "[data-widget=order] output"), find(driver, "[data-widget=order] input[type=range]")
    assert said.text == f"phase 1, step 0: {HOSTILE} A 0.10 [0.00, 0.20], n = 7; B 0.90 [0.80, 1.00], n = 7."
    bar.send_keys(*[Keys.ARROW_RIGHT] * 4)
    where = f"{HOSTILE} two, step 10"
    assert said.text == f"{where}: {HOSTILE} A 0.60 [0.50, 0.70], n = 7; B 0.40 [0.30, 0.50], n = 7."
    assert bar.get_attribute("aria-valuetext") == where
    bar.send_keys(Keys.END)
    assert said.text.startswith("phase 3, step 20:")
    rows = driver.find_elements("css selector", "[data-widget=order] .ab-stage tbody tr")
    cells = [[c.text for c in r.find_elements("css selector", "td")] for r in rows]
    assert cells == [["12 [10, 14]"] * 3] * 2  # 10 + 10 * 0.1 / 0.5; the ends of the band at 10 and 14
    rings = driver.find_elements("css selector", "[data-widget=order] svg circle[fill='var(--ab-card)']")
    bands = driver.find_elements("css selector", "[data-widget=order] svg path[fill-opacity]")
    assert len(rings) == 6 == len(bands)
    svg = find(driver, ".ab-chart svg")
    ActionChains(driver).move_to_element(svg).perform()
    assert "two, step 10" in said.text
    find(driver, "[data-widget=order] select").send_keys("<")
    rows = driver.find_elements("css selector", "[data-widget=order] .ab-stage tbody tr")
    assert rows[0].find_elements("css selector", "td")[2].text == "–"
    bar.send_keys(Keys.END)
    assert said.text == "phase 3, step 20: B 0.10 [0.00, 0.20], n = 7."


PAIRS = {"tiers": both_tiers, "power": lambda text: pairs.gap_power(title=text), "order": preference}


@pytest.mark.parametrize("kind", PAIRS)
def test_a_phone_has_room_for_pairs(show, kind):
    driver = show('<meta name="viewport" content="width=device-width">', PAIRS[kind]("word"))
    size = {"width": 320, "height": 700, "deviceScaleFactor": 2, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        wait_for(driver, "output")
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 320
        assert all(b.size["height"] >= 40 for b in driver.find_elements("css selector", ".ab-w :is(button, select)"))
        chart = driver.find_elements("css selector", ".ab-chart svg")
        assert all(c.size["width"] <= 300 for c in chart) and len(chart) == (kind != "tiers")
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_words_of_pairs_stand_out(show, theme):
    driver = show(*(make("word") for make in PAIRS.values()), theme=theme)
    wait_for(driver, "[data-widget=tiers] .ab-side")
    wait_for(driver, "[data-widget=order] svg")
    find(driver, "[data-kind=faking]").click()
    css = "button, output, .ab-note, .ab-turn > *, h4, .ab-chip, .ab-keys li, th, td, label > span, .ab-key span"
    assert too_faint(driver, f".ab-stage :is({css})") == []


@pytest.mark.parametrize("kind", ["tiers", "order"])
def test_pairs_that_cannot_be_unpacked_leave_the_table(show, kind):
    from selenium.webdriver.support.ui import WebDriverWait

    driver = show("<script>delete window.DecompressionStream</script>", PAIRS[kind]("word"))
    note = "//p[contains(., 'could not start')]"
    WebDriverWait(driver, 5).until(lambda d: d.find_elements("xpath", note))
    assert find(driver, f"[data-widget={kind}] details").get_attribute("open") is not None
    assert len(driver.find_elements("css selector", ".ab-still")) == (kind == "tiers")
