import os
import signal
import subprocess
import sys
from pathlib import Path

from kvtuner_core.domain.model import LayerGeometry, ModelInfo
from kvtuner_core.domain.ports import RunLog
from kvtuner_core.domain.runs import RunKind, RunRecord, RunStatus
from kvtuner_core.domain.tasks import ModelReport
from kvtuner_core.store import Store
from tests.fakes.measurements import PROVENANCE, profile, score
from tests.store.test_measurements import PROFILES, SCORES

ROOT = Path(__file__).parents[2]

WRITER = """
import sys
from pathlib import Path
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.runs import Progress, RunKind, RunRecord, RunStatus
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.store import Store
from tests.fakes.measurements import PROVENANCE, score, session

store = Store.open(Path(sys.argv[1]))
store.add_run(RunRecord(id="a", kind=RunKind.SEARCH, status=RunStatus.QUEUED, title="t", spec="{}", created="2026"))
store.update_run("a", status=RunStatus.RUNNING)
for number in range(1, 1000):
    identity = session().score(KVPolicy.uniform("KV4", layers=number, scheme=QuantScheme.per_token()))
    store.put_score(identity, score(number), PROVENANCE)
    store.update_run("a", progress=Progress(stage="search", done=number, total=1000))
    print(identity.key, flush=True)
"""


def test_what_was_put_survives_a_kill(tmp_path):
    path = tmp_path / "store.duckdb"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    keys = [writer.stdout.readline().strip() for _ in range(25)]
    writer.send_signal(signal.SIGKILL)
    rest = writer.communicate()[0].split()
    keys += [key for key in rest if len(key) == 64]
    with Store.open(path) as store:
        assert store.count_scores(keys) == len(keys)
        for number, key in enumerate(keys, start=1):
            assert store.get_score(key) == score(number)
        (run,) = store.runs(statuses=(RunStatus.RUNNING,))
        assert run.done >= len(keys) - 1
        store.put_score(SCORES[0], score(), PROVENANCE)


def test_the_store_is_a_run_log():
    with Store.open(None) as store:
        log: RunLog = store
        assert log.runs() == ()


def test_deleting_a_run_keeps_the_shared_measurements():
    with Store.open(None) as store:
        store.add_run(
            RunRecord(id="a", kind=RunKind.SWEEP, status=RunStatus.DONE, title="t", spec="{}", created="2026")
        )
        store.put_score(SCORES[0], score(), PROVENANCE)
        store.put_profile(PROFILES[0], profile(), PROVENANCE)
        store.delete_run("a")
        assert store.get_score(SCORES[0].key) == score()
        assert store.get_profile(PROFILES[0].key) == profile()


def test_everything_is_there_after_opening_again(tmp_path):
    path = tmp_path / "store.duckdb"
    with Store.open(path) as store:
        store.put_score(SCORES[0], score(), PROVENANCE)
        store.put_result("a", '{"x": Infinity}')
    with Store.open(path) as store:
        assert store.get_score(SCORES[0].key) == score()
        assert store.get_result("a") == '{"x": Infinity}'


def test_a_models_report_comes_back_and_is_replaced():
    info = ModelInfo(
        reference="tiny",
        name="tiny",
        architecture="LlamaForCausalLM",
        fingerprint="f",
        geometry_digest="g",
        layers=(LayerGeometry(kv_heads=1, key_dim=8, value_dim=8, sliding_window=16),),
        query_heads=2,
        hidden_size=16,
        max_positions=64,
        vocabulary=100,
    )
    report = ModelReport(info=info, provenance=PROVENANCE, free_bytes=1, total_bytes=2)
    newer = ModelReport(info=info, provenance=PROVENANCE, free_bytes=3, total_bytes=4)
    with Store.open(None) as store:
        assert store.get_report("tiny", "cpu") is None
        store.put_report("tiny", "cpu", report)
        assert store.get_report("tiny", "cpu") == report
        store.put_report("tiny", "cpu", newer)
        assert store.get_report("tiny", "cpu") == newer
        assert store.get_report("tiny", "cuda") is None
