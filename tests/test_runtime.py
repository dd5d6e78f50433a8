"""Whole files or none, seeds that are given back, settings and experiments that refuse what they do not know."""

import random
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from alignbook import runtime
from alignbook.runtime import AlignbookError


def test_atomic_write_keeps_the_old_file_when_it_fails(tmp_path, monkeypatch):
    target = runtime.atomic_write(tmp_path / "a.txt", "old")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(runtime.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        runtime.atomic_write(target, "new")
    assert target.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_digest_is_of_content(tmp_path):
    file = runtime.atomic_write(tmp_path / "x", b"abc")
    assert runtime.digest(file, 64) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert runtime.digest({"a": 1, "b": (1, 2)}) == runtime.digest({"b": [1, 2], "a": 1}) != runtime.digest({"a": 1})


def test_seeded_gives_the_generators_back():
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    draws = []
    for _ in range(2):
        with runtime.seeded(5):
            draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1]
    assert random.getstate() == before[0] and (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(torch.get_rng_state(), before[2])


def test_fetch_package_refuses_a_wrong_digest_and_a_missing_network(tmp_path, monkeypatch):
    def pip(command, **kw):
        folder = command[command.index("-d") + 1]
        runtime.atomic_write(f"{folder}/thing-1.0-py3-none-any.whl", b"content")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(runtime.subprocess, "run", pip)
    with pytest.raises(AlignbookError, match="expected 0000.*do not use it"):
        runtime.fetch_package("thing==1.0", "0" * 64, tmp_path)
    good = runtime.digest(b"content", 64)
    path = runtime.fetch_package("thing==1.0", good, tmp_path)
    assert path.read_bytes() == b"content" and [p.name for p in tmp_path.iterdir()] == [path.name]
    monkeypatch.setattr(
        runtime.subprocess, "run", lambda c, **kw: subprocess.CompletedProcess(c, 1, "", "warning\nno route to host")
    )
    assert runtime.fetch_package("thing==1.0", good, tmp_path) == path, "what is there needs no network"
    with pytest.raises(AlignbookError, match="could not download other==2.*no route to host"):
        runtime.fetch_package("other==2", "1" * 64, tmp_path)


@dataclass(frozen=True)
class S(runtime.Settings):
    n: int = 1
    model: str = "tiny"
    COLUMNS = {"cpu": {"n": 5}}


def test_tiers_are_columns():
    assert S().at("toy") == S() and S().at("cpu").n == S().at("gpu").n == S().at("cluster").n == 5
    with pytest.raises(AlignbookError, match="unknown tier 'huge': choose one of toy, cpu"):
        S().at("huge")
    with pytest.raises(AlignbookError, match="unknown setting 'm': S has n, model"):
        S().but(m=2)


def test_experiments_know_their_chapter():
    found = runtime.experiments("msj")
    assert {"law", "sizes", "sft"} <= set(found) and all(e.chapter == "msj" for e in found.values())
    for e in found.values():
        assert e.claim and e.paper["claim"] and len(e.cells(e.settings.at("cpu"))) >= len(e.cells(e.settings)) // 2
    with pytest.raises(AlignbookError, match="unknown chapter 'cooking': choose one of .*msj"):
        runtime.experiments("cooking")


def test_notes_belong_to_one_run():
    runtime.take_notes()
    runtime.note("judge", {"k": 1})
    assert runtime.take_notes() == {"judge": {"k": 1}} and runtime.take_notes() == {}


def test_runtime_needs_no_torch():
    code = "import sys; import alignbook.runtime; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
