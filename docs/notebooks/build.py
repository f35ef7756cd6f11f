"""make notebooks: run the notebooks of this folder with Jupyter, and write them back with what they print and draw.

The same code and versions give the same bytes: cells are numbered, and no clock, path or name of a machine is kept.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from nbclient import NotebookClient
from nbformat import NotebookNode, from_dict, read

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
KEPT = ("image/png", "text/plain")  # of what a cell shows: no HTML, no scripts
ABOUT = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def executed(file: Path) -> NotebookNode:
    """The notebook after all its cells; those tagged skip-execution are left out."""
    notebook = read(file, as_version=4)
    notebook.metadata = from_dict(ABOUT)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    return notebook


def normalised(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook with nothing that another run of it changes."""
    count = 0
    for number, cell in enumerate(notebook["cells"], start=1):
        cell["id"] = f"cell-{number:02d}"
        cell["metadata"] = {"tags": tags} if (tags := cell["metadata"].get("tags")) else {}
        if cell["cell_type"] == "code":
            skipped = "skip-execution" in cell["metadata"].get("tags", [])
            count += not skipped
            cell["execution_count"] = None if skipped else count
            cell["outputs"] = [] if skipped else _outputs(cell["outputs"], count)
    return {"cells": notebook["cells"], "metadata": ABOUT, "nbformat": 4, "nbformat_minor": 5}


def _outputs(outputs: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for output in outputs:
        if output["output_type"] == "stream":
            if output["name"] != "stdout":
                raise SystemExit(f"expected no words on {output['name']}, got: {output['text']}")
            if found and found[-1]["output_type"] == "stream":
                found[-1]["text"] += output["text"]
                continue
        else:
            picture = "image/png" in output["data"]
            kinds = KEPT[:1] if picture else KEPT[1:]
            output["data"] = {kind: output["data"][kind] for kind in kinds}
            output["metadata"] = {}
            if "execution_count" in output:
                output["execution_count"] = count
        found.append(output)
    return found


def text(notebook: dict[str, Any]) -> str:
    """As it is written: lines of sources and outputs apart, so that differences can be read."""
    for cell in notebook["cells"]:
        cell["source"] = _lines(cell["source"])
        for output in cell.get("outputs", []):
            if "text" in output:
                output["text"] = _lines(output["text"])
            for kind, content in output.get("data", {}).items():
                output["data"][kind] = content.strip() if kind == "image/png" else _lines(content)
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _lines(words: str | list[str]) -> list[str]:
    return "".join(words).splitlines(keepends=True)


def main(names: list[str]) -> None:
    # The kernel imports this checkout, whatever is installed; one thread, since sums in another order round otherwise.
    os.environ |= {"PYTHONPATH": os.pathsep.join([str(PROJECT), *filter(None, [os.getenv("PYTHONPATH")])])}
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONHASHSEED": "0"}
    for file in sorted(HERE.glob("*.ipynb")):
        if names and file.name not in names:
            continue
        written = text(normalised(executed(file)))
        file.write_text(written, encoding="utf-8")
        print(f"{file.name}: {len(written) / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
