"""Bring the browser files that the book serves itself into book/_vendor (not in git).

MathJax comes from a Python package at a fixed version and digest, Vega from the installed
vl-convert: no other package manager is needed, and no page ever asks another server.
"""

import zipfile
from pathlib import Path

import vl_convert

from alignbook.runtime import atomic_write, fetch_package

VENDOR = Path(__file__).parent / "_vendor"
MATHJAX = "django-static-mathjax==3.2.2.1"
SHA256 = "05ad109fd9e5d9d380c76389689b7f523e9ccb7f7a85c1eb962c7564eac7601d"
ROOT = "mathjax/static/mathjax/"
KEEP = (ROOT + "es5/tex-chtml.js", ROOT + "es5/output/chtml/fonts/woff-v2/", ROOT + "LICENSE")


def mathjax() -> None:
    with zipfile.ZipFile(fetch_package(MATHJAX, SHA256)) as wheel:
        for name in wheel.namelist():
            if name.startswith(KEEP) and not name.endswith("/"):
                target = VENDOR / "mathjax" / name.removeprefix(ROOT).removeprefix("es5/")
                atomic_write(target, wheel.read(name))


def vega() -> None:
    # In a function of its own, so that the bundle's names cannot meet those of a page.
    atomic_write(VENDOR / "vega-bundle.js", f"(() => {{{vl_convert.javascript_bundle()}\n}})();\n")


if __name__ == "__main__":
    mathjax()
    vega()
    files = [f for f in VENDOR.rglob("*") if f.is_file()]
    print(f"book/_vendor: {len(files)} files, {sum(f.stat().st_size for f in files) / 2**20:.1f} MiB")
