"""The site of the documents: nothing is left out, links lead somewhere, and nothing comes from elsewhere.

The build itself needs `make docs`'s packages, which `make test` does not install: `make soak` does, and tests it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import nonisotropic

PROJECT = Path(__file__).resolve().parent.parent
HAS_SPHINX = all(importlib.util.find_spec(name) for name in ("sphinx", "furo", "myst_parser"))


def module_of(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_of_site", PROJECT / "docs" / "site" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build, docstrings = module_of("build"), module_of("docstrings")


def test_every_document_is_in_one_list() -> None:
    listed = [page for pages in build.PAGES.values() for page in pages] + build.notebooks()
    assert sorted(listed) == build.documents() and len(listed) >= 20
    assert {"docs/faq", "docs/results", "docs/paper", "CHANGELOG", "docs/notebooks/README"} <= set(listed)


def test_every_public_name_is_in_the_reference_once() -> None:
    assert sorted(name for names in build.REFERENCE.values() for name in names) == sorted(nonisotropic.__all__)


def test_sources_have_every_file_that_they_link(tmp_path: Path) -> None:
    build.stage(tmp_path)
    pages = sorted(tmp_path.rglob("*.md"))
    assert {f"{page.relative_to(tmp_path).with_suffix('')}" for page in pages} | {"docs/reference"} == {
        "index", *build.documents()
    }  # fmt: skip
    for page in pages:
        text = page.read_text()
        blocks = r"```.*?```" if page.name == "CHANGELOG.md" else r"```.*?```|`[^`\n]*`"
        for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", re.sub(blocks, "", text, flags=re.DOTALL)):
            target = page.parent / link.partition("#")[0] if link[0] != "#" else page
            assert target.is_file(), (page.name, link)
    notebook = (tmp_path / "docs/notebooks/1_threat_of_a_change.md").read_text()
    assert "half-way to another     0.85" in notebook and "(1_threat_of_a_change_1.png)" in notebook
    assert "](3_threshold_by_coverage.md)" in notebook and "](1_threat_of_a_change.ipynb)" in notebook
    home = (tmp_path / "index.md").read_text()
    assert home.startswith("# Nonisotropic") and home.count("{toctree}") == len(build.PAGES)


PAGE = """<!doctype html><head><link rel="stylesheet" href="style.css"><script src="{script}"></script></head>
<body><h1 id="here">A</h1><a href="{link}">x</a><a href="https://arxiv.org/abs/1">paper</a><img src="{image}"></body>"""


@pytest.mark.parametrize(
    ("script", "link", "image", "style", "told"),
    [
        ("a.js", "#here", "a.png", "", []),
        ("a.js", "b.html#there", "data:image/png;base64,AA", "url(a.png)", []),
        ("https://cdn.example/a.js", "#here", "a.png", "", ["a.html: loads https://cdn.example/a.js"]),
        ("//cdn.example/a.js", "#here", "a.png", "", ["a.html: loads //cdn.example/a.js"]),
        ("a.js", "c.html", "a.png", "", ["a.html: no file for c.html"]),
        ("a.js", "b.html#gone", "a.png", "", ["a.html: no place for b.html#gone"]),
        ("a.js", "#gone", "b.png", "", ["a.html: no place for #gone", "a.html: no file for b.png"]),
        ("a.js", "#here", "a.png", "@import 'https://fonts.example/x'", ["style.css: loads https://fonts.example/x"]),
        ("a.js", "#here", "a.png", "x { src: url(//f.example/y) }", ["style.css: loads //f.example/y"]),
    ],
)
def test_faults_of_a_site_are_found(
    script: str, link: str, image: str, style: str, told: list[str], tmp_path: Path
) -> None:
    (tmp_path / "a.html").write_text(PAGE.format(script=script, link=link, image=image))
    (tmp_path / "b.html").write_text("<p id=there>")
    (tmp_path / "style.css").write_text(style)
    for name in ("a.js", "a.png"):
        (tmp_path / name).touch()
    assert list(build.faults(tmp_path)) == told


def test_docstrings_become_lists_and_examples_stay() -> None:
    lines = """What it does, as `Attack` does: 2 * x_i.

threat     its size, of `name`
shard_size images attacked at once
schedule, momentum   of the steps;
           and more
x          [n]

Raises UsageError.

>>> f(a_b)  # *
    1
""".splitlines()
    assert (
        "\n".join(docstrings.as_rst(lines))
        == """What it does, as ``Attack`` does: 2 \\* x\\_i.

``threat``
   its size, of ``name``
``shard_size``
   images attacked at once
``schedule, momentum``
   of the steps;
   and more
``x``
   [n]

Raises UsageError.

>>> f(a_b)  # *
    1
"""
    )


@pytest.mark.skipif(not HAS_SPHINX, reason="the packages of `pip install '.[docs]'` are not here")
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    code = f"import build, pathlib, sys; sys.exit(build.main(pathlib.Path({str(tmp_path)!r})))"
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT / "docs/site"), os.getenv("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stdout + done.stderr
    reference = (tmp_path / "site/docs/reference.html").read_text()
    assert all(f'id="nonisotropic.{name}"' in reference for name in nonisotropic.__all__)
    assert '"anchor":' in (tmp_path / "site/searchindex.js").read_text()
