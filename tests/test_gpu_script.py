"""benchmarks/gpu.py: every step runs on a CPU, what fails is reported, and the rest goes on."""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # behind site-packages, where the compiled package is

gpu, gpu_steps, gpu_tests, gpu_table, machine = (
    importlib.import_module(f"benchmarks.{name}") for name in ("gpu", "gpu_steps", "gpu_tests", "gpu_table", "machine")
)


def test_every_step(tmp_path):
    pytest.importorskip("triton")
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--dry-run", "--json", tmp_path / "out" / "gpu.json"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert said.returncode == 0, said.stdout[-4000:] + said.stderr[-2000:]
    assert {file.name for file in tmp_path.rglob("*") if file.is_file()} == {"gpu.json", "logs.tgz"}
    results = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert {done["status"] for done in results["steps"].values()} == {0}
    assert set(gpu.STEPS) - {"tests"} <= set(results["steps"])
    assert {"machine", "commit"} <= set(results)
    for op in gpu.OPS:
        (size,) = results["ops"][op]["ops"][op].values()
        assert set(size["entries"]) == {"cpu", "reference"} and not size["failed"]
        assert [len(others["entries"]) for others in results["peers"][op].values()] == [2] * (
            1 + (op in gpu_steps.BACKWARD)
        )
        assert not any(others["failed"] for others in results["peers"][op].values())
    (search,) = results["ops"]["topk_similarity"]["ops"]["topk_similarity"].values()
    assert all(set(entry["report"]) == {"undecided", "rescored"} for entry in search["entries"].values())
    training = results["jobs"]["training"]
    assert all("tokens_per_second" in training[name] for name in ("stock", "ofa-fast"))
    assert [run["all"] > 0 for run in results["jobs"]["initialization"]["seconds"].values()] == [True, True]
    assert all("forward" in times for times in results["jobs"]["tiles"]["tiles"].values())
    calls = results["jobs"]["profile"]["calls"]
    assert len(calls) == 4 and all(call["kernels"] and call["whole"] > 0 for call in calls.values())
    table = said.stdout.rpartition("\nbuild: 0 in")[2]
    assert table.index("initialization, second") < table.index("best peer") < table.index("truncated_svd: small")
    for line in (
        "truncated_svd: small",
        "topk_similarity: backward, small",
        "x the time, {'undecided': 0",
        "training, ofa-fast",
        "initialization, second",
    ):
        assert line in table, line
    with tarfile.open(tmp_path / "out" / "logs.tgz") as logs:
        names = logs.getnames()
        assert {f"logs/{name}" for name in ("build.log", "peers.json", "tests-of-triton.log")} <= set(names)
        collected = {Path(name).stem: logs.extractfile(name).read().decode() for name in names if name.endswith(".log")}
    tested = collected["tests-of-cuda"]
    assert "test_random_cases[cpu]" in tested and "<Package ops>" not in collected["tests-of-package"]
    assert "test_truncated_svd.py" in tested and "test_triton.py" not in tested
    assert "<Dir models>" in collected["tests-of-package"] and "test_gpu_script.py" not in collected["tests-of-package"]
    tests = "test_exact", "test_values_of_small_tiles", "test_values"
    assert all(f"{test}[" in collected["memcheck"] for test in tests)


def test_shares_fit():
    """Own results come before peers, and all that has a share has its time."""
    order = list(gpu.STEPS)
    assert sum(share for share, _ in gpu.STEPS.values()) <= gpu.BUDGET
    assert order.index("tests") < order.index(gpu.OPS[0]) < order.index("certified") < order.index("training")
    assert order.index("initialization") < order.index("peers") < order.index("tiles")
    assert all(share > 0 for share, _ in gpu.STEPS.values())


@pytest.fixture
def runner(tmp_path):
    options = argparse.Namespace(json=tmp_path / "out" / "gpu.json", minutes=1.0, only=None, dry_run=True, wheels=None)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return gpu.Runner(options, scratch)


