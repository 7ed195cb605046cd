import os
import subprocess
import sys

from kvtuner_core.compute.threads import let_idle_threads_sleep

_SCRIPT = """
import os, pathlib, sys
from kvtuner_core.compute import InlineCompute
from kvtuner_core.domain.model import ModelSpec
from kvtuner_core.domain.tasks import InspectTask
from kvtuner_core.errors import KVTunerError
assert "torch" not in sys.modules
try:
    InlineCompute(cache_dir=pathlib.Path(sys.argv[1])).run(InspectTask(model=ModelSpec(reference="/nowhere/at/all")))
except KVTunerError:
    pass
assert "torch" in sys.modules
print(os.environ["GOMP_SPINCOUNT"])
"""


def test_idle_threads_spin_briefly_unless_somebody_said_otherwise(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    let_idle_threads_sleep()
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    let_idle_threads_sleep()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    let_idle_threads_sleep()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_model_work_in_this_process_begins_with_it(monkeypatch, tmp_path):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    done = subprocess.run([sys.executable, "-c", _SCRIPT, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1000"
