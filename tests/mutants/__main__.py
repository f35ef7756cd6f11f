"""python tests/mutants [WORD ...]     those whose name has one of the words, else all; `make mutants` runs it

A mutant is a copy of the project in which one line is changed. The last line says how many no test noticed.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mutants import MUTANTS
from mutants.mutant import survives


def main(words: list[str]) -> None:
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    left = []
    with ThreadPoolExecutor(2) as workers:
        for number, (mutant, survived) in enumerate(zip(chosen, workers.map(survives, chosen), strict=True), start=1):
            print(f"{number:2} {'SURVIVED' if survived else 'noticed '} {mutant.name}", flush=True)
            left += [mutant] if survived else []
    print(f"mutants: {len(chosen)}, survived: {len(left)}")


if __name__ == "__main__":
    main(sys.argv[1:])
