"""A small network read as affine maps, ReLUs and maxima: what a program can describe exactly.

The variables of the program come in blocks: block 0 is the image, and each ReLU or max-pooling layer makes another one.
All that lies between is an affine function of the blocks before it. So shortcuts need no treatment of their own.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from scipy import sparse
from torch import Tensor, fx, nn
from torch.nn import functional

from foundations.errors import UsageError
from foundations.plain_networks import WIDE, refuse_hooks

MOST_UNITS = 20_000  # ReLUs and maxima; a program of more is hopeless
COMPARED = 3  # random images at which the network is compared with the model
ROUNDING = 1e-3  # of the logits: more than float32 rounds of a network that answers anything
COLUMNS = 256  # columns of a matrix that pass through a layer together

# Affine in eval mode.
AFFINE_LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.ZeroPad2d,
    nn.Flatten,
    nn.Unflatten,
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
)
AFFINE_FUNCTIONS = (
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    torch.add,
    torch.sub,
    torch.mul,
    torch.div,
    torch.flatten,
    functional.linear,
    functional.conv2d,
    functional.avg_pool2d,
    functional.adaptive_avg_pool2d,
)
SUMS: dict[Any, int] = {operator.add: 1, torch.add: 1, operator.sub: -1, torch.sub: -1}  # function -> sign
QUOTIENTS = (operator.truediv, torch.div)  # affine in the first argument alone
RELUS = (torch.relu, functional.relu)
AFFINE_METHODS = ("flatten", "view", "reshape", "mean", "unsqueeze", "squeeze")
SAME_METHODS = ("to", "float", "double", "clone", "contiguous")


@dataclass(frozen=True)
class Value:
    """An affine function of blocks: sum of parts[b] @ variables of block b, plus a constant.

    parts     block number -> [n, size of the block], sparse
    constant  [n]
    shape     of the layer's output for one image, with n entries
    """

    parts: dict[int, Any]
    constant: numpy.ndarray
    shape: tuple[int, ...]

    def plus(self, other: Value, sign: int) -> Value:
        """The sum (sign 1) or difference (sign -1) of two values of one shape."""
        parts = dict(self.parts)
        for block, part in other.parts.items():
            parts[block] = parts[block] + sign * part if block in parts else sign * part
        return Value(parts, self.constant + sign * other.constant, self.shape)

    def at(self, known: list[numpy.ndarray]) -> numpy.ndarray:
        """Its entries, given the variables of all blocks before."""
        return sum((part @ known[block] for block, part in self.parts.items()), self.constant)

    def rows(self, chosen: Any) -> Value:
        """Some of its entries."""
        picked = {block: part[chosen] for block, part in self.parts.items()}
        return Value(picked, self.constant[chosen], (len(self.constant[chosen]),))


@dataclass(frozen=True)
class Block:
    """Variables that a nonlinear layer makes.

    before   the layer's input
    groups   [size, k] for max-pooling: the entries of `before` whose maximum each variable is, -1 for none; else None
    """

    size: int
    before: Value | None = None
    groups: numpy.ndarray | None = None


@dataclass
class Network:
    """The blocks, block 0 the image with pixels in [0, 1], and the logits as a function of them."""

    blocks: list[Block] = field(default_factory=list)
    logits: Value = field(init=False)
    _seen: list[numpy.ndarray] = field(default_factory=list, repr=False)  # by block, as `seen` gives it

    @classmethod
    def read(cls, model: nn.Module, shape: tuple[int, ...]) -> Network:
        """Read a model for images of this shape (C, H, W).

        Raises UsageError that names the first layer that is neither affine nor a ReLU or max-pooling layer.
        """
        refuse_hooks(model, "exact answers")
        as_it_is = copy.deepcopy(model).cpu().eval()
        model = copy.deepcopy(as_it_is).double()
        try:
            graph = fx.symbolic_trace(model)
        except Exception as error:  # whatever the model's own code does with an argument that is no tensor
            raise UsageError(f"exact answers: cannot follow {type(model).__name__}: {error}") from error
        network = cls()
        with torch.no_grad():
            network._follow(graph, shape)
            network._refuse_infinite()
            network._compare(as_it_is, shape)
        return network

    def __call__(self, image: numpy.ndarray) -> numpy.ndarray:
        """The logits of an image [D], in float64."""
        known = [image]
        for block in self.blocks[1:]:
            assert block.before is not None
            inputs = block.before.at(known)
            known.append(numpy.maximum(inputs, 0) if block.groups is None else window(block.groups, inputs).max(1))
        return self.logits.at(known)

    @property
    def units(self) -> int:
        """The number of ReLUs and maxima."""
        return sum(block.size for block in self.blocks[1:])

    def seen(self, number: int) -> numpy.ndarray:
        """[size, D] bool, the pixels that each variable of a block depends on; found once for all blocks."""
        for block in self.blocks[len(self._seen) :]:
            if block.before is None:
                self._seen.append(numpy.eye(block.size, dtype=bool))
                continue
            pixels = numpy.zeros((len(block.before.constant), self.blocks[0].size), dtype=bool)
            for earlier, part in block.before.parts.items():
                pixels |= (part != 0).astype(numpy.float32) @ self._seen[earlier].astype(numpy.float32) > 0
            if block.groups is not None:
                pixels = numpy.stack([pixels[group[group >= 0]].any(0) for group in block.groups])
            self._seen.append(pixels)
        return self._seen[number]

    def add(self, block: Block, shape: tuple[int, ...]) -> Value:
        """Append a block; returns its variables as a value."""
        self.blocks.append(block)
        if self.units > MOST_UNITS:
            raise UsageError(f"exact answers: expected a small network, at most {MOST_UNITS:,} ReLUs and maxima")
        eye = sparse.identity(block.size, format="csr")
        return Value({len(self.blocks) - 1: eye}, numpy.zeros(block.size), shape)

    def _follow(self, graph: fx.GraphModule, shape: tuple[int, ...]) -> None:
        found: dict[fx.Node, Any] = {}
        layers = dict(graph.named_modules())
        for node in graph.graph.nodes:
            arguments, options = fx.map_arg((node.args, node.kwargs), found.__getitem__)
            if node.op == "placeholder":
                if self.blocks:
                    raise unknown(f"argument {node.name} of forward()")
                found[node] = self.add(Block(int(numpy.prod(shape))), shape)
            elif node.op == "get_attr":
                found[node] = operator.attrgetter(node.target)(graph)
            elif node.op == "call_module":
                found[node] = self._layer(node.target, layers[node.target], arguments[0])
            elif node.op == "output":
                self._finish(arguments[0])
            else:
                found[node] = self._call(node, arguments, options)

    def _compare(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        """Raise UsageError if the model's answers to random images are others, as after a change in place."""
        images = torch.rand(COMPARED, *shape, generator=torch.Generator().manual_seed(0))
        told = model(images.to(next(model.parameters(), images))).double().cpu().numpy()
        read = numpy.stack([self(image) for image in images.flatten(1).double().numpy()])
        apart, size = abs(told - read).max(1), 1 + abs(read).max(1)
        if (numpy.isfinite(apart) & (apart > ROUNDING * size)).any():
            raise UsageError(
                "exact answers: the model's answers are not those of the layers that were read from it (difference "
                f"{numpy.nan_to_num(apart).max():.3g}): its forward() does more, such as a change in place"
            )

    def _refuse_infinite(self) -> None:
        """Raise UsageError for numbers that no bound can be computed from, such as a bias of minus infinity."""
        values = [*(block.before for block in self.blocks if block.before is not None), self.logits]
        numbers = [value.constant for value in values] + [
            part.data for value in values for part in value.parts.values()
        ]
        if not all(numpy.isfinite(each).all() for each in numbers):
            raise UsageError(
                "exact answers: expected finite weights, got infinite ones or NaN (in a float64 copy of the network); "
                "leave out a class or unit that a bias of minus infinity takes away"
            )

    def _finish(self, value: Any) -> None:
        if not isinstance(value, Value) or len(value.shape) != 1:
            raise UsageError("exact answers: expected a model that returns logits [B,K]")
        self.logits = value

    def _layer(self, name: str, layer: nn.Module, value: Value) -> Value:
        if isinstance(layer, nn.ReLU):
            return self.relu(value)
        if isinstance(layer, nn.MaxPool2d) and not layer.ceil_mode and not layer.return_indices:
            return self._max_pool(value, layer)
        estimates = isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)) and layer.running_mean is None
        if type(layer) in AFFINE_LAYERS and not estimates:
            return self._affine(value, layer, f"layer {name}, {type(layer).__name__}")
        raise unknown(f"layer {name}, {type(layer).__name__}")

    def _call(self, node: fx.Node, arguments: tuple, options: dict[str, Any]) -> Value:
        """A function, or a method of its first argument."""
        function: Any = node.target
        values = [place for place, argument in enumerate(arguments) if isinstance(argument, Value)]
        if function in SUMS and len(values) == 2 and not options and arguments[0].shape == arguments[1].shape:
            return arguments[0].plus(arguments[1], SUMS[function])
        types = (one for one in (*arguments, *options.values()) if isinstance(one, torch.dtype))
        rounds = any(one not in WIDE for one in types) or options.get("rounding_mode") is not None
        if len(values) == 1 and not rounds and not any(isinstance(option, Value) for option in options.values()):
            value = arguments[values[0]]
            if function in RELUS or function == "relu":
                return self.relu(value)
            if function in SAME_METHODS:
                return value
            is_method = node.op == "call_method" and function in AFFINE_METHODS
            if is_method or (function in AFFINE_FUNCTIONS and not (function in QUOTIENTS and values != [0])):
                one = _with_one(function, arguments, values[0], options)
                return self._affine(value, one, f"{node.name}, {getattr(function, '__name__', function)}")
        raise unknown(f"{node.name}, {getattr(function, '__name__', function)}")

    def _affine(self, value: Value, function: Callable[[Tensor], Tensor], what: str) -> Value:
        """`affine`; raises UsageError where torch cannot do it to a batch, as with nn.Flatten(0)."""
        try:
            return affine(value, function)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            raise unknown(f"{what}: {str(error).splitlines()[0]}") from error

    def relu(self, value: Value) -> Value:
        """max(value, 0), a new block."""
        return self.add(Block(len(value.constant), value), value.shape)

    def _max_pool(self, value: Value, layer: nn.MaxPool2d) -> Value:
        channels, height, width = value.shape
        numbers = torch.arange(1.0, 1 + len(value.constant), dtype=torch.float64).view(channels, 1, height, width)
        # Padding gets the number 0.
        windows = functional.unfold(
            numbers, layer.kernel_size, layer.dilation, layer.padding, layer.stride
        )  # [C, k, L], the windows of each channel
        groups = windows.transpose(1, 2).flatten(0, 1).long().numpy() - 1
        shape = tuple(layer(torch.zeros(1, *value.shape, dtype=torch.float64)).shape[1:])
        return self.add(Block(len(groups), value, groups), shape)


