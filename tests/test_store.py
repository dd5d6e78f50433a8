import dataclasses
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import coin_chapter
import pytest
from coin_chapter import Coins, exp_coins, exp_plain

from alignbook import provenance, records, store
from alignbook.records import FIELDS, load, read_info, results, side_by_side, verify, verify_all
from alignbook.runtime import AlignbookError
from alignbook.store import refresh, run

HERE = Path(__file__).parent
CHAPTER = (HERE / "coin_chapter.py").read_text()


def content(folder):
    return {name: (folder / name).read_bytes() for name in records.FILES}


def metrics(folder):
    return json.dumps(json.loads((folder / "run.json").read_text())["metrics"])


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return run(exp_coins, root=tmp_path_factory.mktemp("results"))


@pytest.fixture
def copy(done, tmp_path):
    "A private copy of the finished run."
    target = tmp_path / "results" / Path(*done.path.parts[-3:])
    shutil.copytree(done.path, target)
    return target


def test_run_json_says_where_the_numbers_come_from(done):
    info = done.info
    assert set(FIELDS) <= set(info) and list(done.path.parent.iterdir()) == [done.path]
    assert info["key"] == done.path.name and len(info["key"]) == 12
    assert info["notes"] == {"data": "abc", "weights": ["w0", "w1", "w2"]}
    assert info["columns"] == ["bias", "seed", "flip", "heads"] and info["n_rows"] == 120 == len(done.rows)
    assert list(done.rows.bias.unique()) == ["fair", "loaded"] and list(done.rows.seed[:60:20]) == [0, 1, 2]
    assert done.texts[0].keys() == {"bias", "seed", "said", "turns"} and len(done.texts) == 12
    assert info["command"] == "alignbook run coin:coins --tier toy"
    assert info["metrics"]["heads"]["value"] == pytest.approx(done.rows.heads.mean())
    assert "alignbook.runtime" in info["modules"] and info["seeds"] == 3 and done.freshness == "fresh"
    assert verify(done.path) < 20_000


