"""Recognition of errors that mean that a GPU's memory did not suffice."""

from __future__ import annotations

import re

import torch

# The allocator of torch raises OutOfMemoryError. The libraries below it, which allocate workspaces and handles of their
# own, raise RuntimeError. Behind the last two messages are failed allocations: no algorithm of cuDNN succeeded, or
# cuBLAS could not be started.
_MESSAGES = re.compile(
    r"(CUBLAS|CUBLASLT|CUDNN|CUSOLVER|CUSPARSE)_STATUS_(\w+_)?ALLOC(ATION)?_FAILED|CUFFT_ALLOC_FAILED"
    r"|CUDNN_STATUS_NOT_ENOUGH_WORKSPACE"
    r"|CUDA error: out of memory"
    r"|unable to find a valid cudnn algorithm"
    r"|CUBLAS_STATUS_NOT_INITIALIZED when calling `cublas(Lt)?Create",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """True for an error of torch, cuBLAS, cuDNN and their like for lack of GPU memory; smaller parts may succeed."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _MESSAGES.search(str(error)) is not None
