"""Sizes that keep the project readable: functions, modules, cells, notebooks, stored runs."""

import ast
import json
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(p for p in (ROOT / "alignbook").rglob("*.py") if p.stem not in ("__init__", "_modidx"))
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
FORBIDDEN_NAMES = {"utils", "helpers", "manager", "base"}


def code_lines(text):
    """Lines that are neither blank nor a comment alone."""
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in text.splitlines())


def functions(path):
    """(name, lines of the whole, lines of the body without docstring) of every function of a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            yield node.name, node.end_lineno - node.lineno + 1, node.end_lineno - body[0].lineno + 1


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_module_and_functions_stay_small(path):
    assert code_lines(path.read_text(encoding="utf-8")) <= 350
    assert {n: whole for n, whole, _ in functions(path) if whole > 60} == {}


def test_the_usual_function_is_short():
    bodies = [body for path in MODULES for _, _, body in functions(path)]
    assert median(bodies) <= 10


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_public_functions_say_what_they_do(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    defined = [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    assert [n.name for n in defined if not n.name.startswith("_") and not ast.get_docstring(n)] == []


def test_no_module_is_named_after_nothing():
    assert not {p.stem for p in MODULES} & FORBIDDEN_NAMES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_stays_small(path):
    assert path.stat().st_size <= 400_000
    cells = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    sizes = {c["id"]: code_lines("".join(c["source"])) for c in cells}
    assert {cell: n for cell, n in sizes.items() if n > 40} == {}


def test_stored_results_stay_small():
    sizes = {}
    for path in (ROOT / "results").rglob("*"):
        if path.is_file() and ".partial" not in str(path):
            sizes[path.parent] = sizes.get(path.parent, 0) + path.stat().st_size
    assert {str(p): n for p, n in sizes.items() if n > 2 * 2**20} == {}
    assert sum(sizes.values()) <= 60 * 2**20
