"""Every bad input ends in a clean error: one line, exit code 1 or 2, no traceback, nothing left behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.bad_inputs import KINDS, attempts, make_base

NUMBER = int(os.environ.get("NONISOTROPIC_BAD_INPUTS", "12"))  # of each kind; make soak tries more


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("base")
    make_base(root)
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_bad_inputs_end_in_clean_errors(kind: str, base: Path, record_property: Callable[[str, object], None]) -> None:
    ends, problems = attempts(kind, base, range(NUMBER))
    record_property("figures", f"bad inputs, {kind}: {sum(ends.values())}, of which {dict(ends)}")
    assert not problems, "\n".join(problems)
    assert ends["clean error"] > 0 or kind in ("checkpoints", "finished runs, in a report")
