"""Everything a machine with a GPU is asked, in one call of under nine minutes that needs no network.

  python benchmarks/gpu.py                    build, test, sanitise, time and profile the package and its peers
  python benchmarks/gpu.py --json DIR/gpu.json
  python benchmarks/gpu.py --wheels DIR       build requirements and peers come from the wheels in DIR
  python benchmarks/gpu.py --only build,topk_similarity
  python benchmarks/gpu.py --dry-run          every step on a CPU, with small sizes; tests are only collected

It needs Python with torch for CUDA and triton. A step that fails or takes too long is reported, and the next begins.
Two files come of it, written anew after every step: the one that --json names, gpu.json in the folder that the
environment variable OUT names if there is none, and logs.tgz beside it, with what every step said. A table is printed
last.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # behind site-packages, where the compiled package is

from benchmarks import gpu_table  # noqa: E402

BUILD = ("scikit-build-core", "pybind11", "cmake", "ninja", "pytest", "pytest-timeout", "pytest-xdist", "execnet")
PEERS = ("liger-kernel", "cut-cross-entropy")
PEERS_FOR_CUDA = {"12": ("faiss-gpu-cu12", "cuvs-cu12"), "13": ("faiss-gpu-cu13-cuvs", "cuvs-cu13")}  # that torch has
OPS = ("topk_similarity", "truncated_svd", "factorized_embedding", "factorized_cross_entropy")
LAYERS = sorted(str(file.relative_to(ROOT)) for file in ROOT.glob("tests/*/test_devices.py"))
ON_A_STREAM = "tests/initialization/test_hashes.py"
BUDGET = 525  # seconds
MERCY = 8  # seconds a step is given to end by itself
WITHOUT_GPU = ("ops/test_triton.py", "test_gpu_script.py", "test_benchmarks.py")  # compilers and these benchmarks
# Parts of the tests: where they are, which of them, on a CPU, too, and on how many of the processors.
TESTS: dict[str, tuple[Sequence[str], str, str, float]] = {
    "cuda": (("tests/ops",), "cuda", "cpu", 1 / 4),
    "triton": (("tests/ops",), "triton and not cuda", "triton", 1 / 2),
    "package": ((*LAYERS, ON_A_STREAM), "cuda", "cpu", 1 / 4),
}
TESTED = {
    "OMP_NUM_THREADS": "2",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # or torch warns, as the tests ask it for the same bits again
}
SANITIZERS = ("memcheck", "racecheck")
# The tests that compute-sanitizer watches: small cases of every kernel in CUDA C++ (tests/ops/test_cuda.py sees to it).
SANITISED = (
    "{} and (test_values and (small or odd or wide or even or blocks or crowd) or test_values_of_small_tiles"
    " or test_sparse_gradient_is and (blocks or crowd) and bfloat16 or test_exact and odd or more_candidates"
    " or test_cuda_passes_values and small)"
)
WITH_CUDA_KERNELS = [
    f"tests/ops/test_{name}.py" for name in ("topk_similarity", "factorized_embedding", "cross_entropy_passes")
]
OUR_KERNELS = ("--kernel-name", "kns=_ZN3ofa", "--demangle", "simple")  # a part of the mangled name
# Of "Error: Race reported between Write access at ofa::f+0x10 in f.cu:3" or "    at ofa::f+0x10 in f.cu:3"
REPORT = re.compile(r"^=+ (?:.*reported between \w+ access|\s+) ?at (.+?)\+0x", re.MULTILINE)


class Runner:
    """Runs commands one after the other until the time is up, and keeps what is known in two files."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.options, self.scratch, self.end = options, scratch, time.monotonic() + 60 * options.minutes
        options.json.parent.mkdir(parents=True, exist_ok=True)
        self.results: dict = {"steps": {}, "tests": {}, "ops": {}, "peers": {}, "jobs": {}}
        self.running: list[tuple[str, subprocess.Popen, float, float]] = []

    def limit(self, step: str) -> float:
        """Seconds for a step: its share, or up to twice that if those before it left so much; the last has all."""
        wanted = [name for name in STEPS if not self.options.only or name in self.options.only]
        later = sum(STEPS[name][0] for name in wanted[wanted.index(step) + 1 :])
        left, share = self.end - time.monotonic(), STEPS[step][0]
        return min(left, max(share, min(2 * share, left - later)) if later else left)

    def write(self) -> None:
        whole = self.options.json.with_suffix(".part")
        whole.write_text(json.dumps(self.results, indent=1) + "\n")
        whole.replace(self.options.json)
        with tarfile.open(whole, "w:gz") as logs:
            logs.add(self.scratch, "logs")
        whole.replace(self.options.json.with_name("logs.tgz"))

    def start(self, name: str, command: list, seconds: float, **environment: str) -> None:
        seconds = min(seconds, self.end - time.monotonic())
        if seconds < 3:
            self.results["steps"][name] = {"status": "no time left", "seconds": 0.0, "said": []}
            return
        print(f"\n{name}, {seconds:.0f} s: {' '.join(map(str, command))}", flush=True)
        with open(self.log(name), "w") as log:  # not a pipe, which a process left behind would hold open
            try:
                process = subprocess.Popen(
                    list(map(str, command)), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                    start_new_session=True, env=os.environ | environment, preexec_fn=heed,
                )  # fmt: skip
            except OSError as error:
                self.results["steps"][name] = {"status": str(error), "seconds": 0.0, "said": []}
                return
        self.running.append((name, process, time.monotonic(), seconds))

    def finish(self) -> None:
        """Waits for all that was started, each as long as it may take."""
        for name, process, begin, seconds in self.running:
            mercy = min(MERCY, seconds / 4)
            status = ended(process, begin + seconds - mercy - time.monotonic())
            if status is None:
                interrupt(process, signal.SIGINT)  # pytest then says what failed
                ended(process, mercy)
            interrupt(process, signal.SIGKILL)
            ended(process, 5)  # a process that waits for a GPU may outlive its end
            status = "not finished" if status is None else status
            said = self.log(name).read_text(errors="replace").strip().splitlines()[-40:]
            spent = round(time.monotonic() - begin, 1)
            self.results["steps"][name] = {"status": status, "seconds": spent, "said": said}
            print("\n".join(said[-6:]), f"\n{name}: {'passed' if status == 0 else status} in {spent} s", flush=True)
        self.running = []
        self.write()

    def run(self, name: str, command: list, seconds: float, **environment: str) -> int | str:
        self.start(name, command, seconds, **environment)
        self.finish()
        return self.results["steps"][name]["status"]

    def measured(self, name: str, command: list, seconds: float, **environment: str) -> dict:
        """A command that writes JSON; what it had written when it failed counts."""
        self.run(name, [*command, "--json", self.known(name)], seconds, **environment)
        return self.read(name)

    def read(self, name: str) -> dict:
        with contextlib.suppress(OSError, ValueError):
            return json.loads(self.known(name).read_text())
        return {}

    def known(self, name: str) -> Path:
        return self.log(name).with_suffix(".json")

    def log(self, name: str) -> Path:
        return self.scratch / (re.sub(r"[^\w.-]+", "-", name)[:80] + ".log")


