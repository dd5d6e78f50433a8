"""The one-way layers of the library: foundation, then methods, then experiments; the command line on top."""

import ast
import subprocess
import sys
from importlib.util import resolve_name
from pathlib import Path

import pytest

LIB = Path(__file__).parent.parent / "alignbook"
FOUNDATION = """
    runtime provenance records store models sampling data training judging stats probes fits plots widgets
    explorers dials quiz pairs
""".split()
SHOW_AND_STORE = {
    "provenance",
    "records",
    "store",
    "plots",
    "widgets",
    "explorers",
    "dials",
    "quiz",
    "pairs",
}  # what no method or experiment may import
TORCH_FREE = "runtime provenance records store stats fits plots widgets explorers dials quiz pairs cli".split()
FILES = [p for p in LIB.rglob("*.py") if p.stem not in ("__init__", "_modidx")]
MODULES = {".".join(p.relative_to(LIB).with_suffix("").parts): p for p in FILES}
METHODS = sorted(m for m in MODULES if m not in FOUNDATION and "." not in m and m != "cli")
EXPERIMENTS = sorted(m for m in MODULES if m.startswith("experiments."))


def imported(module):
    """Everything named in import statements anywhere in a module, by its absolute name."""
    package = f"alignbook.{module}".rpartition(".")[0]
    names = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            base = resolve_name("." * node.level + base, package) if node.level else base
            names |= {base} | {f"{base}.{a.name}" for a in node.names}
    return names


def inside(module):
    """The alignbook modules that a module imports."""
    return {n.removeprefix("alignbook.") for n in imported(module)} & set(MODULES)


def chapter(module):
    """The tens digit of the notebook that a module comes from."""
    first = next(x for x in MODULES[module].read_text(encoding="utf-8").splitlines() if "File to edit:" in x)
    return Path(first.rstrip(".").split()[-1]).name[0]


def test_every_module_has_a_place():
    assert [m for m in FOUNDATION if m not in MODULES] == []
    assert METHODS and EXPERIMENTS


@pytest.mark.parametrize("module", [m for m in FOUNDATION if m in MODULES])
def test_foundation_imports_only_what_is_below(module):
    below = set(FOUNDATION[: FOUNDATION.index(module)])
    assert inside(module) - {module} <= below


@pytest.mark.parametrize("module", METHODS + EXPERIMENTS)
def test_chapters_neither_store_nor_draw(module):
    assert not inside(module) & SHOW_AND_STORE


@pytest.mark.parametrize("module", METHODS + EXPERIMENTS)
def test_no_chapter_imports_another(module):
    others = inside(module) - set(FOUNDATION)
    assert {m for m in others if chapter(m) != chapter(module)} == set()
    if module in METHODS:
        assert not others & set(EXPERIMENTS)


@pytest.mark.parametrize("package", ["trl", "datasets"])
def test_only_training_touches_trl_and_datasets(package):
    users = {m for m in MODULES if any(n.split(".")[0] == package for n in imported(m))}
    assert users <= {"training"}


def test_training_imports_trl_lazily():
    tree = ast.parse(MODULES["training"].read_text(encoding="utf-8"))
    top = [ast.unparse(n).split()[1] for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    assert not {name.split(".")[0] for name in top} & {"trl", "datasets"}


def test_only_models_loads_weights():
    loaders = {"from_pretrained", "load_file", "load_gguf_checkpoint"}
    users = {
        m
        for m, p in MODULES.items()
        for n in ast.walk(ast.parse(p.read_text(encoding="utf-8")))
        if isinstance(n, ast.Attribute) and n.attr in loaders
    }
    assert users <= {"models"}


def test_nothing_runs_foreign_code():
    for module, path in MODULES.items():
        text = path.read_text(encoding="utf-8")
        assert "trust_remote_code=True" not in text, module
        assert not {n.split(".")[0] for n in imported(module)} & {"pickle", "dill", "joblib", "shelve"}, (
            module
        )


BLOCKED = """
import importlib, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "trl", "datasets", "peft"):
            raise ImportError(f"{name} is not needed to read results")

sys.meta_path.insert(0, Blocked())
for name in sys.argv[1:]:
    importlib.import_module("alignbook." + name)
"""


def test_readers_need_no_torch():
    modules = [m for m in TORCH_FREE if m in MODULES]
    done = subprocess.run([sys.executable, "-c", BLOCKED, *modules], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
