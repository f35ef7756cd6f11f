"""Commands that start by forking end like others."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.fork_server import ForkServer, fork_server

PROGRAM = """
import atexit, os, sys, threading, time
atexit.register(print, "at the end")
threading.Timer(0.2, print, ["in a thread"]).start()
print(os.environ.get("RANK"), sys.argv[1:], os.getcwd())
print("told", file=sys.stderr)
if sys.argv[1] == "code":
    sys.exit(int(sys.argv[2]))
if sys.argv[1] == "killed":
    os.kill(os.getpid(), 9)
if sys.argv[1] == "one of two" and os.environ["RANK"] == "1":
    raise RuntimeError("no more")
if sys.argv[1] == "why":
    sys.exit("why")
if sys.argv[1] in ("sleep", "one of two"):
    time.sleep(60)
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


@pytest.mark.parametrize(("words", "code"), [(("code", "0"), 0), (("code", "3"), 3), (("killed",), -9)])
def test_exit_codes_and_output(words: tuple[str, ...], code: int, program: Path) -> None:
    done = fork_server().run(words, {"PATH": ""}, program.parent, program=program)
    assert done.returncode == code and done.stderr == "told\n"
    assert code < 0 or done.stdout == f"None {list(words)} {program.parent}\nin a thread\nat the end\n"


@pytest.mark.parametrize(("word", "code", "told"), [("why", 1, "told\nwhy\n"), ("ends by itself", 0, "told\n")])
def test_other_ends(word: str, code: int, told: str, program: Path) -> None:
    done = fork_server().run([word], {}, program.parent, program=program)
    assert (done.returncode, done.stderr) == (code, told) and done.stdout.endswith("at the end\n")


def test_the_others_are_ended_with_one_that_fails(program: Path) -> None:
    done = fork_server().run(["one of two"], dict(os.environ), program.parent, 2, program)
    assert done.returncode in (1, -signal.SIGTERM) and "RuntimeError: no more" in done.stderr


def test_what_takes_too_long_is_ended_and_the_next_command_runs(program: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        fork_server().run(["sleep"], {}, program.parent, program=program, timeout=1)
    assert caught.value.stderr == "told\n"
    assert fork_server().run(["code", "5"], {}, program.parent, program=program).returncode == 5


def test_a_server_that_was_killed_is_started_again(program: Path) -> None:
    server: ForkServer = fork_server()
    server.process.kill()
    server.process.wait()
    assert fork_server().run(["code", "5"], {}, program.parent, program=program).returncode == 5