def test_time_saved_goes_to_the_next(runner):
    runner.end = time.monotonic() + gpu.BUDGET
    assert runner.limit("build") == gpu.STEPS["build"][0]
    runner.end = time.monotonic() + gpu.BUDGET - 30  # the build took so long
    share = gpu.STEPS["machine"][0]
    assert runner.limit("machine") == 2 * share
    runner.end = time.monotonic() + 7
    assert runner.limit("certified") <= 7 and 6 < runner.limit("peers") <= 7
    runner.end = time.monotonic() + gpu.STEPS["peers"][0] + gpu.STEPS["tiles"][0] + 5
    assert runner.limit("peers") <= gpu.STEPS["peers"][0] + 5, "the tiles keep their share"


def test_what_fails_is_reported(runner):
    begin = time.monotonic()
    assert runner.run("fails", [sys.executable, "-c", "print('why'); raise SystemExit(3)"], 20) == 3
    assert "no-such-program" in runner.run("absent", ["no-such-program"], 20)
    assert runner.run("hangs", ["sh", "-c", "trap '' INT; echo begun; sleep 60 & sleep 60"], 4) == "not finished"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a program that was started in the background
    assert runner.run("is asked first", ["sh", "-c", "trap 'echo asked; exit 1' INT; sleep 60"], 4) == "not finished"
    signal.signal(signal.SIGINT, before)
    assert time.monotonic() - begin < 30
    written = "import sys, pathlib; pathlib.Path(sys.argv[2]).write_text('{\"a\": 1}'); raise SystemExit(1)"
    assert runner.measured("partial", [sys.executable, "-c", written], 20) == {"a": 1}
    assert runner.measured("nothing", [sys.executable, "-c", "raise SystemExit(1)"], 20) == {}
    steps = json.loads(runner.options.json.read_text())["steps"]
    assert (steps["fails"]["status"], steps["fails"]["said"]) == (3, ["why"])
    assert steps["hangs"]["said"] == ["begun"] and steps["is asked first"]["said"] == ["asked"]
    runner.end = time.monotonic()
    assert runner.run("late", ["true"], 20) == "no time left"
    assert "hangs: not finished" in gpu_table.table(runner.results)
    assert {file.name for file in runner.options.json.parent.iterdir()} == {"gpu.json", "logs.tgz"}


def test_without_a_cuda_compiler_the_rest_is_built(runner, monkeypatch):
    asked = []

    def run(name, command, seconds, **environment):
        asked.append((name, environment["OFA_CUDA"]))
        return int(environment["OFA_CUDA"] == "ON")

    runner.options.dry_run = False
    monkeypatch.setattr(runner, "run", run)
    gpu.build(runner, "build")
    assert asked == [("build", "ON"), ("build without CUDA", "OFF")]


def test_which_tests_are_run(runner, monkeypatch):
    """Of the ops, and of every layer above them."""
    asked = {}
    runner.options.dry_run = False
    monkeypatch.setattr(runner, "start", lambda name, command, *_, **environment: asked.update({name: command}))
    gpu.tests(runner, "tests")
    assert asked.pop("memcheck")[0].endswith("compute-sanitizer") and asked.pop("racecheck")
    words = {name: command[command.index("-k") + 1] for name, command in asked.items()}
    assert words == {"tests of cuda": "cuda", "tests of triton": "triton and not cuda", "tests of package": "cuda"}
    of_layers = {f"tests/{layer}/test_devices.py" for layer in ("nn", "models", "training")}
    assert of_layers <= set(asked["tests of package"])
    assert all("--continue-on-collection-errors" in command for command in asked.values())
    assert all((ROOT / "tests" / file).exists() for file in gpu.WITHOUT_GPU)


def test_a_sanitizer_that_is_absent_is_no_success(runner, monkeypatch):
    runner.options.dry_run = False
    monkeypatch.setattr(gpu, "tool", lambda name: f"/nowhere/{name}")
    runner.run("memcheck", gpu.sanitizer(runner, "memcheck", 20), 20)
    gpu.sanitized(runner, "memcheck")
    assert "/nowhere/compute-sanitizer" in runner.results["steps"]["memcheck"]["status"]
    assert not runner.results["tests"].get("memcheck")