def window(groups: numpy.ndarray, values: numpy.ndarray) -> numpy.ndarray:
    """The values of the entries of each group, [size, k]; -inf where there is none."""
    return numpy.where(groups >= 0, values[groups], -numpy.inf)


def affine(value: Value, function: Callable[[Tensor], Tensor]) -> Value:
    """An affine function of a batch [B, *shape], applied to a value; its matrix is what it makes of unit vectors."""
    at_zero = function(torch.zeros(1, *value.shape, dtype=torch.float64))
    constant = function(torch.from_numpy(value.constant).view(1, *value.shape))
    parts = {}
    for block, part in value.parts.items():
        columns = part.tocsc()
        made = []
        for first in range(0, columns.shape[1], COLUMNS):
            dense = torch.from_numpy(columns[:, first : first + COLUMNS].toarray().T.copy())
            moved = (function(dense.view(len(dense), *value.shape)) - at_zero).flatten(1)
            if len(moved) != len(dense) or len(constant) != 1:
                raise UsageError("exact answers: expected layers that treat each image by itself")
            made.append(sparse.csr_matrix(moved.numpy().T))
        parts[block] = sparse.hstack(made, format="csr")
    return Value(parts, constant.flatten().numpy().copy(), tuple(constant.shape[1:]))


def _with_one(function: Any, arguments: tuple, place: int, options: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """A function or method of one of its arguments."""

    def called(x: Tensor) -> Tensor:
        filled = [*arguments[:place], x, *arguments[place + 1 :]]
        if isinstance(function, str):
            return getattr(filled[0], function)(*filled[1:], **options)
        return function(*filled, **options)

    return called


def unknown(what: str) -> UsageError:
    """The error for a layer that the program cannot describe."""
    return UsageError(
        f"exact answers: {what}: expected linear, convolution, batch norm, average or max pooling, ReLU, flatten or "
        "sums of these"
    )
