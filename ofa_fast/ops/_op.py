"""How an op is registered with torch and how its backend is chosen: the only place that decides either."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from ofa_fast import _native

ORDER = {"cuda": ("cuda", "triton", "reference"), "cpu": ("cpu", "reference")}
NATIVE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GPU_CAPABILITY = (8, 0)  # from which on tensor cores take bfloat16 and TF32

_PLAIN = torch.Tensor, torch.nn.Parameter
_modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)  # that watch ops, such as FakeTensorMode
_has_memory = getattr(torch._C, "_has_storage", lambda tensor: False)  # unlike those of vmap

_library = torch.library.Library("ofa_fast", "DEF")
_forced: list[str] = []
OPS: dict[str, Op] = {}


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Use only the backend ``name`` ("cpu", "cuda", "triton" or "reference") inside the block, in the whole process.

    For tests, benchmarks and debugging. An op that cannot run on it raises RuntimeError instead of falling back.
    """
    known = sorted({b for order in ORDER.values() for b in order})
    if name not in known:
        raise ValueError(f"backend must be one of {', '.join(known)}, got {name!r}")
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()


@dataclass
class Op:
    """One torch operator: its schema, its fake, and a function with the schema's signature per backend.

    ``dtypes`` are those that the compiled backends take, judged by the floating-point arguments. ``limits`` gives, for
    a backend and the arguments of a call, why it does not take them, or None.
    """

    schema: str
    fake: Callable
    backends: dict[str, Callable]
    dtypes: tuple[torch.dtype, ...] = NATIVE_DTYPES
    limits: dict[str, Callable] = field(default_factory=dict)
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.schema.split("(")[0]
        _library.define(self.schema)
        _library.impl(self.name, self._run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"ofa_fast::{self.name}", self.fake, lib=_library)
        self._overload = getattr(torch.ops.ofa_fast, self.name).default
        OPS[self.name] = self

    def __call__(self, *args):
        return self._overload(*args)

    def inside(self, *args):
        """As a call, for an ``autograd.Function``, in which autograd has nothing to do with it.

        Modes and tensors that are not plain memory need the dispatcher; all others can do without, as it
        takes longer than the host's part of a kernel.
        """
        if torch.compiler.is_compiling() or _modes():
            return self._overload(*args)
        for arg in args:
            if isinstance(arg, torch.Tensor):
                plain = type(arg) in _PLAIN and _has_memory(arg)
                plain = plain and not (arg.is_meta or arg.is_neg() or arg._is_zerotensor())
                if not plain:
                    return self._overload(*args)
        return self._run(*args)

    def refusal(self, name: str, device: str, dtypes: set[torch.dtype], args: tuple = ()) -> str | None:
        """Why the backend ``name`` cannot run this op on these inputs (on any such inputs without args), or None."""
        if name not in ORDER.get(device, ("reference",)):
            return f"it does not run on {device} tensors"
        if name == "reference":
            return None
        if name not in self.backends:
            return "this op has no such kernel"
        if name == "triton":
            if importlib.util.find_spec("triton") is None:
                return "triton is not installed"
        elif getattr(_native, name) is None:
            return _native.reason[name]
        if device == "cuda" and (why_not := _no_gpu() or (no_image() if name == "cuda" else None)):
            return why_not
        if not dtypes <= set(self.dtypes):
            return f"it takes {', '.join(str(d).removeprefix('torch.') for d in self.dtypes)}"
        return self.limits[name](*args) if args and name in self.limits else None

    def _run(self, *args):
        where, dtypes = None, set()
        for arg in args:
            if isinstance(arg, torch.Tensor):
                if where is None:
                    where = arg.device
                elif arg.device != where:  # a kernel would take the address for one of its own
                    self._refuse_devices(args)
                if arg.is_floating_point():
                    dtypes.add(arg.dtype)
        device = where.type
        if device in ORDER and torch.is_autocast_enabled(device):  # which is for the products of the caller, not ours
            with torch.autocast(device, enabled=False):
                return self._run(*args)
        if _forced:
            why_not = self.refusal(_forced[-1], device, dtypes, args)
            if why_not:
                raise RuntimeError(f"{self.name}: backend {_forced[-1]!r} cannot be used: {why_not}")
            return self.backends[_forced[-1]](*args)
        for name in ORDER.get(device, ("reference",)):
            if self.refusal(name, device, dtypes, args) is None:
                return self.backends[name](*args)

    def _refuse_devices(self, args: tuple) -> None:
        names = [argument.name for argument in self._overload._schema.arguments]
        where = [f"{n} on {a.device}" for n, a in zip(names, args, strict=True) if isinstance(a, torch.Tensor)]
        raise ValueError(f"{self.name}: all tensors must be on one device, got {', '.join(where)}")


@functools.cache
def _no_gpu() -> str | None:
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    if torch.cuda.get_device_capability() < GPU_CAPABILITY:
        return "it needs compute capability {}.{} and this GPU has {}.{}".format(
            *GPU_CAPABILITY, *torch.cuda.get_device_capability()
        )
    return None


@functools.cache
def no_image() -> str | None:
    try:
        _native.cuda.check_device()
    except RuntimeError as error:  # an older driver, or a build for other GPUs
        return f"its kernels cannot run here: {error}"
    return None


def on_first_use(module: str, function: str) -> Callable:
    """A function of a module that is imported when it is first called: Triton's import takes a third of a second."""

    def call(*args):
        with torch.cuda.device_of(args[0]):  # Triton launches on the current device
            return getattr(importlib.import_module(module), function)(*args)

    return call


def workspace(size: int, like: torch.Tensor) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, device=like.device)


def capturing(like: torch.Tensor) -> bool:
    """Whether work on this tensor's device is recorded into a CUDA graph, where nothing may wait for the device."""
    if not like.is_cuda:
        return False
    with torch.cuda.device(like.device):
        return torch.cuda.is_current_stream_capturing()
