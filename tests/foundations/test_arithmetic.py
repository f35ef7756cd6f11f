"""Settings of products and convolutions on a GPU; torch keeps them without one too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict

import pytest
import torch

from foundations.arithmetic import Settings, arithmetic, describe_arithmetic, fix_workspaces

cudnn, cublas = torch.backends.cudnn, torch.backends.cuda.matmul
cpu_products = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def settings_of_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Those of a new process, before and after each test."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    fresh = Settings(False, False, False, True, "none", "tf32", "tf32")
    fresh.apply()
    before = cpu_products.fp32_precision  # other tests of this process may have set it
    yield
    fresh.apply()
    cpu_products.fp32_precision = before


def both_interfaces() -> tuple[bool, bool, str, str]:
    """Other packages read the older interface, which is an error if the two disagree."""
    return cublas.allow_tf32, cudnn.allow_tf32, cublas.fp32_precision, cudnn.conv.fp32_precision


def test_convolutions_are_in_full_precision_and_repeat_their_bits() -> None:
    assert cudnn.allow_tf32 and not cudnn.deterministic  # the defaults of torch
    with arithmetic(tf32=False):
        assert both_interfaces() == (False, False, "ieee", "ieee")
        assert cudnn.deterministic and not cudnn.benchmark
        assert torch.get_float32_matmul_precision() == "highest"
        assert describe_arithmetic("cuda:0") == {"precision": "float32", "deterministic": False}
        fix_workspaces()
        assert describe_arithmetic("cuda:0") == {"precision": "float32", "deterministic": True}
        cudnn.benchmark = True
        assert not describe_arithmetic("cuda:0")["deterministic"]


@pytest.mark.parametrize("on_the_cpu", ("none", "ieee"))  # a new process's; after set_float32_matmul_precision
def test_tf32_where_it_is_asked_for(on_the_cpu: str) -> None:
    cpu_products.fp32_precision = on_the_cpu
    with arithmetic(tf32=True):
        assert both_interfaces() == (True, True, "tf32", "tf32")
        assert cpu_products.fp32_precision == on_the_cpu
        assert describe_arithmetic("cuda:0")["precision"] == "tf32"
        assert describe_arithmetic("cpu") == {"precision": "float32", "deterministic": True}
        with arithmetic(tf32=False):
            assert describe_arithmetic("cuda:0")["precision"] == "float32"
        assert both_interfaces() == (True, True, "tf32", "tf32")


def allow(backend: object, value: bool) -> None:
    backend.allow_tf32 = value  # type: ignore[attr-defined]


def lower(backend: object, value: str) -> None:
    backend.fp32_precision = value  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "caller",
    [
        lambda: None,
        lambda: allow(cudnn, False),
        lambda: allow(cublas, True),
        lambda: lower(cudnn.conv, "ieee"),  # the two interfaces disagree
        lambda: lower(cublas, "tf32"),
        lambda: setattr(cudnn, "benchmark", True),
    ],
)
@pytest.mark.parametrize("tf32", [False, True])
def test_the_settings_of_the_caller_come_back(caller: object, tf32: bool) -> None:
    caller()  # type: ignore[operator]
    before = Settings.in_force()
    with pytest.raises(KeyError), arithmetic(tf32):
        assert both_interfaces()[:2] == (tf32, tf32)
        raise KeyError
    after = Settings.in_force()
    # Where the caller's interfaces disagreed, the older one may agree now: no one could read it before.
    readable = {name: value for name, value in asdict(before).items() if value is not None}
    assert readable == {name: asdict(after)[name] for name in readable}


def test_the_workspaces_of_the_user_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    fix_workspaces()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    fix_workspaces()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":0:0"
