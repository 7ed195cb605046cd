"""A runner for worker processes whose tasks are written in the prompt of a `GenerateTask`, or a model's name."""

import os
import time
from pathlib import Path

from kvtuner_core.domain.model import ModelSpec
from kvtuner_core.domain.tasks import GenerateTask, Generation, InspectTask, TokenEvent
from kvtuner_core.errors import CancelledError, ModelError


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
