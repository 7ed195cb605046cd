"""A runner for worker processes whose tasks are written in the prompt of a `GenerateTask`, or a model's name."""

import os
import time
from pathlib import Path

from kvtuner_core.domain.model import ModelSpec
from kvtuner_core.domain.provenance import Provenance
from kvtuner_core.domain.tasks import GenerateTask, Generation, InspectTask, ModelReport, ProfileTask, TokenEvent
from kvtuner_core.errors import CancelledError, ModelError
from tests.fakes.measurements import profile
from tests.fakes.studies import SyntheticScorer, model_info


class ScriptedRunner:
    """Emits a token a step, and fails, dies or waits where the prompt says so."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def run(self, task, *, emit=None, cancelled=None):
        (self.folder / f"pid-{os.getpid()}").touch()
        prompt = task.model.reference if isinstance(task, InspectTask) else task.prompt
        command, _, argument = prompt.partition(" ")
        if command == "refuse":
            raise ModelError(argument)
        if command == "break":
            raise FileNotFoundError(argument)
        if command == "die":
            os._exit(1)
        texts = []
        for number in range(getattr(task, "max_new_tokens", 1)):
            if cancelled is not None and cancelled():
                raise CancelledError("stopped in the worker")
            if command == "slow":
                time.sleep(float(argument))
            texts.append(f"{number} ")
            if emit is not None:
                emit(TokenEvent(token=number, text=texts[-1]))
        (self.folder / f"done-{os.getpid()}").touch()
        return Generation(
            text="".join(texts),
            token_ids=tuple(range(len(texts))),
            token_texts=tuple(texts),
            prompt_tokens=1,
            cache_bytes=1,
            full_precision_bytes=1,
            tokens_per_second=1.0,
            prefill_seconds=0.0,
            device=os.environ.get("OMP_NUM_THREADS", ""),
        )

    def close(self):
        (self.folder / "closed").touch()


def scripted(prompt, *, tokens=3, reference="tiny"):
    return GenerateTask(model=ModelSpec(reference=reference), policy=None, prompt=prompt, max_new_tokens=tokens)


class MeasuringRunner:
    """Profiles and scores at once, after what files in its folder say: ``slow``, ``die``, ``odd`` and ``refuse``."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def run(self, task, *, emit=None, cancelled=None):  # noqa: ARG002 - measurements emit nothing
        if isinstance(task, GenerateTask):
            return ScriptedRunner(self.folder).run(task)
        if isinstance(task, InspectTask):
            return report(dtype="bfloat16" if self._takes("odd") else "float32")
        what = f"layer {task.layer}" if isinstance(task, ProfileTask) else task.policy.name
        (self.folder / f"begun {what} {os.getpid()} {time.monotonic_ns()}").touch()
        if (self.folder / f"die {what}").exists():
            os._exit(1)
        if (self.folder / f"refuse {what}").exists():
            raise ModelError(f"No {what}.")
        slow = self.folder / "slow"
        time.sleep(float(slow.read_text()) if slow.exists() else 0.0)
        return (profile(task.layer, task.pairs[0].name),) if isinstance(task, ProfileTask) else measured(task.policy)

    def _takes(self, name):
        """Whether there was a file of this name; the first who asks has it."""
        try:
            (self.folder / name).unlink()
        except FileNotFoundError:
            return False
        return True

    def close(self):
        pass


def report(**changes):
    """What a worker of `MeasuringRunner` finds."""
    fields = {"created": "", "device": "cpu", "device_type": "cpu", "dtype": "float32"} | changes
    return ModelReport(info=model_info(4), provenance=Provenance(**fields), free_bytes=1, total_bytes=1)


def measured(policy):
    """The score that `MeasuringRunner` gives."""
    return SyntheticScorer(model_info(4)).score(policy)
