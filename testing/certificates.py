"""Certificates: proofs that no image of a set is misclassified, for networks that are plain sequences of layers.

A certificate holds or there is none: an image without one may be robust all the same. Networks that were not trained
for certificates hardly get any, which says nothing about them.

An image is certified if a lower bound of every margin (logit of the label minus another one) over the set is above
TOLERANCE times 1 + the smallest clean margin, which stands for the float32 rounding of the network's own answers, and
above NOISES times that rounding as it is at two points of the box. The set holds every point that counts as inside for
attacks (`outer` of testing/exact.py). The bounds themselves are float64 and rounded outwards (linear_bounds.py,
half_spaces.py).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foundations.errors import RunError
from foundations.modes import evaluation_mode
from foundations.plain_networks import PlainNetwork
from testing.arguments import Given, refuse_autocast
from testing.evaluations import AttackEvaluation, refuse_no_answers
from testing.exact import NOISES, TOLERANCE, rounded_up
from testing.half_spaces import Box, HalfSpaces, ascend, half_spaces_of, reached
from testing.linear_bounds import Lines, bounds_of_layers, margin_lines
from testing.shards import Shard
from threat_specification.attacks.base import NO_CLASS, predicted
from threat_specification.base import BoundThreat, Threat

CLOCK = "certified_seconds"  # differs from run to run
ROUNDING = 1e-3  # of the logits: more than float32 rounds of a network that answers anything
LINES_BYTES = 1 << 28  # of the slopes of all margins of the images that are certified together
PIECE_BYTES = 1 << 27  # of the slopes of the margins that a dual ascent works on together


@dataclass(frozen=True)
class Certificates:
    """The result of `certified_robustness`; all fields have one entry for each image.

    robust      proven: no image of {threat <= threshold, l-inf <= radius, pixel box} is misclassified
    box         proven without the threat: no image of {l-inf <= radius, pixel box} is
    margin      upper bound of the largest other logit minus that of the label, over the set
    box_margin  the same over the box
    """

    robust: Tensor
    box: Tensor
    margin: Tensor
    box_margin: Tensor


def certified_robustness(
    model: nn.Module, images: Any, labels: Any, threat: Threat, threshold: float, radius: float | None = None
) -> Certificates:
    """Look for a proof for each image that no point of {threat <= threshold, l-inf <= radius, pixel box} is
    misclassified.

    model    a plain sequence of linear, convolution, ReLU, max and average pooling, flatten and batch norm layers,
             [B,C,H,W] pixels in [0, 1] -> logits [B,K]
    threat   PD in any form, Linf, or an intersection of these
    radius   second bound, in l-inf (default: none for `bounded` threats, 8/255 for others; math.inf: none)

    Raises UsageError that names a layer or threat of another kind, and RunError if the model gives no finite answer.
    """
    given = Given.checked(model, images, labels, threat, threshold, radius)
    refuse_autocast("certificates", given.images)
    with evaluation_mode(given.model):
        attacked = AttackEvaluation(given.model, threat, given.cell, {}, steps=1, seed=0)
        index = torch.arange(len(given.labels), device=given.labels.device)
        with torch.no_grad():
            refuse_no_answers(predicted(given.model(given.images)) == NO_CLASS, index)
        found = CertificateEvaluation.of(attacked)(Shard(0, given.images, given.labels, index))
    return Certificates(*(found[f"certified_{name}"] for name in ("robust", "box", "margin", "box_margin")))


@dataclass
class CertificateEvaluation:
    """Certificates for each example of a shard, in the headline cell of an evaluation under attack.

    attacked  its model, threat and cell; no attack is run
    network   the model in float64
    """

    attacked: AttackEvaluation
    network: PlainNetwork
    columns: ClassVar[dict[str, str | tuple[str, int]]] = {
        "certified_robust": "bool",
        "certified_box": "bool",
        "certified_margin": "float32",
        "certified_box_margin": "float32",
        CLOCK: "float32",
    }
    pictures: ClassVar[Sequence[str]] = ()

    @classmethod
    def of(cls, attacked: AttackEvaluation, model: nn.Module | None = None) -> CertificateEvaluation:
        """Read a model (default: the one attacked); raises UsageError that names the first layer of another kind."""
        model = copy.deepcopy(model or attacked.model).double().eval().requires_grad_(False)
        return cls(attacked, PlainNetwork.read(model))

    def __call__(self, shard: Shard) -> dict[str, Tensor]:
        """In parts whose margins fit into LINES_BYTES; their size is the same on every machine."""
        with torch.no_grad(), evaluation_mode(self.attacked.model):
            classes = self.attacked.model(shard.images[:1]).shape[1]
            size = max(1, LINES_BYTES // (8 * classes * shard.images[0].numel()))
            fields = (shard.images, shard.labels, shard.index)
            parts = zip(*(each.split(size) for each in fields), strict=True)
            rows = [self._part(Shard(shard.number, *part)) for part in parts]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def _part(self, shard: Shard) -> dict[str, Tensor]:
        begun = time.monotonic()
        logits = self.attacked.model(shard.images).double()
        others = logits.scatter(1, shard.labels.unsqueeze(1), -math.inf).amax(1)
        clean = logits.gather(1, shard.labels.unsqueeze(1)).squeeze(1) - others
        bound, cell = self.attacked.bind(shard), self.attacked.headline
        half_spaces_of(bound, cell)  # raises an error for other threats at once
        box = Box.of(bound, cell)
        case = Case(self, shard, box, clean, self._noise(shard.images, box))
        in_set, in_box = case.margins()
        seconds = (time.monotonic() - begun) / max(1, len(shard.labels))
        return {
            "certified_robust": in_set > case.needed,
            "certified_box": in_box > case.needed,
            "certified_margin": rounded_up(-in_set),
            "certified_box_margin": rounded_up(-in_box),
            CLOCK: torch.full_like(in_set, seconds, dtype=torch.float32),
        }

    def _noise(self, images: Tensor, box: Box) -> Tensor:
        """[B] how far the model's answers are from those of the layers that were read: at images and corners of boxes.

        Raises RunError where that is more than rounding: then the certificates would be of another network.
        """
        noise = images.new_zeros(len(images), dtype=torch.float64)
        for points in (images, (images + box.upper.view_as(images)).clamp(0, 1).to(images)):
            told, read = self.attacked.model(points).double(), self.network(points.double())
            apart, size = (told - read).abs().amax(1), 1 + read.abs().amax(1)
            if bool((apart.isfinite() & (apart > ROUNDING * size)).any()):
                raise RunError(
                    "certificates: the model's answers are not those of the layers that were read from it (difference "
                    f"{float(apart.nan_to_num(0, 0).max()):.3g}): its forward() does more, or float32 cannot tell them"
                )
            noise = torch.maximum(noise, apart)
        return noise


@dataclass
class Case:
    """The images of a shard, with the box of each and their margins without any change.

    noise   [B] difference between the model's answers and those of the network, as measured
    """

    evaluation: CertificateEvaluation
    shard: Shard
    box: Box
    clean: Tensor
    noise: Tensor

    @property
    def needed(self) -> Tensor:
        """The least bound of a margin that proves, [B]; no margin does where the image itself is misclassified."""
        needed = torch.maximum(TOLERANCE * (1 + self.clean.abs()), NOISES * self.noise)
        return torch.where(self.clean > needed, needed, math.inf)

    def margins(self) -> tuple[Tensor, Tensor]:
        """Lower bounds of the smallest margins over the set and over the box, [B] each.

        Quick bounds of the layers first; then better ones, and the half-spaces, for the images that have no certificate
        yet and may get one.
        """
        every = torch.arange(len(self.clean), device=self.clean.device)
        lines = self._lines(every, refined=False)
        in_box = self._smallest(lines, lines.least(self.box.lower, self.box.upper))
        in_set = in_box.clone()
        left = every[self._unproven(in_box)]
        if len(left):
            lines = self._lines(left, refined=True)
            values = lines.least(self.box.lower, self.box.upper)
            in_box[left] = torch.maximum(in_box, self._smallest(lines, values))[left]
            values = torch.maximum(values, self._over_set(lines, values, self._unproven(in_box)))
            in_set[left] = torch.maximum(in_box, self._smallest(lines, values))[left]
        return in_set, in_box

    def _unproven(self, margins: Tensor) -> Tensor:
        """True for images without a certificate that may have one."""
        return (margins <= self.needed) & self.needed.isfinite()

    def _lines(self, rows: Tensor, refined: bool) -> Lines:
        """Those of all margins of some images, as functions of their changes d."""
        network, x = self.evaluation.network, self.shard.images[rows].double()
        low, high = ((x + side[rows].view_as(x)).clamp(0, 1) for side in (self.box.lower, self.box.upper))
        lines = margin_lines(network, bounds_of_layers(network, low, high, refined), self.shard.labels[rows])
        moved = lines.constant + (lines.slope * x.flatten(1)[lines.which]).sum(1)
        return Lines(lines.slope, moved, rows[lines.which])

    def _over_set(self, lines: Lines, values: Tensor, wanted: Tensor) -> Tensor:
        """Bounds of lines over the set, [P], better than `values` only for images `wanted` [B] bool.

        An image is left as it is if a point of the set shows that one of its lines cannot suffice.
        """
        values, needed = values.clone(), self.needed[lines.which]
        left = (wanted[lines.which] & (values <= needed)).nonzero().flatten()
        lost = torch.zeros_like(wanted)
        for part in self._pieces(left):
            some, low, high = self._part(lines, part)
            at_point = reached(some, low, high, self._bind(some.which), self.evaluation.attacked.headline)
            lost[some.which[at_point <= needed[part]]] = True
        for part in self._pieces(left[~lost[lines.which[left]]]):
            some, low, high = self._part(lines, part)
            values[part] = ascend(some, low, high, needed[part], self._spaces(some.which))
        return values

    def _part(self, lines: Lines, part: Tensor) -> tuple[Lines, Tensor, Tensor]:
        some = lines.take(part)
        return some, self.box.lower[some.which], self.box.upper[some.which]

    def _bind(self, rows: Tensor) -> BoundThreat:
        shard = self.shard
        return self.evaluation.attacked.bind(
            Shard(shard.number, shard.images[rows], shard.labels[rows], shard.index[rows])
        )

    def _spaces(self, rows: Tensor) -> Callable[[Tensor], list[HalfSpaces]]:
        return lambda chosen: half_spaces_of(self._bind(rows[chosen]), self.evaluation.attacked.headline)

    def _pieces(self, left: Tensor) -> Iterator[Tensor]:
        step = max(1, PIECE_BYTES // (8 * self.box.lower.shape[1]))
        return iter(left.split(step)) if len(left) else iter(())

    def _smallest(self, lines: Lines, values: Tensor) -> Tensor:
        """The smallest value of each image, [B]; infinite without any."""
        values = values.nan_to_num(-math.inf, math.inf, -math.inf)  # of layers whose bounds overflow
        return torch.full_like(self.clean, math.inf).scatter_reduce(0, lines.which, values, "amin")
