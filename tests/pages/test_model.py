import pytest


@pytest.mark.usefixtures("demo")
def test_the_shipped_study_tells_the_geometry_without_torch(open_page):
    app = open_page("model")
    values = {metric.label: metric.value for metric in app.metric}
    assert values["Layers with a cache"] == "8"
    assert values["KV heads"] == "3"


@pytest.mark.usefixtures("demo")
def test_a_model_that_is_not_there_is_one_line(open_page):
    app = open_page("model", model="no/such-folder/model.gguf")
    assert not app.exception
    assert len(app.error) == 1
    assert app.file_uploader


@pytest.mark.usefixtures("demo")
def test_why_a_prompt_file_is_refused_is_said_beside_it_until_another_is_given(open_page):
    app = open_page("model")
    app.file_uploader(key="upload").upload("broken.jsonl", b'{"text": "oops', "application/json").run()
    assert [error.value.replace("\\", "") for error in app.error] == [
        "Line 1 of 'broken.jsonl' must be one JSON object; it is not valid JSON."
    ]
    app.file_uploader(key="upload").set_value(("good.jsonl", b'{"text": "fine"}', "application/json")).run()
    assert not app.error
    assert [toast.value.replace("\\", "") for toast in app.toast] == ["good.jsonl: 1 prompt is ready to use."]


@pytest.mark.usefixtures("demo")
def test_batch_and_context_change_the_cost(open_page):
    app = open_page("model", batch="1", context="1024")
    before = app.dataframe[1].value
    app.number_input(key="model-batch").set_value(2).run()
    assert (app.dataframe[1].value.iloc[:, 2] > before.iloc[:, 2]).all()
