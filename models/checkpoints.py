"""Checkpoints from any source: safe reading, which runs no code from the file, and loading into a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foundations.errors import RunError

HEADS = (b"<!doctype", b"<html", b"<?xml", b"<head", b'{"error')
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "ema", "last")
PREFIXES = ("module.", "model.", "network.", "_orig_mod.")


def what_is_wrong(path: Path) -> str | None:
    """The reason why a file cannot be a checkpoint, from its first and last bytes; None if there is none."""
    import zipfile

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
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # each format raises different exceptions
            problem = " ".join(str(error).split())[:200]
    if problem is not None:
        raise RunError(f"cannot read the checkpoint {path}: {problem}")
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    tensors = (
        {name: value for name, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, dict)
        else {}
    )
    if not tensors:
        raise RunError(
            f"cannot read the checkpoint {path}: expected a dictionary of tensors, got {type(content).__name__}"
        )
    return tensors


def fit(network: nn.Module, tensors: dict[str, Tensor], path: Path, model_name: str) -> None:
    """Load weights into a network; prefixes that wrappers add to all names are removed.

    Raises RunError if names or shapes differ from those of the network.
    """
    own = network.state_dict()
    for prefix in PREFIXES:
        if not own.keys() & tensors.keys() and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    missing, surplus = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    misfits = [name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape]
    if missing or surplus or misfits:
        told = [
            f"{what} {len(names)}, the first is {names[0]}"
            for what, names in (
                ("missing:", missing),
                ("not in the network:", surplus),
                ("of another shape:", sorted(misfits)),
            )
            if names
        ]
        raise RunError(f"{path} does not fit the architecture '{model_name}': {'; '.join(told)}")
    network.load_state_dict(tensors, strict=False)
