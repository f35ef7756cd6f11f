"""The version, and the way this program was installed: how it is called, and where it writes by default."""

from __future__ import annotations

from pathlib import Path

VERSION = "0.1.0"  # the one place; setup.py reads it, and tests compare what else names it
FROM_WHEEL = __name__.startswith("nonisotropic.")  # below one package, as the build of a wheel puts it
IN_CHECKOUT = "python nonisotropic.py"
COMMAND = "nonisotropic" if FROM_WHEEL else IN_CHECKOUT  # in messages; files say IN_CHECKOUT, for equal bytes
CHECKOUT = Path(__file__).resolve().parent.parent


def default_root() -> Path:
    """output/ in the checkout; with an installed wheel, where nobody looks for output, in the current folder."""
    return (Path.cwd() if FROM_WHEEL else CHECKOUT) / "output"
