"""settings.ini, setup.py, pyproject.toml, the Makefile and the README tell one story."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from configparser import ConfigParser
from importlib.metadata import entry_points, metadata, requires, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import alignbook

ROOT = Path(__file__).parent.parent
CFG = ConfigParser(delimiters=["="])
CFG.read(ROOT / "settings.ini", encoding="utf-8")
S = CFG["DEFAULT"]
MODULES = sorted(p for p in (ROOT / "alignbook").rglob("*.py") if p.stem not in ("__init__", "_modidx"))


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def pins():
    return dict(line.split("==") for line in read("constraints.txt").split())


def test_nbdev_reads_what_settings_say():
    nbdev = tomllib.loads(read("pyproject.toml"))["tool"]["nbdev"]
    assert {k: S[k] for k in ("nbs_path", "lib_path", "doc_path", "tst_flags")} == {
        k: nbdev[k] for k in ("nbs_path", "lib_path", "doc_path", "tst_flags")
    }


def test_version_is_told_once():
    assert alignbook.__version__ == S["version"] == version("alignbook")
    assert f"## {S['version']} " in read("CHANGELOG.md")


def test_installed_metadata_comes_from_settings():
    assert metadata("alignbook")["Summary"] == S["description"]
    needed = {Requirement(r).name.lower() for r in requires("alignbook") if "extra" not in r}
    assert needed == {Requirement(r).name.lower() for r in S["requirements"].split()}


@pytest.mark.parametrize("requirement", (S["requirements"] + " " + S["dev_requirements"]).split())
def test_pins_satisfy_the_bounds(requirement):
    r = Requirement(requirement)
    pinned = {name.lower().replace("_", "-"): v for name, v in pins().items()}
    assert r.specifier.contains(pinned[r.name.lower().replace("_", "-")])


def test_command_line_is_installed():
    (script,) = [e for e in entry_points(group="console_scripts") if e.name == "alignbook"]
    assert callable(script.load())


def test_the_wheel_made_from_the_source_archive_is_whole(tmp_path):
    """sdist -> wheel, as a package index would: every module, asset and licence is in it."""
    shutil.copytree(ROOT / "alignbook", tmp_path / "src" / "alignbook", ignore=shutil.ignore_patterns("__pycache__"))
    files = "setup.py settings.ini pyproject.toml README.md CHANGELOG.md LICENSE MANIFEST.in constraints.txt"
    for name in files.split():
        shutil.copy(ROOT / name, tmp_path / "src")
    command = [sys.executable, "-m", "build", "--no-isolation", "-o", tmp_path, tmp_path / "src"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    held = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    inside = [p.relative_to(ROOT) for p in (ROOT / "alignbook").rglob("*") if p.is_file()]
    wanted = {p.as_posix() for p in inside if not {"__pycache__"} & {*p.parts} and p.name != "_modidx.py"}
    assert wanted <= held and any(name.endswith("LICENSE") for name in held)


def test_readme_commands_exist():
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.M))
    text = read("README.md") + read(".ci/run")
    used = set(re.findall(r"\bmake (book|test|check|[a-z]+-check|clean|install)\b", text))
    assert {"book", "test"} <= used <= targets
    first = re.search(r"```bash\n(.*?)```", read("README.md"), re.S)[1].split("\n")
    assert [line.split("#")[0].strip() for line in first if line] == ["make book", "make test"]


def test_readme_has_no_gap():
    assert "MEASURE" not in read("README.md") and " ? " not in read("README.md")


def test_api_page_lists_every_module():
    listed = re.findall(r"automodule:: alignbook\.([\w.]+)", read("book/api.md"))
    there = [".".join(p.relative_to(ROOT / "alignbook").with_suffix("").parts) for p in MODULES]
    assert sorted(listed) == sorted(there)


def test_citations_are_in_the_bibliography():
    known = set(re.findall(r"^@\w+\{([\w]+),", read("book/references.bib"), re.M))
    pages = [p for folder in ("nbs/*.ipynb", "book/*.md") for p in ROOT.glob(folder)]
    roles = [keys for p in pages for keys in re.findall(r"\{cite:[a-z]+\}`([^`]+)`", p.read_text())]
    cited = {key.strip() for keys in roles for key in keys.split(",")}
    assert cited and cited <= known


def test_book_pages_exist():
    toc = yaml.safe_load(read("_toc.yml"))
    files = [toc["root"]] + [c["file"] for part in toc["parts"] for c in part["chapters"]]
    assert [f for f in files if not ((ROOT / f"{f}.ipynb").exists() or (ROOT / f"{f}.md").exists())] == []
