"""Networks read as plain sequences of affine layers, ReLUs and maxima, with bounds of what they compute.

Each step carries intervals forwards, and linear lower bounds backwards (Gowal et al. 2018, arXiv 1810.12715; Zhang et
al. 2018, arXiv 1811.00866). The steps read the weights of the layers when they are used, so that a loss of intervals
trains them. All products are those of torch, in the type of the given bounds.

Shapes: B images, P pairs of an image and a linear function of a step's output.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from foundations.errors import UsageError

SLACK = 1e-9  # each interval of an affine layer is widened by this share of its size: far more than float64 rounds

Pair = tuple[Tensor, Tensor]  # lower and upper bounds


class Step(Protocol):
    """A layer."""

    is_affine: bool

    def __call__(self, x: Tensor) -> Tensor:
        """Its output."""
        ...

    def interval(self, low: Tensor, high: Tensor) -> Pair:
        """Bounds of its output, given those of its input, [B, ...]."""
        ...

    def below(self, factors: Tensor, low: Tensor, high: Tensor) -> Pair:
        """Factors of its input [P, ...] and constants [P]: nowhere above the sum of factors [P, ...] times its output.

        low, high   bounds of its input, [P, ...]
        """
        ...


@dataclass(frozen=True)
class Affine:
    """L x + constant.

    linear    x -> L x
    absolute  x -> |L| x, with the absolute value of every entry
    constant  of a shape that broadcasts with the output for a batch, or None for 0
    """

    linear: Callable[[Tensor], Tensor]
    absolute: Callable[[Tensor], Tensor]
    constant: Callable[[], Tensor | None] = lambda: None
    is_affine = True

    def __call__(self, x: Tensor) -> Tensor:
        constant = self.constant()
        return self.linear(x) if constant is None else self.linear(x) + constant

    def interval(self, low: Tensor, high: Tensor) -> Pair:
        middle, reach = self((low + high) / 2), self.absolute((high - low) / 2)
        reach = reach + SLACK * (1 + middle.detach().abs() + reach.detach())
        return middle - reach, middle + reach

    def below(self, factors: Tensor, low: Tensor, high: Tensor) -> Pair:
        """Exact: the transposed map, and the product with the constant."""
        constant = self.constant()
        added = factors.new_zeros(len(factors)) if constant is None else (factors * constant).flatten(1).sum(1)
        keeps = torch.is_grad_enabled()
        with torch.enable_grad():
            x = torch.zeros_like(low, requires_grad=True)
            (moved,) = torch.autograd.grad(self.linear(x), x, factors, create_graph=keeps)
        return moved, added


class Relu:
    """max(x, 0)."""

    is_affine = False

    def __call__(self, x: Tensor) -> Tensor:
        return x.clamp_min(0)

    def interval(self, low: Tensor, high: Tensor) -> Pair:
        return low.clamp_min(0), high.clamp_min(0)

    def below(self, factors: Tensor, low: Tensor, high: Tensor) -> Pair:
        """A line below it where the factor is positive, the side of the triangle above it where it is negative."""
        unstable = ~((low >= 0) | (high <= 0))  # NaN, where bounds overflow, is no bound: it must not look like 0
        steep = torch.where(unstable, high / torch.where(unstable, high - low, 1), (low >= 0).to(low))
        flat = torch.where(unstable, high > -low, low >= 0)
        up, down = factors.clamp_min(0), factors.clamp_max(0)
        added = down * torch.where(unstable, -low * steep, 0)
        return up * flat + down * steep, added.flatten(1).sum(1)


@dataclass(frozen=True)
class MaxPool:
    """The maximum of each window; windows do not overlap, and pixels beyond the last whole one are left out."""

    rows: int
    columns: int
    is_affine = False

    def __call__(self, x: Tensor) -> Tensor:
        return self._windows(x).amax(-1)

    def interval(self, low: Tensor, high: Tensor) -> Pair:
        return self(low), self(high)

    def below(self, factors: Tensor, low: Tensor, high: Tensor) -> Pair:
        """Below: the entry with the largest lower bound m. Above: m plus a triangle above max(x, m) - m for each entry.

        If the triangles add up to more than twice the largest upper bound less m, that bound, a constant, is above.
        """
        lows, highs = self._windows(low), self._windows(high)
        least, best = lows.max(-1, keepdim=True)
        height = (highs - least).clamp_min(0)
        lines = height.sum(-1, keepdim=True) <= 2 * height.amax(-1, keepdim=True)
        steep = torch.where(lines & (height > 0), height / torch.where(height > 0, highs - lows, 1), 0)
        above = torch.where(lines, least - (steep * lows).sum(-1, keepdim=True), least + height.amax(-1, keepdim=True))
        up, down = factors.clamp_min(0).unsqueeze(-1), factors.clamp_max(0).unsqueeze(-1)
        inner = (down * steep).scatter_add(-1, best, up)
        return self._unwindowed(inner, low), (down * above).flatten(1).sum(1)

    def _windows(self, x: Tensor) -> Tensor:
        """The entries of each window, [B, C, H/rows, W/columns, rows * columns]."""
        height, width = x.shape[2] // self.rows, x.shape[3] // self.columns
        x = x[:, :, : height * self.rows, : width * self.columns]
        x = x.reshape(*x.shape[:2], height, self.rows, width, self.columns)
        return x.transpose(3, 4).flatten(4)

    def _unwindowed(self, windows: Tensor, like: Tensor) -> Tensor:
        count, channels, height, width, _ = windows.shape
        x = windows.view(count, channels, height, width, self.rows, self.columns).transpose(3, 4)
        x = x.reshape(count, channels, height * self.rows, width * self.columns)
        return functional.pad(x, (0, like.shape[3] - x.shape[3], 0, like.shape[2] - x.shape[2]))


def margins(labels: Tensor, num_classes: int, dtype: torch.dtype = torch.float64) -> Pair:
    """Of every image and other class, the label's logit less the other one: [P, K] factors of logits; [P] the image."""
    eye = torch.eye(num_classes, dtype=dtype, device=labels.device)
    which, other = (torch.arange(num_classes, device=labels.device) != labels.unsqueeze(1)).nonzero(as_tuple=True)
    return eye[labels[which]] - eye[other], which


