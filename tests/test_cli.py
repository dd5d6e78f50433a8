import json
import re
import shutil
import sys
import types
from pathlib import Path

import pytest

import alignbook.experiments
from alignbook import cli, runtime, store
from alignbook.cli import main

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def demo(tmp_path, monkeypatch):
    "A chapter `demo` with two experiments, and an empty store."
    shutil.copy(HERE / "coin_chapter.py", tmp_path / "demo.py")
    monkeypatch.setattr(alignbook.experiments, "__path__", [*alignbook.experiments.__path__, str(tmp_path)])
    monkeypatch.setattr(runtime, "_modules", lambda: ["demo"])
    monkeypatch.delitem(sys.modules, "alignbook.experiments.demo", raising=False)
    monkeypatch.setenv("ALIGNBOOK_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("ALIGNBOOK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "results"


def test_run_one_prints_metrics_and_records_the_command(demo, capsys):
    assert main(["run", "demo:coins", "--seeds", "2", "--set", "flips=7"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"heads +0\.\d+ \[.*\] +– +0\.5", out) and "fresh" in out and "paper: fair" in out
    result = store.load("demo", "coins")
    assert result.info["command"] == "alignbook run demo:coins --seeds 2 --set flips=7"
    assert result.info["remake"] == "alignbook run demo:coins --tier toy --set flips=7 --seeds 2"
    assert len(result.rows) == 2 * 2 * 7


def test_own_run_beside_the_books(demo, tmp_path, capsys):
    assert main(["run", "demo:coins"]) == 0
    capsys.readouterr()
    assert main(["run", "demo:coins", "--set", "bias=1", "--root", str(tmp_path / "mine")]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("heads"))
    assert row.split()[-1] == "True" and row.count("[") == 2
    assert main(["run", "demo:coins"]) == 0
    assert "the book's own stored run" in capsys.readouterr().out


def test_whole_chapter_and_results(demo, capsys):
    assert main(["run", "demo", "--tier", "cpu"]) == 0
    capsys.readouterr()
    assert main(["results", "demo", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(r["experiment"], r["tier"], r["freshness"]) for r in rows] == [
        ("coins", "cpu", "fresh"),
        ("plain", "cpu", "fresh"),
    ]
    assert main(["results"]) == 0 and "plain" in capsys.readouterr().out


def test_refresh(demo, capsys):
    assert main(["run", "demo"]) == 0
    (file,) = demo.glob("demo/coins/*/run.json")
    info = json.loads(file.read_text())
    file.write_text(json.dumps(info | {"modules": {}}))
    capsys.readouterr()
    assert main(["refresh", "demo", "--tier", "toy", "--cells", "2"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"demo:coins: fresh  2 of 6 cells measured again on \d+-\d+-\d+, same to the bit\n", out)
    assert "demo:plain: fresh\n" in out.replace("  \n", "\n")  # it was, so nothing is measured
    rows = demo.glob("demo/coins/*/checked.json")
    assert len(json.loads(next(rows).read_text())["cells"]) == 2
    assert main(["refresh", "demo"]) == 2
    said = capsys.readouterr()
    assert said.err.strip() == "alignbook: not fresh again: demo:coins, demo:plain" and "make it with" in said.out


def test_no_results_yet(capsys):
    assert main(["results"]) == 0 and "nothing is stored" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, message",
    [
        ("run demo --tier huge", "unknown tier 'huge': choose one of toy, cpu, gpu, cluster"),
        ("run nowhere", "unknown chapter 'nowhere': choose one of demo"),
        ("run demo:nothing", "unknown experiment 'nothing': chapter demo has coins, plain"),
        ("run demo --set flips", "--set flips: write it as key=value"),
        ("run demo:coins --set flip=3", "unknown setting 'flip': Coins has flips, bias, seeds, model"),
        ("run demo --set flip=3", "unknown setting 'flip': no experiment of demo has it"),
        ("run demo --set flips=many", "--set flips=many: flips is a int, for example 20"),
        ("run demo --set flips=2.5", "flips is a int"),
        ("run demo --seeds -1", "seeds=-1: at least 1 is needed"),
        ("run demo --set seeds=0", "seeds=0: at least 1 is needed"),
        ("run demo --seeds some", "invalid int value: 'some'"),
        ("results nowhere", "unknown chapter 'nowhere'"),
        ("run", "the following arguments are required"),
        ("jump", "invalid choice: 'jump'"),
        ("", "COMMAND"),
    ],
)
def test_one_line_per_mistake_and_nothing_is_run(demo, capsys, words, message):
    assert main(words.split()) == 2
    out, err = capsys.readouterr()
    assert err.startswith("alignbook: ") and err.count("\n") == 1 and message in err and not out
    assert not demo.exists()


def test_interrupted_run_says_how_to_continue(demo, monkeypatch, capsys):
    monkeypatch.setattr(cli, "run", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["run", "demo:coins"]) == 130
    assert "`alignbook run demo:coins` continues" in capsys.readouterr().err


def test_help_is_no_mistake(capsys):
    assert main(["--help"]) == 0 and "doctor" in capsys.readouterr().out


def test_doctor_names_what_is_missing(capsys, monkeypatch):
    monkeypatch.setattr(cli, "versions", lambda: {"torch": "9.9"})
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "9.9" in out and "trl: pip install trl" in out and "smollm2-135m" in out
    assert re.search(r"tier toy +runs here, about 0.1 minutes for 1 of 2 experiments", out)


@pytest.mark.parametrize("fails", [None, "two:b"])
def test_a_chapter_in_processes(monkeypatch, capsys, fails):
    def made(name, module):
        fn = lambda s: []  # noqa: E731
        fn.__module__ = module
        minutes = {"toy": 1.0 if module == "mod_two" else 0.1}
        return runtime.Experiment(fn, name, "two", 1, runtime.Settings(), lambda s: [], dict, minutes=minutes)

    homes = {"a": "mod_one", "b": "mod_two", "c": "mod_one", "d": "mod_two", "e": "mod_three"}
    for name in set(homes.values()):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["mod_three"].borrowed = made("a", "mod_one").fn  # three uses a part of one
    todo = [made(*x) for x in homes.items()]
    assert [[e.name for e in s] for s in cli.streams(todo)] == [["b", "d"], ["a", "c", "e"]]

    calls = []

    def run(call, env, **_):
        calls.append((call[4], env["OMP_NUM_THREADS"], call[5:]))
        return types.SimpleNamespace(returncode=int(call[4] == fails), stdout=f"{call[4]} said\n", stderr="trouble")

    monkeypatch.setattr(cli.subprocess, "run", run)
    plans = [(e, {"seeds": "3"} if e.name == "a" else {}) for e in todo]
    if fails:
        with pytest.raises(runtime.AlignbookError, match="the same command continues"):
            cli.run_in_processes(plans, "toy", None, 1)
    else:
        cli.run_in_processes(plans, "toy", Path("here"), 1)
    done = [c[0] for c in calls]
    assert done == (["two:b"] if fails else ["two:b", "two:d"]) + ["two:a", "two:c", "two:e"]
    assert {c[1] for c in calls} == {"1"}
    rest = next(c[2] for c in calls if c[0] == "two:a")
    assert rest == ["--tier", "toy", *([] if fails else ["--root", "here"]), "--set", "seeds=3"]
    assert ("trouble" in capsys.readouterr().out) == bool(fails)
