"""Snapshots of a training run: folders checkpoints/step_<n>/ that are there as a whole or not at all.

model.safetensors   the weights;  average.safetensors, best.safetensors   where there are such
state.pt            everything else: optimizer, loss scaler, position, random states, history (weights_only)
"""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from foundations.files import write_folder

Weights = dict[str, Tensor]


def weights_of(network: nn.Module) -> Weights:
    """A copy of the weights and buffers on the CPU."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}


@dataclass(frozen=True)
class Snapshot:
    """Where training was: named sets of weights, and a state of plain values and tensors."""

    weights: dict[str, Weights]
    state: dict[str, Any]


@dataclass(frozen=True)
class Snapshots:
    """The newest `keep` snapshots in a folder."""

    folder: Path
    keep: int

    def write(self, step: int, snapshot: Snapshot) -> None:
        """Keep a snapshot, and forget the oldest beyond `keep`."""
        buffer = io.BytesIO()
        torch.save(snapshot.state, buffer)
        files = {f"{name}.safetensors": save(weights) for name, weights in snapshot.weights.items()}
        write_folder(self.folder / f"step_{step:09d}", {**files, "state.pt": buffer.getvalue()})
        for old in self.paths()[self.keep :]:
            shutil.rmtree(old, ignore_errors=True)

    def paths(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob("step_*"), reverse=True)

    def newest(self) -> tuple[Snapshot | None, list[Path]]:
        """The newest snapshot that can be read, and the newer ones that cannot."""
        damaged: list[Path] = []
        for path in self.paths():
            if (snapshot := _read(path)) is not None:
                return snapshot, damaged
            damaged.append(path)
        return None, damaged


def _read(path: Path) -> Snapshot | None:
    """A snapshot, None where it is damaged."""
    try:
        state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        return Snapshot({file.stem: load_file(file) for file in path.glob("*.safetensors")}, state)
    except Exception:  # a damaged file can make torch, pickle and zip raise anything
        return None
