"""Everything a machine with a GPU is asked, in one call of under nine minutes that needs no network.

  python benchmarks/gpu.py                    build, test, sanitise and time the package beside its peers
  python benchmarks/gpu.py --wheels DIR       build requirements and peers come from the wheels in DIR
  python benchmarks/gpu.py --only build,topk_similarity
  python benchmarks/gpu.py --dry-run          every step on a CPU, with small sizes; tests are only collected

It needs Python with torch for CUDA and triton. A step that fails or takes too long is reported, and the next begins.
A table is printed last; --json FILE has what is known after every step. Logs of all steps lie beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ("scikit-build-core", "pybind11", "cmake", "ninja", "pytest", "pytest-timeout", "pytest-xdist", "execnet")
PEERS = ("liger-kernel", "cut-cross-entropy", "faiss-gpu-cu12", "cuvs-cu12")
OPS = ("factorized_cross_entropy", "topk_similarity", "factorized_embedding", "truncated_svd")
JOBS = ("training", "initialization")
SECONDS = {
    "build": 150, "tests": 170, "certified": 60, "topk_similarity": 50, "truncated_svd": 35,
    "factorized_embedding": 45, "factorized_cross_entropy": 60, "training": 70, "initialization": 60,
    "memcheck": 40, "racecheck": 40, "tiles": 40,
}  # fmt: skip


class Runner:
    """Runs commands one after the other until the time is up, and keeps what is known in a file."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.end = options, time.monotonic() + 60 * options.minutes
        self.folder = options.json.parent.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.results: dict = {"steps": {}, "ops": {}, "jobs": {}}
        self.running: list[tuple[str, subprocess.Popen, float, float]] = []

    def wanted(self, name: str) -> bool:
        return not self.options.only or name in self.options.only

    def write(self) -> None:
        whole = self.options.json.with_suffix(".part")
        whole.write_text(json.dumps(self.results, indent=1) + "\n")
        whole.replace(self.options.json)

    def start(self, name: str, command: list, seconds: float, **environment: str) -> None:
        seconds = min(seconds, self.end - time.monotonic())
        if seconds < 3:
            self.results["steps"][name] = {"status": "no time left", "seconds": 0.0, "said": []}
            return
        print(f"\n{name}: {' '.join(map(str, command))}", flush=True)
        with open(self.log(name), "w") as log:  # not a pipe, which a process left behind would hold open
            try:
                process = subprocess.Popen(
                    list(map(str, command)), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                    start_new_session=True, env=os.environ | environment,
                )  # fmt: skip
            except OSError as error:
                self.results["steps"][name] = {"status": str(error), "seconds": 0.0, "said": []}
                return
        self.running.append((name, process, time.monotonic(), seconds))

    def finish(self) -> None:
        """Waits for all that was started, each as long as it may take."""
        for name, process, begin, seconds in self.running:
            try:
                status: int | str = process.wait(max(0.1, begin + seconds - time.monotonic()))
            except subprocess.TimeoutExpired:
                status = "not finished"
            with contextlib.suppress(ProcessLookupError):  # its workers, too
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            said = self.log(name).read_text(errors="replace").strip().splitlines()[-40:]
            spent = round(time.monotonic() - begin, 1)
            self.results["steps"][name] = {"status": status, "seconds": spent, "said": said}
            print("\n".join(said[-6:]), f"\n{name}: {'passed' if status == 0 else status} in {spent} s", flush=True)
        self.running = []
        self.write()

    def run(self, name: str, command: list, seconds: float | None = None, **environment: str) -> bool:
        self.start(name, command, SECONDS.get(name, 60) if seconds is None else seconds, **environment)
        self.finish()
        self.write()
        return self.results["steps"][name]["status"] == 0

    def log(self, name: str) -> Path:
        return self.folder / f"{name.replace(' ', '-')}.log"

    def measured(self, name: str, command: list, seconds: float, **environment: str) -> dict:
        """A command that writes JSON; what it had written when it failed counts."""
        file = self.folder / f"{name}.json"
        file.unlink(missing_ok=True)
        self.run(name, [*command, "--json", file], seconds, **environment)
        with contextlib.suppress(OSError, ValueError):
            return json.loads(file.read_text())
        return {}


def python(*arguments: object) -> list:
    """A module of this folder: behind site-packages, where the compiled package is."""
    module, *rest = arguments
    code = f"import runpy, sys; sys.path.append({str(ROOT)!r}); runpy.run_module({module!r}, run_name='__main__')"
    return [sys.executable, "-P" if sys.version_info >= (3, 11) else "-B", "-c", code, *rest]


