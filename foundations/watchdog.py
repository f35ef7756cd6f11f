"""Several processes that wait for each other: noticing the one that no longer gets on."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

LOOKS = 20  # at the others in the time that a process may stand still
LONGEST_PAUSE = 10.0  # seconds between two looks
GRACE = 60.0  # seconds for the launcher to end the others after one has failed, and for failures to be told
FAILED, WAITING, WORKING = "failed", "waiting", "working"


@dataclass(frozen=True)
class Sign:
    """What was last heard of a process: its beats, what it does, and since when (our monotonic clock) that is so."""

    beats: int
    state: str
    since: float


class Watchdog:
    """Every process counts its beats (forward passes, shards, classes) and publishes the count; one that stands still
    for `limit` seconds without waiting for others ends the run with its name, in bounded time.

    In training all processes are in one step and wait for its slowest, deep inside a collective; it is the one
    with the fewest beats. Rank 0 watches all, the others watch rank 0.
    """

    def __init__(self, limit: float = 0.0) -> None:
        self.limit = limit
        self.count, self.state = 0, WORKING
        self.store: Any = None
        self.rank, self.world_size = 0, 1
        self.signs: dict[int, Sign] = {}
        self._end = threading.Event()

    def beat(self) -> None:
        """This process got on."""
        self.count += 1

    def beating(self, iterable: Iterable[Any]) -> Iterator[Any]:
        """The items, with a beat for each."""
        for item in iterable:
            self.beat()
            yield item

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A block in which this process waits for others."""
        self.state, before = WAITING, self.state
        try:
            yield
        finally:
            self.state = before

    def start(self, store: Any, rank: int, world_size: int) -> None:
        """Publish and look from a thread of its own, over a key-value store that all processes reach."""
        self.store, self.rank, self.world_size = store, rank, world_size
        self._publish()
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def finish(self, failed: bool) -> None:
        """Stop looking; the others learn how this process ended."""
        self._end.set()
        if self.store is not None:
            self.state = FAILED if failed else WAITING
            try:
                self._publish()
            except Exception:
                return  # the store has gone: so have the others

    def all_arrive(self, place: str, seconds: float = GRACE) -> bool:
        """Whether all processes call this for a place, within some seconds of each other."""
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
        """Read the beats of those that this process watches, itself among them."""
        for rank in range(self.world_size) if self.rank == 0 else (0, self.rank):
            key = f"beat/{rank}"
            told = self.store.get(key).decode() if self.store.check([key]) else f"-1 {WORKING}"
            beats, state = int(told.split()[0]), told.split()[1]
            known = self.signs.get(rank)
            if known is None or (known.beats, known.state) != (beats, state):
                self.signs[rank] = Sign(beats, state, time.monotonic())


def verdict(me: int, signs: dict[int, Sign], now: float, limit: float) -> str:
    """What is wrong with whom, "" while all is well; what rank `me` may say of the ranks it has signs of."""
    failed = [rank for rank, sign in signs.items() if sign.state == FAILED and now - sign.since > GRACE and rank != me]
    if failed:
        return f"{_ranks(failed)} failed, and this process was waiting for it"
    still = {rank: sign for rank, sign in signs.items() if limit and now - sign.since > limit}
    if me == 0 and len(still) == len(signs) and all(sign.state == WAITING for sign in still.values()):
        return f"all processes wait for each other since {limit:.0f} seconds (--hang_minutes)"
    stuck = {rank: sign.beats for rank, sign in still.items() if sign.state == WORKING}
    behind = [rank for rank, beats in stuck.items() if beats == min(stuck.values())]
    # Others than rank 0 see only rank 0 and themselves: of themselves it is rank 0 that judges.
    if not behind or (me and behind != [0]):
        return ""
    return f"{_ranks(behind)} made no progress for {limit:.0f} seconds (--hang_minutes)"


def _ranks(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else "ranks " + ", ".join(map(str, ranks))