def test_finished_run_is_not_measured_again(done, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COIN_MARKS", str(tmp_path))
    before = {p: p.stat().st_mtime_ns for p in done.path.iterdir()}
    again = run(exp_coins, root=done.path.parents[2])
    assert again.info == done.info and not list(tmp_path.iterdir())
    assert {p: p.stat().st_mtime_ns for p in done.path.iterdir()} == before
    assert "nothing is run again" in capsys.readouterr().out


def test_key_depends_on_question_only(tmp_path):
    a = run(exp_plain, root=tmp_path)
    b = run(exp_plain, settings=Coins(flips=21), root=tmp_path)
    c = run(exp_plain, "cpu", settings=Coins(), root=tmp_path)
    d = run(dataclasses.replace(exp_plain, version=2), root=tmp_path)
    assert len({r.path for r in (a, b, c, d)}) == 4
    assert a.rows.late.isna().sum() == 2 and list(a.rows) == ["bias", "seed", "heads", "late"]
    assert b.info["command"].endswith("--set flips=21") and c.info["command"].endswith("--tier cpu --set flips=20")


# -- kills


def _run_until_kill(root, at, before):
    "Run, and be killed at the `at`-th rename, before or after it; at 0 never."
    count, real = [0], os.replace

    def replace(src, dst):
        count[0] += 1
        if count[0] == at and before:
            os.kill(os.getpid(), signal.SIGKILL)
        real(src, dst)
        if count[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace
    run(exp_coins, root=root)


def _in_fork(*args):
    "The wait status of a forked `_run_until_kill`: 0, or 9 if it was killed."
    pid = os.fork()
    if not pid:
        try:
            _run_until_kill(*args)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitpid(pid, 0)[1]


def _kill_everywhere(root):
    "Called in a process of its own: kill at each rename, then resume; print what happened."
    import psutil  # noqa: F401  once, not in each fork
    import pyarrow.parquet  # noqa: F401
    import tqdm.auto  # noqa: F401

    for at in range(1, 11):
        for before in (True, False):
            folder = f"{root}/{at}{before}"
            print(json.dumps([at, before, _in_fork(folder, at, before), _in_fork(folder, 0, True)]))
            sys.stdout.flush()


def python(code, **env):
    path = f"{HERE}{os.pathsep}{HERE.parent}"
    return {"args": [sys.executable, "-c", code], "env": os.environ | {"PYTHONPATH": path} | env}


def test_killed_at_any_write_ends_in_the_same_bytes(done, tmp_path):
    code = f"import test_store; test_store._kill_everywhere({str(tmp_path)!r})"
    out = subprocess.run(**python(code), check=True, capture_output=True, text=True).stdout
    reports = [json.loads(line) for line in out.splitlines() if line[0] == "["]
    # settings, six cells, run.json and the folder itself are nine renames; the tenth never comes
    assert reports == [[at, before, 9 if at < 10 else 0, 0] for at in range(1, 11) for before in (True, False)]
    for at, before, _, _ in reports:
        (folder,) = (tmp_path / f"{at}{before}" / "coin" / "coins").iterdir()
        assert folder.name == done.path.name and content(folder) == content(done.path)
        assert metrics(folder) == metrics(done.path) and verify(folder)


def test_sigkill_from_outside_keeps_finished_cells(done, tmp_path):
    marks, root = tmp_path / "marks", tmp_path / "results"
    marks.mkdir()
    code = f"from test_store import *; run(exp_coins, root={str(root)!r})"
    child = subprocess.Popen(**python(code, COIN_MARKS=str(marks), COIN_SLEEP="0.4"))
    end = time.time() + 60
    while len(list(marks.iterdir())) < 3 and time.time() < end:
        time.sleep(0.02)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    subprocess.run(**python(code, COIN_MARKS=str(marks)), check=True)
    assert content(root / "coin" / "coins" / done.path.name) == content(done.path)
    times = sorted(len(p.read_text()) for p in marks.iterdir())
    assert times == [1, 1, 1, 1, 1, 2]  # only the cell that was being measured is measured twice


def test_second_runner_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "coin" / "coins"
    key = provenance.run_key("coins", 1, dataclasses.asdict(Coins()), "toy")
    with store._lock(folder / f".{key}.lock"), pytest.raises(AlignbookError, match=f"process {os.getpid()}"):
        run(exp_coins, root=tmp_path)
    assert len(run(exp_coins, root=tmp_path).rows) == 120


def test_partial_of_other_code_is_refused(tmp_path):
    def dies(s, bias, seed):
        raise MemoryError

    with pytest.raises(MemoryError):
        run(dataclasses.replace(exp_coins, fn=dies), root=tmp_path)
    with pytest.raises(AlignbookError, match=r"partial was begun by other code: delete"):
        run(exp_coins, root=tmp_path)


def test_summary_may_be_mended_half_way(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COIN_MARKS", str(tmp_path))
    file = tmp_path / "mended.py"
    file.write_text(CHAPTER.replace("df.heads.mean()", "df.no_such_column.mean()"))
    chapter = importlib.import_module("mended")
    with pytest.raises(AttributeError):
        run(chapter.exp_coins, root=tmp_path)
    file.write_text(CHAPTER)
    chapter = importlib.reload(chapter)
    assert run(chapter.exp_coins, root=tmp_path).freshness == "fresh"
    assert (tmp_path / "fair0").read_text() == "x"  # measured once


def test_library_change_during_a_run_shows(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run(dataclasses.replace(exp_coins, summarise=lambda df, s: 1 / 0), root=tmp_path)
    (head,) = tmp_path.glob("*/*/*.partial/settings.json")
    old = json.loads(head.read_text())
    head.write_text(json.dumps(old | {"rows_modules": {"alignbook.runtime": "0"}}))
    assert run(exp_coins, root=tmp_path).freshness == "drifted"


# -- bad rows, damaged files


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"x": [1]}], "hold a list in 'x'"),
        ([], "made no rows"),
        ([{"x": 1}, {"x": "a"}], "column 'x' of the rows mixes types"),
    ],
)
def test_rows_that_cannot_be_stored(tmp_path, rows, message):
    with pytest.raises(AlignbookError, match=message):
        run(dataclasses.replace(exp_coins, fn=lambda s, bias, seed: rows), root=tmp_path)


