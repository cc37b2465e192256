"""The page in a real browser: it works offline, and nothing in a dialogue is ever executed."""

import re
from pathlib import Path

import pytest
from browser import chromium, contents, find, needs_browser, show
from fake_report import CUT, JUDGES, NASTY, TRAINED, WARM, fake_report, nasty_report
from selenium.common.exceptions import JavascriptException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from detox_rl.report.page import write

pytestmark = needs_browser

COUNT = 130
INDEPENDENT = f"toxicity/{JUDGES[1]['name']}"


@pytest.fixture(scope="module")
def report() -> dict:
    return fake_report(COUNT)


@pytest.fixture(scope="module")
def file(report, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write(report, path)
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def page(browser, file):
    """The page, just opened at the size of a desktop; afterwards the browser must not have complained."""
    show(browser, file.as_uri(), 1280)
    yield browser
    assert browser.get_log("browser") == []


def said(page, selector: str) -> str:
    return page.find_element(By.CSS_SELECTOR, selector).get_property("textContent")


def choose(page, name: str) -> None:
    page.find_element(By.CSS_SELECTOR, f"#filters input[value={name}]").click()


def ids(page) -> list[str]:
    return contents(page, "#list .id")


def total(page) -> int:
    count = said(page, "#count")
    return int(re.search(r"of (\d+) dialogue", count)[1]) if "–" in count else 0


def change(row: dict, system: str = TRAINED, measure: str = INDEPENDENT) -> float:
    after, before = (row["texts"][name]["values"][measure] for name in (system, WARM))
    return after - before


# -- leafing ---------------------------------------------------------------------------------------


def test_it_opens_with_the_first_twenty_dialogues_folded(page, report):
    assert ids(page) == [row["id"] for row in report["rows"][:20]]
    assert total(page) == COUNT and said(page, "#place") == "Page 1 of 7"
    assert not find(page, "#list details[open]") and find(page, "#texts .aside")[0].is_displayed()
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_paging_reaches_the_last_dialogue_and_stops(page, report):
    page.find_element(By.ID, "next").click()
    assert ids(page) == [row["id"] for row in report["rows"][20:40]]
    assert page.switch_to.active_element.tag_name == "summary"
    for _ in range(5):
        page.find_element(By.ID, "next").click()
    assert ids(page) == [row["id"] for row in report["rows"][120:]]
    assert not page.find_element(By.ID, "next").is_enabled()
    page.find_element(By.ID, "previous").click()
    assert ids(page) == [row["id"] for row in report["rows"][100:120]]


@pytest.mark.parametrize(
    "name, badge, wanted",
    [
        ("omissions", "omits", lambda row: row["texts"][TRAINED]["report"] == "omit"),
        ("speaker", "wrong speaker", lambda row: row["texts"][TRAINED]["speaker"] is False),
        ("quotes", "quotes", lambda row: row["texts"][TRAINED]["report"] == "quote"),
    ],
)
def test_filters_keep_what_they_name(page, report, name, badge, wanted):
    rows = [row for row in report["rows"] if wanted(row)]
    choose(page, name)
    assert 0 < total(page) == len(rows) < COUNT and ids(page) == [row["id"] for row in rows[:20]]
    assert said(page, f"#filters input[value={name}] + span").endswith(f" {len(rows)}")
    assert contents(page, "#list .badge").count(badge) == len(ids(page))
    choose(page, "all")
    assert total(page) == COUNT


@pytest.mark.parametrize("name, sign", [("regressions", 1), ("gains", -1)])
def test_worst_and_best_come_first_by_an_independent_judge(page, report, name, sign):
    choose(page, name)
    rows = sorted((row for row in report["rows"] if sign * change(row) > 0), key=lambda row: -sign * change(row))
    assert total(page) == len(rows) and ids(page)[:5] == [row["id"] for row in rows[:5]]


def test_another_judge_and_another_system_change_the_order(page, report):
    choose(page, "regressions")
    Select(page.find_element(By.ID, "judge")).select_by_visible_text(JUDGES[2]["name"])
    Select(page.find_element(By.ID, "system")).select_by_visible_text(CUT)
    measure = f"toxicity/{JUDGES[2]['name']}"
    worst = max(report["rows"], key=lambda row: change(row, CUT, measure))
    assert ids(page)[0] == worst["id"]
    assert total(page) == sum(change(row, CUT, measure) > 0 for row in report["rows"])


def test_rude_dialogues_only_works_with_every_filter(page, report):
    page.find_element(By.ID, "rude").click()
    assert total(page) == sum(row["rude"] for row in report["rows"])
    choose(page, "regressions")
    assert total(page) == sum(row["rude"] and change(row) > 0 for row in report["rows"])


def test_the_search_wants_every_word_somewhere_in_the_texts(page, report):
    row = report["rows"][50]
    box = page.find_element(By.ID, "search")
    box.send_keys(row["id"])
    assert ids(page) == [row["id"]]
    box.clear()
    box.send_keys("LUCA banana")
    assert total(page) == sum("Luca" in row["dialogue"] and "banana" in row["dialogue"] for row in report["rows"]) > 0
    box.send_keys(" zzzz")
    assert ids(page) == [] and said(page, "#count") == "No dialogue is like that."


# -- one dialogue ----------------------------------------------------------------------------------


def test_a_dialogue_opens_by_keyboard_and_holds_all_its_texts(page, report):
    row = report["rows"][1]
    summary = find(page, "#list .dialogue > summary")[1]
    summary.send_keys(Keys.ENTER)
    opened = find(page, "#list details[open] > .body")
    assert len(opened) == 1
    shown = opened[0].get_property("textContent")
    assert row["reference"] in shown and all(text["text"] in shown for text in row["texts"].values())
    assert "\n".join(contents(page, "#list [open] .turns div")) == row["dialogue"]
    assert contents(page, "#list [open] tbody th") == [measure["title"] for measure in report["measures"].values()]


def test_changed_and_rude_words_are_marked(browser, tmp_path):
    report = fake_report(2)
    texts = {WARM: "Tom calls Ann a bloody fool, and leaves.", TRAINED: "Tom insults Ann, and leaves.", CUT: ""}
    for system, text in texts.items():
        report["rows"][0]["texts"][system]["text"] = text
    write(report | {"rude_words": ["bloody", "BLOODY FOOL", "lea"]}, tmp_path / "report.html")
    show(browser, (tmp_path / "report.html").as_uri(), 1280)
    find(browser, "#list summary")[0].click()
    assert contents(browser, "#list [open] del") == ["calls", "a bloody fool"]
    assert contents(browser, "#list [open] ins") == ["insults"]
    assert contents(browser, "#list [open] del mark") == ["bloody fool"]
    assert contents(browser, "#list [open] p.text")[1:] == [texts[WARM], texts[TRAINED], "(empty)"]
    assert browser.get_log("browser") == []


def test_all_of_a_page_open_and_close_at_once(page):
    button = page.find_element(By.ID, "open")
    button.click()
    assert len(find(page, "#list > details[open]")) == 20 and button.text == "Close all"
    page.find_element(By.ID, "next").click()
    assert len(find(page, "#list > details[open]")) == 20
    button.click()
    assert not find(page, "#list details[open]") and said(page, "#place") == "Page 2 of 7"


# -- for everyone ----------------------------------------------------------------------------------


def test_headings_come_in_order_with_every_dialogue_open(page):
    page.find_element(By.ID, "open").click()
    levels = page.execute_script("return [...document.querySelectorAll('h1,h2,h3,h4,h5,h6')].map(e => +e.tagName[1])")
    assert levels[0] == 1 and all(after - before <= 1 for before, after in zip(levels, levels[1:]))


def test_the_keyboard_reaches_controls_and_wide_tables(page):
    first = page.find_element(By.TAG_NAME, "body")
    first.send_keys(Keys.TAB)
    assert page.switch_to.active_element.get_attribute("class") == "skip"
    assert all(box.get_attribute("tabindex") == "0" for box in find(page, ".scroll"))
    radio = page.find_element(By.CSS_SELECTOR, "#filters input:checked")
    radio.send_keys(Keys.ARROW_RIGHT)
    assert find(page, "#filters input:checked")[0].get_attribute("value") == "regressions"
    assert page.execute_script("return document.activeElement.value") == "regressions"


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_never_scrolls_sideways(browser, tmp_path, width):
    report = fake_report(22)
    report["rows"][0]["dialogue"] = "Name" * 30 + ": " + "w" * 900
    report["rows"][0]["id"] = "i" * 300
    report["rows"][0]["texts"][TRAINED]["text"] = "v" * 900
    report["run"]["folder"] = "f" * 300
    report["headline"] = ["h" * 300]
    report["curves"]["val/" + "c" * 100] = [[0, 1.0]]
    write(report, tmp_path / "report.html")
    show(browser, (tmp_path / "report.html").as_uri(), width)
    browser.execute_script("for (const each of document.querySelectorAll('details')) each.open = true")
    browser.find_element(By.ID, "open").click()
    browser.execute_script("for (const each of document.querySelectorAll('#list details')) each.open = true")
    assert browser.execute_script("return document.documentElement.scrollWidth") == width


# -- nothing is executed ---------------------------------------------------------------------------


def test_markup_in_texts_is_shown_and_not_executed(browser, tmp_path):
    write(nasty_report(), tmp_path / "report.html")
    show(browser, (tmp_path / "report.html").as_uri(), 1280)
    browser.find_element(By.ID, "open").click()
    assert set(NASTY) <= set(contents(browser, "#list p.text"))
    made = "return [...new Set([...document.querySelectorAll('#list *')].map(e => e.tagName.toLowerCase()))].sort()"
    harmless = "b dd del details div dl dt h3 h4 ins mark p section span summary table tbody td th thead tr".split()
    assert set(browser.execute_script(made)) <= set(harmless)
    assert browser.execute_script("return [document.scripts.length, window.broken ?? null]") == [2, None]
    assert browser.get_log("browser") == []


def test_even_markup_that_came_through_would_not_be_executed(browser, file):
    show(browser, file.as_uri(), 1280)
    for attempt in (
        "document.body.innerHTML = '<b>bold</b>'",
        "new Image().setAttribute('onerror', 'window.broken = 1')",
        "document.createElement('script').textContent = 'window.broken = 1'",
    ):
        with pytest.raises(JavascriptException, match="requires 'Trusted"):
            browser.execute_script(attempt)
    browser.execute_script("new Image().src = 'https://example.org/image.png'")
    assert browser.execute_script("return window.broken ?? null") is None
    assert any("Content Security Policy" in entry["message"] for entry in browser.get_log("browser"))
