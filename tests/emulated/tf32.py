"""TF32 on a CPU: factors of products and convolutions with 10 bits of mantissa, where torch's settings allow it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

PRODUCTS = {torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, torch.mm, torch.baddbmm}
PRODUCTS |= {torch.nn.functional.linear, torch.einsum, torch.Tensor.bmm, torch.Tensor.mm}
CONVOLUTIONS = {torch.nn.functional.conv2d, torch.conv2d}


class EmulatedTF32(TorchFunctionMode):
    """A block in which products are what a GPU makes of them under the settings in force."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, arguments: tuple[Any, ...] = (), options: Any = None
    ) -> Any:
        backends = torch.backends.cudnn.conv, torch.backends.cuda.matmul
        for backend, functions in zip(backends, (CONVOLUTIONS, PRODUCTS), strict=True):
            if function in functions and backend.fp32_precision == "tf32":
                arguments = tuple(_rounded(value) for value in arguments)
        return function(*arguments, **(options or {}))


def _rounded(value: Any) -> Any:
    """The nearest number with 10 bits of mantissa, of each float32 of a tensor."""
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        return value
    bits = value.detach().contiguous().view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)
