"""CUDA kernels without a GPU: the ops' own tests on kernels that g++ compiled for cuda_emulator/, with sanitizers, and
what nvcc made of them. With a GPU the ops' tests run them there, and this file records them into CUDA graphs."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ofa_fast import _native
from ofa_fast.ops import _op

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # behind site-packages, where the compiled package is
gpu = importlib.import_module("benchmarks.gpu")

EMULATOR = Path(__file__).parent / "cuda_emulator"
KERNELS = {
    "topk_similarity": {"measure", "encode", "screen", "screen_wgmma", "first_limit", "settle_queries", "scan"},
    "factorized_embedding": {
        "look_up", "look_up_kept", "begin_backward", "add_products", "add_pieces", "count_digits", "accumulate",
        "place_tokens", "count_heads", "number_rows",
    },
    "factorized_cross_entropy": {"forward_pass", "backward_pass"},
}  # fmt: skip
OPS = "topk_similarity", "factorized_embedding"  # all of whose kernels are CUDA C++
# A handful of every op's tests, beside those that a GPU is given under compute-sanitizer: a product of two tiles takes
# the emulator milliseconds.
EMULATED = {
    "topk_similarity": """
        not_finite and nan or hostile and (dot and (tied or negative or magnitudes) or cosine and zero)
    """,
    "factorized_embedding": """
        test_values and (tokens or even) or difficult and bfloat16 or sparse and (odd or three) and not float16
        or padding and float32 or range or around_it and float32 or place or infinite
    """,
    "cross_entropy_passes": "take or difficult and bfloat16 or extreme and bfloat16 and (first or infinite and state)",
}
PRODUCTS = {"screen": "IMMA", "screen_wgmma": "IGMMA", "forward_pass": "HGMMA", "backward_pass": "HGMMA"}
PRODUCTS |= dict.fromkeys(("look_up", "look_up_kept", "begin_backward"), "HMMA")
# In code for sm_90a alone, where one has both.
HOPPER = {pair for pair in PRODUCTS.items() if "GMMA" in pair[1]} | {("begin_backward", "HGMMA")}
REGISTERS = {"IMMA": 255, "IGMMA": 168, "HGMMA": 168, "HMMA": 128, "scan": 80, "settle_queries": 80}  # 64 of the others
# Bytes a thread; 16 of the others. Those of the lookup are for sm_100 and rows that are no whole chunks of 16 bytes.
SPILLED = dict.fromkeys(("screen", "screen_wgmma", "look_up_kept", "forward_pass", "backward_pass"), 0)
SPILLED |= {"look_up": 24, "begin_backward": 88}
OF_HOPPER = {"OFA_SHARED_KIB": "227"}
BOTH_EMULATORS = OF_HOPPER | {"TRITON_INTERPRET": "1"}
WITHOUT_WGMMA = {"OFA_NO_WGMMA": "1"}  # as on all GPUs but those of compute capability 9.0
with_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
# They take minutes of a processor, too.
in_the_emulator = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the ops' own tests run these kernels on the GPU"
)
with_module = pytest.mark.skipif(_native.cuda is None, reason=f"_cuda is {_native.reason.get('cuda')}")


def _library(name):
    return subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip()


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """A module like _cuda whose kernels run on CPU tensors, a tile of some hundred queries at a time."""
    if not shutil.which("g++"):
        pytest.skip("there is no g++")
    folder = tmp_path_factory.mktemp("emulated")
    pybind11 = importlib.import_module("pybind11").get_include()
    compiler = [
        "g++",
        "-std=c++17",
        "-fPIC",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unknown-pragmas",
        "-Wno-psabi",
    ]
    compiler += [f"-I{EMULATOR}", f"-I{ROOT / 'csrc'}", f"-I{sysconfig.get_path('include')}", "-isystem", pybind11]
    small = ["-DOFA_SLAB=256", "-DOFA_SORTED_BY_A_BLOCK=2000", "-DOFA_BLOCKS_AT_ONCE=8"]
    compiler += ["-include", "cuda_runtime.h", "-DOFA_MODULE=_cuda", *small, "-x", "c++", "-c"]
    compiler += [f"-DOFA_WITH_{op}" for op in KERNELS]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    jobs = [(f"{op}/cuda.cu", ["-O1", "-g1", *sanitizers]) for op in KERNELS]
    jobs += [("device.cu", ["-O0"]), ("module.cpp", ["-O0"])]
    for source, options in jobs:
        out = folder / f"{source.replace('/', '_')}.o"
        subprocess.run([*compiler, *options, ROOT / "csrc" / source, "-o", out], check=True)
    module = folder / "_cuda.so"
    subprocess.run(["g++", "-shared", *sanitizers, *folder.glob("*.o"), "-o", module], check=True)
    return module


def _tested(emulated, *arguments, **environment):
    """What pytest says of tests of the emulated kernels, which must pass."""
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    environment |= {
        "OFA_CUDA_EMULATED": str(emulated),
        "LD_PRELOAD": " ".join(map(_library, ("libasan.so", "libstdc++.so"))),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
    }
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@in_the_emulator
@pytest.mark.parametrize(
    ("file", "environment"),
    [*((op, wgmma) for op in OPS for wgmma in ({}, WITHOUT_WGMMA)), ("cross_entropy_passes", BOTH_EMULATORS)],
    ids=str,
)
def test_in_the_emulator(file, environment, emulated):
    chosen = f"cuda and ({' '.join(EMULATED[file].split())})"
    assert " passed" in _tested(emulated, f"tests/ops/test_{file}.py", "-k", chosen, **environment)


@in_the_emulator
def test_the_sanitizer_sees_every_kernel(emulated, tmp_path):
    """Each instantiation, on a GPU with as much shared memory as an H100's, where long rows stay, too."""
    runs = [(file, OF_HOPPER) for file in gpu.WITH_CUDA_KERNELS[:-1]] + [(gpu.WITH_CUDA_KERNELS[-1], BOTH_EMULATORS)]
    runs.append(("tests/ops/test_topk_similarity.py", OF_HOPPER | WITHOUT_WGMMA))
    slow = "more_candidates and 800 or crowd"  # in the emulator
    chosen = f"{gpu.SANITISED.format('cuda')} and not ({slow})"
    launched = set()
    for case, (file, environment) in enumerate(runs):
        said = tmp_path / str(case)
        assert " passed" in _tested(emulated, file, "-k", chosen, **environment, OFA_LAUNCHED=str(said))
        launched |= set(said.read_text().split())
    names = {}
    for line in subprocess.check_output(["nm", "--defined-only", emulated], text=True).splitlines():
        address, _, symbol = line.split()
        if symbol.startswith("_ZN3ofa") and "." not in symbol:
            names[int(address, 16)] = symbol
    kernels = {symbol for symbol in names.values() if _plain(symbol) in set().union(*KERNELS.values())}
    assert {_plain(symbol) for symbol in kernels} == set().union(*KERNELS.values())
    assert {names[int(line, 16)] for line in launched} == kernels


