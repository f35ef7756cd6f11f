"""python -m release: build a version, check both files, and try the wheel in new environments; nothing is uploaded.

make release RELEASE_FLAGS='--pythons=python3.10,python3.13'

Refuses a tree with changes, a version that CHANGELOG.md does not date, and one that is tagged. An environment takes
about 6 GB and is removed before the next one is made.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from foundations.results import markdown_table  # noqa: E402
from release.artefacts import build  # noqa: E402
from release.environments import COLUMNS, check  # noqa: E402
from release.refusals import refusals  # noqa: E402
from release.steps import ReleaseError  # noqa: E402
from release.wheel_tests import FAST, setup_module_of  # noqa: E402


def main() -> int:
    """The whole road; 1 if anything stands against the release."""
    flags = parsed()
    pythons = found(flags.pythons)
    os.umask(0o022)  # modes enter the files
    if against := refusals(CHECKOUT):
        print("\n".join(f"release: {line}" for line in against), file=sys.stderr)
        if not flags.rehearse:
            return 1
    failed = 0
    with tempfile.TemporaryDirectory(prefix="release_", dir=flags.work or None) as folder:
        print("release: the files", flush=True)
        work = Path(folder).resolve()
        made = build(CHECKOUT, work / "files")
        rows = []
        for number, python in enumerate(pythons):
            print(f"release: {python}", flush=True)
            row, told = check(python, made.wheel, CHECKOUT, work / f"python_{number}", flags.tests)
            rows.append(list(row.values()))
            failed += len(told)
            for each in told:
                print(f"release: {python}: {each}", file=sys.stderr, flush=True)
        if rows:
            print(markdown_table(list(COLUMNS), rows))
        if failed:
            return 1
        flags.dist.mkdir(exist_ok=True)
        files = [shutil.copy(file, flags.dist) for file in (made.sdist, made.wheel)]
    if flags.rehearse:
        print(f"release: a rehearsal, of the last commit; {' '.join(map(str, files))}")
        return 0
    tag = f"v{setup_module_of(CHECKOUT).version()}"
    print(f"release: nothing stands against it. To publish:\n  git tag --annotate {tag} --message {tag}")
    print(f"  git push origin {tag}\n  {Path(sys.executable).name} -m twine upload {' '.join(map(str, files))}")
    return 0


def found(names: str) -> list[str]:
    """Paths of the Pythons that are named, by name or path."""
    paths = {name: shutil.which(name) for name in names.split(",") if name}
    if missing := [name for name, path in paths.items() if path is None]:
        raise ReleaseError(f"--pythons: expected names or paths of Pythons, got {', '.join(missing)}")
    return [str(Path(path).absolute()) for path in paths.values() if path]


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m release", allow_abbrev=False)
    parser.add_argument("--pythons", default=sys.executable, metavar="P,P", help="try the wheel with these [this one]")
    parser.add_argument("--tests", type=lambda text: text.split(), default=FAST, help="files of tests [the fast ones]")
    parser.add_argument("--rehearse", action="store_true", help="go on where a release is refused")
    parser.add_argument("--work", default="", metavar="DIR", help="where environments are made [the temporary folder]")
    parser.add_argument(
        "--dist", type=Path, default=CHECKOUT / "dist", metavar="DIR", help="where the files go [dist/]"
    )
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ReleaseError as failure:
        sys.exit(f"release: {failure}")
