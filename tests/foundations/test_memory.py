"""Errors for lack of GPU memory, by the words of the libraries that raise them."""

from __future__ import annotations

import pytest
import torch

from foundations.memory import is_out_of_memory

LACKING = [
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cuDNN error: CUDNN_STATUS_NOT_ENOUGH_WORKSPACE",
    "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "cuFFT error: CUFFT_ALLOC_FAILED",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "Unable to find a valid cuDNN algorithm to run convolution",
]
OTHERS = [
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle)`",
    "CUDA error: device-side assert triggered",
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED",
    "mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)",
]


@pytest.mark.parametrize("message", LACKING)
def test_lack_of_memory_is_recognised(message: str) -> None:
    assert is_out_of_memory(RuntimeError(message))
    assert not is_out_of_memory(ValueError(message))


@pytest.mark.parametrize("message", OTHERS)
def test_other_errors_are_not(message: str) -> None:
    assert not is_out_of_memory(RuntimeError(message))


def test_the_error_of_torch_is_one_whatever_it_says() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("Tried to allocate 2.00 GiB"))
    assert not is_out_of_memory(MemoryError("out of memory"))  # of this process, not of a GPU