def _same(layer: nn.Module) -> None:
    return None


def _linear(layer: nn.Linear) -> Step:
    return Affine(
        lambda x: functional.linear(x, layer.weight),
        lambda x: functional.linear(x, layer.weight.abs()),
        lambda: layer.bias,
    )


def _convolution(layer: nn.Conv2d) -> Step | str:
    if layer.padding_mode != "zeros":
        return "padding with zeros"

    def by(weight: Tensor, x: Tensor) -> Tensor:
        return functional.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)

    return Affine(
        lambda x: by(layer.weight, x),
        lambda x: by(layer.weight.abs(), x),
        lambda: None if layer.bias is None else layer.bias.view(-1, 1, 1),
    )


def _batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d) -> Step | str:
    """As in eval mode: a factor and a constant for each channel."""
    mean, variance = layer.running_mean, layer.running_var
    if mean is None or variance is None:
        return "stored statistics"
    factor = (variance + layer.eps).rsqrt() * (1 if layer.weight is None else layer.weight.detach())
    added = -mean * factor + (0 if layer.bias is None else layer.bias.detach())
    shape = (-1,) if isinstance(layer, nn.BatchNorm1d) else (-1, 1, 1)
    return scaled(factor.view(shape), added.view(shape))


def _max_pool(layer: nn.MaxPool2d) -> Step | str:
    rows, columns = _two(layer.kernel_size)
    plain = _two(layer.padding) == (0, 0) and _two(layer.dilation) == (1, 1) and not layer.return_indices
    if _two(layer.stride) != (rows, columns) or not plain or layer.ceil_mode:
        return "windows that do not overlap, without padding"
    return MaxPool(rows, columns)