def test_equal_cells_are_refused(tmp_path):
    with pytest.raises(AlignbookError, match="1 different cells of 2"):
        run(dataclasses.replace(exp_coins, cells=lambda s: [{"seed": 1}, {"seed": 1}]), root=tmp_path)


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize("name", ["run.json", "rows.parquet", "text.jsonl.gz"])
@pytest.mark.parametrize("damage", [cut, Path.unlink, lambda p: p.write_text("{}")])
def test_damaged_file_is_named_and_nothing_touched(copy, name, damage):
    damage(copy / name)
    before = {p: p.read_bytes() for p in copy.iterdir()}
    root = copy.parents[2]
    for ask in (lambda: read_info(copy), lambda: load("coin", "coins", root=root)):
        with pytest.raises(AlignbookError, match=f"{name}.*delete the folder.*alignbook run coin:coins"):
            ask()
    assert list(results(root).freshness) == ["broken"]
    assert {p: p.read_bytes() for p in copy.iterdir()} == before


def rewrite(folder, **changes):
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(info | changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"settings": {"flips": 1}}, "settings with the key"),
        ({"n_rows": 7}, "counts other rows"),
        ({"metrics": {"heads": 0.5}}, "metric without a value"),
        ({"chapter": "other"}, "belongs in other/coins"),
        ({"padding": "x" * 3 * 2**20}, "MiB, more than 2"),
    ],
)
def test_verify_finds(copy, changes, message):
    assert verify(copy) and verify_all(copy.parents[2])
    rewrite(copy, **changes)
    with pytest.raises(AlignbookError, match=message):
        verify(copy)


def test_verify_finds_a_foreign_file(copy):
    (copy / "weights.bin").write_bytes(b"x")
    with pytest.raises(AlignbookError, match="other files"):
        verify(copy)


def test_total_size_is_bounded(copy, monkeypatch):
    monkeypatch.setattr(records, "ALL_MIB", 0.001)
    with pytest.raises(AlignbookError, match="more than 0.001"):
        verify_all(copy.parents[2])


# -- asking


def test_load_filters_and_names_the_command(done):
    root = done.path.parents[2]
    assert load("coin", "coins", root=root, flips=20, model="tiny").path == done.path
    with pytest.raises(AlignbookError, match="alignbook run coin:coins --tier gpu --seeds 5`"):
        load("coin", "coins", "gpu", root=root, seeds=5)
    with pytest.raises(AlignbookError, match="no stored result for x:y"):
        load("x", "y", root=root)


def test_load_takes_the_newest(copy):
    root = copy.parents[2]
    other = run(exp_coins, settings=Coins(flips=5), root=root)
    rewrite(other.path, end="2000-01-01")
    assert load("coin", "coins", root=root).path == copy
    assert set(results(root).rows) == {120, 30} and results(root / "nowhere").empty


