"""What two worker processes have each to do of a search on devices that score several policies in a pass."""

import functools

import pytest

from kvtuner_core.compute import DaskCompute
from kvtuner_core.domain.study import SearchSpec
from kvtuner_core.services.measuring import Measurements, bunch_sizes
from kvtuner_core.services.requests import calibration_session
from kvtuner_core.services.workspace import Workspace
from kvtuner_core.tuning import PolicySearch
from tests.fakes.pacing import PacedRunner
from tests.fakes.studies import sweep_result

LAYERS = 16
IN_PASS = 8


class OneProcess:
    """A compute that is one paced runner in this process."""

    def __init__(self, runner):
        self._runner = runner

    def run_many(self, tasks, *, report, cancelled):  # noqa: ARG002 - the runner made the report
        for index, task in enumerate(tasks):
            yield index, self._runner.run(task)

    def workers(self):
        return ("this process",)

    def close(self):
        self._runner.close()


def passes(book):
    """Passes that a process made, and its tasks."""
    tasks = [int(line) for line in book.read_text().split()]
    return sum(-(-count // IN_PASS) for count in tasks), len(tasks)


@pytest.fixture
def searched(ws, tmp_path):
    """Runs the default search of 200 evaluations on a compute; its policies, and passes and tasks of each process."""

    def search(compute, folder):
        swept = sweep_result(layers=LAYERS)
        store = ws.store if isinstance(compute, OneProcess) else type(ws.store).open(None)
        own = Workspace(settings=ws.settings, store=store, compute=compute, queue=ws.queue)
        report = PacedRunner(str(tmp_path), seconds=0.0, layers=LAYERS).report()
        measurements = Measurements.of(own, calibration_session(own, swept.spec), report)
        spec = SearchSpec(sweep=swept.spec, evaluations=200)
        searcher = PolicySearch(spec, space=swept.space, profiles=swept.profiles, geometry=swept.model.layers)
        found = [candidate.policy for candidate in searcher.candidates(measurements)]
        return found, sorted(passes(book) for book in folder.glob("tasks *"))

    return search


def test_two_workers_share_the_passes_and_find_the_same(searched, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    alone, [(all_passes, _)] = searched(OneProcess(PacedRunner(str(one), seconds=0.0, layers=LAYERS)), one)
    factory = functools.partial(PacedRunner, str(two), seconds=0.02, layers=LAYERS)
    compute = DaskCompute(cache_dir=tmp_path, processes=2, runner_factory=factory)
    try:
        together, shares = searched(compute, two)
    finally:
        compute.close()
    assert together == alone
    assert len(shares) == 2
    # One pass more than needed would be made in each batch if passes were not full ones.
    assert all_passes <= 200 // IN_PASS + 2
    assert all_passes / max(made for made, _ in shares) >= 1.8
    assert sum(tasks for _, tasks in shares) <= 28, "a message to each worker in each of a dozen batches, and two more"


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("most", [1, 5, 8, 20, 32])
@pytest.mark.parametrize("count", [1, 2, 7, 8, 16, 25, 48, 100])
def test_no_worker_has_more_than_a_pass_beyond_another(count, workers, most):
    sizes = bunch_sizes(count, workers=workers, most=most)
    assert sum(sizes) == count
    assert min(sizes) >= 1
    assert max(sizes) <= max(1, most)
    # Tasks go round: one for each worker, then the next ones.
    shares = [sum(sizes[worker::workers]) for worker in range(workers)]
    assert max(shares) - min(shares) < 2 * IN_PASS


def test_a_batch_of_passes_is_split_into_whole_ones():
    assert bunch_sizes(16, workers=2, most=32) == [8, 8]
    assert bunch_sizes(48, workers=2, most=16) == [16, 16, 8, 8]
    assert bunch_sizes(25, workers=1, most=8) == [8, 8, 8, 1]
    assert bunch_sizes(6, workers=2, most=32) == [3, 3]
