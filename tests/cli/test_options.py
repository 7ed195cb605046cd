import argparse

import pytest

from kvtuner_core.cli.options import Parser, add_scheme, add_sweep, scheme, sweep_spec
from kvtuner_core.domain.model import DeviceChoice, DtypeChoice
from kvtuner_core.domain.scheme import QuantScheme, Rotation
from kvtuner_core.domain.study import NoiseRule, SweepSpec
from kvtuner_core.errors import InputError, SchemeError


def _scheme(*arguments, default="per-token"):
    parser = Parser(prog="test")
    add_scheme(parser, default=default)
    return scheme(parser.parse_args(arguments))


def test_schemes_have_their_published_defaults():
    assert _scheme() == QuantScheme.per_token()
    assert _scheme("--scheme", "kivi") == QuantScheme.kivi()
    assert _scheme(default=None) is None
    assert _scheme("--symmetric", default=None) == QuantScheme.per_token(symmetric=True)


def test_schemes_are_refined():
    arguments = ("--group-size", "16", "--residual", "0", "--sinks", "4", "--symmetric")
    wanted = {"group_size": 16, "residual_length": 0, "sink_length": 4, "symmetric": True}
    assert _scheme("--scheme", "kivi", *arguments) == QuantScheme.kivi(**wanted)
    assert _scheme("--scheme", "per-token", *arguments) == QuantScheme.per_token(**wanted)
    later = ("--residual-share", "0.2", "--rotation", "keys")
    turned = {"residual_share": 0.2, "rotation": Rotation.KEYS}
    assert _scheme("--scheme", "kivi", *later) == QuantScheme.kivi(**turned)
    assert _scheme(*later, default=None) == QuantScheme.per_token(**turned)
    with pytest.raises(SchemeError):
        _scheme("--group-size", "1")
    with pytest.raises(SchemeError, match="residual_share"):
        _scheme("--residual-share", "0.6")


def test_without_options_a_sweep_is_the_default_one():
    parser = Parser(prog="test")
    add_sweep(parser)
    assert sweep_spec(parser.parse_args([])) == SweepSpec()


def test_every_option_of_a_sweep_counts():
    parser = Parser(prog="test")
    add_sweep(parser)
    options = "--model m --device cpu --dtype bfloat16 --bits 8,3 --prompts p.txt --limit 4 --seed 2"
    more = "--prefix-tokens 9 --suffix-tokens 7 --no-pruning --no-grouping --eps 0.2 --min-samples 3 --noise together"
    spec = sweep_spec(parser.parse_args([*options.split(), *more.split()]))
    assert (spec.model.reference, spec.model.device, spec.model.dtype) == ("m", DeviceChoice.CPU, DtypeChoice.BFLOAT16)
    assert (spec.bits, spec.prompts, spec.limit, spec.seed) == ((8, 3), "p.txt", 4, 2)
    assert (spec.prefix_tokens, spec.suffix_tokens) == (9, 7)
    assert (spec.pruning.enabled, spec.grouping.enabled) == (False, False)
    assert (spec.grouping.eps, spec.grouping.min_samples, spec.grouping.noise) == (0.2, 3, NoiseRule.TOGETHER)


def test_a_usage_error_is_raised_and_names_the_help():
    parser = Parser(prog="kvtuner_core sweep")
    with pytest.raises(InputError, match="See: python -m kvtuner_core sweep --help"):
        parser.error("wrong")
    with pytest.raises(InputError, match=r"^wrong\. See"):
        parser.error("wrong.")
    assert isinstance(parser, argparse.ArgumentParser)
