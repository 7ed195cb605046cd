"""A search and a comparison of a tiny model, started in the browser, to their ends."""

import psutil
import pytest
from playwright.sync_api import expect

from tests.browser.screen import Screen

pytestmark = [pytest.mark.browser, pytest.mark.slow]

LONG = 180_000
LONG_SEARCH = {"prefix": "64", "grouping": "false", "prune": "false", "evaluations": "300", "population": "20"}
"""Long enough to be cancelled or killed on the way."""


def test_a_search_started_in_the_browser_runs_to_its_end(screen, server):
    home = server.home
    screen.open("model")
    screen.page.get_by_test_id("stFileUploaderDropzoneInput").set_input_files(home / "calibration.jsonl")
    expect(screen.page.get_by_text("4 prompts are ready to use")).to_be_visible()
    screen.page.reload()
    screen.rest()
    screen.page.get_by_test_id("stFileUploaderDropzoneInput").set_input_files(home / "evaluation.jsonl")
    expect(screen.page.get_by_text("4 prompts are ready to use")).to_be_visible()
    sets = _uploads(server)
    screen.open(
        "search",
        new="true",
        model=str(home / "tiny"),
        calibration=sets["calibration.jsonl"],
        evaluation=sets["evaluation.jsonl"],
        **{"group_per-token": "16"},
        prefix="64",
        calibration_suffix="8",
        evaluation_suffix="8",
        evaluations="12",
        population="6",
    )
    start = screen.page.get_by_role("button", name="Start the search")
    expect(start).to_be_visible()
    screen.page.get_by_text("measurements").first.wait_for()
    start.click()
    expect(screen.page.get_by_text("Pick a policy from this front")).to_be_visible(timeout=LONG)
    screen.check()
    screen.page.get_by_role("link", name="Pick a policy from this front").click()
    expect(screen.page.get_by_role("heading", name="Best within the budget")).to_be_visible()
    screen.check()


def _uploads(server) -> dict[str, str]:
    import hashlib

    names = ("calibration.jsonl", "evaluation.jsonl")
    return {name: "upload:" + hashlib.sha256((server.home / name).read_bytes()).hexdigest() for name in names}


def test_generations_stream_side_by_side_and_differences_are_said(screen, server):
    screen.open("compare", source="uniform", model=str(server.home / "tiny"), pair="K2V2", tokens="24", chat="false")
    screen.page.get_by_role("button", name="Generate").click()
    expect(screen.page.get_by_text("Cache, measured")).to_have_count(2, timeout=LONG)
    words = screen.page.get_by_text("First differs at token").or_(
        screen.page.get_by_text("Same tokens as full precision")
    )
    expect(words).to_be_visible()
    screen.check()


@pytest.mark.model
def test_the_bundled_model_answers_in_full_precision_and_from_a_packed_cache(screen):
    screen.open("compare", source="uniform", pair="K4V4", tokens="12", prompt="What is the capital of France?")
    screen.page.get_by_role("button", name="Generate").click()
    expect(screen.page.get_by_text("Cache, measured")).to_have_count(2, timeout=2 * LONG)
    expect(screen.page.get_by_text("Paris").first).to_be_visible()
    screen.check()


def test_a_search_is_cancelled_and_resumed_to_its_end(screen, server):
    screen.open("search", new="true", model=str(server.home / "deep"), seed="7", **LONG_SEARCH)
    screen.page.get_by_role("button", name="Start the search").click()
    screen.page.get_by_role("button", name="Cancel").click()
    screen.page.get_by_role("button", name="Resume").click(timeout=LONG)
    expect(screen.page.get_by_text("Pick a policy from this front")).to_be_visible(timeout=LONG)
    screen.check()


def test_a_second_session_sees_the_search_and_one_click_there_cancels_it(screen, server, browser):
    screen.open("search", new="true", model=str(server.home / "deep"), seed="8", **LONG_SEARCH)
    screen.page.get_by_role("button", name="Start the search").click()
    expect(screen.page.get_by_role("button", name="Cancel")).to_be_visible()
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    other = Screen(context.new_page(), server.url)
    other.open("runs")
    other.page.get_by_role("button", name="Cancel").click()
    expect(screen.page.get_by_role("button", name="Resume")).to_be_visible(timeout=LONG)
    expect(other.page.get_by_role("heading", name="Queue")).to_have_count(0, timeout=LONG)
    for seen in (screen, other):
        seen.check()
    context.close()


def test_a_killed_worker_and_a_killed_dashboard_cost_nothing_that_was_measured(browser, own_server):
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    screen = Screen(context.new_page(), own_server.url)
    screen.open("search", new="true", model=str(own_server.home / "deep"), **LONG_SEARCH)
    screen.page.get_by_role("button", name="Start the search").click()
    scored = screen.page.get_by_text("search: ")
    scored.wait_for(timeout=LONG)
    for worker in psutil.Process(own_server.process.pid).children(recursive=True):
        worker.kill()
    before = scored.inner_text()
    expect(scored).not_to_have_text(before, timeout=LONG)
    own_server.process.kill()
    own_server.process.wait()
    own_server.start()
    screen.open("runs")
    expect(screen.page.get_by_text("interrupted").first).to_be_visible()
    screen.page.get_by_role("button", name="Resume").click()
    screen.page.get_by_role("link", name="Search", exact=True).click()
    expect(screen.page.get_by_text("Pick a policy from this front")).to_be_visible(timeout=LONG)
    # A page whose server was killed says so on the console; what counts is what it shows now.
    screen.problems.clear()
    screen.check()
    context.close()
