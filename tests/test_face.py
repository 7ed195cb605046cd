import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import kvtuner_core

ROOT = Path(__file__).parents[1]


def test_every_name_of_the_face_is_there():
    for name in kvtuner_core.__all__:
        assert getattr(kvtuner_core, name).__doc__, name
    assert set(kvtuner_core.__all__) <= set(dir(kvtuner_core))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = kvtuner_core.nothing


def test_the_version_is_the_projects():
    assert kvtuner_core.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_importing_the_face_loads_nothing_heavy():
    code = (
        "import sys\nfrom kvtuner_core import KVPolicy, QuantScheme, load_policy\n"
        "assert not {'torch', 'transformers', 'duckdb', 'streamlit', 'pymoo', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
