"""Every notebook runs from top to bottom, under pytest's own count."""

import json
import os
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
FLAGS = os.environ.get("ALIGNBOOK_NB_FLAGS", "").split()  # e.g. "slow gpu": run those cells too


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def source(cell):
    return "".join(cell["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path, capfd):
    from nbdev.test import test_nb as run_notebook

    skip = [f for f in ("slow", "gpu") if f not in FLAGS]
    passed, _ = run_notebook(path, skip_flags=skip, force_flags=FLAGS, basepath=ROOT, cell_timeout=300)
    assert passed, capfd.readouterr().err[-4000:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_begins_like_all_others(path):
    title, boot, *_ = cells(path)
    assert title["cell_type"] == "markdown"
    assert re.match(r"# \S.*\n\n?\S", source(title)), "first a title and a paragraph"
    assert source(boot) == source(cells(NOTEBOOKS[0])[1]), "the second cell is the same in every notebook"
    assert "find_spec" in source(boot) and source(boot).startswith("#| hide")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_holds_no_output(path):
    code = [c for c in cells(path) if c["cell_type"] == "code"]
    assert not [c["id"] for c in code if c["outputs"] or c["execution_count"] is not None]


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.stem[0].isdigit()], ids=lambda p: p.stem)
def test_notebook_checks_what_it_shows(path):
    assert any(re.search(r"^\s*assert ", source(c), re.M) for c in cells(path) if c["cell_type"] == "code")


def test_every_notebook_is_in_the_book():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    files = [toc["root"]] + [c["file"] for part in toc["parts"] for c in part["chapters"]]
    assert sorted(f for f in files if f.startswith("nbs/")) == [f"nbs/{p.stem}" for p in NOTEBOOKS]
    assert len(files) == len(set(files))