# compute-sanitizer as far as it is used.
SANITIZER = """#!{python}
import json, sys
known = {{"passed": 2, "failed": {{}}, "broken": {{}}, "skipped": {{}}, "running": []}}
open(sys.argv[sys.argv.index("--json") + 1], "w").write(json.dumps(known))
print('''========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at ofa::topk_similarity::scan+0xb0 in cuda_exact.h:12
=========     and Read access at ofa::topk_similarity::scan+0xd0 in cuda_exact.h:14 [32 hazards]
=========
========= Warning: Race reported between Read access at ofa::topk_similarity::scan+0x10 in cuda_exact.h:30
========= Invalid __global__ write of size 4 bytes
=========     at ofa::factorized_embedding::(anonymous namespace)::look_up+0x70 in cuda.cu:12
=========     by thread (31,0,0) in block (4,0,0)
========= ERROR SUMMARY: 3 errors''')
raise SystemExit(1)
"""


def test_a_sanitizer_names_kernels(runner, monkeypatch, tmp_path):
    program = tmp_path / "compute-sanitizer"
    program.write_text(SANITIZER.format(python=sys.executable))
    program.chmod(0o755)
    runner.options.dry_run = False
    monkeypatch.setattr(gpu, "tool", lambda name: program)
    command = gpu.sanitizer(runner, "racecheck", 20)
    assert command[command.index("--kernel-name") + 1].startswith("kns=_ZN3ofa"), "it looks at ours alone"
    runner.run("racecheck", command, 20)
    gpu.sanitized(runner, "racecheck")
    assert runner.results["steps"]["racecheck"]["status"] == 1
    reports = runner.results["tests"]["racecheck"]["reports"]
    lookup = "ofa::factorized_embedding::(anonymous namespace)::look_up"
    assert reports == {"ofa::topk_similarity::scan": 2, lookup: 1}
    assert "compute-sanitizer reports ofa::topk_similarity::scan 2 times" in gpu_table.table(runner.results)


@pytest.mark.parametrize(
    ("status", "running", "times"),
    [(-11, "cuda", 2), (1, "cuda", 2), (-11, "inputs", 1), (1, None, 1), ("not finished", "cuda", 1)],
)
def test_a_backend_that_ends_the_process_is_left_out(runner, monkeypatch, status, running, times):
    """A step that ran out of time is not asked again."""
    asked = []

    def measured(name, command, seconds, **environment):
        asked.append(command)
        ends = "--without" not in command
        runner.results["steps"][name] = {"status": status if ends else 0, "seconds": 1.0, "said": []}
        entry = {"p50": 1.0, "memory": None}
        sizes = {"first": {"entries": {"cuda": entry}, "failed": {}}} if ends else {}
        sizes |= {"second": {"entries": {} if ends else {"triton": entry}, "failed": {}}}
        return {"running": running if ends else None, "backends": {}, "ops": {"topk_similarity": sizes}}

    monkeypatch.setattr(runner, "measured", measured)
    gpu.measure(runner, "topk_similarity")
    assert len(asked) == times
    found = runner.results["ops"]["topk_similarity"]
    if times == 2:
        assert asked[1][asked[1].index("--without") + 1] == "cuda" and found["ended"] == "cuda"
        assert list(found["ops"]["topk_similarity"]["second"]["entries"]) == ["triton"]
    assert found["ops"]["topk_similarity"]["first"]["entries"]["cuda"]["p50"] == 1.0
    assert "topk_similarity: first" in gpu_table.table(runner.results)
    assert "left out" in gpu_steps.backends("truncated_svd", "cpu", without=["cpu"])["cpu"]


class Strange(Exception):
    """As Triton's errors, which are no RuntimeError."""


