"""Long context on a GPU, for `tests.benchmarks.search`: a model of Llama-3.1-8B's geometry with random weights.

The session, the profiler and the search are those of the project, driven without a store. Its tokens are bytes.
"""

import statistics
import time
from collections.abc import Generator, Sequence
from typing import Any

import torch
from transformers import LlamaConfig

from kvtuner_core.domain.metrics import ErrorProfile, PolicyScore
from kvtuner_core.domain.model import DtypeChoice, ModelSpec
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.precision import FULL_PAIR, candidate_pairs
from kvtuner_core.domain.prompts import Prompt, PromptRole, PromptSet
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.domain.study import Candidate, GroupingOptions, PruningOptions, SearchSpec, SweepSpec
from kvtuner_core.domain.tasks import EvaluationSpec
from kvtuner_core.runtime.geometry import model_info
from kvtuner_core.runtime.loading import LoadedModel, quiet
from kvtuner_core.runtime.profiling import LayerProfiler
from kvtuner_core.runtime.session import Session
from kvtuner_core.tuning import PolicySearch, build_space
from tests.benchmarks.random_model import random_llama, random_texts
from tests.fakes.models import tiny_tokenizer

Row = dict[str, Any]

PREFIX = 32_768
SUFFIX = 128
BITS = (16, 8, 4, 2)
EVALUATIONS = 500
FULL_PASSES = 16
GEOMETRY = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
}


def load_random(device: torch.device, geometry: dict[str, int]) -> LoadedModel:
    """The model, with random weights."""
    config = LlamaConfig(
        **geometry, max_position_embeddings=131_072, rope_theta=500000.0, tie_word_embeddings=False, pad_token_id=256
    )
    with quiet():
        model = random_llama(config, device=device, dtype=torch.bfloat16)
    model.eval().requires_grad_(False)
    return LoadedModel(
        model=model, tokenizer=tiny_tokenizer(), info=model_info("random", model), device=device, dtype=torch.bfloat16
    )


def prompts(count: int, tokens: int) -> PromptSet:
    """Texts of random words, a byte a token."""
    texts = random_texts(count, tokens, seed=0)
    return PromptSet(name="random", role=PromptRole.CALIBRATION, prompts=tuple(Prompt(text=text) for text in texts))


class _Scorer:
    """Scores on a session, without a store; ``seconds`` is the time that this took."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.seconds = 0.0

    def score_many(self, policies: Sequence[KVPolicy]) -> Generator[PolicyScore, None, None]:
        started = time.perf_counter()
        scores = self._session.score_many(policies)
        self.seconds += time.perf_counter() - started
        yield from scores


class LongContext:
    """One session, swept and searched.

    Args:
        device: Where.
        geometry: Of the model.
        prefix: Tokens of each prompt that are quantised.
        suffix: Tokens that are scored.
        count: Prompts.
    """

    def __init__(self, device: torch.device, geometry: dict[str, int], *, prefix: int, suffix: int, count: int) -> None:
        self.loaded = load_random(device, geometry)
        self.evaluation = EvaluationSpec(
            model=ModelSpec(reference="random", dtype=DtypeChoice.BFLOAT16),
            prompts=prompts(count, prefix + suffix + 1),
            scheme=QuantScheme.per_token(),
            prefix_tokens=prefix,
            suffix_tokens=suffix,
        )
        self.session: Session | None = None
        self.profiles: tuple[ErrorProfile, ...] = ()

    def prepare(self) -> Session:
        """Read the prompts, once."""
        if self.session is None:
            self.session = Session(self.loaded, self.evaluation)
        return self.session

    def sweep(self) -> Row:
        """Every layer under every pair, the reading of the prompts included."""
        self.session = None
        started = time.perf_counter()
        session = self.prepare()
        read = time.perf_counter() - started
        pairs = [pair for pair in candidate_pairs(BITS) if pair is not FULL_PAIR and not pair.is_full]
        found: list[ErrorProfile] = []
        for layer in range(len(session.layers)):
            found += LayerProfiler(session, layer).profile(pairs)
        self.profiles = tuple(found)
        return {
            "seconds": time.perf_counter() - started,
            "reading_seconds": read,
            "layers": len(session.layers),
            "pairs": len(pairs),
            "mean_isolated_kl": statistics.mean(profile.kl for profile in found),
            "plan": {"together": session.together, "storage": str(session.plan.storage)},
        }

    def search(self, evaluations: int) -> Row:
        """The default strategy; the sweep and the reading of the prompts are there."""
        session = self.prepare()
        spec = SearchSpec(sweep=SweepSpec(bits=BITS), evaluations=evaluations)
        search = PolicySearch(
            spec,
            space=build_space(self.profiles, PruningOptions(), GroupingOptions()),
            profiles=self.profiles,
            geometry=session.layers,
        )
        started = time.perf_counter()
        scorer = _Scorer(session)
        found: list[Candidate] = list(search.candidates(scorer))
        seconds = time.perf_counter() - started
        scoring = sum(candidate.calibration.seconds for candidate in found)
        return {
            "seconds": seconds,
            "evaluations": len(found),
            "seconds_of_scoring": scoring,
            "deciding_seconds": seconds - scorer.seconds,
            "seconds_per_evaluation": seconds / len(found),
            "together": session.together,
        }

    def full_pass_seconds(self) -> float:
        """Median time of a forward pass over a whole prompt, with the logits of its suffix, after one to warm up."""
        prompt = self.prepare().prompts[0]
        ids = torch.tensor([[*prompt.prefix, *prompt.suffix]], device=self.loaded.device)
        times = []
        with torch.inference_mode():
            for _ in range(FULL_PASSES + 1):
                started = time.perf_counter()
                logits = self.loaded.model(ids, use_cache=False, logits_to_keep=len(prompt.suffix)).logits
                float(logits[0, -1, 0])
                times.append(time.perf_counter() - started)
        return statistics.median(times[1:])


def rows(names: Sequence[str]) -> list[Row]:
    """The rows asked for; a search is always after its sweep."""
    bench = LongContext(torch.device("cuda", 0), GEOMETRY, prefix=PREFIX, suffix=SUFFIX, count=1)
    found: list[Row] = []

    def add(name: str, row: Row) -> None:
        found.append({"what": name, "device": "cuda", **row, "peak_bytes": torch.cuda.max_memory_allocated()})
        torch.cuda.reset_peak_memory_stats()

    torch.cuda.reset_peak_memory_stats()
    add("sweep_32k", bench.sweep())
    searched: Row = {}
    if "search_32k" in names or "speedup_over_full_forward" in names:
        searched = bench.search(EVALUATIONS)
        add("search_32k", searched)
    if "speedup_over_full_forward" in names:
        full = bench.full_pass_seconds()
        each = searched["seconds_per_evaluation"]
        add(
            "speedup_over_full_forward",
            {
                "seconds": full * FULL_PASSES,
                "full_passes": FULL_PASSES,
                "seconds_per_full_pass": full,
                "seconds_per_evaluation": each,
                "times": full / each,
                "extrapolated_seconds_of_full_passes": full * searched["evaluations"],
            },
        )
    return found
