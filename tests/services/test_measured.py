import pytest
from PIL import Image

from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.errors import InputError
from kvtuner_core.services import measured
from tests.benchmarks import publish

PER_TOKEN, KIVI = QuantScheme.per_token(), QuantScheme.kivi()


def _policy(*names, scheme=PER_TOKEN):
    return KVPolicy.from_pairs([PrecisionPair.parse(name) for name in names], scheme=scheme)


def _near(policy, scheme="per-token"):
    return [(near.pair, near.relation) for near in measured.neighbours(measured.measured_speed().step, policy, scheme)]


def test_what_ships_is_what_was_committed():
    assert measured.measured_speed() == publish.measured()


def test_the_picture_shows_what_ships():
    with Image.open(publish.PICTURE) as picture:
        assert picture.text["Description"] == publish.digest(measured.measured_speed())
        assert picture.width >= 1000


def test_speed_ups_are_what_the_times_say():
    shipped = measured.measured_speed()
    for row in (*shipped.step.rows, *shipped.attention.rows):
        assert row.speedup == pytest.approx(row.full_ms / row.ms, rel=2e-3)
        assert row.ceiling >= 1


def test_the_limit_of_attention_is_the_ratio_of_the_bytes():
    row = next(
        row for row in measured.measured_speed().attention.rows if (row.pair, row.scheme) == ("K4V4", "per-token")
    )
    assert row.ceiling == pytest.approx(16 / 4.25, rel=1e-3)


def test_a_result_without_a_day_is_stamped_once(tmp_path):
    path = tmp_path / "result.json"
    path.write_text('{"device": "GPU", "rows": []}')
    publish.stamp(path)
    stamped = path.read_text()
    assert '"date": "20' in stamped
    publish.stamp(path)
    assert path.read_text() == stamped


def test_a_measured_policy_is_its_own_neighbour():
    near = measured.neighbours(measured.measured_speed().step, _policy("K4V4"), "per-token")
    assert [(one.pair, one.relation) for one in near] == [("K4V4", "the same")]
    assert {row.pair for row in near[0].rows} == {"K4V4"}


def test_a_mixed_policy_lies_between_the_next_wider_and_the_next_narrower():
    assert _near(_policy("K8V8", "K4V2")) == [("K8V4", "next wider"), ("K4V4", "next narrower")]
    assert _near(_policy("K2V4")) == [("K4V2", "next wider"), ("K2V2", "next narrower")]
    assert _near(_policy("K16V16", "K8V8")) == [("K16V16", "next wider"), ("K8V8", "next narrower")]
    assert _near(_policy("K2V2", "K3V2")) == [("K4V2", "next wider"), ("K2V2", "next narrower")]


def test_the_scheme_is_the_one_that_groups_keys_alike():
    shipped = measured.measured_speed()
    assert measured.scheme_of(shipped.step, _policy("K4V4")) == "per-token"
    assert measured.scheme_of(shipped.step, _policy("K4V4", scheme=KIVI)) == "kivi"
    assert measured.scheme_of(shipped.attention, _policy("K4V4", scheme=KIVI)) == "per-channel keys"


def test_a_missing_file_is_nothing_and_a_damaged_one_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "MEASURED_FILE", tmp_path / "measured_speed.json")
    assert measured.measured_speed() is None
    (tmp_path / "measured_speed.json").write_text("{}")
    with pytest.raises(InputError, match="make measured"):
        measured.measured_speed()
