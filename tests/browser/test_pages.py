"""Every page in a real browser: drawn, quiet, within the window, light and dark."""

import pytest

from tests.browser.conftest import STUDY
from tests.browser.screen import WAIT

pytestmark = pytest.mark.browser

PAGES = ("", "model", "sensitivity", "search", "tradeoffs", "compare", "runs")


# The first test of the session meets a server that nobody has opened yet.
def test_a_page_opened_first_by_its_own_address_has_the_frame(screen):
    screen.open("runs")
    assert screen.page.get_by_role("link", name="Trade-offs").first.is_visible()
    screen.check()


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("width", [1280, 900])
def test_a_page_is_drawn_without_a_problem(screen, path, width):
    screen.page.set_viewport_size({"width": width, "height": 800})
    screen.open(path, run=STUDY)
    screen.check()


@pytest.mark.parametrize("path", ["tradeoffs", "sensitivity"])
def test_charts_are_drawn_in_the_dark_too(browser, server, path):
    from tests.browser.screen import Screen

    context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme="dark")
    screen = Screen(context.new_page(), server.url)
    screen.open(path, run=STUDY)
    screen.page.wait_for_selector(".js-plotly-plot .main-svg")
    screen.check()
    ground = screen.page.evaluate("getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor")
    assert sum(int(part) for part in ground.strip("rgba()").split(",")[:3]) < 200
    context.close()


def test_the_menu_turns_the_dark_on_and_labels_in_charts_follow_at_once(screen):
    screen.open("tradeoffs", run=STUDY)
    labels = "() => getComputedStyle(document.querySelector('.js-plotly-plot .scatterlayer text')).fill"
    screen.page.wait_for_selector(".js-plotly-plot .scatterlayer text", state="attached")
    light = screen.page.evaluate(labels)
    screen.page.get_by_test_id("stMainMenu").get_by_role("button").click()
    screen.page.locator("[data-testid=stMainMenuPopover] button").filter(has_text="Dark").click()
    screen.page.wait_for_function(f"before => ({labels})() !== before", arg=light, timeout=WAIT)
    dark = screen.page.evaluate(labels)
    assert min(int(part) for part in dark.strip("rgb()").split(",")) > 200
    screen.check()


def test_every_page_is_reached_from_the_frame(screen):
    screen.open()
    for name in ("Model", "Sensitivity", "Search", "Trade-offs", "Compare", "Runs", "Overview"):
        screen.page.get_by_role("link", name=name, exact=True).first.click()
        screen.rest()
    screen.check()
