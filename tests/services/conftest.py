from dataclasses import replace

import pytest

from kvtuner_core.compute import InlineCompute
from kvtuner_core.domain.model import ModelSpec
from kvtuner_core.domain.study import GroupingOptions, PruningOptions, SearchSpec, SweepSpec
from kvtuner_core.jobs import JobQueue
from kvtuner_core.services.workspace import Settings, Workspace
from kvtuner_core.store import Store
from tests.fakes.compute import CountingCompute
from tests.fakes.models import save_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def shared_compute(tmp_path_factory):
    compute = InlineCompute(cache_dir=tmp_path_factory.mktemp("converted"))
    yield compute
    compute.close()


@pytest.fixture
def open_workspace(tmp_path, shared_compute):
    """Opens workspaces on one store file; the one before is closed first, as after a restart."""
    opened = []

    def open_one(name="store", **changes):
        close_all()
        settings = Settings(home=tmp_path, store_path=tmp_path / f"{name}.duckdb", **changes)
        store = Store.open(settings.store_path)
        ws = Workspace(settings=settings, store=store, compute=CountingCompute(shared_compute), queue=JobQueue(store))
        opened.append(ws)
        return ws

    def close_all():
        while opened:
            opened.pop().close()

    yield open_one
    close_all()


@pytest.fixture
def ws(open_workspace):
    return open_workspace()


@pytest.fixture
def sweep_spec(tiny):
    return SweepSpec(model=ModelSpec(reference=str(tiny)), limit=2, prefix_tokens=48, suffix_tokens=8)


@pytest.fixture
def search_spec(sweep_spec):
    # More policies than evaluations, so that NSGA-II is at work.
    free = replace(sweep_spec, pruning=PruningOptions(enabled=False), grouping=GroupingOptions(enabled=False))
    return SearchSpec(sweep=free, evaluations=14, population=6, evaluation_limit=2, evaluation_suffix_tokens=8)
