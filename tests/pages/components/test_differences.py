from pages.components import differences


def test_the_same_tokens_have_no_difference():
    found = differences.compare(["a", "b"], ["a", "b"])
    assert found.first is None
    assert found.words == "Same tokens as full precision"
    assert found.marked == (False, False)


def test_tokens_that_differ_are_marked_and_what_returns_is_not():
    found = differences.compare(["The", " moon", " is", " round"], ["The", " sun", " is", " round"])
    assert found.first == 1
    assert found.marked == (False, True, False, False)
    assert found.words == "First differs at token 2; 1 of 4 tokens marked"


def test_an_unfinished_text_is_not_called_different():
    assert differences.compare(["a"], ["a", "b"], finished=False).first is None
    assert differences.compare(["a"], ["a", "b"]).first == 1


def test_text_is_escaped_and_marked_runs_are_joined():
    html = differences.as_html(["<b>", "x", "y\n"], [False, True, True])
    assert "&lt;b&gt;<mark" in html
    assert ">xy\n</mark>" in html
    assert html.count("<mark") == 1


def test_no_tokens_give_an_empty_text():
    assert differences.as_html([]).endswith("></div>")
