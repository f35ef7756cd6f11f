"""Sections on what is computed: settings, exactness with lowered precision, bits, anchors over a group."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from benchmarks.gpu.bench import Bench
from foundations.environment import BACKENDS
from threat_specification import AnchorSet, ProjectedDisplacement
from threat_specification.attacks.random_numbers import uniform
from threat_specification.projected_displacement.distributed_matrix import any_of, gather

THRESHOLD, RADIUS = 0.01, 32 / 255


def setting(bench: Bench) -> None:
    """Precisions that torch begins with, and whether the device rounds as the CPU does."""
    cudnn = torch.backends.cudnn
    bench.tell("precision of products of matrices", torch.get_float32_matmul_precision())
    bench.tell("TF32 in convolutions", cudnn.allow_tf32)
    bench.tell("cuDNN deterministic; benchmark", f"{cudnn.deterministic}; {cudnn.benchmark}")
    if bench.is_cuda:
        bench.tell("CUDA; GPUs", f"{torch.version.cuda}; {torch.cuda.device_count()}")
        bench.tell("memory", torch.cuda.get_device_properties(bench.device).total_memory / 2**30, "GiB")
    values = torch.arange(256, dtype=torch.uint8)
    differ = (values.to(bench.device).float() / 255).cpu() != values.float() / 255
    bench.tell("8-bit values that, divided by 255, differ from the CPU's", int(differ.sum()), "of 256", "0")
    index = 977 * torch.arange(50)
    here, there = (uniform(5, each, 3, (3, 8, 8)).cpu() for each in (index.to(bench.device), index))
    bench.tell("random numbers of attacks equal the CPU's", torch.equal(here, there), aim="True")


def exactness(bench: Bench) -> None:
    """One projection as it is, with TF32 on, and under bf16 autocast, each judged in float64; then that of the CPU."""
    count, anchors = bench.sized((64, 500), (8, 40))
    images, labels = bench.examples(count)
    threat = bench.threat(anchors)
    chosen = threat.anchors
    assert chosen is not None
    delta = 0.3 * (bench.photographs(count, seed=3).float() / 255 - 0.5 + 0.3 * bench.noise(*images.shape, seed=4))
    lower, upper = (-images).clamp_min(-RADIUS), (1 - images).clamp_max(RADIUS)

    def judge(name: str, setting: AbstractContextManager[object], plain: Tensor | None = None) -> Tensor:
        bound = threat.bind(images, labels)
        with setting:
            seconds, point = bench.once(lambda: bound.project(delta, THRESHOLD, lower, upper))
        bench.tell(f"{name}: scaled instead of projected", bound.fallbacks, f"of {count}", "0")
        worst = float(_threats(chosen, images, labels, point).max())
        bench.tell(f"{name}: largest threat over threshold, in float64", worst / THRESHOLD, aim="1.00")
        distances = [
            (each - delta).double().flatten(1).norm(dim=1) for each in (point, point if plain is None else plain)
        ]
        bench.tell(
            f"{name}: largest distance over that of plain", float((distances[0] / distances[1]).max()), aim="1.00"
        )
        bench.tell(f"{name}: time", 1e3 * seconds, "ms")
        return point

    plain = judge("plain", nullcontext())
    judge("TF32 on", bench.tf32(), plain)
    judge("bf16 autocast", torch.autocast(bench.device.type, torch.bfloat16), plain)
    alone = ProjectedDisplacement(anchors=chosen.to("cpu")).bind(images.cpu(), labels.cpu())
    point = alone.project(delta.cpu(), THRESHOLD, lower.cpu(), upper.cpu())
    bench.tell(
        "largest difference of a pixel from the CPU's point", float((point - plain.cpu()).abs().max()), aim="1e-5"
    )


def _threats(anchors: AnchorSet, images: Tensor, labels: Tensor, delta: Tensor) -> Tensor:
    """PD written plainly in float64, one image at a time."""
    rows, found = anchors.floats().double(), []
    for image, label, step in zip(images.double().flatten(1), labels, delta.double().flatten(1), strict=True):
        differences = rows[anchors.labels != label] - image
        found.append((differences @ step / (0.5 * differences.square().sum(1))).amax().clamp_min(0))
    return torch.stack(found)


def bits(bench: Bench) -> None:
    """Compare the bits of the same work done twice, with torch's settings and with deterministic ones."""
    count, anchors = bench.sized((256, 500), (8, 40))
    images, labels = bench.examples(count)
    threat, towards = bench.threat(anchors), bench.noise(*images.shape, seed=1)
    lower, upper = (-images).clamp_min(-RADIUS), (1 - images).clamp_max(RADIUS)

    def projected() -> Tensor:
        return threat.bind(images, labels).project(towards, THRESHOLD, lower, upper)

    def gradient(network: nn.Module) -> Tensor:
        inputs = images.clone().requires_grad_(True)
        return torch.autograd.grad(functional.cross_entropy(network(inputs), labels, reduction="sum"), inputs)[0]

    def trained() -> Tensor:
        network = bench.network().train()
        optimizer = torch.optim.SGD(network.parameters(), 0.05, 0.9)
        for _ in range(bench.sized(15, 2)):
            optimizer.zero_grad()
            functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
        return torch.cat([weights.detach().flatten() for weights in network.parameters()])

    bench.tell("projection twice: equal", _agree(projected), aim="True")
    network = bench.network().eval()
    times: dict[str, float] = {}
    for name, deterministic in (("torch's settings", False), ("cuDNN deterministic", True)):
        before, torch.backends.cudnn.deterministic = torch.backends.cudnn.deterministic, deterministic
        try:
            aim = "True" if deterministic else "-"
            bench.tell(
                f"{name}: gradient of the input four times: equal", _agree(lambda: gradient(network), 4), aim=aim
            )
            bench.tell(f"{name}: training twice: equal", _agree(trained), aim=aim)
            (times[name],) = bench.seconds_of(lambda: gradient(network))
        finally:
            torch.backends.cudnn.deterministic = before
    first, second = times.values()
    bench.tell("gradient, time with cuDNN deterministic over torch's settings", second / first)


def _agree(call: Callable[[], Tensor], times: int = 2) -> bool:
    first = call()
    return all(torch.equal(first, call()) for _ in range(times - 1))


def collectives(bench: Bench) -> None:
    """Run the exchanges that anchors divided over processes need, in a group of this process alone."""
    backend = BACKENDS if bench.is_cuda else "gloo"
    distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    try:
        bench.tell(f"{backend}: gather", gather(torch.arange(3, device=bench.device)).tolist(), aim="[0, 1, 2]")
        flags = any_of(torch.tensor([True, False], device=bench.device)).tolist()
        bench.tell(f"{backend}: any_of on the device", flags, aim="[True, False]")
        images, labels = bench.examples(8)
        alone = bench.threat(40)
        assert alone.anchors is not None
        spread = ProjectedDisplacement(anchors=alone.anchors).prepare(over_ranks=True)
        delta = 0.3 * bench.noise(*images.shape)
        first, second = (each.bind(images, labels).project(delta, THRESHOLD) for each in (alone, spread))
        bench.tell("largest difference of a pixel, divided anchors", float((first - second).abs().max()), aim="1e-5")
        try:  # runners keep the test images on the CPU
            bench.tell(
                f"{backend}: any_of on the CPU", any_of(torch.tensor([True, False])).tolist(), aim="[True, False]"
            )
        except RuntimeError as error:
            bench.tell(f"{backend}: any_of on the CPU", " ".join(str(error).split())[:120], aim="[True, False]")
            raise
    finally:
        distributed.destroy_process_group()
