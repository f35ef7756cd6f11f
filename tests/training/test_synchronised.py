"""Batch normalisation over the parts of several processes: outputs, gradients and statistics of the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import start_processes

from foundations.errors import UsageError
from training.synchronised import WholeBatchNorm, has_batch_norm, synchronise

PARTS = (3, 2)  # images of each process: parts of one batch need not be equal
SHAPES = {"1d": (5, 4), "2d": (5, 4, 3, 3), "timm": (5, 4, 3, 3)}


def network(kind: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    if kind == "timm":  # normalisation and an activation in one layer
        return nn.Sequential(BatchNormAct2d(4, act_layer=nn.SiLU, **options))
    layer = {"1d": nn.BatchNorm1d, "2d": nn.BatchNorm2d}[kind](4, **options)
    return nn.Sequential(layer, nn.Tanh())


def batch(kind: str) -> tuple[Tensor, Tensor]:
    """The images of the whole batch, far from mean 0, and the weights of a loss."""
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(SHAPES[kind], generator=generator) * 2 + 30 for _ in range(2))  # type: ignore[return-value]


def part_of_a_process(rank: int, folder: str, kind: str, options: dict[str, object]) -> None:
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/store", len(PARTS))
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=len(PARTS))
    net = network(kind, **options)
    synchronise(net, torch.device("cpu"))
    images, weights = (whole.split(PARTS)[rank].clone() for whole in batch(kind))
    images.requires_grad_(True)
    answers = net(images)
    (answers * weights).sum().backward()
    gradients = {name: weight.grad for name, weight in net.named_parameters()}
    torch.save((answers.detach(), images.grad, gradients, net.state_dict()), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("kind", "options"),
    [("2d", {}), ("timm", {}), ("1d", {"momentum": None}), ("2d", {"affine": False, "track_running_stats": False})],
    ids=str,
)
def test_two_processes_are_one(kind: str, options: dict[str, object], tmp_path: Path) -> None:
    start_processes(part_of_a_process, (str(tmp_path), kind, options), nprocs=len(PARTS), start_method="fork")
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(len(PARTS))]
    net, (images, weights) = network(kind, **options), batch(kind)
    images.requires_grad_(True)
    answers = net(images)
    (answers * weights).sum().backward()
    near = {"rtol": 1e-4, "atol": 1e-5}
    assert torch.allclose(torch.cat([answer for answer, *_ in found]), answers, **near)
    assert torch.allclose(torch.cat([of_images for _, of_images, *_ in found]), images.grad, rtol=1e-3, atol=1e-4)
    for name, weight in net.named_parameters():
        assert torch.allclose(sum(gradients[name] for _, _, gradients, _ in found), weight.grad, **near)
    for *_, state in found:
        assert state.keys() == net.state_dict().keys()
        assert all(
            torch.allclose(state[name].float(), value.float(), **near) for name, value in net.state_dict().items()
        )


def test_only_layers_of_torch_itself_are_changed_and_evaluation_asks_nobody() -> None:
    net = nn.Sequential(nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.BatchNorm2d(4))
    synchronise(net, torch.device("cpu"))
    assert [type(layer) for layer in net] == [WholeBatchNorm, nn.GroupNorm, WholeBatchNorm]
    images = torch.randn(5, 4, 3, 3)
    assert torch.equal(net.eval()(images), nn.Sequential(*net).eval()(images))  # without a group of processes
    assert has_batch_norm(net) and not has_batch_norm(net[1])


def test_on_gpus_plain_layers_are_those_of_torch_and_others_keep_what_they_do() -> None:
    """timm's do an activation too, which torch's conversion drops without a word."""
    net = nn.Sequential(nn.BatchNorm2d(4), BatchNormAct2d(4, act_layer=nn.SiLU))
    before = dict(net.state_dict(keep_vars=True))
    images = batch("2d")[0]
    expected = net.eval()(images)
    synchronise(net, torch.device("cuda"))
    assert type(net[0]) is nn.SyncBatchNorm and isinstance(net[1], WholeBatchNorm)
    assert all(values is before[name] for name, values in net.state_dict(keep_vars=True).items())
    assert torch.equal(net(images), expected)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_layer_that_nobody_knows_is_refused(device: str) -> None:
    class Sharpened(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    with pytest.raises(UsageError, match=r"1: batch normalisation over several processes knows no Sharpened; train in"):
        synchronise(nn.Sequential(nn.BatchNorm2d(4), Sharpened(4)), torch.device(device))
