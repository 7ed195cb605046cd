import os
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

from kvtuner_core.compute import InlineCompute
from kvtuner_core.domain.ports import Compute
from tests.compute.runners import ScriptedRunner, scripted

ROOT = Path(__file__).parents[2]


@pytest.fixture
def made(monkeypatch, tmp_path):
    """Every runtime that was made, with the arguments it was made with."""
    runtimes = []

    class Counted(ScriptedRunner):
        def __init__(self, *, cache_dir, roots):
            super().__init__(tmp_path)
            self.arguments, self.busy, self.most, self.closed = (cache_dir, roots), 0, 0, 0
            runtimes.append(self)

        def run(self, task, **rest):
            self.busy += 1
            self.most = max(self.most, self.busy)
            try:
                return super().run(task, **rest)
            finally:
                self.busy -= 1

        def close(self):
            self.closed += 1

    module = ModuleType("kvtuner_core.runtime.worker")
    module.Runtime = Counted
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return runtimes


def test_one_runtime_is_made_at_the_first_task_and_kept(made, tmp_path):
    compute: Compute = InlineCompute(cache_dir=tmp_path, roots=(tmp_path,))
    assert made == []
    events = []
    assert compute.run(scripted("go"), emit=events.append).text == "0 1 2 "
    compute.run(scripted("go"))
    assert len(events) == 3
    assert [runtime.arguments for runtime in made] == [(tmp_path, (tmp_path,))]
    assert compute.workers()[0].pid == os.getpid()


def test_tasks_of_several_threads_take_turns(made, tmp_path):
    compute = InlineCompute(cache_dir=tmp_path)
    threads = [threading.Thread(target=compute.run, args=(scripted("slow 0.005"),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(runtime.most) for runtime in made] == [1]


def test_closing_releases_the_runtime_once(made, tmp_path):
    compute = InlineCompute(cache_dir=tmp_path)
    compute.close()
    compute.run(scripted("go"))
    compute.close()
    compute.close()
    assert [runtime.closed for runtime in made] == [1]


def test_importing_compute_imports_neither_dask_nor_torch():
    code = "import sys, kvtuner_core.compute; print(sorted({'distributed', 'dask', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