def build(runner: Runner) -> None:
    options = runner.options
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index"]
    if options.wheels:
        for name in (*BUILD, *PEERS):
            if any(options.wheels.glob(f"{name.replace('-', '_')}-*.whl")):
                runner.run(f"wheel {name}", [*pip, "--no-deps", "--find-links", options.wheels, name], 40)
    if options.dry_run:
        runner.run("build", [sys.executable, "-c", "import ofa_fast"])
        return
    environment, architecture = {}, []
    if nvcc := shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc"):
        environment = {"CUDACXX": nvcc}
        asked = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        with contextlib.suppress(OSError, IndexError):  # for this GPU alone is quicker to compile
            capability = subprocess.run(asked, capture_output=True, text=True).stdout.split()[0].replace(".", "")
            suffix = "a" if capability == "90" else ""
            architecture = [f"-Ccmake.define.CMAKE_CUDA_ARCHITECTURES={capability}{suffix}-real"]
    runner.run("build", [*pip, "--no-build-isolation", "--no-deps", *architecture, "-e", ROOT], **environment)


def tests(runner: Runner) -> None:
    """The ops' tests, which are the GPU's, and beside them all others; each over several processes where that works."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    collected = ["--collect-only"] if runner.options.dry_run else []
    cores = os.cpu_count() or 2
    several = importlib.util.find_spec("xdist") is not None and not collected
    rest = ["tests/nn"] if collected else ["tests", "--ignore", "tests/ops"]
    shares = {"tests of the ops": ["tests/ops"], "tests of the rest": rest}
    for name, chosen in shares.items():
        workers = ["-n", str(max(1, cores // 2)), "--dist", "worksteal"] if several else []
        runner.start(name, [*pytest, *chosen, *workers, *collected], SECONDS["tests"], OMP_NUM_THREADS="2")
    runner.finish()


def sanitise(runner: Runner, tool: str) -> None:
    """Small cases of every kernel in CUDA C++, and of Triton's, under NVIDIA's compute-sanitizer."""
    if runner.options.dry_run or not shutil.which("compute-sanitizer"):
        runner.run(tool, [sys.executable, "-c", "print('compute-sanitizer: not here')"])
        return
    small = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/ops", "-k", "(cuda or triton) and values and small"]
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", sys.executable, *small]
    runner.run(tool, command, PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def described(runner: Runner) -> None:
    """The machine, by a process of its own: this one never holds the GPU."""
    device = "cpu" if runner.options.dry_run else "cuda"
    code = (
        f"import json, sys; sys.path.append({str(ROOT)!r}); from benchmarks import machine; "
        f"print(json.dumps({{'machine': machine.describe({device!r}), 'commit': machine.commit()}}))"
    )
    if runner.run("machine", [sys.executable, "-c", code], 60):
        with contextlib.suppress(ValueError, IndexError):
            runner.results |= json.loads(runner.results["steps"]["machine"]["said"][-1])


def broken(found: dict, name: str) -> str | None:
    """The CUDA kernels, if nothing was measured because of them: an error of theirs is the end of its process."""
    if name in OPS:
        measured = any("entries" in size for size in found.get("sizes", {}).values())
        return "cuda" if found.get("backend") == "cuda" and not measured else None
    tried = {key.rpartition(", ")[2] for key in found}
    return "cuda" if name == "certified" and tried <= {"cuda"} else None


def measure(runner: Runner, name: str) -> None:
    """One op beside its peers."""
    device, seconds = "cpu" if runner.options.dry_run else "cuda", SECONDS[name]
    command = python("benchmarks.gpu_steps", name, "--device", device, "--seconds", seconds - 15)
    # without a GPU Triton's kernels need its interpreter
    environment = {"TRITON_INTERPRET": "1"} if runner.options.dry_run and name == "tiles" else {}
    found = runner.measured(name, command, seconds, **environment)
    if without := broken(found, name):
        runner.results["steps"][f"{name} on {without}"] = runner.results["steps"][name]
        found |= runner.measured(name, [*command, "--without", without], seconds, **environment)
    (runner.results["ops"] if name in OPS else runner.results["jobs"])[name] = found
    runner.write()


def job(runner: Runner, name: str) -> None:
    small = ["--small", "--device", "cpu"] if runner.options.dry_run else []
    runner.results["jobs"][name] = runner.measured(name, python("benchmarks.whole_job", name, *small), SECONDS[name])
    runner.write()


STEPS: dict[str, Callable[[Runner], None]] = {
    "build": build,
    "machine": described,
    "tests": tests,
    "certified": lambda runner: measure(runner, "certified"),
    **{op: lambda runner, op=op: measure(runner, op) for op in OPS},
    **{name: lambda runner, name=name: job(runner, name) for name in JOBS},
    **{tool: lambda runner, tool=tool: sanitise(runner, tool) for tool in ("memcheck", "racecheck")},
    "tiles": lambda runner: measure(runner, "tiles"),
}


def backends_compared(results: dict, ours: str) -> list[str]:
    """A line for each op, size and backend that is not taken by itself: which one should be."""
    lines = []
    for op, measured in results["ops"].items():
        for name, refusal in measured.get("backends", {}).items():
            if refusal is not None:
                lines.append(f"{op} on {name}: {refusal}")
        for size, result in measured.get("sizes", {}).items():
            own = result.get("entries", {}).get(ours)
            for name, entry in result.get("entries", {}).items():
                if name.startswith(f"{ours} on "):
                    times = f"{1e3 * own['p50']:.3f} ms, {name.removeprefix(ours + ' ')} {1e3 * entry['p50']:.3f} ms"
                    said = f", {own['report']} and {entry['report']}" if "report" in entry else ""
                    faster = f"{entry['p50'] / own['p50']:.2f}x the time"
                    lines.append(f"{op}, {size}: on {measured['backend']} {times}, {faster}{said}")
    return lines


def table(results: dict, ours: str = "ofa-fast") -> str:
    lines = [f"{'':72} {'ours':>11} {'best peer':>11} {'ratio':>7} {'memory':>9}"]
    for op, measured in results["ops"].items():
        for size, result in measured.get("sizes", {}).items():
            name = f"{op}: {size}"[:72]
            if "entries" not in result:
                lines.append(f"{name:72} {result['refused'][:44]}")
                continue
            own = result["entries"][ours]
            peers = [entry["p50"] for name, entry in result["entries"].items() if not name.startswith(ours)]
            best = f"{1e3 * min(peers):9.3f}ms {min(peers) / own['p50']:6.2f}x" if peers else f"{'none':>11} {'':>7}"
            memory = "" if own["memory"] is None else f"{own['memory'] / 2**20:.0f}MiB"
            lines.append(f"{name:72} {1e3 * own['p50']:9.3f}ms {best} {memory:>9}")
    lines += backends_compared(results, ours)
    for name, result in results["jobs"].get("certified", {}).items():
        same = result["same_scores"] and result["same_indices"]
        lines.append(
            f"the CPU's results, {name}: {same}; undecided {result['undecided']}, rescored {result['rescored']}"
        )
    if "seconds" in results["jobs"].get("initialization", {}):
        lines.append(f"initialization: {results['jobs']['initialization']['seconds']}")
    for name, result in results["jobs"].get("training", {}).items():
        if name == "ratio":
            lines.append(f"training, tokens a second: {result:.2f}x the stock model's")
        else:
            lines.append(
                f"training, {name}: {result.get('tokens_per_second', 0):,.0f} tokens/s, batch {result.get('batch')}"
            )
    lines += [f"{name}: {done['status']} in {done['seconds']} s" for name, done in results["steps"].items()]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="wheels of build requirements and peers")
    parser.add_argument("--minutes", type=float, default=8.75, help="for all of it (8.75)")
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "gpu.json", metavar="FILE", help="(out/gpu.json)")
    parser.add_argument("--only", type=lambda names: names.split(","), metavar="STEP,…", help=", ".join(STEPS))
    parser.add_argument("--dry-run", action="store_true", help="on a CPU: small sizes, tests only collected, no build")
    options = parser.parse_args()
    for name in options.only or ():
        if name not in STEPS:
            parser.error(f"--only must name steps of {', '.join(STEPS)}; got {name!r}")
    runner = Runner(options)
    for name, step in STEPS.items():
        if not runner.wanted(name):
            continue
        try:
            step(runner)
        except Exception as error:  # the next step may work all the same
            runner.results["steps"][name] = {"status": f"{type(error).__name__}: {error}", "seconds": 0.0, "said": []}
            print(f"{name}: {error}", flush=True)
        runner.write()
    print("\n" + table(runner.results))
    return int(any(done["status"] != 0 for done in runner.results["steps"].values()))


if __name__ == "__main__":
    raise SystemExit(main())