def heed() -> None:
    """In the new process: be interruptible, also where this one was started in the background and is not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def ended(process: subprocess.Popen, seconds: float) -> int | None:
    """How the process has ended within so many seconds, or None."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(max(0.1, seconds))
    return None


def interrupt(process: subprocess.Popen, how: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, how)  # its workers, too


def python(module: str, *arguments: object) -> list:
    """A module of this folder: behind site-packages, where the compiled package is."""
    code = f"import runpy, sys; sys.path.append({str(ROOT)!r}); runpy.run_module({module!r}, run_name='__main__')"
    return [sys.executable, "-P" if sys.version_info >= (3, 11) else "-B", "-c", code, *arguments]


def tool(name: str) -> str:
    """One of CUDA's, which need not be on the path."""
    return shutil.which(name) or shutil.which(f"/usr/local/cuda/bin/{name}") or name


def cuda_of_torch() -> str:
    """The first number of the CUDA that torch was built for, as "13"; "" of a torch for CPUs, or none."""
    with contextlib.suppress(AttributeError, OSError):  # read, as importing torch takes seconds
        version = Path(importlib.util.find_spec("torch").origin).with_name("version.py").read_text()
        return "".join(re.findall(r"^cuda\b.*['\"](\d+)\.", version, re.MULTILINE)[:1])
    return ""


