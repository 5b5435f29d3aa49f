"""The harness of the benchmarks: what it computes, when it refuses, and that the documentation is what it measured."""

from __future__ import annotations

import importlib
import json
import re
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))  # behind site-packages, where the compiled package is

from benchmarks import __main__ as command
from benchmarks import base, gpu_steps, harness, machine, report
from benchmarks.goals import GOALS

ROOT = Path(__file__).parents[1]


def contest(**entries):
    return harness.Contest(entries, errors=lambda result: {"off": float(result.sum())}, operations=10.0, traffic=20.0)


def rounds_of(*seconds, control=(1.0, 1.0)):
    now, then = seconds
    return {
        "now": now,
        "base": then,
        "now_control": [control[0]] * len(now),
        "base_control": [control[1]] * len(then),
    }


def test_quantiles():
    assert harness.quantiles([5.0, 1.0, 2.0, 3.0, 4.0, 6.0]) == {"p20": 2.0, "p50": 3.5, "p80": 5.0}
    assert harness.quantiles([7.0]) == {"p20": 7.0, "p50": 7.0, "p80": 7.0}
    assert harness.quantiles([1.0, 2.0]) == pytest.approx({"p20": 1.2, "p50": 1.5, "p80": 1.8})


def test_entries_take_turns():
    calls = []

    def entry(name):
        def call():
            calls.append(name)
            time.sleep(0.02)
            return torch.zeros(1)

        return call

    results = harness.run(contest(ours=entry("ours"), peer=entry("peer")), "cpu", rounds=3, seconds=10)
    assert calls[-12:] == ["ours", "ours", "peer", "peer"] * 3  # untimed, then timed
    assert [result["rounds"] for result in results.values()] == [3, 3]
    assert results["ours"]["operations_per_second"] == pytest.approx(10 / results["ours"]["p50"])
    assert results["peer"]["bytes_per_second"] == pytest.approx(20 / results["peer"]["p50"])
    assert results["ours"]["errors"] == {"off": 0.0}


def test_a_slow_entry_is_called_once(monkeypatch):
    calls = []

    def slow():
        calls.append(1)
        time.sleep(0.05)
        return torch.zeros(1)

    (result,) = harness.run(contest(slow=slow), "cpu", rounds=5, seconds=0.02).values()
    assert result["rounds"] == 1

    calls.clear()
    monkeypatch.setattr(harness, "SLOW", 0.02)
    (result,) = harness.run(contest(slow=slow), "cpu", rounds=5, seconds=10).values()
    assert len(calls) == result["rounds"] == 1
    assert result["p20"] == result["p50"] == result["p80"] >= 0.05
    monkeypatch.undo()

    (result,) = harness.run(contest(**{harness.OURS: slow}), "cpu", rounds=9, seconds=0.02).values()
    assert result["rounds"] == harness.LEAST


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
def test_memory_is_counted_beyond_the_result():
    def entry():
        scratch = torch.ones(16 << 20)  # 64 MiB
        return (scratch + 1)[: 1 << 20].clone(), torch.ones(8 << 20)  # 64 MiB more, and results of 4 + 32 MiB

    measured = harness.Contest({"ours": entry}, errors=lambda result: {}, operations=1.0, traffic=1.0)
    (result,) = harness.run(measured, "cpu", rounds=1, seconds=10).values()
    assert 90 * 2**20 < result["memory"] < 140 * 2**20


@pytest.mark.parametrize(
    ("now", "then", "control", "expected"),
    [
        ([1.05] * 5, [1.0] * 5, (1, 1), "same"),
        ([1.20] * 5, [1.0] * 5, (1, 1), "slower"),
        ([0.80] * 5, [1.0] * 5, (1, 1), "faster"),
        ([1.0, 1.05, 1.2, 1.35, 1.4], [1.0] * 5, (1, 1), "same"),  # 20 % off, but a spread of 25 %
        ([1.20] * 5, [1.0] * 5, (1.2, 1), "unsteady"),
    ],
)
def test_verdict(now, then, control, expected):
    result = base.verdict(rounds_of(now, then, control=control))
    assert result["verdict"] == expected
    assert result["drift"] == control[0] / control[1]


def test_the_base_must_be_a_commit():
    with pytest.raises(ValueError, match="--base no-such-commit"), base.installed("no-such-commit"):
        pass