def test_an_entry_that_fails_costs_no_other(tmp_path, monkeypatch):
    """What is known is in the file when the next entry begins, and who is at work."""
    file = tmp_path / "found.json"
    found = gpu_steps.Found(file, "cpu", 60, [])
    seen = []

    def contest(kind, device):
        def broken():
            seen.append(json.loads(file.read_text()))
            raise Strange("no kernel image")

        return gpu_steps.harness.Contest(
            {"ofa-fast": lambda: 1, "broken": broken, "sound": lambda: 2}, lambda result: {}, 1.0, 1.0
        )

    module = argparse.Namespace(SMALL="small", SIZES={"small": {"kind": "any"}}, contest=contest)
    monkeypatch.setattr(gpu_steps.importlib, "import_module", lambda name: module)
    monkeypatch.setattr(gpu_steps, "OPS", ("truncated_svd",))
    monkeypatch.setattr(found, "device", "cuda")  # so that it asks for all peers
    monkeypatch.setattr(gpu_steps, "SIZES", {"truncated_svd": module.SIZES})
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(gpu_steps.torch.cuda, name, lambda: None)
    monkeypatch.setattr(gpu_steps.harness, "run", lambda contest, *_, **__: _ran(contest))
    gpu_steps.peers(found)
    result = json.loads(file.read_text())["ops"]["truncated_svd"]["small"]
    assert list(result["entries"]) == ["ofa-fast", "sound"] and result["failed"] == {
        "broken": "Strange: no kernel image"
    }
    assert seen[0]["running"] == "broken"
    assert found.known["running"] is None


def _ran(contest):
    for entry in contest.entries.values():
        entry()
    return {name: {"p50": 1.0, "errors": {}} for name in contest.entries}


def test_tests_are_recorded_as_they_come(tmp_path):
    """Also those that never end: the process is killed while the last one runs."""
    (tmp_path / "test_some.py").write_text(
        "import os, pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2, 'sums differ'\n"
        "@pytest.mark.skip(reason='not here')\ndef test_absent(): pass\n"
        "def test_end(): os._exit(9)\n"
    )
    command = gpu.python("benchmarks.gpu_tests", "--json", tmp_path / "tests.json", "test_some.py")
    assert subprocess.run(command, cwd=tmp_path, stdout=subprocess.DEVNULL).returncode == 9
    found = json.loads((tmp_path / "tests.json").read_text())
    assert found["passed"] == 1 and found["running"] == ["test_some.py::test_end"]
    assert (
        list(found["failed"]) == ["test_some.py::test_bad"]
        and "sums differ" in found["failed"]["test_some.py::test_bad"]
    )
    assert found["skipped"] == {"Skipped: not here": 1}
    text = gpu_table.table({"ops": {}, "peers": {}, "jobs": {}, "steps": {}, "tests": {"cuda": found}})
    assert "did not end: test_some.py::test_end" in text
    assert "failed: test_some.py::test_bad: AssertionError: sums differ" in text


def test_a_broken_gpu_ends_the_process(tmp_path):
    """As after an illegal access, when even waiting for the GPU fails: what failed is known, the rest is not asked."""
    (tmp_path / "conftest.py").write_text(
        "import torch\n"
        "broken = []\n"
        "torch.cuda.is_available = lambda: True\n"
        "def synchronize():\n"
        "    if broken: raise RuntimeError('CUDA error: an illegal memory access was encountered\\nmore')\n"
        "torch.cuda.synchronize = synchronize\n"
    )
    (tmp_path / "test_some.py").write_text(
        "import conftest\n"
        "def test_bad(): assert 1 == 2, 'sums differ'\n"
        "def test_good(): pass\n"
        "def test_end(): conftest.broken.append(1); assert 1 == 2, 'at last'\n"
        "def test_never(): assert False\n"
    )
    command = gpu.python("benchmarks.gpu_tests", "--json", tmp_path / "tests.json", "test_some.py")
    assert subprocess.run([*command, "--rootdir=."], cwd=tmp_path, stdout=subprocess.DEVNULL).returncode == 1
    found = json.loads((tmp_path / "tests.json").read_text())
    assert found["passed"] == 1 and not found["running"]
    assert list(found["failed"]) == ["test_some.py::test_bad", "test_some.py::test_end"]
    assert found["broken"] == {"test_some.py::test_end": "CUDA error: an illegal memory access was encountered"}
    text = gpu_table.table({"ops": {}, "peers": {}, "jobs": {}, "steps": {}, "tests": {"cuda": found}})
    assert "the GPU could no longer be used after test_some.py::test_end: CUDA error: an illegal memory" in text


