import pytest

from kvtuner_core.services import measured, results
from pages.components import speed
from pages.components.policies import identity


@pytest.mark.usefixtures("demo")
def test_the_best_policy_of_the_run_is_chosen_first(open_page):
    app = open_page("compare")
    assert len(app.multiselect[0].value) == 1
    assert not next(button for button in app.button if button.label == "Generate").disabled


@pytest.mark.usefixtures("demo")
def test_without_a_policy_there_is_nothing_to_start(open_page):
    app = open_page("compare")
    app.multiselect[0].set_value([]).run()
    assert next(button for button in app.button if button.label == "Generate").disabled


@pytest.mark.usefixtures("demo")
def test_an_empty_prompt_is_one_line(open_page):
    app = open_page("compare")
    app.text_area[0].set_value("  ").run()
    assert len(app.error) == 1


@pytest.mark.usefixtures("demo")
@pytest.mark.parametrize("job", ["unknown", "demo", "<b>"])
def test_a_generation_that_is_not_there_is_one_line(open_page, job):
    app = open_page("compare", job=job)
    assert not app.exception
    assert len(app.error) == 1


def _tables(app):
    return [table.value for table in app.dataframe]


@pytest.mark.usefixtures("demo")
def test_what_was_measured_is_shown_with_card_and_day(open_page):
    app = open_page("compare")
    shipped = measured.measured_speed()
    assert f"Measured on an {shipped.step.origin.device}" in [heading.value for heading in app.subheader]
    said = " ".join(text.value for text in app.markdown)
    assert speed.day(shipped.step.origin.date) in said
    assert "not on this machine" in said
    table = next(table for table in _tables(app) if "Share of that (%)" in table)
    rows = shipped.step.of_scheme("per-token")
    assert list(table["Times faster than bf16"]) == [row.speedup for row in rows]


@pytest.mark.usefixtures("demo")
def test_attention_alone_and_the_other_scheme_can_be_chosen(open_page):
    app = open_page("compare", speed="attention", attention="per-channel keys")
    table = next(table for table in _tables(app) if "Share of that (%)" in table)
    rows = measured.measured_speed().attention.of_scheme("per-channel keys")
    assert list(table["Times faster than bf16"]) == [row.speedup for row in rows]


@pytest.mark.usefixtures("demo")
def test_a_mixed_policy_is_shown_what_its_neighbours_measured(open_page):
    front = results.demo_study().front
    mixed = next(item for item in front if item.policy.uniform_pair is None and 2 < item.nominal_bits < 8)
    app = open_page("compare", policy=identity(mixed))
    table = next(table for table in _tables(app) if "Measured" in table)
    assert [words.split(" (")[1] for words in table["Measured"]] == ["next wider)", "next narrower)"]


@pytest.mark.usefixtures("demo")
def test_without_the_shipped_tables_the_page_does_without(open_page, monkeypatch, tmp_path):
    monkeypatch.setattr(measured, "MEASURED_FILE", tmp_path / "none.json")
    app = open_page("compare")
    assert not app.exception
    assert not any("Measured on" in heading.value for heading in app.subheader)
