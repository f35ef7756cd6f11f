"""Snapshots of a training run in folders checkpoints/step_<n>/, each written atomically.

model.safetensors    the weights
average.safetensors, best.safetensors, last_*.safetensors   weights of the moving average and of the best epoch, and
                     stored perturbations of an adversary (`LastPerturbations`), if there are any
state.pt             everything else: optimizer, loss scaler, position, random states, history; readable by torch.load
                     with weights_only=True
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

from foundations.errors import RunError
from foundations.files import write_folder

Weights = dict[str, Tensor]

NAMES = "weights"  # entry of state.pt with the names of all sets of weights


def weights_of(network: nn.Module) -> Weights:
    """A copy of the weights and buffers on the CPU."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint of training: named sets of weights, and a state of plain values and tensors."""

    weights: dict[str, Weights]
    state: dict[str, Any]


@dataclass(frozen=True)
class Snapshots:
    """The newest `keep` snapshots in a folder."""

    folder: Path
    keep: int

    def write(self, step: int, snapshot: Snapshot) -> None:
        """Write a snapshot, then delete all but the newest `keep` up to this step.

        Later ones are damaged, or the run would have gone on from there: they count for nothing.
        """
        buffer = io.BytesIO()
        torch.save({**snapshot.state, NAMES: sorted(snapshot.weights)}, buffer)
        files = {f"{name}.safetensors": save(weights) for name, weights in snapshot.weights.items()}
        write_folder(self._path(step), {**files, "state.pt": buffer.getvalue()})
        last = self._path(step)
        for old in [path for path in self.paths() if path <= last][self.keep :]:
            shutil.rmtree(old, ignore_errors=True)

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:09d}"

    def paths(self) -> list[Path]:
        """The folders of all snapshots, newest first."""
        return sorted(self.folder.glob("step_*"), reverse=True)

    def read(self, step: int) -> Snapshot:
        """The snapshot of this step; raises RunError if it cannot be read."""
        if (snapshot := _read(self._path(step))) is None:
            raise RunError(
                f"the checkpoint {self._path(step)}, from which the first process goes on, cannot be read by another; "
                "do all see the same files? Repeat the command"
            )
        return snapshot

    def newest(self) -> tuple[Snapshot | None, list[Path]]:
        """The newest readable snapshot (None if there is none), and the folders of newer ones that are damaged."""
        damaged: list[Path] = []
        for path in self.paths():
            if (snapshot := _read(path)) is not None:
                return snapshot, damaged
            damaged.append(path)
        return None, damaged


def _read(path: Path) -> Snapshot | None:
    """Read a snapshot; None if it is damaged, or has lost a file. RunError if the machine cannot read it."""
    try:
        state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        names = state.pop(NAMES, None) or [file.stem for file in path.glob("*.safetensors")]  # of earlier versions
        return Snapshot({name: load_file(path / f"{name}.safetensors") for name in names}, state)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except (OSError, MemoryError) as error:
        # Another attempt may succeed. To go back to an older one in silence would be another training than that begun.
        raise RunError(
            f"cannot read the checkpoint {path}: {str(error) or 'out of memory'}; repeat the command, or remove this "
            "folder to go on from an older one"
        ) from error
    except Exception:  # torch, pickle and zip can raise any exception for a damaged file
        return None
