import json
import stat
from dataclasses import replace

import pytest

from kvtuner_core.domain.document import ModelIdentity
from kvtuner_core.domain.model import LayerGeometry
from kvtuner_core.domain.policy import KVPolicy, LayerPrecision
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.errors import InputError, PolicyError, SchemeError
from kvtuner_core.services.picking import Budget, pick
from kvtuner_core.services.policies import (
    Match,
    check_match,
    choose_policy,
    document,
    export_policy,
    import_policy,
    load_policy,
    plain_document,
    policy_json,
    save_policy,
)
from tests.fakes.models import tiny_model
from tests.fakes.studies import model_info, search_result


def _mixed(layers=3, scheme=None):
    names = ("K8V4", "K4V2", "K4V4", "K2V2")
    pairs = (PrecisionPair.parse(names[index % 4]) for index in range(layers))
    return KVPolicy.from_pairs(pairs, scheme=scheme or QuantScheme.kivi(group_size=8, residual_length=8))


def test_a_document_holds_model_memory_evidence_and_provenance():
    result = search_result()
    chosen = pick(result, Budget(max_bits=4.5))
    made = document(result, chosen, notes=(("max_bits", "4.5"),))
    assert made.model.fingerprint == result.sweep.model.fingerprint
    assert made.effective_bits == chosen.effective_bits
    assert made.evidence.evaluation_kl == chosen.evaluation.kl
    assert made.evidence.calibration_kl == chosen.calibration.kl
    assert {item.name for item in made.evidence.baselines} == {item.policy.name for item in result.baselines}
    assert made.origin == "search run synthetic"


def test_a_file_comes_back_as_it_was_written(tmp_path):
    result = search_result()
    made = document(result, result.front[3])
    path = tmp_path / "policy.json"
    save_policy(made, path)
    assert load_policy(path).document == made
    assert load_policy(str(path)).policy == result.front[3].policy
    assert not [other for other in tmp_path.iterdir() if other != path]
    assert stat.S_IMODE(path.stat().st_mode) & stat.S_IRUSR


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="output file must be writable"):
        save_policy(plain_document(_mixed()), tmp_path / "gone" / "policy.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="output file must be writable"):
        save_policy(plain_document(_mixed()), tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b"[" * 50_000, b'{"format": "kvtuner-policy"}'])
def test_a_bad_file_is_one_clear_line(tmp_path, content):
    path = tmp_path / "policy.json"
    path.write_bytes(content)
    with pytest.raises(PolicyError) as caught:
        load_policy(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path / "gone.json", tmp_path, tmp_path / "\0"):
        with pytest.raises(InputError):
            load_policy(path)


def test_a_policy_generates_from_its_packed_cache(tmp_path):
    import torch

    model = tiny_model("llama")
    path = tmp_path / "policy.json"
    save_policy(plain_document(_mixed()), path)
    cache = load_policy(path).build_cache(model)
    ids = torch.randint(3, 200, (1, 40), generator=torch.Generator().manual_seed(0))
    out = model.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=5)
    assert out.shape == (1, 45)
    assert cache.policy == _mixed()
    assert cache.measured_bytes() > 0


def test_a_policy_of_other_weights_is_refused_unless_the_shapes_are_enough(tmp_path):
    from kvtuner_core.runtime.geometry import model_info as info_of

    mine, other = tiny_model("llama"), tiny_model("llama", seed=1)
    path = tmp_path / "policy.json"
    save_policy(plain_document(_mixed(), info_of("mine", mine)), path)
    loaded = load_policy(path)
    assert loaded.build_cache(mine, prefill="quantised").policy == loaded.policy
    with pytest.raises(PolicyError, match=r"for the weights it was measured on .*allow it with match geometry"):
        loaded.build_cache(other)
    assert loaded.build_cache(other, match="geometry").policy == loaded.policy
    with pytest.raises(PolicyError, match=r"cache shapes .3 layers, 2 KV heads of 16"):
        loaded.build_cache(tiny_model("phi"), match=Match.GEOMETRY)
    with pytest.raises(PolicyError, match="match must be weights or geometry; got 'names'"):
        loaded.build_cache(mine, match="names")
    with pytest.raises(PolicyError, match="prefill must be full or quantised"):
        loaded.build_cache(mine, prefill="half")


def test_a_policy_without_a_model_still_needs_as_many_layers():
    with pytest.raises(PolicyError, match="one entry per cached layer"):
        check_match(plain_document(_mixed(4)), ModelIdentity.of(model_info(3)))


def test_names_and_files_name_policies(tmp_path):
    info = model_info(3)
    scheme = QuantScheme.kivi()
    assert choose_policy("KV4", scheme).for_model(info) == KVPolicy.uniform("K4V4", layers=3, scheme=scheme)
    assert choose_policy("k4v2").for_model(info).scheme == QuantScheme.per_token()
    assert choose_policy("full").for_model(info) is None
    path = tmp_path / "policy.json"
    save_policy(plain_document(_mixed()), path)
    assert choose_policy(str(path), QuantScheme.kivi()).for_model(info) == _mixed()
    with pytest.raises(PolicyError, match=r"own scheme \(kivi\); got scheme per-token"):
        choose_policy(str(path), QuantScheme.per_token())


@pytest.mark.parametrize("name", ["K5V4", "nonsense", "K4V"])
def test_other_names_are_refused(name):
    with pytest.raises(PolicyError):
        choose_policy(name)


def test_a_scheme_that_does_not_fit_the_model_is_refused():
    with pytest.raises(SchemeError):
        choose_policy("KV4", QuantScheme.per_token(group_size=48)).for_model(model_info(3))


@pytest.mark.parametrize("heads", [False, True])
def test_the_original_projects_files_go_out_and_in_without_loss(tmp_path, heads):
    policy = _mixed(3)
    if heads:
        per_head = LayerPrecision(heads=(PrecisionPair.parse("K8V4"), PrecisionPair.parse("K2V2")))
        policy = replace(policy, layers=(policy.layers[0], per_head, policy.layers[2]))
    path = tmp_path / "bits.yaml"
    path.write_text(export_policy(policy, to="kvtuner-yaml"))
    imported = import_policy(path, source="kvtuner-yaml", scheme=policy.scheme)
    assert imported.policy == policy
    assert imported.origin == "imported from bits.yaml"
    assert json.loads(policy_json(imported))["format"] == "kvtuner-policy"


def test_other_formats_are_refused(tmp_path):
    with pytest.raises(PolicyError, match="to must be kvtuner-yaml; got 'xml'"):
        export_policy(_mixed(), to="xml")
    with pytest.raises(PolicyError, match="from must be kvtuner-yaml"):
        import_policy(tmp_path, source="xml", scheme=QuantScheme.per_token())


def test_shapes_are_named_in_few_words():
    layers = tuple(LayerGeometry(kv_heads=1, key_dim=8 * (1 + n % 5), value_dim=8) for n in range(10))
    made_for = replace(model_info(10), layers=layers)
    with pytest.raises(PolicyError, match=r"10 layers, 1 KV heads of 8 and .* and more") as caught:
        check_match(plain_document(_mixed(10, QuantScheme.per_token()), made_for), ModelIdentity.of(model_info(10)))
    assert len(str(caught.value)) < 400
