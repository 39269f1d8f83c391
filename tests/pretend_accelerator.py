"""An accelerator that is not there: torch device `pretend`, whose memory is the CPU's.

A backend in PyTorch's own sense, written in Python: the dispatcher sends every operation on a
`pretend` tensor to `_run`, which runs it on the CPU's kernels over the same memory. So
tensors, parameters, views, autograd (its device thread too) and factory calls are a real device's.
As on CUDA, an operation that meets a tensor of another device fails; what CUDA lets pass, passes:
numbers of no dimensions, and indices on the CPU.

Two things differ from CUDA: `Module.to` makes new parameters, and there is no `torch.Generator` of
the device.

`test_pretend_accelerator.py` shows what fails and what passes.
"""

from __future__ import annotations

import ctypes
import functools
import types
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
DEVICE = torch.device("privateuseone", 0)  # its name from `_setup…` below on
calls: Counter[str] = Counter()  # how often the device ran each operation


class _Module(types.ModuleType):
    """What torch looks for as `torch.pretend`."""

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def is_available() -> bool:
        return False  # it is used where it is named, and nowhere by itself

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        _random.manual_seed(seed)

    @staticmethod
    def get_rng_state(device: object = 0) -> torch.Tensor:
        return _random.get_state()

    @staticmethod
    def set_rng_state(state: torch.Tensor, device: object = 0) -> None:
        _random.set_state(state)

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class _Hook(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return False

    def has_primary_context(self, index: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


_random = torch.Generator()  # the device's own stream: it has no other

# The same memory under another device's name, through DLPack, whose record begins so.
CPU, EXTENSION = 1, 12


class _Record(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("device_type", ctypes.c_int32))


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


def _renamed(tensor: Tensor, device_type: int) -> Tensor:
    capsule = torch._C._to_dlpack(tensor)
    _Record.from_address(_pointer(capsule, b"dltensor")).device_type = device_type
    return torch._C._from_dlpack(capsule)


def _here(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == NAME


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """`change` on an argument or on each entry of a list of them: nothing is nested deeper."""
    if isinstance(value, list | tuple):
        return [change(v) for v in value]
    return change(value)


class _Plan:
    """What an operation's schema says."""

    # What CUDA lets take indices from the CPU.
    INDEXING = frozenset({"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"})

    def __init__(self, op: torch._ops.OpOverload):
        schema = op._schema
        self.op, self.name = op, schema.name.removeprefix("aten::")
        self.names = [a.name for a in schema.arguments]
        self.numbers = [isinstance(a.type, torch.TensorType) for a in schema.arguments]
        alias = {a.name: a.alias_info for a in schema.arguments if a.alias_info}
        self.written = {name for name, info in alias.items() if info.is_write}
        self.out = [a.name for a in schema.arguments if a.is_out]
        self.view = self.name == "as_strided_" or any(
            r.alias_info and not r.alias_info.is_write for r in schema.returns
        )
        # Of each value that is returned, the argument that it is.
        self.returned = [
            next((n for n, i in alias.items() if r.alias_info.before_set == i.before_set), None)
            if r.alias_info
            else None
            for r in schema.returns
        ]
        self.draws = "generator" in self.names

    def refuse_others(self, arguments: dict[str, Any]) -> None:
        """What CUDA refuses."""
        indexing = self.name in self.INDEXING
        if indexing and not _here(arguments["self"]):
            raise RuntimeError(
                "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
            )
        for key, value in arguments.items():
            if not (indexing and key == "indices"):
                _mapped(lambda leaf, key=key: self._refuse(leaf, key), value)

    def _refuse(self, leaf: Any, key: str) -> None:
        if isinstance(leaf, Tensor):
            if leaf.device.type != NAME and (leaf.ndim or key in self.written):
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two "
                    f"devices, {DEVICE} and {leaf.device}! (argument {key} of {self.op})"
                )
        elif isinstance(leaf, torch.Generator):
            raise RuntimeError(
                f"Expected a '{NAME}' device type for generator but found '{leaf.device.type}'"
            )


_plan = functools.cache(_Plan)


def _on_host(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _renamed(value, CPU) if value.device.type == NAME else value
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _on_device(value: Any) -> Any:
    return _renamed(value, EXTENSION) if isinstance(value, Tensor) else value


_METADATA = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


def _run(op: torch._ops.OpOverload, *args: Any, **kwargs: Any) -> Any:
    """Any operation, on the CPU's kernels over the device's memory."""
    plan = _plan(op)
    calls[plan.name] += 1
    arguments = dict(zip(plan.names, args, strict=False)) | kwargs
    plan.refuse_others(arguments)
    if plan.view:  # no memory is touched: the CPU's kernels take any device's tensors
        return op.redispatch(_METADATA, *args, **kwargs)
    host = {name: _mapped(_on_host, value) for name, value in arguments.items()}
    for name, is_tensor in zip(plan.names, plan.numbers, strict=True):
        value = host.get(name)
        if is_tensor and isinstance(value, int | float):  # in the type that results
            like = next(v for v in host.values() if isinstance(v, Tensor))
            host[name] = torch.tensor(value, dtype=torch.result_type(like, value))
    if plan.draws and host.get("generator") is None:
        host["generator"] = _random
    # Memory under another name cannot grow: what is written as a whole is written elsewhere first.
    for name in plan.out:
        host[name] = torch.empty(0, dtype=arguments[name].dtype)
    result = op(**host)
    for name in plan.written:
        mine, its = arguments[name], host[name]
        if name not in plan.out:
            if isinstance(mine, Tensor) and mine.shape != its.shape:
                raise NotImplementedError(f"{op} changed the shape of {name}")
        elif mine.shape == its.shape:
            _renamed(mine, CPU).copy_(its)
        else:
            grown = _on_device(its)
            _repoint(mine, grown.untyped_storage(), 0, grown.shape, grown.stride())
    if len(plan.returned) != 1:
        return tuple(
            _mapped(_on_device, part) if name is None else arguments[name]
            for name, part in zip(plan.returned, result or (), strict=True)
        )
    (name,) = plan.returned
    return _mapped(_on_device, result) if name is None else arguments[name]


def _copy(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """The one operation that may cross between devices."""
    _on_host(target).copy_(_on_host(source))
    return target


def _repoint(tensor: Tensor, *storage: Any) -> Tensor:
    return torch.ops.aten.set_.source_Storage_storage_offset.redispatch(_METADATA, tensor, *storage)


def _resize(
    tensor: Tensor, size: list[int], memory_format: torch.memory_format | None = None
) -> Tensor:
    like = torch.empty(size, dtype=tensor.dtype, memory_format=memory_format, device=DEVICE)
    if len(like.untyped_storage()) <= len(tensor.untyped_storage()):
        return _repoint(tensor, tensor.untyped_storage(), 0, like.shape, like.stride())
    if tensor.numel():
        raise NotImplementedError("growing what holds values")
    return _repoint(tensor, like.untyped_storage(), 0, like.shape, like.stride())


def _convolution(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    return _run(
        torch.ops.aten.convolution.default,
        x, weight, bias, stride, padding, dilation, transposed, output_padding, groups,
    )  # fmt: skip


def _convolution_backward(
    gradient, x, weight, stride, padding, dilation, transposed, output_padding, groups, wanted
):
    bias = [weight.shape[1] * groups if transposed else weight.shape[0]]
    return _run(
        torch.ops.aten.convolution_backward.default,
        gradient, x, weight, bias, stride, padding, dilation, transposed, output_padding, groups,
        wanted,
    )  # fmt: skip


def _clone_of_storage(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    if storage.device.type != NAME:
        return _torchs_clone(storage)
    raw = torch.empty(0, dtype=torch.uint8, device=DEVICE)
    return _repoint(raw, storage, 0, [len(storage)], [1]).clone().untyped_storage()


def _autocast(op: torch._ops.OpOverload) -> Any:
    """The operation in autocast's number format, as CUDA's tensor cores are used."""

    def cast(value: Any) -> Any:
        if _here(value) and value.is_floating_point():
            return value.to(torch.get_autocast_dtype(NAME))
        return value

    def run(*args: Any, **kwargs: Any) -> Any:
        key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
        with torch._C._ExcludeDispatchKeyGuard(key):
            args, kwargs = pytree.tree_map(cast, (args, kwargs))
            return op(*args, **kwargs)

    return run


_setup_privateuseone_for_python_backend(NAME, _Module(f"torch.{NAME}"), _Hook())
DEVICE = torch.device(NAME, 0)
_everything = torch.library.Library("_", "IMPL")
_everything.fallback(_run, "PrivateUse1")
_everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
_aten = torch.library.Library("aten", "IMPL")
_aten.impl("_copy_from", _copy, "PrivateUse1")
_aten.impl("set_.source_Storage_storage_offset", _repoint, "PrivateUse1")
_aten.impl("resize_", _resize, "PrivateUse1")
_aten.impl("convolution_overrideable", _convolution, "PrivateUse1")
_aten.impl("convolution_backward_overrideable", _convolution_backward, "PrivateUse1")
for _op in ("conv2d", "linear", "matmul"):
    _aten.impl(_op, _autocast(getattr(torch.ops.aten, _op).default), "AutocastPrivateUse1")
_torchs_clone = torch.UntypedStorage.clone
torch.UntypedStorage.clone = _clone_of_storage
