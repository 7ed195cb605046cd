"""The sensitivity page: a click on a cell of the heatmap opens its layer."""

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import STUDY
from tests.browser.screen import WAIT

pytestmark = pytest.mark.browser

PLACE = """layer => {
    const plot = document.querySelector('.js-plotly-plot');
    const box = plot.getBoundingClientRect();
    const {xaxis, yaxis} = plot._fullLayout;
    return [box.left + xaxis._offset + xaxis.c2p(layer), box.top + yaxis._offset + yaxis.c2p(4)];
}"""


def test_a_click_on_a_cell_opens_its_layer(screen):
    screen.open("sensitivity", run=STUDY)
    screen.page.wait_for_selector(".js-plotly-plot .scatterlayer .points path.point", state="attached")
    # At once after the chart is drawn: the browser still has the list's value of before.
    for layer in (7, 21):
        screen.click_at(lambda layer=layer: screen.page.evaluate(PLACE, layer), f"layer={layer}")
        expect(screen.page.get_by_text(f"Layer {layer}", exact=True).first).to_be_visible(timeout=WAIT)
    screen.page.wait_for_timeout(1500)
    screen.rest()
    screen.address_has("layer=21")
    expect(screen.page.get_by_text("Layer 21", exact=True).first).to_be_visible()
    screen.check()