def build(runner: Runner, name: str) -> None:
    options = runner.options
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index"]
    if options.wheels:
        for wheel in (*BUILD, *PEERS, *PEERS_FOR_CUDA.get(cuda_of_torch(), ())):
            if any(options.wheels.glob(f"{wheel.replace('-', '_')}-*.whl")):
                runner.run(f"wheel {wheel}", [*pip, "--no-deps", "--find-links", options.wheels, wheel], 40)
    if options.dry_run:
        runner.run(name, [sys.executable, "-c", "import ofa_fast"], runner.limit(name))
        return
    architecture = []
    with contextlib.suppress(OSError, IndexError):  # for this GPU alone is quicker to compile
        asked = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        capability = subprocess.run(asked, capture_output=True, text=True).stdout.split()[0].replace(".", "")
        suffix = "a" if capability == "90" else ""
        architecture = [f"-Ccmake.define.CMAKE_CUDA_ARCHITECTURES={capability}{suffix}-real"]
    install = [*pip, "--no-build-isolation", "--no-deps"]
    cuda = {"OFA_CUDA": "ON", "CUDACXX": tool("nvcc")}
    if runner.run(name, [*install, *architecture, "-e", ROOT], runner.limit(name), **cuda) != 0:
        runner.run("build without CUDA", [*install, "-e", ROOT], 90, OFA_CUDA="OFF")


def chosen(runner: Runner, words: str, on_a_cpu: str) -> list:
    """pytest's arguments for tests by words in their names; on a CPU by others, and only collected."""
    if runner.options.dry_run:
        return ["-k", on_a_cpu, "--collect-only"]
    return ["-k", words, "--timeout-method=thread"]


