"""make docs: the documents of this repository as a site, build/site/index.html, which needs no network to read.

The documents are not changed for it: they are copied with the folders that they lie in, so that a link between two of
them means the same here and there. README.md becomes the first page, notebooks become pages, and the page of the
public names is made of their docstrings. A link that leads nowhere, a page that is in no list, and anything that a
browser would load from elsewhere end the build with an error.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
OUTPUT = PROJECT / "build"

# Caption -> pages, by their paths in the repository without an ending.
PAGES = {
    "Start": ["docs/notebooks/README", "docs/faq"],
    "Guides": [
        "docs/threats",
        "docs/evaluation",
        "docs/training",
        "docs/data_and_models",
        "docs/runs",
        "docs/clusters",
        "docs/memory",
        "docs/extending",
    ],
    "Python": ["docs/api", "docs/reference"],
    "Figures to compare": ["docs/protocol", "docs/claims", "docs/enter"],
    "Background": ["docs/paper", "docs/results", "benchmarks/RESULTS", "docs/stability", "CHANGELOG"],
}
MADE = ("docs/reference",)
# Not pages: README.md is the first page, and docs/README.md is what the lists at the side are.
LEFT_OUT = ("README", "docs/README")

REFERENCE = {
    "Threats": ["ProjectedDisplacement", "AnchorSet", "L2", "Linf", "Intersection", "evaluate_threat_of"],
    "Attacks and robust accuracy": ["robust_accuracy", "RobustAccuracy", "attack", "Attack", "RobustnessWarning"],
    "Training": ["TrainingAdversary"],
    "Data, thresholds": ["load_dataset", "safe_changes", "threshold_at_coverage"],
    "A threat of your own": ["Threat", "BoundThreat", "Measure"],
    "Errors, other packages, the command line": [
        "NonisotropicError",
        "UsageError",
        "RunError",
        "import_robustbench",
        "main",
    ],
}


def documents(project: Path = PROJECT) -> list[str]:
    """Every document that the site is to have, by its path without an ending."""
    found = [project / "CHANGELOG.md", *(project / "docs").glob("*.md"), *(project / "docs/notebooks").glob("*.md")]
    found += [project / "benchmarks/RESULTS.md", *(project / "docs/notebooks").glob("*.ipynb")]
    names = [file.relative_to(project).with_suffix("").as_posix() for file in found]
    return sorted({*names, *MADE} - {*LEFT_OUT})


def notebooks() -> list[str]:
    """Notebooks, which their own README.md lists."""
    return sorted(f"docs/notebooks/{file.stem}" for file in (PROJECT / "docs/notebooks").glob("*.ipynb"))


def stage(folder: Path) -> None:
    """Write all sources of the site to a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(PROJECT / "docs", folder / "docs", ignore=shutil.ignore_patterns("*.py", "site", "__pycache__"))
    (folder / "benchmarks").mkdir()
    for name in ("CHANGELOG.md", "benchmarks/RESULTS.md"):
        shutil.copy(PROJECT / name, folder / name)
    (folder / "docs/README.md").unlink()
    for notebook in notebooks():
        _write_notebook(folder / f"{notebook}.ipynb")
    _write_reference(folder / "docs/reference.rst")
    lists = [_list(pages, caption) for caption, pages in PAGES.items()]
    home = (PROJECT / "README.md").read_text(encoding="utf-8")
    (folder / "index.md").write_text("\n".join([home, *lists]), encoding="utf-8")
    for file in folder.rglob("*.md"):
        file.write_text(_of_site(file.read_text(encoding="utf-8")), encoding="utf-8")
    with (folder / "docs/notebooks/README.md").open("a", encoding="utf-8") as file:
        file.write("\n" + _list([Path(name).name for name in notebooks()]))


def _of_site(text: str) -> str:
    """A document whose links lead to pages of notebooks, and bear titles where they bear names of files."""
    text = re.sub(r"(\]\([^)\s<]*)\.ipynb\)", r"\1.md)", text)
    text = re.sub(r"\[[\w/]+\.md\]\((?!http)", "[](", text)
    return text.replace("](<download>", "](")


