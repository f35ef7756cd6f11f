"""Masks of the segmented Projected Displacement, which select the pixels of the object in an image.

A mask is bool, [B,1,H,W] or [B,C,H,W]. A mask source is "center", "grabcut", "sam:CHECKPOINT", "file:PATH" or a
callable of images; sources that compute masks are called once per image. BACKGROUNDS lists the changes of the
background that a projection can allow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foundations.errors import UsageError, look_up

MaskSource = Callable[[Tensor], Tensor]  # images [B,C,H,W] in [0, 1] -> bool [B,1,H,W] or [B,C,H,W]

ELLIPSE = 0.8  # axes of the central ellipse, as a fraction of height and width
BORDER = 0.05  # margin that GrabCut takes as background, as a fraction of height and width
GRABCUT_ROUNDS = 5


def check_masks(masks: Tensor, examples: Tensor) -> Tensor:
    """The masks; raises UsageError if they are not bool or their shape does not fit the examples."""
    batch, channels, height, width = examples.shape
    shapes = ((batch, 1, height, width), (batch, channels, height, width))
    if masks.dtype != torch.bool or tuple(masks.shape) not in shapes:
        raise UsageError(
            f"masks: expected bool {list(shapes[0])} or {list(shapes[1])}, got {masks.dtype} {list(masks.shape)}"
        )
    return masks


def refuse_empty(masks: Tensor, indices: Tensor | None = None) -> None:
    """Raise UsageError for a mask without a pixel: all changes of its image have threat 0, or none is allowed.

    indices   [B] rows in the data set, by which the first such image is named (default: its place in the batch)
    """
    empty = ~masks.flatten(1).any(1)
    if bool(empty.any()):
        first = empty.nonzero()[0, 0]
        number = int(first if indices is None else indices[first.to(indices.device)])
        raise UsageError(
            f"masks: expected an object in every image, got an empty mask for image {number}: no change of it has a "
            "threat, and it would count as robust; leave out the images that `without_object(images)` of the segmented "
            "threat finds"
        )


class CachedMasks:
    """A source that computes the mask of each image content once and keeps it in memory, one bit per mask value."""

    def __init__(self, source: MaskSource) -> None:
        self.source = source
        self._known: dict[bytes, tuple[torch.Size, Any]] = {}

    def __call__(self, examples: Tensor, indices: Tensor | None = None) -> Tensor:
        """Masks, bool [B,1,H,W] or [B,C,H,W]; indices are ignored."""
        import numpy as np

        keys = [_content(image) for image in examples.detach().cpu()]  # one copy to the host
        missing = {key: i for i, key in enumerate(keys) if key not in self._known}
        if missing:
            asked = examples[list(missing.values())]
            answers = check_masks(self.source(asked), asked).cpu()
            for key, mask in zip(missing, answers, strict=True):
                self._known[key] = (mask.shape, np.packbits(mask.numpy()))
        if not keys:
            return torch.zeros(0, 1, *examples.shape[2:], dtype=torch.bool, device=examples.device)
        masks = []
        for key in keys:
            shape, bits = self._known[key]
            masks.append(torch.from_numpy(np.unpackbits(bits, count=shape.numel())).view(shape).bool())
        return torch.stack(masks).to(examples.device)


def _content(image: Tensor) -> bytes:
    """A digest of an image on the CPU."""
    state = hashlib.blake2b(str((image.dtype, tuple(image.shape))).encode(), digest_size=16)
    state.update(image.contiguous().numpy().tobytes())
    return state.digest()


class FileMasks:
    """Masks of a whole data set, one row per data set index: safetensors with one bool or uint8 tensor [n,1|C,H,W]."""

    def __init__(self, path: str) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not path:
            raise UsageError("mask source 'file': expected a path, as in file:masks.safetensors")
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise UsageError(f"cannot read masks from {path}: {error}") from error
        if len(tensors) != 1:
            raise UsageError(f"{path}: expected one tensor of masks, got {len(tensors)}")
        masks = next(iter(tensors.values()))
        if masks.dim() != 4 or masks.dtype not in (torch.bool, torch.uint8):
            raise UsageError(f"{path}: expected bool or uint8 [n,1,H,W], got {masks.dtype} {list(masks.shape)}")
        largest = int(masks.max()) if masks.numel() else 0
        if largest not in (0, 1, 255) or bool(((masks != 0) & (masks != largest)).any()):
            values = ", ".join(map(str, masks.unique().tolist()[:5]))
            raise UsageError(f"{path}: expected masks of 0 and 1, or of 0 and 255, got {values}, ...; round them first")
        self.path, self.masks = path, masks

    def __call__(self, examples: Tensor, indices: Tensor | None = None) -> Tensor:
        """Masks at these data set indices, bool [B,1|C,H,W]; raises UsageError without indices."""
        if indices is None:
            raise UsageError(f"masks from {self.path} go by data set index: pass indices=, or masks= themselves")
        rows = indices.cpu()
        if len(rows) and not (int(rows.min()) >= 0 and int(rows.max()) < len(self.masks)):
            came = f"{int(rows.min())} to {int(rows.max())}"
            raise UsageError(f"{self.path}: expected indices from 0 to {len(self.masks) - 1}, got {came}")
        return self.masks[rows].bool().to(examples.device)


def center_masks(argument: str) -> MaskSource:
    """An ellipse in the middle of the image, with half of the pixels."""

    def masks(examples: Tensor) -> Tensor:
        height, width = examples.shape[2:]
        y = (torch.arange(height, device=examples.device) + 0.5) / height * 2 - 1
        x = (torch.arange(width, device=examples.device) + 0.5) / width * 2 - 1
        inside = (y.view(-1, 1).square() + x.view(1, -1).square()) <= ELLIPSE**2
        return inside.expand(len(examples), 1, height, width)

    return masks


def grabcut_masks(argument: str) -> MaskSource:
    """GrabCut (Rother, Kolmogorov, Blake 2004) of OpenCV, from a rectangle that leaves out the border."""
    try:
        import cv2
    except ImportError as error:
        raise UsageError("mask source 'grabcut' needs OpenCV: pip install opencv-python-headless") from error
    import numpy as np

    def one(image: Tensor) -> Tensor:
        height, width = image.shape[1:]
        pixels = (image.expand(3, -1, -1).permute(1, 2, 0) * 255).round().byte().cpu().contiguous().numpy()
        top, left = max(1, round(BORDER * height)), max(1, round(BORDER * width))
        kinds = np.zeros((height, width), np.uint8)
        cv2.setRNGSeed(0)  # the same image gives the same mask
        rectangle = (left, top, width - 2 * left, height - 2 * top)
        cv2.grabCut(
            pixels, kinds, rectangle, np.zeros((1, 65)), np.zeros((1, 65)), GRABCUT_ROUNDS, cv2.GC_INIT_WITH_RECT
        )
        return torch.from_numpy((kinds == cv2.GC_FGD) | (kinds == cv2.GC_PR_FGD)).view(1, height, width)

    return lambda examples: torch.stack([one(image) for image in examples])


def sam_masks(checkpoint: str) -> MaskSource:
    """The most confident mask of Segment Anything for a prompt at the middle of the image.

    checkpoint   "sam_vit_b_01ec64.pth", or "vit_b@PATH" if the file name does not contain the model's name

    Not tested with real weights: the tests use a stand-in for the package.
    """
    try:
        import segment_anything
    except ImportError as error:
        raise UsageError("mask source 'sam' needs segment_anything: pip install segment-anything") from error
    import numpy as np

    kind, at, path = checkpoint.rpartition("@")
    kind = kind if at else next((name for name in ("vit_h", "vit_l", "vit_b") if name in Path(path).name), "")
    if not Path(path).is_file():
        raise UsageError(f"mask source 'sam': expected a checkpoint file, as in sam:sam_vit_b_01ec64.pth, got {path!r}")
    if kind not in segment_anything.sam_model_registry:
        raise UsageError(f"mask source 'sam': cannot tell the model of {path}; use sam:vit_b@{path} (or vit_l, vit_h)")
    model = segment_anything.sam_model_registry[kind](checkpoint=path)
    predictor = segment_anything.SamPredictor(model)

    def one(image: Tensor) -> Tensor:
        height, width = image.shape[1:]
        predictor.set_image((image.expand(3, -1, -1).permute(1, 2, 0) * 255).round().byte().cpu().numpy())
        found, scores, _ = predictor.predict(
            point_coords=np.array([[width / 2, height / 2]]), point_labels=np.array([1]), multimask_output=True
        )
        return torch.from_numpy(np.asarray(found[int(np.argmax(scores))], dtype=bool)).view(1, height, width)

    def masks(examples: Tensor) -> Tensor:
        model.to(examples.device)  # the predictor follows its model
        return torch.stack([one(image) for image in examples])

    return masks


MASK_SOURCES: dict[str, Callable[[str], MaskSource | FileMasks]] = {
    "center": center_masks,
    "grabcut": grabcut_masks,
    "sam": sam_masks,
    "file": FileMasks,
}


def mask_source_from(source: MaskSource | str) -> CachedMasks | FileMasks:
    """Make a callable of (examples, indices) from a name, "name:argument", or a callable of images."""
    if isinstance(source, str):
        name, _, argument = source.partition(":")
        made = look_up(MASK_SOURCES, name, "mask source")(argument)
    else:
        made = source
    return made if isinstance(made, (CachedMasks, FileMasks)) else CachedMasks(made)


Bounds = tuple[Tensor, Tensor]


def frozen(lower: Tensor, upper: Tensor, inside: Tensor, examples: Tensor) -> Bounds:
    """The background must not change."""
    return lower * inside, upper * inside


def radius(lower: Tensor, upper: Tensor, inside: Tensor, examples: Tensor) -> Bounds:
    """The background has the same bounds as the object."""
    return lower, upper


def free(lower: Tensor, upper: Tensor, inside: Tensor, examples: Tensor) -> Bounds:
    """The background may change freely within the pixel box.

    Bounds that are wider than that box stay: those of a set that was divided by a number, box and all.
    """
    outside = torch.minimum(lower, -examples), torch.maximum(upper, 1 - examples)
    return torch.where(inside, lower, outside[0]), torch.where(inside, upper, outside[1])


BACKGROUNDS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Bounds]] = {
    "frozen": frozen,
    "radius": radius,
    "free": free,
}
