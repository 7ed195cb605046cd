"""``evaluate`` and ``generate``: one policy on the live model."""

import argparse
from collections.abc import Generator
from dataclasses import dataclass, replace

from kvtuner_core.cli import documents, tasks
from kvtuner_core.cli.choosing import add_policy, policy_choice
from kvtuner_core.cli.options import Parser, add_common, add_cut, model_spec, open_lightly, open_workspace
from kvtuner_core.cli.output import Output
from kvtuner_core.domain.runs import Progress
from kvtuner_core.domain.scheme import PrefillMode
from kvtuner_core.domain.tasks import GenerateTask, Generation, TokenEvent
from kvtuner_core.services.evaluating import Evaluation, EvaluationRequest, evaluate
from kvtuner_core.services.generating import check_generation, generate
from kvtuner_core.services.models import ensure_report
from kvtuner_core.services.policies import Match, PolicyChoice
from kvtuner_core.services.workspace import Workspace


def add_commands(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add both commands' arguments."""
    parser = commands.add_parser("evaluate", help="measure one policy on one prompt set")
    add_policy(parser)
    add_cut(parser, prompts="evaluation", limit=None, suffix=128)
    tasks.add_task(parser)
    add_common(parser)
    parser.set_defaults(command=run_evaluate)
    parser = commands.add_parser("generate", help="generate text from the really quantised cache")
    add_policy(parser)
    parser.add_argument("--prompt", required=True, metavar="TEXT")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.add_argument("--no-chat", action="store_true", help="do not wrap the prompt in the model's chat template")
    parser.add_argument(
        "--prefill", choices=[str(mode) for mode in PrefillMode], default="full", help="what prompt tokens attend to"
    )
    add_common(parser)
    parser.set_defaults(command=run_generate)


def run_evaluate(args: argparse.Namespace, out: Output) -> None:
    """Evaluate a policy, on prompts or on a task."""
    if args.task is not None:
        tasks.run_task(args, out, policy_choice(args))
        return
    request = EvaluationRequest(
        model=model_spec(args),
        policy=policy_choice(args),
        prompts=args.prompts,
        limit=args.limit,
        prefix_tokens=args.prefix_tokens,
        suffix_tokens=args.suffix_tokens,
        seed=args.seed,
        match=Match(args.match),
    )
    with open_workspace(args) as ws:
        result = out.follow(evaluate(ws, request))
    if out.as_json:
        out.document(documents.evaluation(result, prompt_set=args.prompts))
    else:
        out.text(_evaluation_text(result, args.prompts))


def _evaluation_text(result: Evaluation, prompts: str) -> str:
    score = result.score
    return "\n".join(
        [
            f"{result.policy.name} on {result.model.name}, {result.policy.scheme.label}",
            f"KL               {score.kl.mean:.4g} [{score.kl.low:.4g}, {score.kl.high:.4g}] nats per token",
            f"Top-1 agreement  {100 * score.top1_agreement:.2f}%",
            f"NLL change       {score.nll_change:+.4g} nats per token",
            f"Bits             {result.nominal_bits:.3f} nominal, {result.effective_bits:.3f} effective",
            f"Cache            {score.cache_bytes} bytes at the end of the longest prompt",
            f"Measured on      {score.tokens} tokens of {score.prompts} prompts ({prompts}), {result.provenance.device}"
            + (", stored before" if result.reused else ""),
        ]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """A generation whose policy waits for the model."""

    choice: PolicyChoice
    match: Match
    task: GenerateTask


def run_generate(args: argparse.Namespace, out: Output) -> None:
    """Generate text, shown as it comes."""
    task = GenerateTask(
        model=model_spec(args),
        policy=None,
        prompt=args.prompt,
        max_new_tokens=args.max_new_tokens,
        chat=not args.no_chat,
        temperature=args.temperature,
        seed=args.seed,
        prefill=PrefillMode(args.prefill),
    )
    check_generation(task)
    request = _Request(choice=policy_choice(args), match=Match(args.match), task=task)
    with open_lightly(args) as ws:
        steps = _steps(ws, request)
        result = out.follow(steps) if out.as_json else _stream(steps, out)
    if out.as_json:
        out.document(documents.generation(result, policy=args.policy))
        return
    saved = 1 - result.cache_bytes / max(1, result.full_precision_bytes)
    out.remark(
        f"{len(result.token_ids)} tokens, {result.tokens_per_second:.1f} a second on {result.device}; cache "
        f"{result.cache_bytes} bytes, full precision {result.full_precision_bytes} ({100 * saved:.1f}% saved)"
    )


def _steps(ws: Workspace, request: _Request) -> Generator[Progress, None, Generation]:
    report = yield from ensure_report(ws, request.task.model)
    policy = request.choice.for_model(report.info, request.match)
    return (yield from generate(ws, replace(request.task, policy=policy)))


def _stream(steps: Generator[Progress, None, Generation], out: Output) -> Generation:
    shown = 0
    try:
        while True:
            event = next(steps).event
            if isinstance(event, TokenEvent):
                out.text(event.text, end="")
                shown += len(event.text)
    except StopIteration as finished:
        result: Generation = finished.value
        # Half a character at the very end has no event of its own.
        out.text(result.text[shown:])
        return result
    finally:
        steps.close()
