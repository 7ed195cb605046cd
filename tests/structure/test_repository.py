"""What lies in the repository, and what must not."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def test_the_kernels_package_holds_a_docstring_and_nothing_else():
    # transformers imports any package of this name when it loads a model class.
    body = ast.parse((ROOT / "kernels" / "__init__.py").read_text(encoding="utf-8")).body
    assert len(body) == 1
    assert isinstance(body[0], ast.Expr)


def test_no_file_runs_a_models_own_code_or_unpickles():
    for path in _tracked():
        if path.suffix != ".py" or path.parts[-3:-1] == ("tests", "structure"):
            continue
        for node in ast.walk(ast.parse(_text(path))):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert ast.unparse(node.value) == "False", path
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name.split(".")[0] for alias in node.names} | {getattr(node, "module", "") or ""}
                assert not names & {"pickle", "dill", "joblib", "marshal"}, path


def test_no_file_names_a_private_path():
    private = re.compile(r"(?<![\w.])/(?:root|work|home/\w+)/")
    for path in _tracked():
        if path != Path(__file__):
            assert not private.search(_text(path)), path


def test_no_shipped_file_is_large():
    for path in _tracked():
        assert path.stat().st_size <= 2_000_000, path


def test_data_holds_no_python():
    assert not list((ROOT / "data").rglob("*.py"))


def test_every_source_module_has_a_test_of_the_same_name():
    missing = []
    for package in ("kvtuner_core", "kernels", "pages"):
        for path in (ROOT / package).rglob("*.py"):
            relative = path.relative_to(ROOT if package != "kvtuner_core" else ROOT / package)
            folder = ROOT / "tests" / relative.parent
            parts = path.stem.strip("_")
            if path.name == "__init__.py" or _has_only_definitions(path):
                continue
            if not any(folder.glob(f"test_{parts}*.py")) and not any(folder.glob("test_*.py")):
                missing.append(str(relative))
    assert not missing


def _has_only_definitions(path: Path) -> bool:
    functions = [n for n in ast.walk(ast.parse(_text(path))) if isinstance(n, ast.FunctionDef)]
    return not functions


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_every_requirement_is_pinned(name):
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith(("#", "-r")):
            assert re.match(r"[A-Za-z0-9_.-]+==[\w.]+(;.*)?$", line), line


def test_the_package_and_the_changelog_agree_on_the_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_warnings_of_servers_bind_to_loopback():
    config = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text(encoding="utf-8"))
    assert config["server"]["address"] == "127.0.0.1"
