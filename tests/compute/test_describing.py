"""A model's configuration is read in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvtuner_core.compute import DaskCompute, InlineCompute
from kvtuner_core.errors import ModelError
from tests.fakes.models import save_tiny

LIGHT = """
import sys
from pathlib import Path
from kvtuner_core.services.models import describe
from kvtuner_core.services.planning import plan_search
from kvtuner_core.services.workspace import Settings, Workspace
from kvtuner_core.domain.model import ModelSpec
from kvtuner_core.domain.study import SearchSpec, SweepSpec

home, model = Path(sys.argv[1]), sys.argv[2]
with Workspace.open(Settings(home=home, store_path=home / "s.duckdb"), inline=False) as ws:
    for spec in (SweepSpec(), SweepSpec(model=ModelSpec(reference=model))):
        try:
            print(plan_search(ws, SearchSpec(sweep=spec)).total)
        except Exception as error:
            print(error)
print(sorted({"torch", "transformers"} & set(sys.modules)))
"""


def test_both_computes_say_the_same_and_refuse_alike(tmp_path):
    folder = str(save_tiny(tmp_path / "tiny"))
    (tmp_path / "empty").mkdir()
    apart, here = DaskCompute(cache_dir=tmp_path), InlineCompute(cache_dir=tmp_path)
    assert apart.describe(folder, version="1") == here.describe(folder)
    with pytest.raises(ModelError, match=r"has no config\.json") as caught:
        apart.describe(str(tmp_path / "empty"))
    assert "\n" not in str(caught.value)
    here.close()


def test_a_program_that_plans_a_search_stays_without_torch(tmp_path):
    folder = save_tiny(tmp_path / "tiny")
    script = tmp_path / "light.py"
    script.write_text(LIGHT, encoding="utf-8")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(folder)],
        env=os.environ | {"PYTHONPATH": str(root)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    bundled, tiny, loaded = done.stdout.splitlines()[-3:]
    errors, scores, searched, uniform = 3 * 9, 2, 200, 2 * 6
    assert tiny == str(errors + scores + searched + uniform)
    assert loaded == "[]", bundled
