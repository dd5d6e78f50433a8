"""Library and notebooks tell the same story: cleaning and exporting a copy changes nothing."""

import filecmp
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TRACKED = ("nbs", "alignbook")
SKIP = {"__pycache__", ".ipynb_checkpoints", "_modidx.py"}  # the last one: nbdev's own index, not in git


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A copy of the project, cleaned and exported; the working tree is only read."""
    copy = tmp_path_factory.mktemp("drift")
    for name in TRACKED:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns(*SKIP))
    for name in ("settings.ini", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    bin_dir = Path(sys.executable).parent
    for command in ("nbdev-clean", "nbdev-export"):
        done = subprocess.run([bin_dir / command], cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return copy


def differences(a, b):
    """Files that only one folder has, or that are not the same in both."""
    files = [p.relative_to(r) for r in (a, b) for p in r.rglob("*") if p.is_file()]
    names = sorted({str(p) for p in files if not SKIP & {*p.parts}})
    _, other, missing = filecmp.cmpfiles(a, b, names, shallow=False)
    return sorted(other + missing)


@pytest.mark.parametrize("folder", TRACKED)
def test_nothing_drifts(fresh, folder):
    assert differences(ROOT / folder, fresh / folder) == [], "run nbdev-clean and nbdev-export"


def test_python_source_passes_ruff():
    command = [
        Path(sys.executable).parent / "ruff",
        "check",
        "--no-cache",
        "nbs",
        "tests",
        "book",
        "setup.py",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
