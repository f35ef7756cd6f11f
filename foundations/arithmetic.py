"""Settings of a GPU's products: the same bits every time, and full float32 precision unless TF32 is asked for.

On the CPU nothing changes. The settings are those of torch, for the whole process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

WORKSPACES = "CUBLAS_WORKSPACE_CONFIG"
REPEATABLE = (":4096:8", ":16:8")  # the two values with which cuBLAS repeats its bits


def fix_workspaces() -> None:
    """Let cuBLAS compute the same bits every time, unless CUBLAS_WORKSPACE_CONFIG is set; call before CUDA starts."""
    os.environ.setdefault(WORKSPACES, REPEATABLE[0])


@dataclass(frozen=True)
class Settings:
    """Settings of torch for products and convolutions on a GPU.

    torch has two interfaces for TF32, and reading the older one is an error when they disagree. Compiled networks and
    other packages read it, so both are set alike. None leaves the older one as it is.
    """

    deterministic: bool
    benchmark: bool
    old_products: bool | None
    old_convolutions: bool | None
    products: str
    convolutions: str
    recurrent: str

    @classmethod
    def wanted(cls, tf32: bool) -> Settings:
        precision = "tf32" if tf32 else "ieee"
        return cls(True, False, tf32, tf32, precision, precision, precision)

    @classmethod
    def in_force(cls) -> Settings:
        cudnn, cublas = _backends()
        return cls(
            cudnn.deterministic,
            cudnn.benchmark,
            _older(cublas),
            _older(cudnn),
            cublas.fp32_precision,
            cudnn.conv.fp32_precision,
            cudnn.rnn.fp32_precision,
        )

    def apply(self) -> None:
        cudnn, cublas = _backends()
        cudnn.deterministic, cudnn.benchmark = self.deterministic, self.benchmark
        # The older interface first: setting it changes the newer one.
        for backend, allowed in ((cublas, self.old_products), (cudnn, self.old_convolutions)):
            if allowed is not None:
                backend.allow_tf32 = allowed
        cublas.fp32_precision = self.products
        cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = self.convolutions, self.recurrent


@contextmanager
def arithmetic(tf32: bool) -> Iterator[None]:
    """A block in which a GPU repeats its bits, and multiplies in float32 or in TF32; restores the settings afterwards.

    tf32   10 bits of each factor's mantissa instead of 23, in products and convolutions
    """
    before = Settings.in_force()
    Settings.wanted(tf32).apply()
    try:
        yield
    finally:
        before.apply()


@contextmanager
def full_precision(device_type: str, convolutions: bool = False) -> Iterator[None]:
    """Compute float32 products in float32, without TF32, bf16 or autocast; restores the settings afterwards.

    For what is measured or bounded, whatever precision a network has. With `convolutions`, these too.
    """
    import torch

    backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
    if convolutions:
        backends += [torch.backends.cudnn.conv, torch.backends.mkldnn.conv]  # type: ignore[attr-defined]
    lowered = [(backend, backend.fp32_precision) for backend in backends if backend.fp32_precision in ("tf32", "bf16")]
    # Contexts that change nothing are not entered: they would cost 3 % of the time of a small product.
    autocast = torch.autocast(device_type, enabled=False) if torch.is_autocast_enabled(device_type) else nullcontext()
    try:
        for backend, _ in lowered:
            backend.fp32_precision = "ieee"
        with autocast:
            yield
    finally:
        for backend, precision in lowered:
            backend.fp32_precision = "none"  # what holds for all products, of which this one was mostly a case
            if backend.fp32_precision != precision:
                backend.fp32_precision = precision


def describe_arithmetic(device_name: str) -> dict[str, Any]:
    """The precision of float32 products, and whether equal commands give equal bits, as result.json records them."""
    if device_name == "cpu":
        return {"precision": "float32", "deterministic": True}
    found = Settings.in_force()
    lowered = "tf32" in (found.products, found.convolutions)
    repeats = found.deterministic and not found.benchmark and os.environ.get(WORKSPACES) in REPEATABLE
    return {"precision": "tf32" if lowered else "float32", "deterministic": repeats}


def _older(backend: Any) -> bool | None:
    """The setting of the older interface; None if the newer one says something else."""
    try:
        return bool(backend.allow_tf32)
    except RuntimeError:
        return None


def _backends() -> tuple[Any, Any]:
    """Those of cuDNN and of matrix products on a GPU."""
    import torch

    return torch.backends.cudnn, torch.backends.cuda.matmul
