"Every stored number verifies, and the code behind it still runs and gives the same columns."

import pytest

from alignbook.provenance import freshness, package_root
from alignbook.records import Result, read_info, runs, verify, verify_all
from alignbook.runtime import chapters, experiments
from alignbook.store import run

ROOT = package_root() / "results"
STORED = runs(ROOT)


def every_experiment():
    found = [e for chapter in chapters() for e in experiments(chapter).values()]
    return [pytest.param(e, id=f"{e.chapter}:{e.name}") for e in found]


def name(path):
    return "/".join(path.parts[-3:])


@pytest.mark.parametrize("path", STORED, ids=name)
def test_stored_run_is_whole_and_not_stale(path):
    verify(path)
    info = read_info(path)
    assert freshness(info) != "stale", f"{name(path)} was made by other code: run `{info['remake']}`"


def test_stored_runs_are_small_together():
    verify_all(ROOT)


@pytest.mark.parametrize("exp", every_experiment())
def test_toy_columns(exp, tmp_path):
    toy = run(exp, "toy", root=tmp_path)
    verify(toy.path)
    for path in runs(ROOT, exp.chapter, exp.name):
        stored = Result(path, read_info(path))
        assert list(toy.rows) == list(stored.rows), f"{name(path)} has other columns than exp_{exp.name} today"
