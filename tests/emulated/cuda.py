"""A CUDA device that is not there: tensors that say cuda:0, hold CPU data, and refuse what CUDA refuses.

    with emulated_cuda() as counts:
        threat.evaluate(to_cuda(examples), to_cuda(labels), to_cuda(perturbed))
        print(counts.launched, counts.waited, counts.places.most_common(5))

It runs the project's GPU paths on any machine: operations see the device name, results are those of the CPU.

What it refuses
    operations on CPU and CUDA tensors together (a 0-dimensional CPU tensor may join elementwise ones, as on CUDA)
    .numpy(), numpy.asarray and the like of a CUDA tensor
    a CPU generator for random numbers on CUDA
    integer matrix products of the shapes that CUDA's kernel does not take

What it counts
    launched   operations on CUDA tensors below autograd, views and allocations left out. Some launch several kernels on
               a GPU (sort, topk, nonzero), others are fused there (foreach optimizers): compare counts of one emulation
    waited     times the host waits for the device: copies between the two, .item(), if tensor:, masks as indices,
               nonzero and other results whose shape depends on values

What it cannot know
    cuDNN, cuBLAS, TF32 and their rounding, or whether two runs give the same bits; random numbers are the CPU's
    memory, streams, pinned memory, time; nccl and several devices; torch.compile; kernels that do not exist on CUDA
    autocast, whose list of operations is the CPU's
    threads other than the one that entered the context: they may use CUDA tensors, not make them
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

from foundations import pixels

from .answers import answers_of_a_device
from .counts import Counts

CUDA = torch.device("cuda", 0)

# Operations, by name without namespace and overload.
NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh"}
WAITING = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave", "bincount"}
WAITING |= {"equal", "_linalg_check_errors"}
INDEXING = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put"}
NEW = {"new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided"}
# These take no 0-dimensional CPU tensor beside CUDA ones.
STRICT = {"cat", "stack", "gather", "scatter", "scatter_", "index_select", "embedding", "_embedding_bag"}
STRICT |= {"_embedding_bag_forward_only", "mm", "bmm", "addmm", "addmm_", "baddbmm", "dot", "mv"}


class DeviceError(RuntimeError):
    """An operation that CUDA refuses."""


_counts = Counts()  # those of the innermost context; operations of other threads are counted there too


class EmulatedTensor(torch.Tensor):
    """A tensor on the emulated device; `held` is the CPU tensor with its values."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> EmulatedTensor:
        assert not isinstance(held, EmulatedTensor)
        # To C++ it lies on the CPU: autograd has no thread for a device that is not there.
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=torch.device("cpu"),
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(func, args, kwargs or {})

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def get_device(self) -> int:
        return 0

    def __repr__(self) -> str:
        return f"{self.held.detach()!r} on {CUDA}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copy: Tensor = EmulatedTensor(_held(self.detach()).clone()).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, self.requires_grad)
        memo[id(self)] = copy
        return copy

    # Methods that read memory, or that C++ decides by the device that it sees.

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        return _to(self, *args, **kwargs)

    def cpu(self, *args: Any, **kwargs: Any) -> Tensor:
        return _to(self, "cpu")

    def cuda(self, *args: Any, **kwargs: Any) -> Tensor:
        return self

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu() first")

    __array__ = numpy

    def tolist(self) -> Any:
        _counts.wait("tolist")
        return _held(self.detach()).tolist()

    def new_tensor(self, data: Any, dtype: Any = None, device: Any = None, **kwargs: Any) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or CUDA, **kwargs)


def to_cuda(tensor: Tensor) -> Tensor:
    """A copy on the emulated device, or the tensor itself if it is there; gradients flow back to the CPU."""
    return tensor if isinstance(tensor, EmulatedTensor) else _ToCuda.apply(tensor)


