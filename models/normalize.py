"""Normalisation as the first layer of every model.

Everywhere else pixels are in [0, 1], so that the size of a perturbation always has the same unit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foundations.errors import RunError, UsageError
from foundations.images import ImageSpec


class Normalize(nn.Module):
    """A layer that computes (x - mean) / std per channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class Classifier(nn.Module):
    """A model [B,C,H,W] pixels in [0, 1] -> [B,K] logits, made of a normalisation layer and a network.

    A forward pass does not check its input: call `check` once at the start of an evaluation.
    """

    def __init__(self, normalize: Normalize, network: nn.Module) -> None:
        super().__init__()
        self.normalize = normalize
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.normalize(images))

    @torch.no_grad()
    def check(self, images: Tensor, num_classes: int) -> None:
        """Raise an error if the model does not fit a data set, on at most two of the given images.

        UsageError: pixels outside [0, 1]. RunError: another number of channels or classes, or a shape of images that
        the network cannot take. The mode of every module is restored.
        """
        if not images.is_floating_point() or not bool(((images >= 0) & (images <= 1)).all()):
            raise UsageError(
                f"the model takes pixels in [0, 1], got {images.dtype} from {images.min():g} to {images.max():g}; "
                "normalisation is its own first layer"
            )
        if images.shape[1] != len(self.normalize.mean):
            raise RunError(
                f"the model takes {len(self.normalize.mean)} channels, got images of {tuple(images.shape[1:])}"
            )
        modes = [module.training for module in self.modules()]
        self.eval()
        try:
            logits = self(images[:2])
        except (RuntimeError, AssertionError, ValueError) as error:
            raise RunError(f"the model does not take images of {tuple(images.shape[1:])}: {error}") from error
        finally:
            for module, training in zip(self.modules(), modes, strict=True):
                module.training = training
        if bool((logits.isnan() | logits.isposinf()).any()):
            raise RunError("the model's answers are not finite (NaN or infinity); look at its weights")
        if logits.shape[1:] != (num_classes,):
            raise RunError(f"the model tells {tuple(logits.shape[1:])} classes apart, the data set has {num_classes}")


def with_normalization(network: nn.Module, spec: ImageSpec) -> Classifier:
    """A classifier for pixels in [0, 1] that normalises with the statistics of a data set."""
    return Classifier(Normalize(spec.mean, spec.std), network)
