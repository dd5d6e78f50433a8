"""Sphinx extension: read nbdev notebooks as a book, and serve every script from local files.

* ``read_notebook`` replaces myst-nb's ``.ipynb`` reader.  It removes ``#| ...`` lines and turns
  them into the cell tags that myst-nb and nbclient understand.  Files on disk are not touched.
* Executed pages are kept until the code of a notebook, the library or the stored data changes.
* Charts are drawn by a local Vega bundle, added only to the pages that hold a chart.
* One-line docstrings and docments become reStructuredText for the API pages.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
from pathlib import Path

import nbformat

BOOK = Path(__file__).parent.parent
DIRECTIVE = re.compile(r"^\s*#\s*\|\s*([^\s:]+)\s*:?\s*(.*?)\s*$")
TAGS = {
    ("hide", ""): ["remove-cell"],
    ("default_exp", None): ["remove-cell"],
    ("exporti", ""): ["hide-input"],
    ("include", "false"): ["remove-cell"],
    ("echo", "false"): ["remove-input"],
    ("output", "false"): ["remove-output"],
    ("eval", "false"): ["skip-execution"],
    ("code-fold", "true"): ["hide-input"],
}


def split_directives(source: str) -> tuple[dict[str, str], str]:
    """Leading ``#| name: value`` lines of `source`, and what is left of it."""
    lines, found, n = source.splitlines(), {}, 0
    for line in lines:
        m = DIRECTIVE.match(line)
        if not m and line.strip():
            break
        if m:
            found[m[1]] = "" if m[2] == "true" and m[1] != "code-fold" else m[2]
        n += 1
    return found, "\n".join(lines[n:])


def tags_for(directives: dict[str, str], skip_flags=()) -> list[str]:
    tags = []
    for name, value in directives.items():
        tags += TAGS.get((name, value), TAGS.get((name, None), []))
        if name in skip_flags:
            tags.append("skip-execution")
    return tags


def read_notebook(text: str, skip_flags=(), library: str = "", data=()):
    """myst-nb reader for nbdev notebooks."""
    nb = nbformat.reads(text, as_version=4)
    for cell in nb.cells:
        if cell.cell_type != "code":
            continue
        directives, cell.source = split_directives(cell.source)
        tags = {*cell.metadata.get("tags", []), *tags_for(directives, skip_flags)}
        if tags:
            cell.metadata["tags"] = sorted(tags)
        if "label" in directives:
            figure = {"name": directives["label"], "caption": directives.get("fig-cap", "")}
            cell.metadata["mystnb"] = {"figure": figure}
    # The key of the execution cache holds the kernelspec: other code or data, another run.
    nb.metadata.setdefault("kernelspec", {})["alignbook_inputs"] = inputs_digest(library, tuple(data))
    return nb


@functools.cache
def inputs_digest(library: str, data: tuple[str, ...]) -> str:
    """Digest of the library's code and of every stored file that a notebook may read."""
    files = [f for f in Path(library).rglob("*.py") if f.name != "_modidx.py"]
    files += [f for folder in data for f in Path(folder).rglob("*") if f.is_file()]
    digest = hashlib.sha256()
    for f in sorted(files):
        if "__pycache__" not in f.parts:
            digest.update(f"{f.as_posix()}\n".encode() + hashlib.sha256(f.read_bytes()).digest())
    return digest.hexdigest()[:16]


def on_config(app, config):
    os.environ["ALIGNBOOK_STATIC"] = "1"
    options = config.nb_custom_formats[".ipynb"][1]
    config.alignbook_inputs = inputs_digest(options["library"], tuple(options["data"]))


def copy_vendor(app):
    if app.builder.format != "html":
        return
    if not (BOOK / "_vendor").exists():
        raise FileNotFoundError("book/_vendor is missing: run `make book`, or `python book/vendor.py` first")
    target = Path(app.outdir) / "_static" / "vendor"
    shutil.copytree(BOOK / "_vendor", target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))


def add_page_assets(app, pagename, templatename, context, doctree):
    if 'class="vega-lite-chart"' in context.get("body", ""):
        app.add_js_file("vendor/vega-bundle.js", priority=100)
        app.add_js_file("vega-lite-chart.js", priority=110)


def drop_repeated_scripts(app, pagename, templatename, context, doctree):
    """sphinx-thebe adds the same inline ``const`` twice, a JavaScript error on every page."""
    seen, kept = set(), []
    for js in context.get("script_files", []):
        key = (str(getattr(js, "filename", js) or ""), str(getattr(js, "attributes", {}).get("body", "")))
        if key not in seen:
            seen.add(key)
            kept.append(js)
    context["script_files"] = kept


def escape(text: str) -> str:
    """Markdown-ish one-liner to reStructuredText: `code` becomes ``code``, stray markup is escaped."""
    parts = re.split(r"`+([^`]+)`+", text)
    plain = [re.sub(r"([*|\\])|(?<=\w)_(?=\W|$)", lambda m: f"\\{m[0]}", p) for p in parts[::2]]
    code = [f"``{c}``" for c in parts[1::2]]
    return "".join(p + c for p, c in zip(plain, [*code, ""], strict=True))


def add_docments(app, what, name, obj, options, lines):
    """Show nbdev's per-parameter comments as a field list."""
    lines[:] = [escape(line) for line in lines]
    if what not in {"function", "method", "class"}:
        return
    from fastcore.docments import docments

    try:
        docs = docments(obj, full=True)
    except Exception:  # builtins, enums: no source to read
        return
    fields = []
    for arg, d in docs.items():
        text = " ".join(str(getattr(d, "docment", None) or "").split())
        if text:
            fields.append(f":returns: {escape(text)}" if arg == "return" else f":param {arg}: {escape(text)}")
    if fields:
        lines += ["", *fields, ""]


def setup(app):
    app.add_config_value("alignbook_inputs", "", "env")  # other code or data: read every page again
    app.connect("config-inited", on_config, priority=100)
    app.connect("builder-inited", copy_vendor)
    app.connect("html-page-context", add_page_assets)
    app.connect("html-page-context", drop_repeated_scripts, priority=900)
    app.connect("autodoc-process-docstring", add_docments)
    return {"version": "0.1", "parallel_read_safe": True, "parallel_write_safe": True}
