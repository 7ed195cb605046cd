import pytest


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
