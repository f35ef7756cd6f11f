"""The adversary of training as a function, for training loops of other programs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import Tensor, nn

from foundations.errors import UsageError, check_number, look_up
from foundations.step import Step
from threat_specification.answers import LogitsOf
from threat_specification.base import Threat, check_images, check_rows, check_seed, check_set
from threat_specification.intersection import Intersection
from threat_specification.norms import Linf, Norm, default_radius
from training.adversaries import INNER_LOSSES, PGD, SCHEDULES
from training.batch import Batch
from training.starts import RandomStarts

FRESH = {"random": "scaled_noise", "corner": "corner"}  # what may be asked for -> an entry of the attacks' STARTS


@dataclass(frozen=True)
class Given:
    """Images of anybody's loop, as a source of one batch: nobody knows their rows in a data set, nor partners."""

    images: Tensor
    labels: Tensor
    share: float = 1.0

    @property
    def index(self) -> Tensor:
        return torch.arange(len(self.labels), device=self.labels.device)

    @property
    def partners(self) -> Tensor:
        return self.index

    @property
    def partner_images(self) -> Tensor:
        return self.images

    @property
    def partner_labels(self) -> Tensor:
        return self.labels


class TrainingAdversary:
    """An adversary for any training loop: adversary(model, images, labels) -> perturbed images.

    It is projected gradient descent inside {threat <= threshold}, within `radius` of the image in l-inf, and in [0, 1]
    (Madry et al. 2018, arXiv 1706.06083; with steps=1 Wong et al. 2020, arXiv 2001.03994). Call it once for each step
    of the optimizer: the random starts depend on the seed and on the number of the call.

    threat     1 is half-way to another class for ProjectedDisplacement; L2 and Linf are in the unit of pixels in [0, 1]
    radius     second bound, in l-inf (default: the threshold for Linf, none for other `bounded` threats, else 8/255)
    steps      gradients for each image
    reach      length of all steps together, in units of the usual change of a pixel in the set, which is the radius,
               or less in an l2 ball (0: 2.5, or 1.25 for a single step)
    loss       "ce", or "trades": the divergence from the clean answers
    start      "random", or "corner": a far end of the set
    schedule, momentum   of the steps: "constant" or "linear"; the factor of the directions before

    Images with an empty mask of a segmented threat stay clean, unless its background may change.

    Raises UsageError for what there is not, images outside [0, 1], labels that are no class of the model, and models
    that do not answer with logits.

    >>> images, labels = torch.full((2, 1, 4, 4), 0.5), torch.tensor([0, 1])
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    >>> adversary = nonisotropic.TrainingAdversary(nonisotropic.Linf(), 8 / 255, steps=3)
    >>> perturbed = adversary(model, images, labels)
    >>> perturbed.shape, bool((perturbed - images).abs().max() <= 8 / 255 + 1e-6)
    (torch.Size([2, 1, 4, 4]), True)
    """

    def __init__(
        self,
        threat: Threat,
        threshold: float,
        radius: float | None = None,
        steps: int = 5,
        reach: float = 0.0,
        loss: str = "ce",
        start: str = "random",
        schedule: str = "constant",
        momentum: float = 0.0,
        seed: int = 0,
    ) -> None:
        check_set(threat, threshold, radius)
        check_number("steps", steps, 1, whole=True)
        check_number("reach", reach)
        check_number("momentum", momentum, 0, 1)
        check_seed(seed)
        look_up(INNER_LOSSES, loss, "loss")
        look_up(SCHEDULES, schedule, "schedule")
        if radius is None:
            radius = threshold if type(threat) is Linf else default_radius(threat)
        starts = RandomStarts(look_up(FRESH, start, "start"))
        self.pgd = PGD(
            "adv", threat, threshold, radius, radius, steps, seed, loss, reach, schedule, momentum, starts=starts
        )
        self.calls = count()

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """[B,C,H,W] in [0, 1], without a gradient.

        model    images [B,C,H,W] in [0, 1] -> logits [B,K]; in eval mode during the call, so that batch normalisation
                 learns nothing from it; its weights get no gradient
        images   [B,C,H,W] floats in [0, 1]; labels: [B] whole numbers; both where the model is
        """
        if torch.is_inference_mode_enabled():
            raise UsageError("attacks need gradients, which torch.inference_mode() forbids: call it outside of it")
        check_images(images, labels)
        if not len(images):
            raise UsageError("images: expected at least one, got none")
        check_rows(self.pgd.threat, len(images))
        pgd = self.pgd
        size = min(1.0, pgd.radius, usual_change(pgd.threat, pgd.threshold, images[:1].detach().float(), labels[:1]))
        number = next(self.calls)
        batch = Batch(Given(images.detach().float(), labels.long()), draw=number)
        with torch.enable_grad():  # a hook of somebody's loop may have switched gradients off
            return replace(pgd, size=size)(LogitsOf(model, labels), batch, Step(number, 0)).images.detach()


def usual_change(threat: Threat, threshold: float, images: Tensor, labels: Tensor) -> float:
    """Change of each pixel on the boundary of a set, where all change equally; inf for one that may be unbounded.

    images, labels   one image [1,C,H,W], of any content, with its label
    """
    if isinstance(threat, Intersection):
        return min(usual_change(member, threshold * level, images, labels) for member, level in threat.members)
    if isinstance(threat, Norm):
        return threat.usual_change(threshold, images[0].numel())
    if not threat.bounded:
        return math.inf
    of_one = float(threat.bind(images, labels).evaluate(torch.ones_like(images)))  # a threat grows as the change does
    return threshold / of_one if of_one > 0 else math.inf