def _list(pages: list[str], caption: str = "") -> str:
    head = ["```{toctree}", ":hidden:", *([f":caption: {caption}"] if caption else []), ""]
    return "\n".join([*head, *pages, "```", ""])


def _write_notebook(file: Path) -> None:
    """The page of a notebook, and its pictures, beside it."""
    parts = []
    pictures = 0
    for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        language = "text" if source.startswith("%") else "python"
        parts.append(source if cell["cell_type"] == "markdown" else f"```{language}\n{source}\n```")
        for output in cell.get("outputs", []):
            if "text" in output:
                parts.append("```{code-block} text\n:class: printed\n\n" + "".join(output["text"]).rstrip() + "\n```")
                continue
            pictures += 1
            picture = file.with_name(f"{file.stem}_{pictures}.png")
            picture.write_bytes(base64.b64decode(output["data"]["image/png"]))
            parts.append(f"![What this cell draws]({picture.name})")
    parts.append(f"[Download this notebook](<download>{file.name})")
    file.with_suffix(".md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _write_reference(file: Path) -> None:
    """The page of all public names; conf.py makes their docstrings ready."""
    lines = [
        "All public names",
        "================",
        "",
        "Made of the docstrings; :doc:`api` tells what they are for.",
        "",
    ]
    for heading, names in REFERENCE.items():
        lines += [heading, "-" * len(heading), ""]
        for name in names:
            kind = "function" if name[0].islower() else "exception" if name.endswith(("Error", "Warning")) else "class"
            lines += [f".. auto{kind}:: nonisotropic.{name}"]
            if kind == "class":
                lines += ["   :members:", "   :special-members: __call__"]
            lines += [""]
    file.write_text("\n".join(lines), encoding="utf-8")


class Page(HTMLParser):
    """What a page has: anchors, links, and the addresses of all that a browser loads for it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a":
            self.links += [values["href"]] if "href" in values else []
        else:
            self.loaded += [values[name] for name in ("src", "href", "data", "poster") if values.get(name)]


def faults(site: Path) -> Iterator[str]:
    """What is wrong with a built site: things from elsewhere, links and files that lead nowhere."""
    pages = {file: Page(file.read_text(encoding="utf-8")) for file in sorted(site.rglob("*.html"))}
    for file, page in pages.items():
        name = file.relative_to(site)
        for address in page.loaded:
            if re.match(r"(https?:)?//", address):
                yield f"{name}: loads {address}"
        for address in [*page.links, *page.loaded]:
            if re.match(r"(https?:)?//|mailto:|data:|javascript:", address):
                continue
            path, _, anchor = unquote(address).partition("#")
            target = (file.parent / path.split("?")[0]).resolve() if path else file
            if not target.is_file():
                yield f"{name}: no file for {address}"
            elif anchor and target in pages and anchor not in pages[target].anchors:
                yield f"{name}: no place for {address}"
    for style in sorted(site.rglob("*.css")):
        for address in re.findall(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')\s]+)", style.read_text("utf-8")):
            yield f"{style.relative_to(site)}: loads {address}"


def main(output: Path = OUTPUT) -> int:
    from sphinx.cmd.build import build_main

    source, site = output / "site_source", output / "site"
    missing: Any = set(documents()) ^ {page for pages in PAGES.values() for page in pages} ^ set(notebooks())
    if missing:
        print(f"docs/site/build.py: expected PAGES to list every document once, differs in {sorted(missing)}")
        return 1
    stage(source)
    shutil.rmtree(site, ignore_errors=True)
    words = ["-q", "-W", "--keep-going", "-E", "-b", "html", "-c", str(HERE), "-d", str(output / "site_doctrees")]
    if build_main([*words, str(source), str(site)]):
        return 1
    found = list(faults(site))
    print("\n".join(found) if found else f"open {site / 'index.html'}")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
