"""Networks read as plain sequences: what they compute, bounds of it by loops, and what is refused by name."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from datasets.registry import dataset_info
from foundations.errors import UsageError
from foundations.plain_networks import MaxPool, PlainNetwork, Relu, harmless
from models.registry import build_model

SHAPE = (2, 7, 6)


class Functions(nn.Module):
    """Functions in place of layers, and a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.3, 0.4]).view(-1, 1, 1))
        self.first, self.last = nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Linear(36, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first((x - self.mean) / 0.5))
        return self.last(torch.flatten(x * 2 + 1, 1)) - 0.1


NETS: dict[str, Callable[[], nn.Module]] = {
    "perceptron": lambda: nn.Sequential(nn.Flatten(), nn.Linear(84, 9), nn.ReLU(), nn.Linear(9, 4)),
    "pooling": lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2),
                                     nn.Dropout(), nn.Flatten(), nn.Linear(27, 8), nn.ReLU(), nn.Linear(8, 4)),
    "wide windows": lambda: nn.Sequential(nn.Conv2d(2, 3, 1), nn.MaxPool2d((3, 2)), nn.Flatten(), nn.Linear(18, 8),
                                          nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)),
    "average": lambda: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2, bias=False), nn.ReLU(), nn.AvgPool2d(2, padding=1),
                                     nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)),
    "functions": Functions,
}  # fmt: skip


def made(name: str) -> nn.Module:
    """A net with random weights and random statistics of batch normalisation, in float64."""
    torch.manual_seed(3)
    net = NETS[name]()
    for layer in net.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.5, 2)
            nn.init.normal_(layer.weight)
    return net.double().eval().requires_grad_(False)


def boxes(count: int, seed: int = 0, reach: float = 0.1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, *SHAPE, generator=generator, dtype=torch.float64)
    width = reach * torch.rand(count, *SHAPE, generator=generator, dtype=torch.float64)
    return (centre - width).clamp(0, 1), (centre + width).clamp(0, 1)


@pytest.mark.parametrize("name", NETS)
def test_it_computes_what_the_model_does(name: str) -> None:
    net, images = made(name), torch.rand(5, *SHAPE, dtype=torch.float64)
    assert torch.allclose(PlainNetwork.read(net)(images), net(images), atol=1e-12)


@pytest.mark.parametrize("name", NETS)
def test_no_point_is_beyond_an_interval_of_any_layer(name: str) -> None:
    network, (low, high) = PlainNetwork.read(made(name)), boxes(3)
    found = network.intervals(low, high)
    generator = torch.Generator().manual_seed(1)
    share = torch.rand(1000, 3, *SHAPE, generator=generator, dtype=torch.float64)
    share[:500] = share[:500].round()  # corners
    points = (low + (high - low) * share).flatten(0, 1)
    for step, (least, most) in zip([None, *network.steps], found, strict=True):
        points = points if step is None else step(points)
        values = points.view(1000, 3, *points.shape[1:])
        assert (values >= least - 1e-15).all() and (values <= most + 1e-15).all()


def test_intervals_of_an_affine_layer_are_exact() -> None:
    layer = nn.Conv2d(2, 3, 3, padding=1, stride=2).double().requires_grad_(False)
    low, high = boxes(2)
    ((_, _), (least, most)) = PlainNetwork.read(nn.Sequential(layer)).intervals(low, high)
    for image, channel, row, column in itertools.product(range(2), range(3), range(4), range(3)):
        small = large = float(layer.bias[channel])
        for k, i, j in itertools.product(range(2), range(3), range(3)):
            y, x = 2 * row - 1 + i, 2 * column - 1 + j
            if 0 <= y < 7 and 0 <= x < 6:
                ends = [float(layer.weight[channel, k, i, j] * side[image, k, y, x]) for side in (low, high)]
                small, large = small + min(ends), large + max(ends)
        at = (image, channel, row, column)
        assert small - 1e-7 < least[at] < small and large < most[at] < large + 1e-7