def test_two_workers_take_turns():
    size = "small: 512 ids, V 5k, R 32, D 64"
    setup = {"op": "factorized_embedding", "size": size, "device": "cpu", "threads": 1, "folders": []}
    with base.worker() as now, base.worker() as then:
        result = base.compare(now, then, setup, rounds=2, seconds=10)
        refused = base.compare(now, then, setup | {"size": "no such size"}, rounds=2, seconds=10)
    assert result["rounds"] == 2 and result["ratio"] > 0
    assert "no such size" in refused["refused"] and "no such size" in base.row(refused)


def test_no_speed_where_the_tests_fail(monkeypatch, capsys):
    monkeypatch.setattr(machine, "tests_pass", lambda op: False)
    monkeypatch.setattr(harness, "run", lambda *_: pytest.fail("measured nevertheless"))
    assert command.main(["factorized_embedding", "--small"]) == 1
    assert "its tests fail" in capsys.readouterr().err


def test_failing_tests_are_noticed(monkeypatch, tmp_path):
    (tmp_path / "tests" / "ops").mkdir(parents=True)
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    (tmp_path / "tests" / "ops" / "test_op.py").write_text("def test():\n    assert False\n")
    assert not machine.tests_pass("op")
    (tmp_path / "tests" / "ops" / "test_op.py").write_text("def test():\n    pass\n")
    assert machine.tests_pass("op")


def test_bad_arguments(capsys):
    for arguments, message in [(["nonsense"], "unknown op 'nonsense'"), (["--base", "HEAD", "--json"], "needs a FILE")]:
        with pytest.raises(SystemExit, match="2"):
            command.main(arguments)
        assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device(capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(["--device", "cuda"])
    assert "no CUDA device" in capsys.readouterr().err


def test_results_are_added_to_those_of_the_same_machine(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(machine, "tests_pass", lambda op: True)
    monkeypatch.setattr(machine, "roofs", lambda device: dict.fromkeys(report.ROOFS, 1e9))
    file = tmp_path / "results.json"
    for op in ("factorized_embedding", "topk_similarity"):
        assert command.main([op, "--small", "--rounds", "1", "--seconds", "0", "--json", str(file)]) == 0
    stored = json.loads(file.read_text())
    assert list(stored["ops"]) == ["topk_similarity", "factorized_embedding"]
    assert command.stored(file, stored["machine"]) == stored
    assert command.stored(file, stored["machine"] | {"threads": 99})["ops"] == {}
    assert "torch matmul + topk" in capsys.readouterr().out


def test_machine_names():
    described = {"cpu": "Intel(R) Xeon(R) CPU @ 2.20GHz", "cores": 8, "gpu": None}
    assert machine.slug(described) == "intel-xeon-2-20ghz-8-cores"
    assert machine.slug(described | {"gpu": "NVIDIA H200"}) == "nvidia-h200"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(37.04, "37.0 s"), (1.0, "1.00 s"), (0.4512, "451 ms"), (2.9e-4, "290 µs"), (2e-7, "0.20 µs")],
)
def test_durations(seconds, words):
    assert report.duration(seconds) == words


def entry(seconds, memory=2**20):
    rates = {"operations_per_second": 1e9 / seconds, "bytes_per_second": 1e9 / seconds}
    quantiles = {"p20": seconds, "p50": seconds, "p80": seconds, "rounds": 1}
    return {"memory": memory, "errors": {"missed": 0.0}} | quantiles | rates


def test_report(tmp_path):
    from benchmarks import topk_similarity as topk

    entries = {harness.OURS: entry(0.5), topk.TORCH: entry(2.0), topk.FAISS: entry(10.0)}
    measured = {"date": "2026", "commit": "abc", "roofs": dict.fromkeys(report.ROOFS, 1e9), "entries": entries}
    described = {"cpu": "Ours", "cores": 2, "gpu": None, "flags": [], "threads": 2, "isa": "amx", "python": "3"}
    results = {"machine": described | {"versions": {}}, "ops": {"topk_similarity": {topk.CLUSTERED: measured}}}
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "ours.json").write_text(json.dumps(results))
    (tmp_path / "README.md").write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")

    files = report.generated(folder, tmp_path)
    assert set(files) == {
        tmp_path / name for name in ("README.md", "docs/benchmarks.md", "docs/plots/ours-topk_similarity.svg")
    }
    readme = files[tmp_path / "README.md"]
    assert readme.startswith("before\n") and readme.endswith("after\n") and "old" not in readme
    assert "torch matmul + topk, blocks **4.0** · faiss IndexFlatIP **20.0**" in readme
    page = files[tmp_path / "docs/benchmarks.md"]
    assert f"| times as fast as {topk.FAISS} | ≥ 12.0× | 20.0× | yes |" in page
    assert f"| times as fast as {topk.TORCH} | ≥ 6.0× | 4.0× | **no** |" in page
    plot = files[tmp_path / "docs/plots/ours-topk_similarity.svg"]
    assert "20.0× · 10.0 s" in plot and "4.00× · 2.00 s" in plot
    assert len(set(re.findall(r'<rect x="([\d.]+)"', plot))) == 1, "slower peers' bars start at 1"