class _ToCuda(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return EmulatedTensor(tensor.detach().clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.cpu()


class _ToCpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: EmulatedTensor) -> Tensor:
        return _held(tensor.detach()).clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return to_cuda(gradient)


def _to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Tensor.to with any arguments, of a CPU or an emulated tensor."""
    wanted = dict(kwargs)
    for value in args:
        if isinstance(value, Tensor):
            wanted |= {"device": value.device, "dtype": value.dtype}
        elif isinstance(value, torch.dtype):
            wanted["dtype"] = value
        elif isinstance(value, str | int | torch.device) and not isinstance(value, bool):
            wanted["device"] = value
    device = wanted.pop("device", None)
    moved = tensor
    if device is not None and _on_cuda(device) != isinstance(tensor, EmulatedTensor):
        _counts.wait("copy to the device" if _on_cuda(device) else "copy to the host")
        moved = to_cuda(tensor) if _on_cuda(device) else _ToCpu.apply(tensor)
        wanted["copy"] = False
    wanted.pop("non_blocking", None)
    return torch.Tensor.to(moved, moved.dtype if wanted.get("dtype") is None else wanted.pop("dtype"), **wanted)


def _on_cuda(device: Any) -> bool:
    return isinstance(device, int) or torch.device(device).type == "cuda"


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation below autograd as CUDA would."""
    device = kwargs.get("device")
    tensors = _tensors((*args, *kwargs.values()))
    name = _name(func)
    on_cuda = any(isinstance(tensor, EmulatedTensor) for tensor in tensors)
    if not on_cuda and (device is None or not _on_cuda(device)):
        return func(*args, **kwargs)
    if name == "copy_":
        return _copy_into(*args)
    if name == "_to_copy":
        return _to_copy(func, *args, **kwargs)
    if name == "_local_scalar_dense":
        _counts.wait("item")
        return func(*_held(args))
    _refuse(func, name, args, kwargs, tensors)
    _note(func, name, args)
    held = {option: None if option in ("device", "pin_memory") else _held(value) for option, value in kwargs.items()}
    result = func(*_held(args), **held)
    # C++ asks for gradients' zeros on the device that it sees.
    if device is not None and not _on_cuda(device) and name not in NEW:
        return result
    if torch.Tag.inplace_view in func.tags:
        return return_and_correct_aliasing(func, args, kwargs, _emulated(result))
    written = _written(func, args, kwargs)
    if not written or result is None:
        return _emulated(result)
    return written[0] if isinstance(result, Tensor) else type(result)(written)


@cache
def _name(func: Any) -> str:
    return func._schema.name.split("::")[1]


def _tensors(values: Any) -> list[Tensor]:
    """The tensors among arguments, which hold lists of them at most."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors(value)
    return found


def _held(value: Any) -> Any:
    """The same with CPU tensors."""
    if isinstance(value, (list, tuple)):
        return type(value)([_held(each) for each in value])
    return value.held if isinstance(value, EmulatedTensor) else value


def _emulated(value: Any) -> Any:
    """The same with emulated tensors."""
    if isinstance(value, (list, tuple)):
        return type(value)([_emulated(each) for each in value])
    return EmulatedTensor(value) if isinstance(value, Tensor) else value


@cache
def _slots(func: Any) -> list[tuple[int, str]]:
    """Positions and names of the arguments that an operation writes to."""
    arguments = enumerate(func._schema.arguments)
    return [(n, each.name) for n, each in arguments if each.alias_info is not None and each.alias_info.is_write]


def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> list[Any]:
    given = [args[number] if number < len(args) else kwargs.get(name) for number, name in _slots(func)]
    return [each for each in given if each is not None]


def _copy_into(to: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    if isinstance(to, EmulatedTensor) != isinstance(source, EmulatedTensor):
        _counts.wait("copy to the device" if isinstance(to, EmulatedTensor) else "copy to the host")
    else:
        _counts.kernels["copy_"] += 1
    one, other = (each.held if isinstance(each, EmulatedTensor) else each for each in (to, source))
    one.copy_(other)
    return to


def _to_copy(func: Any, source: Tensor, **kwargs: Any) -> Tensor:
    """Below `_to`, which moves to the host: if C++ asks for the CPU here, it means the tensor's own device."""
    device = kwargs.pop("device", None)
    here = isinstance(source, EmulatedTensor)
    there = here or (device is not None and _on_cuda(device))
    kwargs.pop("pin_memory", None), kwargs.pop("non_blocking", None)
    copied = func(source.held if isinstance(source, EmulatedTensor) else source, **kwargs)
    if here != there:
        _counts.wait("copy to the device")
    else:
        _counts.kernels["_to_copy"] += 1
    return EmulatedTensor(copied) if there else copied


def _refuse(func: Any, name: str, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> None:
    """Raise DeviceError if CUDA refuses the arguments."""
    on_cpu = [tensor for tensor in tensors if not isinstance(tensor, EmulatedTensor)]
    if name in INDEXING:  # indices may be on the CPU
        on_cpu = [tensor for tensor in on_cpu if not any(tensor is index for index in args[1])]
    written = _written(func, args, kwargs)
    wrong = [each for each in on_cpu if each.dim() or name in STRICT or any(each is other for other in written)]
    if wrong:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in wrong)
        raise DeviceError(f"{func}: expected all tensors on {CUDA}, got one on the CPU, of shape {shapes}")
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type != "cuda":
        raise DeviceError(f"{func}: expected a generator on cuda, got one on {generator.device}")
    if name == "_int_mm":
        (rows, inner), (_, columns) = args[0].shape, args[1].shape
        if rows <= 16 or inner % 8 or columns % 8:
            raise DeviceError(f"_int_mm: CUDA takes more than 16 rows and multiples of 8, got {rows}x{inner}x{columns}")


def _note(func: Any, name: str, args: Any) -> None:
    """Count the kernel and the waits of an operation."""
    if name in INDEXING:
        for index in args[1]:
            if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8):
                _counts.wait("mask as index")
            elif isinstance(index, Tensor) and not isinstance(index, EmulatedTensor):
                _counts.wait("copy to the device")
    if name in WAITING:
        _counts.wait(name)
    if not func.is_view and name not in NO_KERNEL:
        _counts.kernels[name] += 1


