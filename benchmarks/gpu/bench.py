"""The common ground of all sections of a pass: the device, clocks that wait for it, images, a threat, a network."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.record import Figure, Record
from datasets.info import DatasetInfo
from models.registry import build_model
from threat_specification import AnchorSet, ProjectedDisplacement

PROJECT = Path(__file__).resolve().parents[2]
CLASSES = 10
COLOUR = DatasetInfo(
    summary="", loader="", shape=(3, 32, 32), classes=tuple("0123456789"), mean=(0.5,) * 3, std=(0.25,) * 3
)
PIECE = 256  # images made at a time


@dataclass
class Bench:
    """A pass in progress.

    tiny      problems of a few images, to try the pass out
    budget    seconds for all sections together
    section   the section in progress
    """

    device: torch.device
    tiny: bool
    budget: float
    record: Record
    section: str = ""
    began: float = field(default_factory=time.monotonic)

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def left(self) -> float:
        """Seconds left of the budget."""
        return self.budget - (time.monotonic() - self.began)

    def sized(self, full: Any, tiny: Any) -> Any:
        """The size of a problem."""
        return tiny if self.tiny else full

    def tell(self, case: str, value: Any, unit: str = "", aim: str = "") -> None:
        """Record a figure of the section in progress."""
        self.record.tell(Figure(self.section, case, value, unit, aim))

    def sync(self) -> None:
        """Wait for the device."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def once(self, call: Callable[[], Any]) -> tuple[float, Any]:
        """Seconds of one call, and what it returned."""
        self.sync()
        start = time.perf_counter()
        value = call()
        self.sync()
        return time.perf_counter() - start, value

    def seconds_of(self, *calls: Callable[[], Any], least: int = 3, budget: float = 0.5) -> list[float]:
        """Median seconds of each call, all in turns, after one turn to warm up."""
        taken: list[list[float]] = [[] for _ in calls]
        until = time.perf_counter() + self.sized(budget * len(calls), 0.0)
        for call in calls:
            call()
        while len(taken[0]) < self.sized(least, 1) or time.perf_counter() < until:
            for call, times in zip(calls, taken, strict=True):
                times.append(self.once(call)[0])
        return [statistics.median(times) for times in taken]

    @contextmanager
    def peak(self, case: str) -> Iterator[None]:
        """A block whose peak memory on the GPU is recorded."""
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        yield
        if self.is_cuda:
            self.tell(f"{case}: peak memory", torch.cuda.max_memory_allocated(self.device) / 2**30, "GiB")

    def waits(self, call: Callable[[], Any]) -> int:
        """The number of times that a call makes the host wait for the device, as torch sees it; 0 on the CPU."""
        if not self.is_cuda:
            return 0
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                call()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in caught)

    @contextmanager
    def tf32(self) -> Iterator[None]:
        """A block in which products of float32 matrices may be rounded to TF32."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

    def noise(self, *shape: int, seed: int = 0) -> Tensor:
        """Normal numbers, the same on every device."""
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(self.device)

    def photographs(self, count: int, side: int = 32, seed: int = 0) -> Tensor:
        """8-bit images with the spectrum of photographs, [n, 3, side, side] on the device."""
        across, down = torch.fft.rfftfreq(side).view(1, -1), torch.fft.fftfreq(side).view(-1, 1)
        fade = (0.03 + (across.square() + down.square()).sqrt()).to(self.device)
        pieces = []
        for start in range(0, count, PIECE):
            generator = torch.Generator(self.device).manual_seed(1000 * seed + start)
            shape = (min(PIECE, count - start), 3, side, side)
            noise = torch.randn(shape, generator=generator, device=self.device)
            smooth = torch.fft.irfft2(torch.fft.rfft2(noise) / fade, s=(side, side))
            smooth = smooth / smooth.flatten(1).std(1).view(-1, 1, 1, 1)
            light = torch.randn((shape[0], 1, 1, 1), generator=generator, device=self.device)
            pieces.append((255 * (0.5 + 0.22 * smooth + 0.1 * light).clamp(0, 1)).round().to(torch.uint8))
        return torch.cat(pieces)

    def examples(self, count: int, side: int = 32) -> tuple[Tensor, Tensor]:
        """Images in [0, 1] and their labels."""
        return self.photographs(count, side, seed=2).float() / 255, self.labels(count)

    def labels(self, count: int) -> Tensor:
        return torch.arange(count, device=self.device) % CLASSES

    def threat(self, count: int, side: int = 32) -> ProjectedDisplacement:
        """PD over so many anchors."""
        anchors = AnchorSet(self.photographs(count, side, seed=1), self.labels(count))
        return ProjectedDisplacement(anchors=anchors).prepare()

    def network(self) -> nn.Module:
        """A ResNet-18 for images of 32x32; a small one in a tiny pass."""
        torch.manual_seed(0)
        return build_model(self.sized("preactresnet_18", "resnet_8_4"), COLOUR).to(self.device)
