"""Files, functions and pages stay small."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("kvtuner_core", "kernels", "pages", "tests")
SOURCES = [ROOT / "app.py", *sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]
PRODUCT = [path for path in SOURCES if "tests" not in path.relative_to(ROOT).parts]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_a_file_has_at_most_400_lines(path):
    if path.name != "triton_impl.py":
        assert _lines(path) <= 400


@pytest.mark.parametrize("path", PRODUCT, ids=_name)
def test_a_function_has_at_most_60_lines(path):
    if path.name == "triton_impl.py":
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = (body[-1].end_lineno - body[0].lineno + 1) if body else 0
            assert length <= 60, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", [p for p in PRODUCT if p.parent == ROOT / "pages"], ids=_name)
def test_a_page_has_at_most_150_lines_and_no_class(path):
    assert _lines(path) <= 150
    assert not any(isinstance(node, ast.ClassDef) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def test_the_frame_has_at_most_60_lines():
    assert _lines(ROOT / "app.py") <= 60


@pytest.mark.parametrize("path", PRODUCT, ids=_name)
def test_no_file_is_a_drawer_for_everything(path):
    assert path.stem not in {"utils", "util", "helpers", "helper", "common", "misc"}


@pytest.mark.parametrize("path", PRODUCT, ids=_name)
def test_every_module_says_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", PRODUCT, ids=_name)
def test_no_module_keeps_mutable_state(path):
    module = ast.parse(path.read_text(encoding="utf-8"))
    for node in module.body:
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        name = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target) if value else ""
        if isinstance(value, ast.List | ast.Set):
            assert name == "__all__", f"{name} is a mutable module value; use a tuple or frozenset"
        assert not any(isinstance(inner, ast.Global) for inner in ast.walk(node)), "global statements are not used"
