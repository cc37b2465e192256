"""The page to try a model in a real browser: it works without a script, on a phone, and by keyboard."""

import json
from threading import Thread

import pytest

pytest.importorskip("fastapi", reason="FastAPI is not installed: pip install 'detox_rl[app,dev]'")
import uvicorn
from browser import chromium, contents, find, needs_browser, show
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from detox_rl.app.feedback import Feedback
from detox_rl.app.web import Model, Site, application
from detox_rl.serve import address, bound
from detox_rl.summarizer import Summary

pytestmark = needs_browser

DIALOGUE = "Tom: You left the bin open, you idiot.\nAnna: “Sorry” & <b>goodbye</b>."
NASTY = "</textarea><img src=x onerror='window.broken=1'><script>window.broken=1</script>\"'>"
LONG = "w" * 900


def same(dialogues):
    return [Summary(f"{dialogue} idiot", 1, 0.875) for dialogue in dialogues]


def other(dialogues):
    return [Summary("Tom insults Anna.\nShe leaves.", 2, 0.125) for dialogue in dialogues]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Site:
    folder = tmp_path_factory.mktemp("site")
    return Site(Model("warm start", same), Model("v" * 200, other), Feedback(folder / "kept.jsonl"), None, 20_000)


@pytest.fixture(scope="module")
def place(site) -> str:
    """The address of a server."""
    with bound("127.0.0.1", 0) as own:
        own.listen()
        server = uvicorn.Server(uvicorn.Config(application(site, None), log_level="warning"))
        thread = Thread(target=server.run, kwargs={"sockets": [own]})
        thread.start()
        yield address(own)
        server.should_exit = True
        thread.join(60)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def page(browser, place):
    """The page, just opened at the size of a desktop; afterwards the browser must not have complained."""
    show(browser, place, 1280)
    yield browser
    assert browser.get_log("browser") == []


def press(page, element) -> None:
    """A button that leads to another page; a busy machine may take its time."""
    page.execute_script("window.left = true")
    element.send_keys(Keys.ENTER)
    arrived = "return !window.left && document.readyState === 'complete'"
    # Between two pages the browser has none to ask.
    WebDriverWait(page, 60, ignored_exceptions=[WebDriverException]).until(lambda page: page.execute_script(arrived))


def summarise(page, dialogue: str) -> None:
    page.execute_script("document.querySelector('textarea').value = arguments[0]", dialogue)
    press(page, find(page, "button.main")[0])


def test_from_a_dialogue_to_a_choice(page, place, site):
    """What is kept is what was typed and shown, letter by letter."""
    page.find_element(By.ID, "dialogue").send_keys(DIALOGUE)
    press(page, find(page, "button.main")[0])
    assert page.current_url == f"{place}/#result" and find(page, "#result")[0].is_displayed()
    assert [text.strip("\n") for text in contents(page, ".text")] == [
        f"{DIALOGUE} idiot",
        "Tom insults Anna.\nShe leaves.",
    ]
    assert contents(page, "mark")[:2] == ["idiot", "idiot"]
    assert page.find_element(By.ID, "dialogue").get_property("value") == DIALOGUE
    press(page, find(page, "button[value=after]")[0])
    assert contents(page, "[role=status]") == ["Thank you, your choice is kept."]
    (kept,) = [json.loads(line) for line in site.feedback.path.read_text().splitlines()]
    assert kept == {
        "dialogue": DIALOGUE,
        "preferred": "Tom insults Anna.\nShe leaves.",
        "rejected": f"{DIALOGUE} idiot",
    }


def test_it_runs_no_script_and_loads_nothing_but_its_style(page, place):
    summarise(page, DIALOGUE)
    loaded = page.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert loaded == [f"{place}/style.css"] and not find(page, "script")
    assert find(page, ".card")[0].value_of_css_property("border-top-width") == "1px"  # the policy lets the style in


def test_markup_is_shown_and_not_executed(page):
    summarise(page, NASTY)
    assert contents(page, ".text")[0].strip("\n") == f"{NASTY} idiot"
    assert page.find_element(By.ID, "dialogue").get_property("value") == NASTY
    assert not find(page, "main img, main script") and page.execute_script("return window.broken ?? null") is None


def test_a_bad_dialogue_is_named_and_still_there(browser, place):
    show(browser, place, 1280)
    summarise(browser, "a" * 20_001)
    (box,) = find(browser, "textarea")
    assert "20,001 characters" in contents(browser, "[role=alert]")[0] and len(box.get_property("value")) == 20_001
    assert box.get_attribute("aria-invalid") == "true" and box.get_attribute("aria-describedby") == "hint problem"
    show(browser, place, 1280)
    summarise(browser, "a" * 1_000_000)
    assert "longer than 100,000 bytes" in contents(browser, "body")[0]
    browser.get_log("browser")  # which holds the two refusals


def test_as_many_characters_as_are_taken_fit_into_the_form(page):
    summarise(page, 20_000 * "\N{GRINNING FACE}")
    assert not find(page, "[role=alert]") and len(contents(page, ".text")[0].strip("\n")) == 20_000 + len(" idiot")


def test_everything_has_a_name_and_the_keyboard_reaches_it(page):
    page.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    assert page.switch_to.active_element.accessible_name == "Dialogue"
    page.switch_to.active_element.send_keys(DIALOGUE, Keys.TAB)
    press(page, page.switch_to.active_element)
    assert contents(page, "h1, h2, h3")[:2] == ["One dialogue, two summaries", "Summaries"]
    levels = page.execute_script("return [...document.querySelectorAll('h1,h2,h3,h4')].map(e => +e.tagName[1])")
    assert levels == [1, 2, 3, 3, 2]
    buttons = find(page, "button")
    assert [button.accessible_name for button in buttons] == [
        "This one is better", "This one is better", "Both alike", "Summarise"
    ]  # fmt: skip
    described = [contents(page, f"[id={button.get_attribute('aria-describedby')}]")[0] for button in buttons[:2]]
    assert described == ["Before warm start", f"After {'v' * 200}"]


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_never_scrolls_sideways(browser, place, width):
    show(browser, place, width)
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    summarise(browser, LONG)
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    tops = [card.rect["y"] for card in find(browser, ".card")]
    assert tops[0] < tops[1]  # one below the other