@in_the_emulator
@pytest.mark.parametrize("program", ["settle", "cross_entropy"])
def test_kernels_by_themselves(program, tmp_path):
    """Those that follow the top-k search's screen, on lists that it writes seldom: full, lost, tied, empty; and the
    passes of the cross entropy against sums in double precision."""
    if not shutil.which("g++"):
        pytest.skip("there is no g++")
    options = ["-std=c++17", "-O1", "-g1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-psabi"]
    options += ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-include", "cuda_runtime.h"]
    options += [f"-I{EMULATOR}", f"-I{ROOT / 'csrc'}", EMULATOR / f"{program}.cpp", "-o", tmp_path / program]
    subprocess.run(["g++", *options], check=True)
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0"}
    done = subprocess.run([tmp_path / program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" cases\n")


@in_the_emulator
def test_only_ops_with_kernels_are_asked_for_them(emulated):
    """All other files that a GPU is given run here, too: a test that forces CUDA on an op without it would fail."""
    ignored = [f"--ignore=tests/ops/test_{name}.py" for name in (*OPS, "cross_entropy_passes", "cuda", "triton")]
    said = _tested(emulated, "tests/ops", *ignored, "-k", "cuda and not 400", "-rp")
    for test in ("test_wrong_ids[_lookup-cuda-", "test_a_captured_search_takes_what_it_is_given[cuda]"):
        assert f"PASSED tests/ops/test_capture.py::{test}" in said
    assert not re.search(r"PASSED tests/ops/test_(factorized_cross_entropy|truncated_svd|tied_gradient)", said)


# A runtime that launches as the real one does: more than 48 KiB of static and dynamic shared memory must be asked for.
RUNTIME = """
#include <cstddef>
#include <cstdint>
struct dim3 { int64_t x; dim3(int64_t x = 1) : x(x) {} };
struct cudaFuncAttributes { size_t sharedSizeBytes; };
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum { cudaDevAttrMaxSharedMemoryPerBlockOptin, cudaFuncAttributeMaxDynamicSharedMemorySize };
inline int static_bytes = 0, optin = 227 << 10, allowed = 0;
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) { return *value = optin, cudaSuccess; }
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* own, const void*) {
  return own->sharedSizeBytes = static_bytes, cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void*, int, int bytes) {
  return bytes + static_bytes > optin ? cudaErrorInvalidValue : (allowed = bytes, cudaSuccess);
}
inline cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, size_t shared, cudaStream_t) {
  const int most = allowed > (48 << 10) - static_bytes ? allowed : (48 << 10) - static_bytes;
  return static_cast<int>(shared) > most ? cudaErrorInvalidValue : cudaSuccess;
}
"""
LAUNCH = """
#include <cstdio>
#include <cstdlib>
#include "launch.h"
void kernel(int) {}
int main(int, char** bytes) {
  static_bytes = std::atoi(bytes[1]);
  for (char** shared = bytes + 2; *shared; ++shared)
    std::printf("%d ", static_cast<int>(ofa::start(kernel, dim3(1), 32, std::atoi(*shared), nullptr, 1)));
}
"""


def test_shared_memory_is_asked_for(tmp_path):
    """Static shared memory counts: a search of 64 columns has 48 KiB beside 5, one of k 300 beside 128 bytes."""
    if not shutil.which("g++"):
        pytest.skip("there is no g++")
    (tmp_path / "cuda_runtime.h").write_text(RUNTIME)
    (tmp_path / "main.cpp").write_text(LAUNCH)
    program = tmp_path / "launch"
    includes = [f"-I{tmp_path}", f"-I{ROOT / 'csrc'}"]
    subprocess.run(["g++", "-std=c++17", *includes, tmp_path / "main.cpp", "-o", program], check=True)

    def launched(static, *shared):
        return subprocess.check_output([program, *map(str, (static, *shared))], text=True).split()

    assert launched(5 << 10, 48 << 10) == launched(128, 48 << 10) == launched(0, 48 << 10) == ["0"]
    assert launched(5 << 10, 222 << 10, 100 << 10, 64, 0) == ["0"] * 4
    assert launched(5 << 10, 223 << 10) == ["1"]


def _plain(symbol):
    """The name of a kernel within its mangled symbol: the last part of a nested name."""
    at, names = symbol.index("_ZN") + 3, []
    while symbol[at].isdigit():
        digits = re.match(r"\d+", symbol[at:])[0]
        at += len(digits)
        names.append(symbol[at : at + int(digits)])
        at += int(digits)
    return names[-1]


def _tool(*arguments, **options):
    tools = Path(importlib.import_module("triton").__file__).parent / "backends" / "nvidia" / "bin"
    environment = os.environ | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    command = [tools / "cuobjdump", *arguments, _native.cuda.__file__]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment, **options).stdout