def tests(runner: Runner, name: str) -> None:
    """The tests that need a GPU, in parts beside one another, each over several processes if possible.

    Beside them the sanitizers, which take a processor each and are slow.
    """
    seconds, processors = runner.limit(name), os.cpu_count() or 2
    several = importlib.util.find_spec("xdist") and not runner.options.dry_run
    for part, (where, words, on_a_cpu, share) in TESTS.items():
        known = runner.known(f"{name} of {part}")
        ignored = [f"--ignore=tests/{file}" for file in WITHOUT_GPU]
        command = python("benchmarks.gpu_tests", "--json", known, *where, *ignored, *chosen(runner, words, on_a_cpu))
        command += ["--timeout=60", "--continue-on-collection-errors"]
        if several:
            command += ["-n", max(1, int(processors * share)), "--dist", "worksteal"]
        cases = "20" if part == "triton" else "200"  # of the random ones: a compile each
        runner.start(f"{name} of {part}", command, seconds, **TESTED, OFA_RANDOM_CASES=cases)
    for check in SANITIZERS:
        command = sanitizer(runner, check, seconds)
        runner.start(check, command, seconds, **TESTED, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    runner.finish()
    runner.results["tests"] |= {part: runner.read(f"{name} of {part}") for part in TESTS}
    for check in SANITIZERS:
        sanitized(runner, check)


def sanitizer(runner: Runner, name: str, seconds: float) -> list:
    """Small cases of the kernels in CUDA C++ under NVIDIA's compute-sanitizer, which looks at no other's kernels."""
    files = *WITH_CUDA_KERNELS, f"--timeout={seconds:.0f}"
    command = python("benchmarks.gpu_tests", "--json", runner.known(name), *files)
    command += chosen(runner, SANITISED.format("cuda"), SANITISED.format("reference"))
    if runner.options.dry_run:
        return command
    # torch asks drivers for what they may not have; where a call of ours fails, the test does
    watch = [tool("compute-sanitizer"), "--tool", name, "--error-exitcode", "1", "--report-api-errors", "no"]
    return [*watch, *OUR_KERNELS, *command]


def sanitized(runner: Runner, name: str) -> None:
    if found := runner.read(name):
        reports = REPORT.findall(runner.log(name).read_text(errors="replace"))
        runner.results["tests"][name] = found | {"reports": collections.Counter(reports)}


def merged(first: dict, second: dict) -> dict:
    """Both, and what both have in the first: of two dictionaries again both."""
    both = second | first
    return both | {
        key: merged(first[key], second[key])
        for key in first.keys() & second.keys()
        if isinstance(first[key], dict) and isinstance(second[key], dict)
    }


def measure(runner: Runner, name: str) -> None:
    """A step of gpu_steps.py, and once more without the kernel that ended it, if one did."""
    seconds, dry = runner.limit(name), runner.options.dry_run
    command = python("benchmarks.gpu_steps", name, "--device", "cpu" if dry else "cuda")
    # without a GPU Triton's kernels need its interpreter
    environment = {"TRITON_INTERPRET": "1"} if dry and name == "tiles" else {}
    found = runner.measured(name, [*command, "--seconds", seconds - MERCY], seconds, **environment)
    culprit = found.get("running")
    ended_itself = isinstance(runner.results["steps"][name]["status"], int)  # and was not ended for want of time
    if ended_itself and name != "tiles" and culprit not in (None, "inputs", "roofs"):
        seconds = runner.limit(name)
        command += ["--without", culprit, "--seconds", seconds - MERCY]
        again = runner.measured(f"{name} without {culprit}", command, seconds, **environment)
        found = merged(again, found)
        found["ended"] = culprit
    if name in ("machine", "peers"):
        kept = {"peers": found.get("ops", {}), "absent": found.get("absent", {})}
        runner.results |= found if name == "machine" else kept
    else:
        runner.results["ops" if name in OPS else "jobs"][name] = found


def job(runner: Runner, name: str) -> None:
    small = ["--small", "--device", "cpu"] if runner.options.dry_run else []
    command = python("benchmarks.whole_job", name, *small)
    runner.results["jobs"][name] = runner.measured(name, command, runner.limit(name))


# What is asked, in this order, and the seconds that it has at least. Time that is saved goes to those that follow.
STEPS: dict[str, tuple[float, Callable[[Runner, str], None]]] = {
    "build": (55, build),
    "machine": (15, measure),
    "tests": (110, tests),
    "topk_similarity": (20, measure),
    "truncated_svd": (15, measure),
    "factorized_embedding": (30, measure),
    "factorized_cross_entropy": (40, measure),
    "certified": (20, measure),
    "profile": (15, measure),
    "training": (45, job),
    "initialization": (45, job),
    "peers": (100, measure),
    "tiles": (15, measure),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--wheels",
        type=lambda folder: Path(folder).resolve(),
        metavar="DIR",
        help="wheels of build requirements and peers",
    )
    parser.add_argument("--minutes", type=float, default=BUDGET / 60, help=f"for all of it ({BUDGET / 60})")
    parser.add_argument(
        "--json",
        type=Path,
        default=Path(os.environ.get("OUT") or ROOT / "out") / "gpu.json",
        metavar="FILE",
        help="($OUT/gpu.json, or out/gpu.json)",
    )
    parser.add_argument("--only", type=lambda names: names.split(","), metavar="STEP,…", help=", ".join(STEPS))
    parser.add_argument("--dry-run", action="store_true", help="on a CPU: small sizes, tests only collected, no build")
    options = parser.parse_args()
    options.json = options.json.resolve()
    for name in options.only or ():
        if name not in STEPS:
            parser.error(f"--only must name steps of {', '.join(STEPS)}; got {name!r}")
    with tempfile.TemporaryDirectory() as scratch:
        runner = Runner(options, Path(scratch))
        for name, (_, step) in STEPS.items():
            if options.only and name not in options.only:
                continue
            try:
                step(runner, name)
            except Exception as error:  # the next step may work all the same
                said = {"status": f"{type(error).__name__}: {error}", "seconds": 0.0, "said": []}
                runner.results["steps"][name] = said
                print(f"{name}: {error}", flush=True)
            runner.write()
    print("\n" + gpu_table.table(runner.results))
    return int(any(done["status"] != 0 for done in runner.results["steps"].values()))


if __name__ == "__main__":
    raise SystemExit(main())
