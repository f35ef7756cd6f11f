"""Distances computed by networks: between features of a given model, LPIPS and DreamSim. For evaluation only."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundations.errors import RunError, UsageError
from threat_specification.base import Measure, check_images

LPIPS_SIDE = 64  # pixels; if the shorter side is smaller, the last layers of AlexNet have no outputs
DREAMSIM_SIDE = 224


class FeatureDistance(Measure):
    """Euclidean distance between the inputs of a model's last linear layer."""

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model, self.name = model, name
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise UsageError(f"--perceptual={name}: expected a model with a linear layer, got none")
        self.last = linear[-1]
        self._clean: tuple[Tensor, int, Tensor] | None = None  # images asked last, their version, their features

    def evaluate(self, examples: Tensor, labels: Tensor, perturbed_examples: Tensor) -> Tensor:
        check_images(examples, labels, perturbed_examples)
        return (self._of_clean(examples) - self._features(perturbed_examples)).norm(dim=1)

    def _of_clean(self, examples: Tensor) -> Tensor:
        """The features of images that many perturbations are measured from; kept until others come, or these change."""
        if examples.is_inference():  # nobody counts their changes
            return self._features(examples)
        if self._clean is None or self._clean[0] is not examples or self._clean[1] != examples._version:
            self._clean = examples, examples._version, self._features(examples)
        return self._clean[2]

    def _features(self, images: Tensor) -> Tensor:
        seen: list[Tensor] = []
        hook = self.last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        try:
            with torch.no_grad():
                self.model(images.clamp(0, 1))
        finally:
            hook.remove()
        return seen[-1].flatten(1).float()


class PackageDistance(Measure):
    """A distance from another package: a function of two batches of colour images, of a size it takes, to [B]."""

    def __init__(self, name: str, distance: Callable[[Tensor, Tensor], Tensor], side: int, exact: bool) -> None:
        self.name, self.distance, self.side, self.exact = name, distance, side, exact

    def evaluate(self, examples: Tensor, labels: Tensor, perturbed_examples: Tensor) -> Tensor:
        check_images(examples, labels, perturbed_examples)
        with torch.no_grad():
            found = self.distance(self._fit(examples), self._fit(perturbed_examples))
        return found.flatten().float().clamp_min(0)

    def _fit(self, images: Tensor) -> Tensor:
        images = images.clamp(0, 1).expand(-1, 3, -1, -1) if images.shape[1] == 1 else images.clamp(0, 1)
        if self.exact or min(images.shape[2:]) < self.side:
            images = F.interpolate(images, size=(self.side, self.side), mode="bilinear", antialias=True)
        return images


def lpips(device: torch.device) -> Measure:
    """LPIPS (Zhang et al. 2018) with AlexNet; smaller images are resized to 64 x 64. Not tested with real weights."""
    try:
        import lpips as package
    except ImportError as error:
        raise UsageError("--perceptual=lpips needs its package: pip install lpips") from error
    network = _loaded(lambda: package.LPIPS(net="alex", verbose=False), "lpips").to(device).eval()
    return PackageDistance("LPIPS", lambda x, y: network(x, y, normalize=True), LPIPS_SIDE, exact=False)


def dreamsim(device: torch.device, kind: str = "ensemble") -> Measure:
    """DreamSim (Fu et al. 2023) at 224 x 224, with the backbone named `kind`. Not tested with real weights."""
    try:
        import dreamsim as package
    except ImportError as error:
        raise UsageError("--perceptual=dreamsim needs its package: pip install dreamsim") from error
    network, _ = _loaded(
        lambda: package.dreamsim(pretrained=True, dreamsim_type=kind, device=str(device)), f"dreamsim:{kind}"
    )
    name = "DreamSim" if kind == "ensemble" else f"DreamSim:{kind}"
    return PackageDistance(name, network, DREAMSIM_SIDE, exact=True)


PACKAGES: dict[str, Callable[..., Measure]] = {"lpips": lpips, "dreamsim": dreamsim}


def from_package(name: str, device: torch.device) -> Measure:
    """The distance of a package by its name, such as "lpips" or "dreamsim:dino_vitb16"."""
    package, _, kind = name.partition(":")
    return PACKAGES[package](device, *([kind] if kind else []))


def _loaded(make: Callable[[], nn.Module], name: str):
    """Load a package's network, whose weights are downloaded at first use; raises RunError if that fails."""
    try:
        return make()
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise RunError(f"--perceptual={name}: its weights could not be loaded or downloaded ({reason})") from error