@with_module
def test_what_kernels_take_of_a_processor(record_property):
    pytest.importorskip("triton")
    architecture, name, found = None, None, defaultdict(set)
    for line in _tool("--dump-resource-usage").splitlines():
        if match := re.search(r"arch = (\w+)", line):
            architecture = match[1]
        elif match := re.search(r"Function (\w+):", line):
            assert gpu.OUR_KERNELS[1].removeprefix("kns=") in match[1], "or compute-sanitizer would not look at it"
            name = _plain(match[1])
        elif match := re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            registers, stack, shared, local = map(int, match.groups())
            found[architecture].add(name)
            record_property(f"{name} {architecture}", f"{registers} registers, {stack} B spilled, {shared} B shared")
            assert registers <= REGISTERS.get(PRODUCTS.get(name, name), 64), name
            assert stack + local <= SPILLED.get(name, 16), name
            assert shared <= 49 << 10, name  # of which newer GPUs keep 1 KiB for themselves
    known = {"nothing"}.union(*KERNELS.values())  # which check_device looks for
    assert found and all(kernels == known for kernels in found.values())
    if "sm_80" in found:  # as built by default; a build for one GPU alone has its code and nothing else
        assert "sm_80" in _tool("--list-ptx")


@with_module
def test_instructions():
    """Products are the tensor cores', and no sum of floating-point numbers depends on who comes first."""
    pytest.importorskip("triton")
    products, name, architectures = defaultdict(int), None, set()
    for line in _tool("-sass").splitlines():
        if match := re.search(r"arch = (\w+)", line):
            architectures.add(match[1])
        elif match := re.search(r"Function : (\w+)", line):
            name = _plain(match[1])
        for kind in ("IMMA", "HMMA", "IGMMA", "HGMMA"):  # a group that may be empty ends with a product of nothing
            products[name, kind] += f" {kind}." in line and "gdesc[URZ]" not in line
        assert not re.search(r"\b(ATOM|ATOMS|ATOMG|RED)\S*\.F(16|32|64|TZ)", line), line
    used = {key: count for key, count in products.items() if count}
    assert used.keys() == set(PRODUCTS.items()) - HOPPER | (HOPPER if "sm_90a" in architectures else set())
    # its four kernels, each two steps of 32 products
    assert used["screen", "IMMA"] == 4 * 64 * len(architectures)
    if "sm_90a" in architectures:
        # Of ranks up to 64, 128, 200 and 256 in two dtypes: the first scores, then scores and sums, and the last sums.
        # Both lie along the rows: as many 16s as a row has columns, and as the step has rows.
        backward = 2 * 2 * sum((4 + 8, 8 + 8, 13 + 7, 16 + 5))
        assert used["backward_pass", "HGMMA"] == backward and used["forward_pass", "HGMMA"] == 2 * backward


