"Every stored number verifies, and the code behind it still runs and gives the same columns."

import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from alignbook.cli import main
from alignbook.provenance import freshness, package_root
from alignbook.records import Result, plain, read_info, runs, stored, verify, verify_all
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


@pytest.mark.parametrize("exp", every_experiment())
def test_the_books_run_has_the_settings_of_its_column(exp):
    assert stored(exp.chapter, exp.name).info["settings"] == plain(asdict(exp.settings.at("cpu")))


def test_stored_runs_are_small_together():
    verify_all(ROOT)


@pytest.mark.parametrize("exp", every_experiment())
def test_toy_columns(exp, tmp_path):
    toy = run(exp, "toy", root=tmp_path)
    verify(toy.path)
    for path in runs(ROOT, exp.chapter, exp.name):
        stored = Result(path, read_info(path))
        assert list(toy.rows) == list(stored.rows), f"{name(path)} has other columns than exp_{exp.name} today"


def test_a_killed_run_of_the_chapter_ends_alike(tmp_path):
    """The command line, SIGKILLed between cells and started again: the same rows, texts and metrics."""

    def start(root, kill):
        script = Path(sys.executable).with_name("alignbook")
        command = [script, "run", "msj:rate", "--tier", "toy", "--root", str(root)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.time() + 300
        while kill and process.poll() is None and time.time() < end:
            if list(root.glob("msj/rate/*.partial/[0-9a-f]*.json")):
                process.kill()
            time.sleep(0.01)
        return process.wait(300)

    assert start(tmp_path / "a", kill=True) == -9, "the run was over before it could be killed"
    assert start(tmp_path / "a", kill=False) == start(tmp_path / "b", kill=False) == 0
    a, b = (runs(tmp_path / name)[0] for name in "ab")
    assert (a / "rows.parquet").read_bytes() == (b / "rows.parquet").read_bytes()
    assert (a / "text.jsonl.gz").read_bytes() == (b / "text.jsonl.gz").read_bytes()
    assert read_info(a)["metrics"] == read_info(b)["metrics"]


@pytest.mark.parametrize(
    "words, message",
    [
        ("msj:law --set shots=-1", "shots=-1: at least 1 is needed"),
        ("msj:rate --set targets=0", "targets=0: at least 1 is needed"),
        ("msj:controls --set behaviours=[]", "behaviours=[]: at least 1 is needed"),
        ("msj:law --set behaviours=[\"angry\"]", "unknown behaviour 'angry'"),
        ("msj:formats --set formats=[\"morse\"]", "unknown format 'morse'"),
        ("msj:composition --set behaviours=[\"caps\"]", "no instruction is written for 'caps'"),
        ("msj:law --set shots=900", "do not fit"),
        ("msj:sizes --model some/model", "trains its own decoders"),
        ("msj --tier huge", "unknown tier 'huge'"),
        ("msj:nothing", "unknown experiment 'nothing'"),
        ("cooking", "unknown chapter 'cooking'"),
    ],
)
def test_a_mistake_is_one_line(words, message, tmp_path, capsys):
    assert main(["run", *words.split(), "--root", str(tmp_path)]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("alignbook: ") and message in said[-1]