def test_root_by_environment_or_nearest_folder(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.delenv("ALIGNBOOK_RESULTS", raising=False)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert provenance.results_root() == tmp_path / "results"
    monkeypatch.setenv("ALIGNBOOK_RESULTS", "/elsewhere")
    assert provenance.results_root() == Path("/elsewhere") and provenance.results_root("x") == Path("x")


def test_side_by_side(done):
    def with_heads(lo, hi):
        heads = {"value": 0.1, "lo": lo, "hi": hi}
        return dataclasses.replace(done, info=done.info | {"metrics": {"heads": heads}})

    assert list(side_by_side(done, with_heads(0, 0.2)).overlap) == [False]
    table = side_by_side(done, with_heads(0, 0.9))
    assert list(table.overlap) == [True] and list(table.paper) == ["0.5"] and list(table.book) == ["0.1 [0, 0.9]"]
    assert side_by_side(done, None).overlap[0] is None


# -- freshness

@pytest.fixture
def edited(tmp_path, monkeypatch):
    "Write a module, and get the digests of `exp_coins` in it."
    monkeypatch.syspath_prepend(str(tmp_path))
    counter = iter(range(100))

    def digests(text):
        name = f"edited_chapter_{next(counter)}"
        (tmp_path / f"{name}.py").write_text(text)
        return provenance.sources(name, "exp_coins")

    return digests


@pytest.mark.parametrize(
    "old, new",
    [
        ("def helper(x):\n", 'def helper(x: int) -> int:\n    "Doc."\n'),
        ("return x * BASE", "return (x  # why\n        * BASE)"),
        ('minutes={"toy": 0.1}', 'minutes={"toy": 9}'),
        ('"claim": "fair"', '"claim": "other words"'),
        ("flips: int = 20", "flips: int = 30"),  # defaults are in the key already
        ("def exp_plain(s, bias, seed):", "def exp_plain(s, bias=1, seed=2):"),
        ("random.random()", "(random.random())"),
    ],
)
def test_edits_that_change_no_number_keep_it_fresh(edited, old, new):
    assert old in CHAPTER and edited(CHAPTER.replace(old, new)) == edited(CHAPTER)


@pytest.mark.parametrize(
    "old, new",
    [
        ("BASE = 2", "BASE = 3"),  # a constant two calls down
        ("df.heads.mean()", "df.heads.median()"),
        ('("fair", "loaded")', '("fair", "bent")'),
        ("cells=cells,", "version=2,\n    cells=cells,"),
        ("0.5 if bias", "0.4 if bias"),
    ],
)
def test_edits_that_change_a_number_make_it_stale(edited, old, new):
    assert old in CHAPTER and edited(CHAPTER.replace(old, new, 1))[""] != edited(CHAPTER)[""]


def test_library_change_drifts_own_change_or_loss_is_stale(done):
    info = done.info
    assert provenance.freshness(info | {"modules": {"alignbook.runtime": "0"}}) == "drifted"
    assert provenance.freshness(info | {"source": "0"}) == "stale"
    assert provenance.freshness(info | {"function": "exp_gone"}) == "stale"
    assert provenance.freshness(info | {"module": "no_such_module"}) == "stale"


# -- refresh


@pytest.fixture
def drifted(copy):
    "A copy whose library has changed since; `refresh` writes beside it or not at all."
    rewrite(copy, modules={"alignbook.runtime": "0"})
    assert load("coin", "coins", root=copy.parents[2]).freshness == "drifted"
    return copy


@pytest.mark.parametrize("cells", [1, 4, 99])
def test_refresh_makes_a_drifted_run_fresh(drifted, cells, monkeypatch, tmp_path):
    (marks := tmp_path / "marks").mkdir()
    monkeypatch.setenv("COIN_MARKS", str(marks))
    before, root = {p: p.read_bytes() for p in drifted.iterdir()}, drifted.parents[2]
    result = refresh(exp_coins, "toy", cells, root)
    count = min(cells, 6)
    assert result.freshness == "fresh" == load("coin", "coins", root=root).freshness
    assert len(list(marks.iterdir())) == count == len(result.info["checked"]["cells"])
    assert records.checked_words(result.info).startswith(f"{count} of 6 cells measured again on 2")
    assert {p: p.read_bytes() for p in before} == before and verify(drifted)
    assert [p.name for p in drifted.iterdir() if p not in before] == ["checked.json"]
    assert refresh(exp_coins, "toy", cells, root).info["checked"]["cells"] == result.info["checked"]["cells"]


def test_refresh_certifies_a_stale_run_too(copy):
    rewrite(copy, source="0")
    assert refresh(exp_coins, "toy", root=copy.parents[2]).freshness == "fresh"


def test_checked_code_that_changes_again_drifts(drifted):
    root = drifted.parents[2]
    info = refresh(exp_coins, "toy", root=root).info
    later = info["checked"] | {"modules": {"alignbook.runtime": "1"}}
    assert provenance.freshness(info | {"checked": later}) == "drifted"
    assert provenance.freshness(info | {"checked": later | {"source": "0"}, "source": "0"}) == "stale"


def other_row(s, bias, seed):
    rows, texts = exp_coins.fn(s, bias, seed)
    return [*rows[:-1], rows[-1] | {"flip": 38.000000000000007}], texts


def other_text(s, bias, seed):
    rows, texts = exp_coins.fn(s, bias, seed)
    return rows, [texts[0], texts[1] | {"turns": [1, 3]}]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"fn": other_row}, r"cell \{'bias': .* measures other rows: 'flip' of number 19 is 38.00000000000001, stored"),
        ({"fn": lambda s, bias, seed: exp_coins.fn(s, bias, seed)[0][:-1]}, "other rows: 19 of them, stored are 20"),
        ({"fn": lambda s, bias, seed: exp_coins.fn(s, bias, seed)[0]}, "other texts: 0 of them, stored are 2"),
        ({"fn": other_text}, "other texts: 'turns' of number 1"),
        ({"cells": lambda s: coin_chapter.cells(s)[1:]}, "6 cells are not the 5 cells of today"),
        ({"cells": lambda s: coin_chapter.cells(s.but(seeds=4))[1:7]}, "6 cells are not the 6 cells of today"),
        ({"cells": lambda s: coin_chapter.cells(s)[::-1]}, "6 cells are not the 6 cells of today"),
        ({"summarise": lambda df, s: {"heads": {"value": 0.1}}}, "metric 'heads' is 0.1, stored is 0.6"),
        ({"summarise": lambda df, s: coin_chapter.summarise(df, s) | {"new": {"value": 1}}}, "'new' is 1, stored is –"),
    ],
)
def test_refresh_finds_what_differs_and_writes_nothing(drifted, changes, message):
    before = {p: p.read_bytes() for p in drifted.iterdir()}
    with pytest.raises(AlignbookError, match=message + r".*run `alignbook run coin:coins --tier toy`"):
        refresh(dataclasses.replace(exp_coins, **changes), "toy", root=drifted.parents[2])
    assert {p: p.read_bytes() for p in drifted.iterdir()} == before