@with_module
def test_module_without_a_driver():
    if torch.cuda.is_available():
        _native.cuda.check_device()
        return
    with pytest.raises(RuntimeError, match=r"driver|device"):
        _native.cuda.check_device()
    for op in OPS:
        assert _op.OPS[op].refusal("cuda", "cuda", {torch.float32}) == "torch finds no GPU"
    with pytest.raises(ValueError, match="must be on a CUDA device"):
        x = torch.zeros(4, 4)
        _native.cuda.factorized_embedding_forward(torch.zeros(4).long(), x, x, x, torch.zeros(0).long())


def test_a_gpu_that_the_module_has_no_code_for(monkeypatch):
    def check_device():
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr(_native, "cuda", SimpleNamespace(check_device=check_device))
    monkeypatch.setattr(_op, "_no_gpu", lambda: None)
    monkeypatch.setattr(_op, "no_image", _op.no_image.__wrapped__)
    refusals = [_op.OPS[op].refusal("cuda", "cuda", {torch.float32}) for op in OPS]
    assert refusals == ["its kernels cannot run here: no kernel image is available for execution on the device"] * 2
    assert _op.OPS["factorized_embedding"].refusal("reference", "cuda", {torch.float32}) is None


def test_tensors_of_two_devices():
    """Neither a segmentation fault nor another backend's message."""
    ids, coordinates, basis = torch.zeros(3).long(), torch.zeros(5, 2, device="meta"), torch.zeros(2, 4, device="meta")
    message = "one device, got input_ids on cpu, coordinates on meta, basis on meta"
    with pytest.raises(ValueError, match=message):
        _op.OPS["factorized_embedding"]._run(ids, coordinates, basis)


def test_a_limit_has_a_reason():
    for name in ("cuda", "triton"):
        limit = _op.OPS["factorized_embedding"].limits[name]
        many = torch.zeros(1).expand(1 << 31)
        assert limit(many, torch.zeros(2, 3), torch.zeros(3, 4)) == f"it takes fewer than 2^31 rows, got {1 << 31}"
        assert limit(many[1:], torch.zeros(2, 3), torch.zeros(3, 4)) is None
    limit = _op.OPS["topk_similarity"].limits["cuda"]
    assert limit(torch.zeros(2, 3), torch.zeros(2000, 3), 1025, "dot") == "it takes k up to 1024, got 1025"
    assert limit(torch.zeros(2, 3), torch.zeros(2000, 3), 1024, "dot") is None


def _recorded(run, inputs, others):
    """What a CUDA graph of ``run(*inputs)`` gives after ``others`` have been copied into ``inputs``."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run(*inputs)
    for tensor, other in zip(inputs, others, strict=True):
        tensor.copy_(other)
    graph.replay()
    torch.cuda.synchronize()
    return outputs


@with_gpu
@with_module
@pytest.mark.parametrize("k", [5, 200])
def test_search_in_a_graph(k):
    run = importlib.import_module("ofa_fast.ops.topk_similarity")._forward_cuda
    made = [(torch.randn(50, 40, device="cuda"), torch.randn(3000, 40, device="cuda")) for _ in range(2)]
    made[1][1][:2000] = made[1][1][:1]  # lists overflow, in the second only
    expected = run(*made[1], k, "cosine")
    outputs = _recorded(lambda q, x: run(q, x, k, "cosine"), *made)
    assert all(map(torch.equal, outputs, expected))


@with_gpu
@with_module
def test_lookup_in_a_graph():
    module = importlib.import_module("ofa_fast.ops.factorized_embedding")

    def make():
        tables = torch.randn(97, 24, device="cuda"), torch.randn(24, 40, device="cuda")
        return torch.randint(97, (300,), device="cuda"), *tables, torch.randn(300, 40, device="cuda")

    def run(ids, coordinates, basis, grad):
        out = module._forward_cuda(ids, coordinates, basis)
        return out, *module._backward_cuda(grad, ids, coordinates, basis, 3, False, [True, True])

    first, second = make(), make()
    expected = run(*second)
    assert all(map(torch.equal, _recorded(run, first, second), expected))
