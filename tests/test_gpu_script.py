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
        assert len(size["entries"]) == 2 and not size["refused_peers"]
    assert all("tokens_per_second" in results["jobs"]["training"][name] for name in ("stock", "ofa-fast"))
    assert results["jobs"]["initialization"]["seconds"]["all"] > 0
    assert all("forward" in times for times in results["jobs"]["tiles"].values())
    assert "truncated_svd: small" in said.stdout.rpartition("best peer")[2]


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
