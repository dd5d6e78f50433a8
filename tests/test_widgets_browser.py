"""Widgets in headless Chromium, from a file, with the network off. Skipped where Chromium is missing."""

import math
import shutil

import pytest

from alignbook import widgets
from alignbook.fits import SHAPES, Fit, solve_for

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
