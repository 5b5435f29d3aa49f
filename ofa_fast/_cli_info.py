"""What ``ofa-fast info`` prints: versions, hardware, and the backend that each op would use."""

from __future__ import annotations

import platform
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, version

from ofa_fast._machine import cpu_name

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "triton", "accelerate", "datasets")


def register(_commands, subparser) -> None:
    subparser("info", run, "show versions, hardware, and the backend that each op would use", "info")


def run(_args) -> None:
    print(report())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _backends(device: str, dtype) -> tuple[dict[str, str], dict[tuple[str, str], list[str]]]:
    """For such tensors on ``device``: the backend of each op, and the ops that pass a better one over, by reason."""
    from ofa_fast.ops._op import OPS, ORDER

    chosen, refused = {}, defaultdict(list)
    for op in OPS.values():
        for backend in ORDER[device]:
            reason = op.refusal(backend, device, {dtype})
            if reason is None:
                chosen[op.name] = backend
                break
            refused[backend, reason].append(op.name)
    return chosen, refused


def report() -> str:
    import torch

    from ofa_fast import __version__, _native
    from ofa_fast.ops.factorized_cross_entropy import native_passes

    isa = f"{_native.cpu.isa()} (best of this CPU: {_native.cpu.best_isa()})" if _native.cpu else "unknown"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    rows = [("ofa-fast", __version__), ("python", platform.python_version())]
    rows += [(package, _version(package)) for package in PACKAGES]
    rows += [("CPU", cpu_name()), ("instructions", isa), ("threads", str(torch.get_num_threads()))]
    rows += [("GPU", ", ".join(gpus) or "none")]
    rows += [(f"_{name} module", _native.reason.get(name, "loaded")) for name in ("cpu", "cuda")]
    lines = [f"{name:<14}{value}" for name, value in rows]

    devices = {device: _backends(device, torch.float32) for device in ("cpu", "cuda")}
    ops = sorted(devices["cpu"][0])
    width = max(map(len, ops)) + 2
    lines += ["", f"{'backend by op':<{width}}{'on cpu':<12}on cuda"]
    for op in ops:
        cpu, cuda = (devices[device][0][op] for device in devices)
        if cuda == "triton" and op.startswith("factorized_cross_entropy") and native_passes():
            cuda += ", with cuda for float16 and bfloat16"
        lines.append(f"{op:<{width}}{cpu:<12}{cuda}")
    lines += ["", "passed over"]
    for device, (_, refused) in devices.items():
        of_dtype = {key: names for key, names in _backends(device, torch.float64)[1].items() if key not in refused}
        for which, reasons in (("", refused), ("float64 tensors of ", of_dtype)):
            for (backend, reason), names in reasons.items():
                whose = "all ops" if len(names) == len(ops) else ", ".join(names)
                lines.append(f"  {backend} on {device}: {reason} ({which}{whose})")
    return "\n".join(lines)
