import pytest

from pages.components import wording


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1536, "1.5 KiB"), (2**20, "1 MiB"), (94_371_840, "90 MiB"), (2**30, "1 GiB")],
)
def test_sizes_have_a_unit_that_fits(count, text):
    assert wording.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "time not known yet"), (0.2, "about 1 s"), (40, "about 40 s"), (200, "about 3 min"), (7200, "about 2.0 h")],
)
def test_durations_are_rough(seconds, text):
    assert wording.duration(seconds) == text


def test_markup_is_shown_as_it_is():
    assert wording.plain("a *b* [c](d) $x$\n<e>") == r"a \*b\* \[c\]\(d\) \$x\$ \<e\>"


def test_times_are_readable_and_other_text_stays():
    assert wording.moment("2026-11-20T09:30:00Z") == "2026-11-20 09:30 UTC"
    assert wording.moment("yesterday") == "yesterday"


def test_counts_agree_with_their_noun():
    assert wording.count(1, "policy") == "1 policy"
    assert wording.count(2000, "policy") == "2,000 policies"
    assert wording.count(3, "job") == "3 jobs"


def test_large_counts_are_powers_of_ten():
    assert wording.power_of_ten(3) == "1,000"
    assert wording.power_of_ten(28.63) == "10^28.6"


def test_tiny_divergences_are_zero():
    assert wording.nats(1e-9) == "0"
    assert wording.nats(0.012345) == "0.0123"
