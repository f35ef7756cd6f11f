"""Signal handlers for requests to end: SIGTERM, and SIGUSR1, which a scheduler can send before a time limit."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = ("SIGTERM", "SIGUSR1")
PATIENCE = 5.0  # seconds in which the main thread can end by itself; torchrun kills the process after 30


def ignore_signals() -> None:
    """Ignore the signals in a helper process, which ends together with its main process."""
    for name in SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


class Interrupted(BaseException):
    """The exception raised when the run is asked to end; the same command continues from what is complete.

    No Exception, as KeyboardInterrupt is none: whoever catches all errors of a damaged file or of somebody's code, here
    or in a library, would take the request for such an error and go on.

    The exit code is 75, EX_TEMPFAIL of sysexits.h.
    """

    exit_code = 75


class Stop:
    """The request to end that this process has received, if any.

    By default a request ends the process immediately, as Ctrl-C does; inside a `deferred` block it is only recorded.

    asked   name of the signal received, else ""
    """

    def __init__(self) -> None:
        self.asked = ""
        self._is_deferred = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals for the duration of a block; does nothing outside the main thread, where Python cannot."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
        before = {number: signal.signal(number, self._take) for number in numbers}
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        woken = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        threading.Thread(target=self._insist, args=(reading, numbers), name="stop", daemon=True).start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(woken)
            os.close(writing)
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only record a request during a block, which checks `asked` itself and ends cleanly.

        A second request ends the block immediately.
        """
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

    def interruption(self) -> Interrupted:
        """The error to raise when the process was asked to end."""
        return Interrupted(f"stopped by {self.asked or 'a signal'}; the same command goes on from what is complete")

    def _insist(self, reading: int, numbers: list[int]) -> None:
        """End the process if the main thread cannot.

        Python runs its signal handlers only after a call outside Python returns; a call that waits for a process which
        has ended may never return.
        """
        while number := os.read(reading, 1):
            if number[0] in numbers:
                time.sleep(PATIENCE)
                if not self.asked and not self._is_deferred:
                    self.asked = signal.Signals(number[0]).name
                    print(f"nonisotropic: {self.interruption()}", file=sys.stderr, flush=True)
                    os._exit(Interrupted.exit_code)
        os.close(reading)

    def _take(self, number: int, frame: FrameType | None) -> None:
        again, self.asked = bool(self.asked), signal.Signals(number).name
        if again or not self._is_deferred:
            raise self.interruption()