def test_goals_are_a_devices():
    """A GPU is not judged by what a CPU is meant to reach."""
    from benchmarks import topk_similarity as topk

    measured = {
        "entries": {harness.OURS: entry(0.5), topk.TORCH: entry(2.0)},
        "roofs": dict.fromkeys(report.ROOFS, 1e9),
    }
    assert len(report.goal_table("topk_similarity", {topk.CLUSTERED: measured}, "cpu")) > 3
    assert report.goal_table("topk_similarity", {topk.CLUSTERED: measured}, "cuda") == []


def test_report_of_a_gpu(tmp_path):
    """What benchmarks/gpu.py wrote, also where the GPU could not be described."""
    size, readme = "8,192 x 250,002 x 200, k = 10", f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    own = {"entries": {"cuda": entry(0.01), "triton": entry(0.02)}, "failed": {}}
    beside = {"beside": 0.02}  # longer than alone
    peers = {name: entry(spent) | beside for name, spent in (("faiss knn_gpu", 0.05), ("cuVS brute force", 0.04))}
    peers = {"entries": peers | {harness.OURS: entry(0.02)}, "failed": {}}
    ops = {"topk_similarity": {"backends": {}, "ops": {"topk_similarity": {size: own}}}, "truncated_svd": {}}
    results = {"steps": {}, "tests": {}, "ops": ops, "peers": {"topk_similarity": {size: peers}}, "jobs": {}}
    described = {"cpu": "x", "cores": 2, "gpu": "NVIDIA H100", "flags": [], "threads": 2, "isa": "amx", "python": "3"}
    (tmp_path / "README.md").write_text(readme)
    (tmp_path / "results").mkdir()
    for machine_known in ({}, {"machine": described | {"versions": {"cuda": "13.0"}}, "commit": "abc"}):
        (tmp_path / "results" / "gpu.json").write_text(json.dumps(results | machine_known))
        files = report.generated(tmp_path / "results", tmp_path)
        assert set(files) == {tmp_path / "README.md", tmp_path / "docs" / "benchmarks.md"}
        page = files[tmp_path / "docs/benchmarks.md"]
        theirs = "cuVS brute force 40.0 ms, **2.0** · faiss knn_gpu 50.0 ms, **2.5**"
        assert f"| `topk_similarity`, {size} | 10.0 ms | cuda | 1 MiB | {theirs} |" in page
        assert f"| `topk_similarity`, {size} | 20.0 ms | triton | 1 MiB |  |" in page
    assert "## NVIDIA H100, by" in page and "Commit abc" in page and "cuda 13.0" in page


def test_readme_without_markers(tmp_path):
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(ValueError, match=r"README\.md must hold"):
        report.generated(tmp_path, tmp_path)


def test_documentation_is_what_was_measured():
    """`python -m benchmarks report` would change nothing."""
    stale = [
        str(f) for f, text in report.generated().items() if not f.exists() or f.read_text(encoding="utf-8") != text
    ]
    plots = {plot for plot in (ROOT / "docs" / "plots").glob("*.svg") if not plot.name.startswith("study-")}
    plots -= set(report.generated())
    assert (stale, plots) == ([], set())


def test_goals_name_sizes_and_entries():
    for goal in GOALS:
        module = importlib.import_module(f"benchmarks.{goal.op}")
        assert set(goal.sizes) <= set(module.SIZES)


@pytest.mark.parametrize("op", command.OPS)
def test_every_op_has_a_small_size(op):
    module = importlib.import_module(f"benchmarks.{op}")
    assert module.SMALL in module.SIZES and module.SMALL.startswith("small")
    contest = module.contest(**module.SIZES[module.SMALL])
    assert next(iter(contest.entries)) == harness.OURS
    assert max(contest.errors(contest.entries[harness.OURS]()).values()) < 1e-5


@pytest.mark.parametrize("op", gpu_steps.BACKWARD)
def test_entries_of_a_backward_pass_agree(op):
    module = importlib.import_module(f"benchmarks.{op}")
    contest = module.contest(**module.SIZES[module.SMALL], backward=True)
    for entry in contest.entries.values():
        assert max(contest.errors(entry()).values()) < 1e-5
