"""What each process of test_rank_shards does; run by torchrun with the project folder and a folder for results."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])

import torch
from torch import distributed

from threat_specification import AnchorSet, ProjectedDisplacement
from threat_specification.projected_displacement.pace import OTHERS, PACES

FORMS = ("plain", "weighted", "segmented")


def anchors(dtype: str) -> AnchorSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (23, 1, 5, 5), dtype=torch.uint8, generator=generator)
    return AnchorSet(images if dtype == "uint8" else images.float() / 255, torch.arange(23) % 3, torch.arange(23) + 100)


def measure(chosen: AnchorSet, form: str, over_ranks: bool) -> dict[str, torch.Tensor]:
    """Everything that a threat can say of a few examples."""
    generator = torch.Generator().manual_seed(1)
    x, labels = torch.rand(8, 1, 5, 5, generator=generator), torch.arange(8) % 3
    other = torch.rand(8, 1, 5, 5, generator=generator)
    options = {
        "plain": {},
        "weighted": {"weighted": True, "class_weights": 1 + torch.rand(3, 3, generator=generator)},
        "segmented": {"segmented": True, "mask_source": "center"},
    }[form]
    threat = ProjectedDisplacement(anchors=chosen, **options).prepare(over_ranks=over_ranks)
    moved = other.clone().requires_grad_(True)
    value = threat.bind(x, labels).evaluate(moved - x)
    (gradient,) = torch.autograd.grad(value.sum(), moved)
    explained = threat.explain(x, labels, other)
    equal = torch.zeros(8, 1, 5, 5, dtype=torch.uint8) if chosen.images.dtype == torch.uint8 else torch.zeros_like(x)
    equal[3] = anchors("uint8" if equal.dtype == torch.uint8 else "float").images[20]
    return {
        "threat": value.detach(),
        "gradient": gradient,
        "radius": threat.inscribed_radius(x, labels),
        "projected": threat.project(x, labels, other, 0.1),
        "scaled": threat.project(x, labels, other, 0.1, method="scale"),
        "numbers": torch.tensor([[b.anchor for b in row[:1]] for row in explained]),
        "indices": torch.tensor([[b.index for b in row[:1]] for row in explained]),
        "equal": threat.equals_other_anchor(equal, labels),
    }


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    usual = PACES["cpu"]
    rank, world = distributed.get_rank(), distributed.get_world_size()
    for dtype in ("uint8", "float"):
        part = AnchorSet.load(f"{sys.argv[2]}/{dtype}.safetensors", (rank, world))
        if len(part) not in (23 // world, 23 // world + 1):
            raise SystemExit(f"expected a part of the anchors, got {len(part)}")
        for form in FORMS:
            torch.save(measure(part, form, over_ranks=True), f"{sys.argv[2]}/{dtype}_{form}_{rank}.pt")
        PACES["cpu"] = OTHERS  # as on GPUs
        torch.save(measure(part, "plain", over_ranks=True), f"{sys.argv[2]}/{dtype}_fixed_{rank}.pt")
        PACES["cpu"] = usual
    distributed.destroy_process_group()