def test_many_failures_leave_room_for_the_rest():
    """Of a remote machine's output the last 12,000 characters come back."""
    failed = {f"tests/ops/test_some.py::test_{i}[{'x' * 60}]": "E   " + "y" * 500 for i in range(400)}
    found = {"passed": 3, "failed": failed, "broken": {}, "skipped": {"why": 2}, "running": ["test_hangs"]}
    results = {"ops": {}, "peers": {}, "jobs": {}, "steps": {}, "tests": dict.fromkeys(("cuda", "triton"), found)}
    text = gpu_table.table(results)
    assert len(text) < 6000 and text.count("  failed: ") == 20
    assert text.count("tests, ") == 2 and "3 passed, 400 failed, 2 skipped" in text
    assert text.count("  and 391 more") == 2
    assert text.splitlines()[-1].endswith("memory"), "the table of the ops comes last"


def test_what_another_process_says_ends_no_process(monkeypatch):
    monkeypatch.setattr(gpu_tests.os, "_exit", lambda status: pytest.fail("ended"))
    report = argparse.Namespace(user_properties=[(gpu_tests.BROKEN, "why")], nodeid="test_end", node="another process")
    gpu_tests.pytest_runtest_logreport(report)


@pytest.mark.parametrize(
    ("line", "cuda"), [("cuda: Optional[str] = '13.0'", "13"), ("cuda = '12.8'", "12"), ("cuda = None", "")]
)
def test_peers_are_for_the_cuda_of_torch(monkeypatch, tmp_path, runner, line, cuda):
    (tmp_path / "version.py").write_text(f"__version__ = '2.13.0+cu130'\n{line}\nhip = '7.1'\n")
    spec = argparse.Namespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: spec)
    for peer in ("cuvs_cu12", "cuvs_cu13", "faiss_gpu_cu12", "liger_kernel"):
        (tmp_path / f"{peer}-1.0-py3-none-any.whl").touch()
    asked, runner.options.wheels = [], tmp_path
    monkeypatch.setattr(runner, "run", lambda name, *_, **__: asked.append(name))
    gpu.build(runner, "build")
    own = {"12": ["wheel faiss-gpu-cu12", "wheel cuvs-cu12"], "13": ["wheel cuvs-cu13"], "": []}
    assert asked == ["wheel liger-kernel", *own[cuda], "build"]


def test_why_a_peer_is_absent(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_steps, "LIBRARIES", {"no_such_module": "any", "json": "no_such_name", "math": "sin"})
    monkeypatch.setattr(gpu_steps, "OPS", ())
    found = gpu_steps.Found(tmp_path / "found.json", "cpu", 60, [])
    gpu_steps.peers(found)
    assert found.known["absent"] == {
        "no_such_module": "ModuleNotFoundError: No module named 'no_such_module'",
        "json": "AttributeError: module 'json' has no attribute 'no_such_name'",
    }
    results = {part: {} for part in ("ops", "peers", "jobs", "steps", "tests")}
    assert "no json: AttributeError" in gpu_table.table(results | found.known | {"ops": {}})


def test_a_commit_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert machine.commit() == "unknown"


@pytest.mark.parametrize("out", ["there", None])
def test_results_go_where_the_environment_says(monkeypatch, tmp_path, out):
    if out:
        monkeypatch.setenv("OUT", str(tmp_path / out))
    else:
        monkeypatch.delenv("OUT", raising=False)
    asked, results = [], {part: {} for part in ("steps", "tests", "ops", "peers", "jobs")}
    done = argparse.Namespace(results=results)
    monkeypatch.setattr(gpu, "Runner", lambda options, scratch: asked.append(options.json) or done)
    monkeypatch.setattr(gpu, "STEPS", {})
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert gpu.main() == 0
    assert asked == [(tmp_path / out if out else ROOT / "out") / "gpu.json"]


def test_bad_arguments(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--only", "build,nonsense"])
    with pytest.raises(SystemExit, match="2"):
        gpu.main()
    assert "'nonsense'" in capsys.readouterr().err
