"""A search and a comparison of a tiny model, started in the browser, to their ends."""

import contextlib

import pytest
from playwright.sync_api import TimeoutError as TooSlow
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.slow]

LONG = 180_000


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
    screen.open(
        "search", new="true", model=str(server.home / "tiny"), prefix="64", evaluations="200", population="20", seed="7"
    )
    screen.page.get_by_role("button", name="Start the search").click()
    _cancel(screen.page)
    screen.page.get_by_role("button", name="Resume").click(timeout=LONG)
    expect(screen.page.get_by_text("Pick a policy from this front")).to_be_visible(timeout=LONG)
    screen.check()


def _cancel(page):
    """Click until it is done: a click while the panel is drawn again may be lost."""
    for _ in range(120):
        if page.get_by_role("button", name="Resume").count():
            return
        with contextlib.suppress(TooSlow):
            page.get_by_role("button", name="Cancel").click(timeout=1_000)
        page.wait_for_timeout(500)
