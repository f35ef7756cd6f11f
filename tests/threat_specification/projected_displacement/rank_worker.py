"""The work of each process of test_rank_shards; run by torchrun with the project folder and a folder for results."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])

import torch
from torch import distributed

from threat_specification import AnchorSet, ProjectedDisplacement
from threat_specification.projected_displacement.pace import OTHERS, PACES

FORMS = ("plain", "weighted", "segmented", "tangents")


def anchors(dtype: str) -> AnchorSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (23, 1, 5, 5), dtype=torch.uint8, generator=generator)
    return AnchorSet(images if dtype == "uint8" else images.float() / 255, torch.arange(23) % 3, torch.arange(23) + 100)


def rows_of(rank: int, world: int) -> slice:
    """The examples of a process that works apart: parts of unequal length; the last of three processes has none."""
    bounds = (0, 5, 8, 8)
    return slice(bounds[rank], bounds[rank + 1] if rank + 1 < world else 8)


def measure(
    chosen: AnchorSet, form: str, over_ranks: bool, apart: bool = False, rows: slice = slice(0, 8)
) -> dict[str, torch.Tensor]:
    """Everything that a threat can say of a few examples; with `apart`, of those that are this process's own."""
    generator = torch.Generator().manual_seed(1)
    x, labels = torch.rand(8, 1, 5, 5, generator=generator), torch.arange(8) % 3
    other = torch.rand(8, 1, 5, 5, generator=generator)
    options = {
        "plain": {},
        "weighted": {"weighted": True, "class_weights": 1 + torch.rand(3, 3, generator=generator)},
        "segmented": {"segmented": True, "mask_source": "center"},
        "tangents": {"tangents": True},
    }[form]
    threat = ProjectedDisplacement(anchors=chosen, **options).prepare(over_ranks=over_ranks, apart=apart)
    with threat.session():
        measured = _measure(threat, x[rows], labels[rows], other[rows])
    if not apart:
        measured["equal"] = _equal(threat, chosen, labels)
    return measured


def _equal(threat: ProjectedDisplacement, chosen: AnchorSet, labels: torch.Tensor) -> torch.Tensor:
    """A mask of those of eight images that equal an anchor of another label: one, if any."""
    equal = torch.zeros(8, 1, 5, 5, dtype=chosen.images.dtype)
    equal[3] = anchors("uint8" if equal.dtype == torch.uint8 else "float").images[20]
    return threat.equals_other_anchor(equal, labels)


def _measure(
    threat: ProjectedDisplacement, x: torch.Tensor, labels: torch.Tensor, other: torch.Tensor
) -> dict[str, torch.Tensor]:
    moved = other.clone().requires_grad_(True)
    value = threat.bind(x, labels).evaluate(moved - x)
    (gradient,) = torch.autograd.grad(value.sum(), moved)
    explained = threat.explain(x, labels, other)
    with threat.session():  # inside another one it changes nothing
        projected = threat.project(x, labels, other, 0.1)
    return {
        "threat": value.detach(),
        "gradient": gradient,
        "radius": threat.inscribed_radius(x, labels),
        "projected": projected,
        "scaled": threat.project(x, labels, other, 0.1, method="scale"),
        "numbers": torch.tensor([row[0].anchor for row in explained]),
        "indices": torch.tensor([row[0].index for row in explained]),
    }


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    usual = PACES["cpu"]
    rank, world = distributed.get_rank(), distributed.get_world_size()
    for dtype in ("uint8", "float"):
        part = AnchorSet.load(f"{sys.argv[2]}/{dtype}.safetensors", (rank, world))
        if len(part) not in (23 // world, 23 // world + 1):
            raise SystemExit(f"expected a part of the anchors, got {len(part)}")
        for form in (*FORMS, "fixed"):
            if form == "fixed":
                PACES["cpu"] = OTHERS  # as on GPUs
            kind = "plain" if form == "fixed" else form
            torch.save(measure(part, kind, over_ranks=True), f"{sys.argv[2]}/{dtype}_{form}_{rank}.pt")
            own = measure(part, kind, over_ranks=True, apart=True, rows=rows_of(rank, world))
            torch.save(own, f"{sys.argv[2]}/{dtype}_{form}_{rank}_apart.pt")
        PACES["cpu"] = usual
    distributed.destroy_process_group()