def _two(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _mean(layer: nn.Module) -> Step:
    return Affine(layer, lambda x: layer(x).abs())  # a divisor can be negative


def _flatten(layer: nn.Flatten) -> Step | str:
    return FUNCTIONS["flatten"] if (layer.start_dim, layer.end_dim) == (1, -1) else "all but the batch flattened"


def scaled(factor: Tensor, added: Tensor) -> Affine:
    """factor * x + added."""
    return Affine(lambda x: x * factor, lambda x: x * factor.abs(), lambda: added)


# Layer -> its step; None where it changes nothing in eval mode; a text that says what it should have been.
LAYERS: dict[type, Callable[[Any], Step | str | None]] = {
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.AvgPool2d: _mean,
    nn.AdaptiveAvgPool2d: _mean,
    nn.MaxPool2d: _max_pool,
    nn.ReLU: lambda layer: Relu(),
    nn.Flatten: _flatten,
    nn.Identity: _same,
    nn.Dropout: _same,
    nn.Dropout2d: _same,
}

# The functions and methods of one argument.
FUNCTIONS: dict[Any, Step] = {
    torch.relu: Relu(),
    functional.relu: Relu(),
    "relu": Relu(),
    **dict.fromkeys((torch.flatten, "flatten"), Affine(lambda x: x.flatten(1), lambda x: x.flatten(1))),
}
SAME = ("float", "double", "clone", "contiguous")  # methods
WIDE = (torch.float32, torch.float64)  # the types that `to` may lead to: others round

# The functions of one argument and a constant.
WITH_CONSTANT: dict[Any, Callable[[Tensor], Affine]] = {
    **dict.fromkeys((operator.add, torch.add), lambda c: scaled(torch.ones_like(c), c)),
    **dict.fromkeys((operator.sub, torch.sub), lambda c: scaled(torch.ones_like(c), -c)),
    **dict.fromkeys((operator.mul, torch.mul), lambda c: scaled(c, torch.zeros_like(c))),
    **dict.fromkeys((operator.truediv, torch.div), lambda c: scaled(1 / c, torch.zeros_like(c))),
}


@dataclass(frozen=True)
class PlainNetwork:
    """A network as steps, each applied to the output of the one before.

    names   of the steps, as in the model
    """

    steps: list[Step]
    names: list[str]

    @classmethod
    def read(cls, model: nn.Module, what: str = "certificates") -> PlainNetwork:
        """Read a model [B,C,H,W] -> [B,K] in eval mode.

        Raises UsageError that names the first layer that does not fit; `what` says for what it was read.
        """
        refuse_hooks(model, what)
        try:
            graph = fx.symbolic_trace(model)
        except Exception as error:  # whatever the model's own code does with an argument that is no tensor
            raise UsageError(f"{what}: cannot follow {type(model).__name__}: {error}") from error
        network, last = cls([], []), None
        for node in graph.graph.nodes:
            if node.op == "get_attr":
                continue
            before = [each for each in node.all_input_nodes if each.op != "get_attr"]
            if before != ([] if last is None else [last]):
                raise _unknown(what, f"{node.name}", "each layer to follow the one before it")
            last = node
            network._add(node, graph, what)
        return network

    def __call__(self, images: Tensor) -> Tensor:
        """The logits."""
        for step in self.steps:
            images = step(images)
        return images

    def intervals(self, low: Tensor, high: Tensor, upto: int | None = None) -> list[Pair]:
        """Bounds of the input of each step [B, ...], and of the logits; of the first `upto` steps alone if given."""
        found = [(low, high)]
        for step in self.steps[:upto]:
            found.append(step.interval(*found[-1]))
        return found

    def _add(self, node: fx.Node, graph: fx.GraphModule, what: str) -> None:
        step: Step | str | None = "linear, convolution, ReLU, max or average pooling, flatten or batch norm"
        name = str(node.target)
        if node.op in ("placeholder", "output") or _changes_nothing(node):
            return
        if node.op == "call_module":
            layer = graph.get_submodule(name)
            name = f"layer {name}, {type(layer).__name__}"
            step = LAYERS.get(type(layer), lambda layer: step)(layer)
        else:
            name = f"{node.name}, {getattr(node.target, '__name__', node.target)}"
            step = _function(node, graph) or step
        if isinstance(step, str):
            raise _unknown(what, name, step)
        if step is not None:
            self.steps.append(step)
            self.names.append(name)


def _changes_nothing(node: fx.Node) -> bool:
    if node.op != "call_method":
        return False
    given = [*node.args[1:], *node.kwargs.values()]
    to_wide = node.target == "to" and all(not isinstance(each, torch.dtype) or each in WIDE for each in given)
    return node.target in SAME or to_wide


def harmless(hook: Callable[..., None]) -> Callable[..., None]:
    """Mark a hook that changes nothing of what a model answers."""
    hook.is_harmless = True  # type: ignore[attr-defined]
    return hook


def refuse_hooks(model: nn.Module, what: str) -> None:
    """Raise UsageError for modules whose answers are not those of their class: following the model passes over them."""
    for name, module in model.named_modules():
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if "forward" in vars(module) or not all(hasattr(hook, "is_harmless") for hook in hooks):
            raise UsageError(
                f"{what}: layer {name or type(model).__name__} has a hook or a forward() of its own, which may do "
                "anything; take it off (weight_norm: remove_weight_norm)"
            )


def _function(node: fx.Node, graph: fx.GraphModule) -> Step | None:
    """The step of a function or method; None if there is none."""
    target: Any = node.target
    made = WITH_CONSTANT.get(target)
    if made is not None and len(node.args) == 2 and not node.kwargs and isinstance(node.args[0], fx.Node):
        constant: Any = node.args[1]
        if isinstance(constant, fx.Node):
            constant = operator.attrgetter(str(constant.target))(graph) if constant.op == "get_attr" else None
        fits = node.args[0].op != "get_attr" and constant is not None
        return made(torch.as_tensor(constant).detach()) if fits else None
    flattens = target in (torch.flatten, "flatten")
    if flattens and (node.args[1:], node.kwargs) not in (((1,), {}), ((), {"start_dim": 1})):
        return None
    return FUNCTIONS.get(target)


def _unknown(what: str, name: str, expected: str) -> UsageError:
    return UsageError(f"{what}: {name}: expected a plain sequence of layers; here {expected}")