def test_refresh_refuses_a_clock_and_what_is_not_there(tmp_path):
    timed = dataclasses.replace(exp_plain, fn=lambda s, bias, seed: [{"seconds": 1.0, "heads": 1}])
    run(timed, root=tmp_path)
    with pytest.raises(AlignbookError, match="'seconds' holds a clock"):
        refresh(timed, "toy", root=tmp_path)
    with pytest.raises(AlignbookError, match="no stored run of coin:coins toy.*make it with `alignbook run coin:coins"):
        refresh(exp_coins, "toy", root=tmp_path)
    with pytest.raises(AlignbookError, match="cells=0"):
        refresh(exp_coins, "toy", 0, root=tmp_path)


def touch_the_run(path):
    rewrite(path.parent, claim="other")


@pytest.mark.parametrize("damage", [cut, lambda p: p.write_text("{}"), touch_the_run])
def test_damaged_or_foreign_check_is_named(drifted, damage):
    refresh(exp_coins, "toy", root=drifted.parents[2])
    damage(drifted / "checked.json")
    with pytest.raises(AlignbookError, match="checked.json is truncated or of another run: delete this file"):
        verify(drifted)
    assert list(results(drifted.parents[2]).freshness) == ["broken"]


def test_refresh_keeps_empty_places_apart_from_nan(tmp_path):
    run(exp_plain, root=tmp_path)
    assert len(refresh(exp_plain, "toy", 6, tmp_path).info["checked"]["cells"]) == 6
    holes = dataclasses.replace(exp_plain, fn=lambda s, bias, seed: [{"heads": seed % 2 == 0, "late": float("nan")}])
    with pytest.raises(AlignbookError, match="'late' of number 0 is nan, stored is"):
        refresh(holes, "toy", 6, tmp_path)


def test_reading_imports_no_torch(done):
    code = (
        "import sys; from alignbook.store import load, results;"
        f"r = load('coin', 'coins', root={str(done.path.parents[2])!r});"
        "len(r.rows), len(r.texts), repr(r);"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HERE.parent)


def test_same_shape_whatever_the_loader():
    assert provenance.meaning("x = f'{a!r:>{b}}'  # c") == provenance.meaning("x = (f'{a!r:>{b}}')")
    assert provenance.sources("coin_chapter", "exp_coins", coin_chapter.exp_coins.fn)[""] != "unknown"