@pytest.mark.parametrize("step", [Relu(), MaxPool(2, 2), MaxPool(1, 3)], ids=["relu", "2x2", "1x3"])
def test_lines_are_nowhere_above_and_touch(step: Relu | MaxPool) -> None:
    """At corners and inside: of factors of both signs, with units that are on, off and neither."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, 4, 7)
    low = torch.rand(40, *shape, generator=generator, dtype=torch.float64) - 0.7
    high = low + torch.rand(40, *shape, generator=generator, dtype=torch.float64)
    high[:3] = low[:3]
    if isinstance(step, MaxPool):
        low, high = low.clamp_min(0), high.clamp_min(0)
    factors = torch.randn(step(low).shape, generator=generator, dtype=torch.float64)
    slope, constant = step.below(factors, low, high)
    least = torch.full((40,), torch.inf, dtype=torch.float64)
    for number in range(400):
        share = torch.rand(40, *shape, generator=generator, dtype=torch.float64)
        point = low + (high - low) * (share.round() if number % 2 else share)
        gap = (factors * step(point)).flatten(1).sum(1) - (slope * point).flatten(1).sum(1) - constant
        least = torch.minimum(least, gap)
    assert (least >= -1e-12).all() and (least[:3].abs() < 1e-12).all()
    for sign in (1, -1):  # a single unit between two signs: the line touches it at an end
        if isinstance(step, Relu):
            one = torch.ones(1, 1, dtype=torch.float64)
            slope, constant = step.below(sign * one, -0.25 * one, 0.5 * one)
            gaps = [float(sign * max(p, 0) - slope * p - constant) for p in (-0.25, 0, 0.5)]
            assert min(gaps) == pytest.approx(0, abs=1e-15) and max(gaps) <= 0.25 * 2 / 3 * 1.51


class Shortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(84, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last((self.layer(x) + x).flatten(1))


class Reversed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1 / x.flatten(1)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(84, 4), nn.Sigmoid()), "layer 2, Sigmoid"),
        (nn.Sequential(nn.Sequential(nn.Conv2d(2, 2, 3), nn.GELU())), "layer 0.1, GELU"),
        (nn.Sequential(nn.MaxPool2d(3, stride=2)), "layer 0, MaxPool2d: .* do not overlap"),
        (nn.Sequential(nn.MaxPool2d(2, padding=1)), "layer 0, MaxPool2d: .* without padding"),
        (nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")), "layer 0, Conv2d: .* zeros"),
        (nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False)), "layer 0, BatchNorm2d: .* statistics"),
        (nn.Sequential(nn.Flatten(2)), "layer 0, Flatten"),
        (Shortcut(), "add: .* follow the one before"),
        (Reversed(), "truediv"),
    ],
)
def test_a_layer_of_another_kind_is_named(model: nn.Module, told: str) -> None:
    with pytest.raises(ValueError, match=f"^certificates: {told}"):
        PlainNetwork.read(model)


def test_which_of_our_models_are_plain() -> None:
    plain = {
        "lenet": "mnist_5k",
        "conv": "mnist_5k",
        "lenet_30_20": "digits",
        "conv_8_8": "cifar10",
        "vgg_11": "cifar10",
    }
    for name, dataset in plain.items():
        info = dataset_info(dataset)
        model, images = build_model(name, info).eval(), torch.rand(2, *info.shape)
        assert torch.allclose(PlainNetwork.read(model)(images), model(images), atol=1e-4)
    for name in ("resnet_8", "preactresnet_18", "wideresnet_10_1"):
        with pytest.raises(ValueError, match="certificates: "):
            PlainNetwork.read(build_model(name, dataset_info("cifar10")))


class Whole(nn.Module):
    """A model of whole numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.int32).to(torch.float32).flatten(1)


def _hooked(model: nn.Sequential) -> nn.Module:
    model[1].register_forward_hook(lambda layer, given, answer: -answer)
    return model


def _other_forward(model: nn.Sequential) -> nn.Module:
    model.forward = lambda x: -x  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize("change", [_hooked, _other_forward, lambda model: nn.utils.spectral_norm(model[1])])
def test_what_following_a_model_passes_over_is_refused(change: Callable[[nn.Sequential], nn.Module]) -> None:
    with pytest.raises(UsageError, match="a hook or a forward"):
        PlainNetwork.read(change(nn.Sequential(nn.Flatten(), nn.Linear(84, 4))))


def test_a_hook_that_is_known_to_change_nothing_is_none() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(84, 4))
    model.register_forward_pre_hook(harmless(lambda *_: None))
    assert len(PlainNetwork.read(model).steps) == 2


def test_rounding_to_other_types_is_refused() -> None:
    with pytest.raises(UsageError, match="plain sequence"):
        PlainNetwork.read(Whole())


def test_bounds_that_are_no_numbers_do_not_count_as_a_relu_at_rest() -> None:
    nothing = torch.full((1, 2), torch.nan)
    slope, added = Relu().below(-torch.ones(1, 2), nothing, nothing)
    assert slope.isnan().all() and added.isnan().all()


def test_an_average_with_a_negative_divisor_has_its_lower_bound_below() -> None:
    (step,) = PlainNetwork.read(nn.Sequential(nn.AvgPool2d(2, divisor_override=-4))).steps
    low, high = step.interval(torch.zeros(1, 1, 2, 2).double(), torch.ones(1, 1, 2, 2).double())
    assert float(low) <= -1 and float(high) >= 0
