"""A process that has imported what commands import, and forks for each: a command starts without seconds of imports.

A command that starts this way is a process of its own all the same, with a memory, signals and an exit code, and goes
through nonisotropic.py. What it finds imported is other people's packages alone. Only the order of sets is the same in
all of them: a test that needs another one sets PYTHONHASHSEED, with which a command starts on its own.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

PROJECT = Path(__file__).resolve().parent.parent
ENTRY = PROJECT / "nonisotropic.py"
# Tests of an installed wheel (release/wheel_tests.py) stand beside no checkout, and run its command.
PROGRAM = ENTRY if ENTRY.is_file() else Path(sysconfig.get_path("scripts"), "nonisotropic")
IMPORTED = (
    *("coverage", "torch", "torch._dynamo", "torch.distributed.fsdp", "torch.nn.parallel"),
    *("torchvision", "torchvision.transforms.v2", "torchvision.models", "fontTools.ttLib", "contourpy"),
    *("safetensors.numpy", "safetensors.torch", "sklearn.datasets", "scipy.ndimage", "scipy.optimize", "scipy.stats"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg", "PIL.Image", "tqdm"),
)
LISTENED = range(20_000, 32_000)  # ports that the system gives nobody who does not ask for one of them


class ForkServer:
    """The caller's side: runs one command at a time."""

    def __init__(self) -> None:
        variables = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            env={**variables, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        atexit.register(self.end)

    def run(
        self,
        words: Sequence[str],
        variables: Mapping[str, str],
        cwd: Path,
        processes: int = 0,
        program: Path = PROGRAM,
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        """A program in a process, or in `processes` that find each other by torch's variables.

        The exit code is that of one process, and of several the first that is not 0, upon which the others are ended.
        """
        assert self.process.stdin is not None
        with tempfile.TemporaryDirectory() as folder:
            said = [str(Path(folder) / name) for name in ("stdout", "stderr")]
            ranks = [{**variables, **more} for more in (_ranks(processes) if processes else [{}])]
            request = {"words": [str(program), *words], "ranks": ranks, "cwd": str(cwd), "said": said}
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            numbers = self._answer(timeout)
            try:
                code = self._answer(timeout)
            except TimeoutError as error:
                for number in numbers:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(number, signal.SIGKILL)
                self._answer(timeout)
                raise subprocess.TimeoutExpired(request["words"], timeout, *_read(said)) from error
            return subprocess.CompletedProcess(request["words"], code, *_read(said))

    def _answer(self, timeout: float) -> Any:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            raise TimeoutError
        line = self.process.stdout.readline()
        if not line:
            raise ChildProcessError(f"the fork server ended with {self.process.wait()}")
        return json.loads(line)

    def end(self) -> None:
        """Let the server go."""
        with contextlib.suppress(BrokenPipeError, ValueError):
            self.process.communicate()


_STARTED: list[ForkServer] = []


def fork_server() -> ForkServer:
    """The one of this process, started when it is first asked for, and again if something has ended it."""
    if not _STARTED or _STARTED[-1].process.poll() is not None:
        _STARTED.append(ForkServer())
    return _STARTED[-1]


def _read(files: Sequence[str]) -> list[str]:
    return [Path(file).read_text() if os.path.exists(file) else "" for file in files]


def _ranks(processes: int) -> list[dict[str, str]]:
    """Variables of each process, as torchrun sets them."""
    shared = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def _free_port() -> int:
    while True:
        with socket.socket() as listening:
            port = random.SystemRandom().choice(LISTENED)
            try:
                listening.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def serve() -> dict[str, Any] | None:
    """Fork for every request of the caller; in a process that was forked, what it is to do, else None at the end."""
    for line in sys.stdin:
        request, numbers, code = json.loads(line), [], 0
        for variables in request["ranks"]:
            number = os.fork()
            if not number:
                return {**request, "variables": variables}
            numbers.append(number)
        print(json.dumps(numbers), flush=True)
        while numbers:
            number, status = os.wait()
            numbers.remove(number)
            if status and not code:
                code = os.waitstatus_to_exitcode(status)
                for other in numbers:
                    os.kill(other, signal.SIGTERM)
        print(json.dumps(code), flush=True)
    return None


def become(request: dict[str, Any]) -> None:
    """Turn this forked process into the one that was asked for."""
    os.environ.clear()
    os.environ.update(request["variables"])
    os.chdir(request["cwd"])
    files = [os.open(os.devnull, os.O_RDONLY)]
    files += [os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for file in request["said"]]
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.argv[:] = request["words"]
    sys.path[0] = str(PROJECT)
    import coverage

    coverage.process_startup()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as asked:
        leave(asked.code)
    leave(None)


def leave(code: Any) -> NoReturn:
    """End as Python ends a program, but without taking apart what was imported: that costs most of a second."""
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit((code or 0) & 0xFF)


if __name__ == "__main__":
    for module in IMPORTED:
        with contextlib.suppress(ImportError):  # a command that needs it says so
            importlib.import_module(module)
    gc.freeze()  # no forked process looks through what it did not make
    if asked := serve():
        become(asked)
