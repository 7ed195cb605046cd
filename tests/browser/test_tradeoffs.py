"""The trade-off page: the slider picks, a click adds, the file downloads."""

import json

import pytest
from playwright.sync_api import expect

from kvtuner_core import load_policy
from kvtuner_core.domain.study import Candidate, SearchResult
from tests.browser.conftest import STUDY
from tests.browser.screen import WAIT
from tests.fakes.studies import search_result

pytestmark = pytest.mark.browser


def _heading(screen) -> str:
    return screen.page.get_by_role("heading", name="Best within the budget").inner_text()


def test_the_slider_picks_another_policy_and_the_address_remembers_it(screen):
    screen.open("tradeoffs", run=STUDY, bits="4.5")
    before = _heading(screen)
    slider = screen.page.get_by_role("slider").first
    slider.focus()
    for _ in range(40):
        slider.press("ArrowRight")
    heading = screen.page.get_by_role("heading", name="Best within the budget")
    expect(heading).not_to_have_text(before, timeout=WAIT)
    screen.address_has("bits=4.9")
    after = _heading(screen)
    screen.page.reload()
    screen.rest()
    assert _heading(screen) == after
    screen.check()


def test_a_click_on_the_front_puts_a_policy_beside_and_the_next_takes_it_away(screen):
    screen.open("tradeoffs", run=STUDY)
    screen.page.wait_for_selector(".js-plotly-plot .scatterlayer .points path.point")
    lonely = _lonely(search_result(run=STUDY))
    for present in (True, False):
        screen.click_at(lambda: _place(screen, lonely.effective_bits), f"policy=p{lonely.order}", present=present)
    screen.check()


def _lonely(result: SearchResult) -> Candidate:
    """The policy of the front whose point is farthest from every other."""
    bits = [item.effective_bits for item in (*result.front, *result.baselines)]
    return max(result.front, key=lambda item: sorted(abs(item.effective_bits - other) for other in bits)[1])


def _place(screen, bits: float) -> tuple[float, float]:
    """Where the front's point of these bits is on the screen."""
    x, y = screen.page.evaluate(
        """bits => {
            const plot = document.querySelector('.js-plotly-plot');
            const trace = plot._fullData.findIndex(t => t.name.startsWith('front, evaluation'));
            const data = plot.calcdata[trace].filter(p => Math.abs(p.x - bits) < 1e-6)[0];
            const box = plot.getBoundingClientRect();
            const {xaxis, yaxis} = plot._fullLayout;
            return [box.left + xaxis._offset + xaxis.c2p(data.x), box.top + yaxis._offset + yaxis.c2p(data.y)];
        }""",
        bits,
    )
    return float(x), float(y)


def test_the_policy_file_downloads_and_loads(screen, tmp_path):
    screen.open("tradeoffs", run=STUDY, bits="5")
    with screen.page.expect_download() as caught:
        screen.page.get_by_role("button", name="policy.json").click()
    target = tmp_path / "policy.json"
    caught.value.save_as(target)
    assert json.loads(target.read_text(encoding="utf-8"))["format"] == "kvtuner-policy"
    assert len(load_policy(target).policy.layers) == 30
    with screen.page.expect_download() as caught:
        screen.page.get_by_role("button", name="KVTuner YAML").click()
    assert "nbits_key" in caught.value.path().read_text(encoding="utf-8")
    screen.check()


def test_each_chart_has_its_table(screen):
    screen.open("tradeoffs", run=STUDY)
    screen.page.get_by_role("tab", name="Table").first.press("Enter")
    expect(screen.page.get_by_test_id("stDataFrame").first).to_be_visible()
    screen.check()
