"""``--policy`` and what goes with it."""

import argparse
from dataclasses import replace

from kvtuner_core.cli.options import add_model, add_scheme, scheme
from kvtuner_core.errors import PolicyError
from kvtuner_core.services.policies import Match, PolicyChoice, choose_policy

_REFINEMENTS = (
    ("group_size", None, "group_size"),
    ("residual", None, "residual_length"),
    ("symmetric", False, "symmetric"),
    ("sinks", 0, "sink_length"),
    ("residual_share", 0.0, "residual_share"),
    ("rotation", "none", "rotation"),
)
"""Options of a scheme, what they are where nobody gave them, and the fields that they set."""


def add_policy(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """``--policy``, ``--match``, the model and the scheme."""
    parser.add_argument(
        "--policy", required=required, metavar="P", help="a policy file, a uniform name such as K4V2, or full"
    )
    parser.add_argument(
        "--match",
        choices=[str(rule) for rule in Match],
        default="weights",
        help="refuse other weights than the policy's, or only other cache shapes",
    )
    add_model(parser)
    add_scheme(parser, default=None)


def policy_choice(args: argparse.Namespace) -> PolicyChoice:
    """The policy asked for; what refines a scheme is for uniform names and may not contradict a file."""
    choice = choose_policy(args.policy, None if args.scheme is None else scheme(args))
    if choice.document is None:
        return replace(choice, scheme=scheme(args))
    own = choice.document.policy.scheme
    for option, default, name in _REFINEMENTS:
        given = getattr(args, option)
        if given != default and given != getattr(own, name):
            raise PolicyError(f"A policy file has its own {name} ({getattr(own, name)}); got {given}. Leave it out.")
    return choice
