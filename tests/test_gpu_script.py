"""benchmarks/gpu.py: every step runs on a CPU, what fails is reported, and the rest goes on."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OWN = {"ofa-fast", "ofa-fast on reference"}
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # behind site-packages, where the compiled package is

gpu, gpu_steps = (importlib.import_module(f"benchmarks.{name}") for name in ("gpu", "gpu_steps"))


def test_every_step(tmp_path):
    pytest.importorskip("triton")
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--dry-run", "--json", tmp_path / "gpu.json"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert said.returncode == 0, said.stdout[-4000:] + said.stderr[-2000:]
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert {done["status"] for done in results["steps"].values()} == {0}
    assert set(gpu.STEPS) - {"tests"} <= set(results["steps"])
    assert {"machine", "commit"} <= set(results)
    for op in gpu.OPS:
        (size,) = results["ops"][op]["sizes"].values()
        assert len(size["entries"]) == 3 and not size["refused_peers"]
        assert set(size["entries"]) > OWN
        assert results["ops"][op]["backend"] == "cpu"
    (search,) = results["ops"]["topk_similarity"]["sizes"].values()
    assert all(set(search["entries"][name]["report"]) == {"undecided", "rescored"} for name in OWN)
    assert all("tokens_per_second" in results["jobs"]["training"][name] for name in ("stock", "ofa-fast"))
    assert results["jobs"]["initialization"]["seconds"]["all"] > 0
    assert all("forward" in times for times in results["jobs"]["tiles"].values())
    table = said.stdout.rpartition("best peer")[2]
    assert "truncated_svd: small" in table and "on cpu" in table and "x the time, {'undecided': 0" in table


@pytest.fixture
def runner(tmp_path):
    return gpu.Runner(argparse.Namespace(json=tmp_path / "out" / "gpu.json", minutes=1.0, only=None, dry_run=True))


def test_what_fails_is_reported(runner):
    begin = time.monotonic()
    assert not runner.run("fails", [sys.executable, "-c", "print('why'); raise SystemExit(3)"])
    assert not runner.run("absent", ["no-such-program"])
    assert not runner.run("hangs", ["sh", "-c", "echo begun; sleep 60 & sleep 60"], 0.5 + 3)
    assert time.monotonic() - begin < 30
    written = "import sys, pathlib; pathlib.Path(sys.argv[2]).write_text('{\"a\": 1}'); raise SystemExit(1)"
    assert runner.measured("partial", [sys.executable, "-c", written], 20) == {"a": 1}
    assert runner.measured("nothing", [sys.executable, "-c", "raise SystemExit(1)"], 20) == {}
    steps = json.loads(runner.options.json.read_text())["steps"]
    assert (steps["fails"]["status"], steps["fails"]["said"]) == (3, ["why"])
    assert "no-such-program" in steps["absent"]["status"]
    assert (steps["hangs"]["status"], steps["hangs"]["said"]) == ("not finished", ["begun"])
    runner.end = time.monotonic()
    assert not runner.run("late", ["true"])
    assert runner.results["steps"]["late"]["status"] == "no time left"
    assert "hangs: not finished" in gpu.table(runner.results)


def test_a_backend_that_ends_the_process_is_left_out(runner, monkeypatch):
    asked = []

    def measured(name, command, seconds, **environment):
        asked.append(command)
        ends = "--without" not in command
        runner.results["steps"][name] = {"status": -11 if ends else 0, "seconds": 1.0, "said": []}
        small = {"refused": "illegal memory access"} if ends else {"entries": {}}
        return {"backend": "cuda" if ends else "triton", "sizes": {"small": small}}

    monkeypatch.setattr(runner, "measured", measured)
    gpu.measure(runner, "topk_similarity")
    assert len(asked) == 2 and asked[1][-2:] == ["--without", "cuda"]
    assert runner.results["ops"]["topk_similarity"]["backend"] == "triton"
    assert runner.results["steps"]["topk_similarity on cuda"]["status"] == -11

    assert gpu.broken({}, "certified") == gpu.broken({"many, clustered, cuda": {}}, "certified") == "cuda"
    assert gpu.broken({"many, clustered, cuda": {}, "many, clustered, triton": {}}, "certified") is None
    refusals = gpu_steps.backends("truncated_svd", "cpu", without="cpu")
    assert list(refusals) == ["reference", "cpu"] and "left out" in refusals["cpu"]


def test_a_peer_that_fails_leaves_the_contest():
    def broken():
        raise RuntimeError("no kernel image")

    entries = {"ofa-fast": lambda: 1, "peer": lambda: 2, "broken": broken}
    contest = gpu_steps.harness.Contest(entries, errors=None, operations=1.0, traffic=1.0, prepared=("broken", "peer"))
    assert gpu_steps.usable(contest, 99) == {"broken": "RuntimeError: no kernel image"}
    assert list(contest.entries) == ["ofa-fast", "peer"] and contest.prepared == ("peer",)


def test_bad_arguments(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--only", "build,nonsense"])
    with pytest.raises(SystemExit, match="2"):
        gpu.main()
    assert "'nonsense'" in capsys.readouterr().err
