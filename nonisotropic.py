"""Nonisotropic: measure, attack and train image classifiers under nonisotropic threats. Entry point."""

import sys
from pathlib import Path

HERE = str(Path(__file__).resolve().parent)
# Third-party packages are also called `datasets`, `models` and `training`: this project's folder must come first.
sys.path[:] = [HERE, *(path for path in sys.path if path != HERE)]

from foundations.third_party import install_aliases  # noqa: E402

install_aliases()


def main() -> int:
    """Run the command line of `cli/main.py`."""
    import datasets

    where = getattr(datasets, "__file__", None)
    if where is None or not where.startswith(HERE):
        print(
            f"nonisotropic: expected the package 'datasets' of {HERE}, got {where}; start nonisotropic.py itself, "
            "in a process that has not imported another package of this name",
            file=sys.stderr,
        )
        return 1
    from cli.main import main as command_line

    return command_line()


if __name__ == "__main__":
    sys.exit(main())