class _Operations(TorchDispatchMode):
    """Operations below autograd, also those that make tensors on a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Functions that C++ would carry out by itself before `_Operations` sees them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        replaced = FUNCTIONS.get(func)
        return func(*args, **(kwargs or {})) if replaced is None else replaced(*args, **(kwargs or {}))


def _from_data(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch.tensor and torch.as_tensor, which copy to the device."""

    def made(data: Any, *, device: Any = None, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        if isinstance(data, EmulatedTensor):
            return _to(data, device or CUDA, kwargs.get("dtype"))
        grad = kwargs.pop("requires_grad", False)
        tensor = make(data, **kwargs)
        moved = _to(tensor, device) if device is not None else tensor
        return moved.requires_grad_() if grad else moved

    return made


def _one_hot(labels: Tensor, num_classes: int = -1) -> Tensor:
    """The C++ of one_hot makes helpers on the device that it sees."""
    if not isinstance(labels, EmulatedTensor):
        return torch.nn.functional.one_hot(labels, num_classes)
    _counts.kernels["one_hot"] += 1
    return EmulatedTensor(torch.nn.functional.one_hot(labels.held, num_classes))


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    torch.Tensor.to: _to,
    torch.Tensor.cuda: lambda tensor, *args, **kwargs: _to(tensor, CUDA),
    torch.Tensor.pin_memory: lambda tensor, *args, **kwargs: tensor,
    torch.tensor: _from_data(torch.tensor),
    torch.as_tensor: _from_data(torch.as_tensor),
    torch.nn.functional.one_hot: _one_hot,
}


@contextmanager
def emulated_cuda() -> Iterator[Counts]:
    """Let torch have the emulated device; yields what it counts. Everything is as it was afterwards."""
    global _counts
    import torch._dynamo  # torch would import it within the context, and it asks once what devices there are

    swap = torch.__future__.get_swap_module_params_on_conversion()
    before = _counts
    with ExitStack() as stack:
        for patch in answers_of_a_device(lambda reason: _counts.wait(reason)):
            stack.enter_context(patch)
        stack.enter_context(_Functions())
        stack.enter_context(_Operations())
        _counts = Counts()
        pixels._table.cache_clear()
        stack.callback(pixels._table.cache_clear)
        # Module.to cannot give a parameter data of another class.
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            yield _counts
        finally:
            torch.__future__.set_swap_module_params_on_conversion(swap)
            _counts = before
