"""Checkpoints from any source: safe reading, which runs no code from the file, and loading into a network."""

from __future__ import annotations

import importlib
import os
import pathlib
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foundations.errors import RunError

HEADS = (b"<!doctype", b"<html", b"<?xml", b"<head", b'{"error')
# Entries under which the weights are, in the order of preference, also one inside another.
WRAPPERS = (
    "state_dict", "model_state_dict", "model", "net", "params", "weights", "ema", "last", "state_dict_ema",
    "params_ema", "model_ema",
)  # fmt: skip
NORMALISERS = {"mean": "std", "new_mean": "new_std", "mu": "sigma"}  # names of a normalising layer's two tensors
COPIES = ("attacker.",)  # submodules that hold the network a second time
UNSAFE = re.compile(r"GLOBAL ([\w.]+)")


def what_is_wrong(path: Path) -> str | None:
    """The reason why a file cannot be a checkpoint, from its first and last bytes; None if there is none."""
    import zipfile

    if path.is_dir():
        return "it is a folder"
    if not path.is_file():
        return "it is not there"
    with open(path, "rb") as file:
        start = file.read(512)
    text = start.lstrip().lower()
    if not start:
        return "it is empty"
    if text.startswith(HEADS) or b"<html" in text:
        return "it is a web page, not weights"
    if start[:4] == b"PK\x03\x04" and not zipfile.is_zipfile(path):
        return "it is cut short"
    return None


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Name -> tensor of a .safetensors file or a checkpoint of PyTorch; runs no code from the file.

    Raises RunError if it cannot be read.
    """
    problem = what_is_wrong(path)
    if problem is None:
        try:
            if path.suffix == ".safetensors":
                from safetensors.torch import load_file

                return load_file(path)
            with torch.serialization.safe_globals(harmless()):
                content: Any = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # each format raises different exceptions
            problem = _told(str(error))
    if problem is not None:
        raise RunError(f"cannot read the checkpoint {path}: {problem}")
    content = _unwrapped(content, path)
    tensors = (
        {name: value for name, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, dict)
        else {}
    )
    if not tensors:
        kind = f"a dictionary of {_few(content)}" if isinstance(content, dict) else type(content).__name__
        raise RunError(f"cannot read the checkpoint {path}: expected a dictionary of tensors, got {kind}")
    return tensors


def harmless() -> list[Any]:
    """Types that training programs store beside the weights, and that run no code when they are read."""
    import argparse

    import numpy

    core = importlib.import_module("numpy._core.multiarray" if numpy.__version__ >= "2" else "numpy.core.multiarray")
    kinds = [type(numpy.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?", "U1")]
    paths = [pathlib.PosixPath, pathlib.PurePosixPath]
    return [
        core.scalar,
        numpy.dtype,
        *kinds,
        argparse.Namespace,
        (_plain, "collections.defaultdict"),  # torch fills only plain dictionaries
        *paths,
        dict,
        list,
        set,
        int,
        float,
    ]


def _plain(factory: Any = None) -> dict[Any, Any]:
    """An empty dictionary, in the place of a defaultdict."""
    return {}


def _told(message: str) -> str:
    """The cause in a message of torch, which gives its advice first and marks it with terminal codes."""
    if found := UNSAFE.search(message):
        return (
            f"it holds an object of the type {found[1]}, which is not read since it could run code; store the weights "
            "alone: torch.save(model.state_dict(), PATH)"
        )
    plain = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", message).split())
    cause = re.search(r"WeightsUnpickler error: (.*?)(?: Check the documentation|$)", plain)
    return (cause[1] if cause else plain)[:200]


def _unwrapped(content: Any, path: Path) -> Any:
    """The content below the entries of WRAPPERS; where there are several, a note says which one was taken."""
    while isinstance(content, dict):
        found = [name for name in WRAPPERS if isinstance(content.get(name), dict)]
        if not found:
            break
        if len(found) > 1 and os.environ.get("RANK", "0") == "0":
            others = ", ".join(found[1:])
            print(f"note: {path}: took the weights in '{found[0]}'; it has others in {others}", file=sys.stderr)
        content = content[found[0]]
    return content


def _few(content: dict[Any, Any]) -> str:
    names = [str(name) for name in content]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "nothing"


def divide(own: Iterable[str], tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a network, by its own names, and all others.

    Wrappers put prefixes before all names, in any combination; a normaliser may stand in front of the network, and an
    attacker that holds it a second time beside it. Of several prefixes the shortest is taken.
    """
    own = [name for name in own if not name.endswith("num_batches_tracked")]
    first = own[0]
    prefixes = sorted((name.removesuffix(first) for name in tensors if name.endswith(first)), key=len)
    fitting = (p for p in prefixes if p[-1:] in ("", ".") and all(p + name in tensors for name in own))
    prefix = next(fitting, "")
    mine = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    others = {name: value for name, value in tensors.items() if not name.startswith(prefix)}
    names = set(own)
    beside = {name for name in mine if name not in names and not name.endswith("num_batches_tracked")}
    others |= {prefix + name: mine.pop(name) for name in beside}
    return mine, {name: value for name, value in others.items() if not any(copy in name for copy in COPIES)}


def normaliser(others: dict[str, Tensor]) -> tuple[Tensor, Tensor] | None:
    """Mean and standard deviation [C] of a normalising layer among the tensors beside a network; takes them out."""
    for name in list(others):
        parent, _, last = name.rpartition(".")
        partner = f"{parent}.{NORMALISERS[last]}" if parent and last in NORMALISERS else NORMALISERS.get(last, "")
        if partner in others:
            return others.pop(name).flatten().float(), others.pop(partner).flatten().float()
    return None


def fit(
    network: nn.Module, tensors: dict[str, Tensor], path: Path, model_name: str, beside: Iterable[str] = ()
) -> None:
    """Load weights into a network; `beside` are names of further tensors of the file, which belong to nothing.

    Raises RunError if names or shapes differ from those of the network, if weights are whole numbers (quantised), and
    if some are not finite.
    """
    own = network.state_dict()
    missing, surplus = sorted(own.keys() - tensors.keys()), [*sorted(tensors.keys() - own.keys()), *sorted(beside)]
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    both = sorted(own.keys() & tensors.keys())
    of_numbers = [name for name in both if own[name].is_floating_point()]
    told = [
        f"{what} {len(names)}, the first is {names[0]}"
        for what, names in (
            ("missing:", missing),
            ("not in the network:", surplus),
            ("of another shape:", [name for name in both if own[name].shape != tensors[name].shape]),
            ("whole numbers (quantised):", [name for name in of_numbers if not tensors[name].is_floating_point()]),
        )
        if names
    ]
    if told:
        raise RunError(f"{path} does not fit the architecture '{model_name}': {'; '.join(told)}")
    unfit = [name for name in of_numbers if not bool(tensors[name].isfinite().all())]
    if unfit:
        raise RunError(f"{path}: {len(unfit)} of its tensors hold NaN or infinity, the first is {unfit[0]}")
    network.load_state_dict(tensors, strict=False)
