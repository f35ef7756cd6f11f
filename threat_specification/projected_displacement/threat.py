"""The Projected Displacement threat (Muthukumar, Pal, Sulam, Vidal, arXiv 2501.18098).

For an image x with label y, anchors a_j with labels c_j and a perturbation d:

    v_j(x) = u_j / (beta w[y, c_j] ||a_j - x||^2)    u_j = a_j - x, beta = 1/2, only j with c_j != y
    PD(x, d) = max_j max(0, <d, v_j(x)>)

    plain       w = 1: a step of d = t (a_j - x) has threat at least 2 t; {PD <= 1} is the Voronoi cell of x among the
                anchors of other classes
    weighted    w is a positive K x K matrix of relative class distances (Definition 9): near classes are more of a
                threat, and {PD-W <= t} lies inside {PD <= t} if w is at most 1 (see class_weights.FORMS)
    segmented   u_j = m (a_j - x) with a 0/1 mask m of the object in x; changes of the background have no effect. The
                norm is that of all of a_j - x (Definition 8), or with segmented_norm="masked" that of u_j
    tangents    v_j = M u_j / (beta w <u_j, M u_j>) with a metric M(x) in which the first-order changes of x that keep
                its meaning (contrast, small geometry, blur) cost little; see tangents.py. A step of d = t (a_j - x)
                has threat at least 2 t, as in the plain form

PD is convex and positively homogeneous in d, but not a norm.

Edge cases
    no anchor of another class                  `bind` and `evaluate` raise UsageError: all changes would have threat 0
    an anchor of another class equal to x       `bind` and `evaluate` raise UsageError, which names both
    m (a_j - x) = 0                             that anchor does not count
    m of the mask source is empty               `bind` and `evaluate` raise UsageError, which names the first one;
                                                with masks= of the call no anchor counts: threat 0
    NaN or infinity in d                        `evaluate` and `project` raise UsageError
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from foundations.arithmetic import full_precision
from foundations.errors import UsageError, look_up
from foundations.input_hparams import ThreatHparams
from threat_specification.base import (
    Threat,
    check_images,
    difference,
)
from threat_specification.projected_displacement.anchor_matrix import AnchorMatrix, devices_from
from threat_specification.projected_displacement.anchors import AnchorSet
from threat_specification.projected_displacement.apart_matrix import ApartAnchorMatrix
from threat_specification.projected_displacement.bound import FULL_NORMS, PROJECTIONS, BoundProjectedDisplacement
from threat_specification.projected_displacement.class_weights import (
    check_class_weights,
    check_labels_covered,
    load_class_weights,
)
from threat_specification.projected_displacement.distributed_matrix import DistributedAnchorMatrix, any_of, gather
from threat_specification.projected_displacement.masks import (
    BACKGROUNDS,
    FileMasks,
    MaskSource,
    check_masks,
    mask_source_from,
    refuse_empty,
)
from threat_specification.projected_displacement.stored import directory_of
from threat_specification.projected_displacement.tangents import Tangents


@dataclass(frozen=True)
class Binding:
    """An anchor that a perturbation moves towards."""

    anchor: int  # its number in the set of anchors
    label: int
    index: int | None  # its index in the training set, if known
    threat: float  # <d, v_j>


class ProjectedDisplacement(Threat):
    """The Projected Displacement threat over a set of anchors (Muthukumar, Pal, Sulam and Vidal, arXiv 2501.18098).

    A change of an image has threat 1 when it reaches half-way to an anchor of another class, and 0 when it leads to
    none. Each evaluation of a bound threat is one B x D x N matrix product.

    class_weights   [K, K] for weighted=True; stored as float32
    mask_source     for segmented=True: "center", "grabcut", "sam:CHECKPOINT", "file:PATH" or a callable of images
                    [B,C,H,W] that returns bool [B,1,H,W] or [B,C,H,W], which is called once per image. Images with an
                    empty mask are refused; `without_object` finds them. The alternative is to pass masks= with each
                    call
    projection      default method of projection: a key of PROJECTIONS
    segmented_norm  of segmented=True: a key of FULL_NORMS
    tangents        True, or names among registry.TANGENTS: the tangent form
    tangent_weight  its lambda above 0: the smaller, the less a change along a tangent costs
    background      allowed changes of pixels outside the mask in projections: a key of masks.BACKGROUNDS

    Raises UsageError for arguments that do not fit together, and for images that do not have the anchors' shape.

    >>> black, white = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    >>> anchors = nonisotropic.AnchorSet(torch.cat([black, white]), torch.tensor([0, 1]))
    >>> threat = nonisotropic.ProjectedDisplacement(anchors=anchors)
    >>> labels = torch.tensor([0])  # of a black image: half-way to the white one, then a quarter of the way
    >>> threat.evaluate(black, labels, black + 0.5), threat.evaluate(black, labels, black + 0.25)
    (tensor([1.]), tensor([0.5000]))
    >>> threat.project(black, labels, white, threshold=0.5).unique()
    tensor([0.2500])
    """

    name = "PD"

    def __init__(
        self,
        hparams: ThreatHparams | None = None,
        weighted: bool = False,
        segmented: bool = False,
        anchors: AnchorSet | None = None,
        source: Callable[[], AnchorSet] | None = None,
        class_weights: Tensor | None = None,
        mask_source: MaskSource | str | None = None,
        background: str = "frozen",
        projection: str = "exact",
        segmented_norm: str = "full",
        tangents: bool | str | Sequence[str] = False,
        tangent_weight: float = 0.1,
    ) -> None:
        if anchors is None and source is None:
            raise UsageError("ProjectedDisplacement needs anchors=AnchorSet(...) or source=, a callable returning one")
        if anchors is not None and not isinstance(anchors, AnchorSet):
            raise UsageError(f"anchors: expected an AnchorSet(images, labels), got a {type(anchors).__name__}")
        if weighted != (class_weights is not None):
            came = "none" if class_weights is None else "some with weighted=False"
            raise UsageError(
                f"weighted PD: expected weighted=True with class_weights=[K, K], got {came}; give both or neither"
            )
        if mask_source is not None and not segmented:
            raise UsageError("mask_source: only the segmented form has masks; use segmented=True or leave it out")
        look_up(BACKGROUNDS, background, "background")
        look_up(PROJECTIONS, projection, "projection")
        look_up(FULL_NORMS, segmented_norm, "segmented norm")
        self.hparams = hparams or ThreatHparams()
        self.anchors, self.source = anchors, source
        self.weighted, self.segmented, self.background = weighted, segmented, background
        self.projection, self.segmented_norm = projection, segmented_norm
        self.tangents = Tangents.of(tangents, tangent_weight)
        self.class_weights = None if class_weights is None else check_class_weights(class_weights)
        self.mask_source = None if mask_source is None else mask_source_from(mask_source)
        form = weighted * "W" + segmented * "S" + (self.tangents is not None) * "T"
        self.name = f"PD-{form}" if form else "PD"
        self._num_devices = 1
        self._over_ranks = self._apart = False
        self._is_prepared = False

    @classmethod
    def of(cls, name: str, weighted: bool = False, root: str = "", replicate: int = 1, **form: Any) -> Self:
        """The threat over the anchors that compute_threat chose.

        name      of a data set, for the run with the default flags; or the path of a run
        weighted  with the class weights that are kept with the anchors
        root, replicate   as --root_dir and --threat_replicate
        form      further arguments of `ProjectedDisplacement`
        """
        path = directory_of(name, weighted, root, replicate)
        if weighted:
            form["class_weights"] = load_class_weights(path / "class_weights.safetensors")
        return cls(weighted=weighted, anchors=AnchorSet.load(path / "anchors.safetensors"), **form)

    def prepare(
        self,
        num_devices: int = 1,
        device: torch.device | str | None = None,
        over_ranks: bool = False,
        apart: bool = False,
    ) -> Self:
        """Load the anchors, place them on devices and cache what depends on them alone; returns self.

        num_devices > 1 divides the anchors over that many GPUs, or all GPUs if there are fewer; on the CPU it divides
        them into that many parts. With over_ranks, the given anchors are this process's part of the set, and all
        processes work on the same examples; with `apart` too, on different ones, inside a `session`.
        """
        if num_devices < 1:
            raise UsageError(f"num_devices: expected a number from 1 up, got {num_devices}")
        if self.anchors is None:
            assert self.source is not None
            self.anchors = self.source()
        home = torch.device(device) if device is not None else self.anchors.images.device
        distributed = ApartAnchorMatrix if apart else DistributedAnchorMatrix
        self.matrix = self._matrix(distributed if over_ranks else AnchorMatrix, devices_from(home, num_devices))
        self.labels, self.indices = self.anchors.labels.to(home), self.anchors.indices
        if over_ranks:
            self.labels = gather(self.labels)
            self.indices = None if self.indices is None else gather(self.indices.to(home))
        # Looked at once: bind compares the labels of images with it, and only where there is one class.
        self._only_class = int(self.labels[0]) if bool((self.labels == self.labels[0]).all()) else None
        if self.class_weights is not None:
            check_labels_covered(self.class_weights, self.labels, "anchors")
            self.class_weights = self.class_weights.to(home)
        self._num_devices, self._is_prepared = num_devices, True
        self._over_ranks, self._apart = over_ranks, over_ranks and apart
        return self

    def _matrix(self, kind: type[AnchorMatrix], devices: list[torch.device]) -> AnchorMatrix:
        """The matrix of the anchors, which is that of another threat over them if they may share it."""
        assert self.anchors is not None
        shared, key = self.anchors.shared, (self.hparams.num_chunks, tuple(devices))
        if shared is None or kind is not AnchorMatrix:  # others belong to a session
            return kind(self.anchors.images, self.hparams.num_chunks, devices)
        if (matrix := shared.get(key)) is None:
            matrix = shared[key] = kind(self.anchors.images, self.hparams.num_chunks, devices)
        return matrix

    def session(self) -> AbstractContextManager[None]:
        matrix = self.matrix if self._is_prepared else None
        return matrix.session() if isinstance(matrix, ApartAnchorMatrix) else nullcontext()

    def bind(
        self, examples: Tensor, labels: Tensor, masks: Tensor | None = None, indices: Tensor | None = None
    ) -> BoundProjectedDisplacement:
        """Fix examples and labels.

        The segmented form uses `masks`, or else its mask source; masks from a file need the data set `indices`.
        """
        check_images(examples, labels)
        if not self._is_prepared or self.labels.device != examples.device:
            self.prepare(self._num_devices, examples.device, self._over_ranks, self._apart)
        assert self.anchors is not None
        if examples.shape[1:] != self.anchors.images.shape[1:]:
            shape = list(self.anchors.images.shape[1:])
            raise UsageError(f"examples: expected shape [B, ...] of the anchors' {shape}, got {list(examples.shape)}")
        if self.class_weights is not None:
            check_labels_covered(self.class_weights, labels, "examples")
        if self._only_class is not None:
            self._refuse_class_of_all_anchors(labels)
        examples = examples.detach().float()
        masks = self._masks(examples, masks, indices)
        with full_precision(examples.device.type):
            return BoundProjectedDisplacement(
                examples,
                labels,
                self.matrix,
                self.labels,
                self.class_weights,
                masks,
                self.background,
                self.projection,
                FULL_NORMS[self.segmented_norm],
                self.tangents,
            )

    def _refuse_class_of_all_anchors(self, labels: Tensor) -> None:
        given = labels.tolist()
        if self._only_class in given:
            raise UsageError(
                f"anchors: expected some of another class than {self._only_class}, the label of example "
                f"{given.index(self._only_class)}, got none: all its changes would have threat 0; give anchors of two "
                "classes or more"
            )

    @property
    def rows(self) -> int | None:
        return len(self.mask_source.masks) if isinstance(self.mask_source, FileMasks) else None

    def _masks(self, examples: Tensor, masks: Tensor | None, indices: Tensor | None) -> Tensor | None:
        if not self.segmented:
            if masks is not None:
                raise UsageError("masks: only the segmented form has masks; use segmented=True or leave them out")
            return None
        if masks is None and self.mask_source is None:
            raise UsageError(
                "segmented PD: expected masks= with the call or mask_source= when the threat is made, got neither"
            )
        if masks is None:
            assert self.mask_source is not None
            masks = check_masks(self.mask_source(examples, indices), examples)
            refuse_empty(masks, indices)
        return check_masks(masks, examples).to(examples.device)

    def explain(
        self, examples: Tensor, labels: Tensor, perturbed_examples: Tensor, top: int = 3, **context: Any
    ) -> list[list[Binding]]:
        """List, for each example, at most `top` anchors with the largest positive displacements, largest first."""
        check_images(examples, labels, perturbed_examples)
        bound = self.bind(examples, labels, **context)
        along = bound.displacements(difference(perturbed_examples, examples).flatten(1))
        values, numbers = along.topk(min(top, along.shape[1]), 1)
        return [
            [self._binding(number, value) for value, number in zip(row, which, strict=True) if value > 0]
            for row, which in zip(values.tolist(), numbers.tolist(), strict=True)
        ]

    def _binding(self, number: int, threat: float) -> Binding:
        index = None if self.indices is None else int(self.indices[number])
        return Binding(number, int(self.labels[number]), index, threat)

    def equals_other_anchor(self, images: Tensor, labels: Tensor) -> Tensor:
        """[B] bool: images, of the anchors' dtype, that equal an anchor of another label; `bind` raises for them.

        If anchors are divided over processes, all processes ask for the same images.
        """
        if self.anchors is None:
            self.prepare(self._num_devices)
        assert self.anchors is not None
        equal = self.anchors.equal_with_another_label(images, labels)
        return any_of(equal) if self._over_ranks else equal

    def without_object(self, examples: Tensor, indices: Tensor | None = None) -> Tensor:
        """[B] bool: images whose mask selects no pixel, so that no change has a threat; all False without masks.

        `bind` raises for them. Asks the mask source; masks of a file need `indices` [B], the rows in the data set.
        """
        if self.mask_source is None:
            return torch.zeros(len(examples), dtype=torch.bool, device=examples.device)
        return ~self.mask_source(examples, indices).flatten(1).any(1)

    def inscribed_radius(self, examples: Tensor, labels: Tensor, **context: Any) -> Tensor:
        """Radius, per unit of threshold, of the l2 ball inside {PD <= threshold}: beta min_j w ||u_j||, [B]."""
        return self.bind(examples, labels, **context).inscribed_radius()
