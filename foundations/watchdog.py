"""A watchdog for processes that wait for each other: it ends the run when one of them makes no progress."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

LOOKS = 20  # checks of the other processes within the time limit
LONGEST_PAUSE = 10.0  # seconds between two checks, at most
GRACE = 60.0  # seconds for the launcher to end the other processes after a failure, and for failures to be published
FAILED, WAITING, WORKING = "failed", "waiting", "working"


@dataclass(frozen=True)
class Sign:
    """The last known state of a process: its number of beats, its activity, and since when both are unchanged.

    since   on the monotonic clock of the process that watches
    """

    beats: int
    state: str
    since: float


class Watchdog:
    """A watchdog that ends the run, within a bounded time, if a process makes no progress for `limit` seconds.

    Every process counts its beats (forward passes, shards, classes) and publishes the count. A process is stuck if its
    count does not change for `limit` seconds while it is not waiting for others; the error message gives its rank.

    In training, all processes execute the same step, and the others wait for the slowest one inside a collective
    operation; the slowest one, which is reported, has the fewest beats. Rank 0 watches all processes; the others watch
    rank 0.
    """

    def __init__(self, limit: float = 0.0) -> None:
        self.limit = limit
        self.count, self.state = 0, WORKING
        self.store: Any = None
        self.rank, self.world_size = 0, 1
        self.signs: dict[int, Sign] = {}
        self._end = threading.Event()

    def beat(self) -> None:
        """Count one beat: this process made progress."""
        self.count += 1

    def beating(self, iterable: Iterable[Any]) -> Iterator[Any]:
        """The items of an iterable, with one beat for each."""
        for item in iterable:
            self.beat()
            yield item

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Mark this process as waiting for others for the duration of a block."""
        self.state, before = WAITING, self.state
        try:
            yield
        finally:
            self.state = before

    def start(self, store: Any, rank: int, world_size: int) -> None:
        """Start a thread that publishes the beats of this process and checks those of the others.

        store   a key-value store that all processes can reach
        """
        self.store, self.rank, self.world_size = store, rank, world_size
        self._publish()
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def finish(self, failed: bool) -> None:
        """Stop checking, and publish how this process ended."""
        self._end.set()
        if self.store is not None:
            self.state = FAILED if failed else WAITING
            try:
                self._publish()
            except Exception:
                return  # the store no longer exists: the other processes have ended

    def all_arrive(self, place: str, seconds: float = GRACE) -> bool:
        """Wait until all processes have called this for the same place; False if that takes more than `seconds`."""
        if self.store is None:
            return True
        until = time.monotonic() + seconds
        self.store.add(place, 1)
        while self.store.add(place, 0) < self.world_size:
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True

    def _publish(self) -> None:
        self.store.set(f"beat/{self.rank}", f"{self.count} {self.state}")

    def _run(self) -> None:
        pause = min(LONGEST_PAUSE, max(0.05, self.limit / LOOKS)) if self.limit else LONGEST_PAUSE
        reached = time.monotonic()
        while not self._end.wait(pause):
            try:
                self._publish()
                self._look()
                reached = time.monotonic()
                wrong = verdict(self.rank, self.signs, reached, self.limit)
            except Exception as error:
                lost = time.monotonic() - reached > max(self.limit, GRACE)
                wrong = f"lost contact with the other processes ({error})" if lost else ""
            if wrong and not self._end.is_set():
                prefix = "nonisotropic" if self.rank == 0 else f"nonisotropic [rank {self.rank}]"
                print(f"{prefix}: {wrong}; the same command goes on from what is complete", file=sys.stderr, flush=True)
                os._exit(1)

    def _look(self) -> None:
        """Read the beats of the processes that this one watches, and its own."""
        for rank in range(self.world_size) if self.rank == 0 else (0, self.rank):
            key = f"beat/{rank}"
            told = self.store.get(key).decode() if self.store.check([key]) else f"-1 {WORKING}"
            beats, state = int(told.split()[0]), told.split()[1]
            known = self.signs.get(rank)
            if known is None or (known.beats, known.state) != (beats, state):
                self.signs[rank] = Sign(beats, state, time.monotonic())


def verdict(me: int, signs: dict[int, Sign], now: float, limit: float) -> str:
    """The error message if a process failed or is stuck, else "".

    me      rank of this process
    signs   last known state of the ranks that it watches, and its own
    """
    failed = [rank for rank, sign in signs.items() if sign.state == FAILED and now - sign.since > GRACE and rank != me]
    if failed:
        return f"{_ranks(failed)} failed, and this process was waiting for it"
    still = {rank: sign for rank, sign in signs.items() if limit and now - sign.since > limit}
    if me == 0 and len(still) == len(signs) and all(sign.state == WAITING for sign in still.values()):
        return f"all processes wait for each other since {limit:.0f} seconds (--hang_minutes)"
    stuck = {rank: sign.beats for rank, sign in still.items() if sign.state == WORKING}
    behind = [rank for rank, beats in stuck.items() if beats == min(stuck.values())]
    # The other ranks see only rank 0 and themselves, and report only rank 0: it is rank 0 that reports the others.
    if not behind or (me and behind != [0]):
        return ""
    return f"{_ranks(behind)} made no progress for {limit:.0f} seconds (--hang_minutes)"


def _ranks(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else "ranks " + ", ".join(map(str, ranks))
