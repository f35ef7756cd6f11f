"""Every program below benchmarks/ finds what it imports, wherever it is started; few of them run in the tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
PROGRAMS = [file for file in sorted(PROJECT.glob("benchmarks/*.py")) if '__name__ == "__main__"' in file.read_text()]
IMPORT_EACH = """
import runpy, sys
project, *files = sys.argv[1:]
for file in files:
    path = list(sys.path)
    try:
        runpy.run_path(file, run_name="imported")
    except Exception as error:
        print(file, repr(error))
    sys.path[:] = path
    for name, module in list(sys.modules.items()):  # what one has found, the next must find itself
        places = [vars(module).get("__file__") or "", *vars(module).get("__path__", ())]
        if any(str(each).startswith(project) and "site-packages" not in str(each) for each in places):
            del sys.modules[name]
"""


def test_programs_find_what_they_import(tmp_path: Path) -> None:
    """One process for all, in another folder."""
    assert len(PROGRAMS) > 12
    files = [str(file) for file in PROGRAMS]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EACH, str(PROJECT), *files],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
