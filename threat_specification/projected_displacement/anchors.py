"""Anchors: the few training images of each class that define the Projected Displacement threat."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy
import torch
from torch import Tensor
from typing_extensions import Self

from foundations.errors import RunError, UsageError
from foundations.files import write_bytes
from foundations.pixels import as_floats
from threat_specification.base import WHOLE


class AnchorSet:
    """N anchor images with labels.

    images   [N,C,H,W] uint8, or float in [0, 1]; 8-bit images stay uint8 (exact, a quarter of the memory)
    labels   [N] int64, at least 0
    indices  [N] int64, rows among the training images they come from (those left by --subsample_fraction); optional

    Raises UsageError for other shapes and types, and for pixels outside [0, 1].

    >>> anchors = nonisotropic.AnchorSet(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]))
    >>> len(anchors), anchors.floats().shape
    (2, torch.Size([2, 16]))
    """

    def __init__(self, images: Tensor, labels: Tensor, indices: Tensor | None = None) -> None:
        _check(images, labels, indices)
        # A copy: who changes the images afterwards, in place, would change a part of what was made from them.
        self._keep(images.clone(memory_format=torch.contiguous_format), labels.long().clone(), indices)

    def _keep(self, images: Tensor, labels: Tensor, indices: Tensor | None) -> Self:
        """Take tensors that nobody else has."""
        self.images, self.labels = images, labels.long()
        self.indices = None if indices is None else indices.long()
        self._digest_of_all: str | None = None  # digest of the whole set, if these anchors are a part of one
        # Matrices by their kind, while a threat uses them, if threats over these anchors may share them: not if they
        # are used in several threads.
        self.shared: WeakValueDictionary[Any, Any] | None = None
        return self

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> AnchorSet:
        """The same anchors on a device; these themselves, if they are there."""
        if self.images.device == torch.device(device):
            return self
        moved = AnchorSet.__new__(AnchorSet)._keep(self.images.to(device), self.labels.to(device), self.indices)
        moved._digest_of_all = self._digest_of_all
        return moved

    def floats(self) -> Tensor:
        """[N, D] float32 in [0, 1]."""
        flat = self.images.flatten(1)
        return as_floats(flat)

    def equal_with_another_label(self, images: Tensor, labels: Tensor) -> Tensor:
        """[B] bool: images [B,C,H,W] (of the anchors' dtype) that are bit-identical to an anchor of another label.

        PD is not defined at such an image, so evaluations leave it out.
        """
        if images.dtype != self.images.dtype:
            raise UsageError(f"images: expected {self.images.dtype} as the anchors are, got {images.dtype}")
        found = [
            bool(self._labels_of.get(_content(image), set()) - {label})
            for image, label in zip(images.cpu().numpy(), labels.tolist(), strict=True)
        ]
        return torch.tensor(found, dtype=torch.bool, device=labels.device)

    @cached_property
    def _labels_of(self) -> dict[bytes, set[int]]:
        """The labels of each image by its digest, since copies of all images would take their memory again."""
        labels_of: dict[bytes, set[int]] = {}
        for image, label in zip(self.images.cpu().numpy(), self.labels.tolist(), strict=True):
            labels_of.setdefault(_content(image), set()).add(label)
        return labels_of

    @property
    def digest(self) -> str:
        """Hash of images and labels, 12 hex digits; that of the whole set if these anchors are a part of one."""
        if self._digest_of_all is not None:
            return self._digest_of_all
        state = hashlib.sha256(str((self.images.dtype, tuple(self.images.shape))).encode())
        for values in (self.images, self.labels):
            state.update(values.cpu().reshape(-1).numpy().data)  # without a copy of its bytes
        return state.hexdigest()[:12]

    def save(self, path: Path | str) -> None:
        """Write a safetensors file atomically; equal anchors give equal bytes."""
        from safetensors.torch import save

        tensors = {"images": self.images.cpu(), "labels": self.labels.cpu()}
        if self.indices is not None:
            tensors["indices"] = self.indices.cpu()
        # Use a single metadata key, since the order of several is random.
        metadata = {"nonisotropic": json.dumps({"kind": "anchors", "version": 1, "digest": self.digest})}
        write_bytes(Path(path), save(tensors, metadata))

    @classmethod
    def load(cls, path: Path | str, part: tuple[int, int] = (0, 1)) -> AnchorSet:
        """Read a file written by `save`; raises RunError, which names the file, if it is of another kind or damaged.

        part   (r, n): read only the r-th (from 0) of n parts, split like `torch.tensor_split`; the checksum of a part
               cannot be verified
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), "pt") as file:
                metadata = json.loads((file.metadata() or {}).get("nonisotropic", "{}"))
                if metadata.get("kind") != "anchors":
                    raise RunError(f"expected anchors written by compute_threat, got another safetensors file: {path}")
                chosen = _part_of(file.get_slice("labels").get_shape()[0], *part)
                tensors = {name: file.get_slice(name)[chosen] for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise RunError(f"cannot read anchors from {path}: {error}") from error
        _check(tensors["images"], tensors["labels"], tensors.get("indices"))
        anchors = cls.__new__(cls)._keep(tensors["images"], tensors["labels"], tensors.get("indices"))
        if part[1] > 1:
            anchors._digest_of_all = metadata["digest"]
        if anchors.digest != metadata["digest"]:
            raise RunError(f"{path} is damaged: its content does not match its checksum; run compute_threat again")
        return anchors


def _check(images: Tensor, labels: Tensor, indices: Tensor | None) -> None:
    """Raise UsageError for what is no set of anchors."""
    for name, values in (("images", images), ("labels", labels)):
        if not isinstance(values, Tensor):
            raise UsageError(f"anchors: expected {name} in a tensor, got a {type(values).__name__}")
    if images.device != labels.device:
        raise UsageError(f"anchors: expected labels on {images.device}, where the images are, got {labels.device}")
    if images.dim() != 4 or len(images) == 0:
        raise UsageError(f"anchors: expected images [N,C,H,W] with N >= 1, got shape {list(images.shape)}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise UsageError(f"anchors: expected uint8, or floats in [0, 1], got {images.dtype}")
    if images.is_floating_point() and not bool((images >= 0).all() & (images <= 1).all()):
        raise UsageError("anchors: expected floats in [0, 1], got some outside or NaN")
    if labels.shape != images.shape[:1] or labels.dtype not in WHOLE or bool((labels < 0).any()):
        raise UsageError(
            f"anchors: expected {len(images)} labels >= 0, got {labels.dtype} of shape {list(labels.shape)}"
        )
    if indices is not None and indices.shape != labels.shape:
        raise UsageError(f"anchors: expected {len(images)} indices, got shape {list(indices.shape)}")


def _content(image: numpy.ndarray) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def _part_of(count: int, number: int, parts: int) -> slice:
    """Rows of one part of a split like `torch.tensor_split`: the first count % parts parts have one row more."""
    size, longer = divmod(count, parts)
    start = number * size + min(number, longer)
    return slice(start, start + size + (number < longer))
