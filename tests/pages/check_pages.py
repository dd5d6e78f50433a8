"""The built pages, opened from the folder in headless Chromium with the network off (`make pages-check`).

Not collected by `make test`: it needs a built book, Chromium and its driver. Pictures of every
page, light and dark, are left in $ALIGNBOOK_SHOTS if it is set.
"""

import json
import os
import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

HTML = Path(__file__).resolve().parents[2] / "book" / "_build" / "html"
EXECUTED = HTML.parent / "jupyter_execute"
GENERATED = {"genindex.html", "search.html", "py-modindex.html", "index.html"}
ALL = sorted(p.relative_to(HTML).as_posix() for p in HTML.rglob("*.html") if "_static" not in p.parts)
PAGES = [p for p in ALL if p.startswith(("nbs/", "book/"))]
KNOWN_NOISE = ("Got invalid theme mode",)
SHOTS = os.environ.get("ALIGNBOOK_SHOTS")
OUTPUT_BYTES = 80_000
MOVE_JS = Path(__file__).with_name("move.js").read_text(encoding="utf-8")
ASSET = {
    "script": "src",
    "img": "src",
    "link": "href",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
}


class Links(HTMLParser):
    """Anchors, ids and loaded assets of one page, and its text outside of scripts."""

    def __init__(self):
        super().__init__()
        self.anchors, self.assets, self.ids, self.text, self.stack = [], [], set(), [], []

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a[k] for k in ("id", "name") if a.get(k)}
        if tag == "a" and a.get("href"):
            self.anchors.append(a["href"])
        if a.get(ASSET.get(tag)) and a.get("rel") not in (
            "next",
            "prev",
            "canonical",
            "index",
            "search",
            "author",
        ):
            self.assets.append(a[ASSET[tag]])
        if tag in ("script", "style"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        if self.stack and self.stack[-1] == tag:
            self.stack.pop()

    def handle_data(self, data):
        if not self.stack:
            self.text.append(data)


@pytest.fixture(scope="session")
def parsed():
    assert PAGES, "no built pages in book/_build/html: run `make book` first"
    out = {}
    for page in ALL:
        out[page] = Links()
        out[page].feed((HTML / page).read_text(encoding="utf-8"))
    return out


def inside(page, href):
    """The file and fragment that a link inside the book leads to; None for another server."""
    url = urlsplit(href)
    if url.scheme or url.netloc:
        return None
    target = (HTML / page).parent / unquote(url.path) if url.path else HTML / page
    return target.resolve(), url.fragment


def test_every_internal_link_leads_somewhere(parsed):
    bad = []
    for page, p in parsed.items():
        for href in p.anchors:
            if not (found := inside(page, href)):
                continue
            target, fragment = found
            if not target.exists():
                bad.append(f"{page}: {href}")
            elif fragment and target.suffix == ".html" and target.is_relative_to(HTML.resolve()):
                ids = parsed[target.relative_to(HTML.resolve()).as_posix()].ids
                if unquote(fragment) not in ids:
                    bad.append(f"{page}: {href} (no such place)")
    assert not bad, "\n".join(bad)


def test_every_asset_is_in_the_folder(parsed):
    bad = [
        f"{page}: {src}"
        for page, p in parsed.items()
        for src in p.assets
        if not src.startswith("data:") and not ((found := inside(page, src)) and found[0].exists())
    ]
    assert not bad, "\n".join(bad)


def test_no_directive_is_shown(parsed):
    bad = [
        page
        for page, p in parsed.items()
        if re.search(r"#\s*\|\s*(hide|export|default_exp|eval|slow|gpu|code-fold)", "".join(p.text))
    ]
    assert not bad


def test_no_output_is_over_budget():
    big = []
    for path in EXECUTED.rglob("*.ipynb"):
        for i, cell in enumerate(json.loads(path.read_text())["cells"]):
            for out in cell.get("outputs", []):
                size = max(
                    (len("".join(v)) for k, v in out.get("data", {}).items() if k.startswith("text/")),
                    default=0,
                )
                if max(size, len("".join(out.get("text", "")))) > OUTPUT_BYTES:
                    big.append(f"{path.name} cell {i}: {size} bytes")
    assert not big, big


# ---------------------------------------------------------------- in the browser


@pytest.fixture(scope="session")
def browser():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    chrome = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    assert chrome and driver, (
        "needs chromium and chromedriver: on Debian, apt-get install chromium chromium-driver"
    )
    options = webdriver.ChromeOptions()
    options.binary_location = chrome
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-default-apps",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--window-size=1400,1000",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    b = webdriver.Chrome(options=options, service=Service(driver))
    b.set_script_timeout(60)
    yield b
    b.quit()


def run(browser, function):
    """The result of an async function of move.js."""
    call = f"{function}().then(done).catch((e) => done('failed: ' + (e.stack || e)))"
    result = browser.execute_async_script(f"const done = arguments[0]; {MOVE_JS}; {call}")
    assert not str(result).startswith("failed: "), result
    return result


def open_page(browser, page):
    browser.get_log("performance"), browser.get_log("browser")
    browser.get((HTML / page).resolve().as_uri())
    return run(browser, "drawPage")


def outside_requests(browser):
    urls = []
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            urls.append(message["params"]["request"]["url"])
    return [u for u in urls if not u.startswith(("file:", "data:", "blob:", "about:", "chrome:"))]


def set_theme(browser, theme):
    browser.execute_script("Object.assign(document.documentElement.dataset, {theme: arguments[0]})", theme)
    time.sleep(0.2)


def shoot(browser, page):
    if not SHOTS:
        return
    Path(SHOTS).mkdir(parents=True, exist_ok=True)
    height = min(
        browser.execute_script(
            "return Math.max(...[...document.querySelectorAll('main')].map(e => e.scrollHeight), 900)"
        )
        + 200,
        15000,
    )
    browser.set_window_size(1400, height)
    for theme in ("light", "dark"):
        set_theme(browser, theme)
        browser.save_screenshot(f"{SHOTS}/{page.replace('/', '_').removesuffix('.html')}_{theme}.png")
    browser.set_window_size(1400, 1000)


@pytest.mark.parametrize("page", PAGES)
def test_page_opens_alone(browser, page):
    charts = open_page(browser, page)
    errors = [
        e["message"]
        for e in browser.get_log("browser")
        if e["level"] == "SEVERE" and not any(n in e["message"] for n in KNOWN_NOISE)
    ]
    assert not errors, errors
    assert not (asked := outside_requests(browser)), asked
    failed = browser.execute_script(
        "return [...document.querySelectorAll('div.vega-lite-chart[data-failed]')].map(e => e.innerText)"
    )
    assert not failed, failed
    drawn = browser.execute_script(
        "return document.querySelectorAll('div.vega-lite-chart svg, div.vega-lite-chart canvas').length"
    )
    assert drawn >= charts
    assert not browser.execute_script("return document.querySelectorAll('mjx-merror').length"), (
        "a formula has an error"
    )
    wide = browser.execute_script(
        "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    assert wide <= 2, f"the page is {wide} px wider than the window"
    shoot(browser, page)


@pytest.mark.parametrize("page", PAGES)
def test_everything_that_can_be_moved_moves(browser, page):
    open_page(browser, page)
    moved, bad = run(browser, "moveCharts")
    kinds, bad_widgets = run(browser, "moveWidgets")
    print(page, "chart inputs:", moved, "widgets:", kinds)
    assert not bad + bad_widgets, bad + bad_widgets
    errors = [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"]
    assert not errors, errors


def test_chart_selections_answer_the_mouse(browser):
    """If the book has charts with a selection made by the mouse, one changes when it is used."""
    from selenium.webdriver.common.action_chains import ActionChains

    for page in PAGES:
        if '"select": ' not in (HTML / page).read_text(encoding="utf-8"):
            continue
        open_page(browser, page)
        for el in browser.find_elements("css selector", "div.vega-lite-chart"):
            browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", el)
            spec = browser.execute_script("return arguments[0].querySelector('script').textContent", el)
            if '"interval"' not in spec and '"point"' not in spec:
                continue
            svg = el.find_element("css selector", "svg")
            before = svg.get_attribute("outerHTML")
            size = svg.size
            ActionChains(browser).move_to_element_with_offset(
                svg, -size["width"] // 6, 0
            ).click_and_hold().move_by_offset(size["width"] // 3, size["height"] // 8).release().perform()
            time.sleep(0.3)
            if svg.get_attribute("outerHTML") != before:
                return
            marks = svg.find_elements(
                "css selector",
                ".mark-symbol path, .mark-rect path, .mark-legend path, .role-legend-symbol path",
            )
            for mark in marks[:8]:
                try:
                    ActionChains(browser).move_to_element(mark).click().perform()
                except Exception:  # outside of the window
                    continue
                time.sleep(0.3)
                if svg.get_attribute("outerHTML") != before:
                    return
    if any('"select": ' in (HTML / p).read_text(encoding="utf-8") for p in PAGES):
        pytest.fail("no chart answered the mouse")


def test_search_finds_words_of_the_book(browser):
    browser.get((HTML / "search.html").resolve().as_uri() + "?q=interval")
    for _ in range(40):
        if found := browser.execute_script("return document.querySelectorAll('#search-results li').length"):
            break
        time.sleep(0.25)
    assert found, "the search page finds nothing without a server"


def test_dark_mode_is_dark(browser):
    open_page(browser, PAGES[0])
    shades = []
    for theme in ("light", "dark"):
        set_theme(browser, theme)
        colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        shades.append(sum(map(int, re.findall(r"\d+", colour)[:3])))
    assert shades[0] > 600 > 300 > shades[1], shades
