"""Build metadata for alignbook. Every value lives in settings.ini; this file only maps it."""

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
cfg = ConfigParser(delimiters=["="])
cfg.read(ROOT / "settings.ini", encoding="utf-8")
s = cfg["DEFAULT"]


def words(key):
    return s.get(key, "").split()


lib = s["lib_path"]
version = re.search(
    r'^__version__ = "([^"]+)"', (ROOT / lib / "__init__.py").read_text(encoding="utf-8"), re.M
)[1]

setup(
    name=s["lib_name"],
    version=version,
    description=s["description"],
    author=s["author"],
    author_email=s["author_email"],
    license=s["license"],
    license_files=["LICENSE"],
    keywords=words("keywords"),
    classifiers=[
        f"Development Status :: {s['status']}",
        f"Intended Audience :: {s['audience']}",
        f"Natural Language :: {s['language']}",
        "Programming Language :: Python :: 3 :: Only",
        f"Programming Language :: Python :: {s['min_python']}",
        "Typing :: Typed",
    ],
    url=f"https://github.com/{s['user']}/{s['repo']}",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=find_packages(include=[lib, f"{lib}.*"]),
    package_data={lib: ["py.typed", "assets/**/*"]},
    python_requires=f">={s['min_python']}",
    install_requires=words("requirements"),
    extras_require={"dev": words("dev_requirements")},
    entry_points={"console_scripts": words("console_scripts")},
    zip_safe=False,
)
