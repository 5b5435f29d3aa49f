"""What `benchmarks/gpu.py` found, as text."""

from __future__ import annotations

from benchmarks.harness import OURS

MOST_TESTS = 10  # that failed, and whose errors are shown


def table(results: dict) -> str:
    """What matters most comes last: where output is cut, its end is what is left."""
    parts = (_steps, _tests, _jobs, _searches, _backends, _ops)
    return "\n".join(line for part in parts for line in part(results))


def tests_and_jobs(results: dict) -> list[str]:
    return [line for part in (_tests, _jobs) for line in part(results)]


def _ops(results: dict) -> list[str]:
    """Ours on the backend that is taken by itself, and the fastest of all others."""
    lines = [f"{'':72} {'ours':>11} {'on':>9} {'best peer':>11} {'ratio':>7} {'memory':>9}"]
    for op, measured in results["ops"].items():
        alone, turns = measured.get("ops", {}).get(op, {}), results["peers"].get(op, {})
        for size in {**alone, **turns}:
            peers = turns.get(size, {}).get("entries", {})
            in_turns = {"entries": {"in turns": peers[OURS]} if OURS in peers else {}, "failed": {}}
            result = alone.get(size, in_turns)
            name, backend = f"{op}: {size}"[:72], next(iter(result["entries"]), None)
            if backend is None:
                lines.append(f"{name:72} {'; '.join(result['failed'].values())[:60]}")
                continue
            own = result["entries"][backend]
            best = f"{'none':>11} {'':>7}"
            if others := [(peer["p50"], peer["beside"]) for other, peer in peers.items() if other != OURS]:
                least, beside = min(others)
                best = f"{1e3 * least:9.3f}ms {least / beside:6.2f}x"
            memory = "" if own["memory"] is None else f"{own['memory'] / 2**20:.0f}MiB"
            lines.append(f"{name:72} {1e3 * own['p50']:9.3f}ms {backend:>9} {best} {memory:>9}")
    return lines


def _backends(results: dict) -> list[str]:
    """For each op, size and backend that is not taken by itself: which one should be. And what failed."""
    lines = [f"no {peer}: {why}" for peer, why in results.get("absent", {}).items()]
    for op, measured in results["ops"].items():
        for name, refusal in measured.get("backends", {}).items():
            if refusal is not None:
                lines.append(f"{op} on {name}: {refusal}")
        for size, result in measured.get("ops", {}).get(op, {}).items():
            lines += [f"{op}, {size}: {name} failed: {why}" for name, why in result["failed"].items()]
            (default, own), *others = result["entries"].items() or (("", {}),)
            for name, entry in others:
                times = f"{1e3 * own['p50']:.3f} ms, on {name} {1e3 * entry['p50']:.3f} ms"
                said = f", {own['report']} and {entry['report']}" if "report" in entry else ""
                lines.append(f"{op}, {size}: on {default} {times}, {entry['p50'] / own['p50']:.2f}x the time{said}")
    for op, sizes in results["peers"].items():
        for size, result in sizes.items():
            lines += [f"{op}, {size}: {name} failed: {why}" for name, why in result["failed"].items()]
    return lines


def _searches(results: dict) -> list[str]:
    searches = results["jobs"].get("certified", {}).get("searches", {})
    return [
        f"the CPU's results, {name}: {found['same_scores'] and found['same_indices']}; "
        f"undecided {found['undecided']}, rescored {found['rescored']}"
        for name, found in searches.items()
    ]


def _jobs(results: dict) -> list[str]:
    lines = []
    for run, seconds in results["jobs"].get("initialization", {}).get("seconds", {}).items():
        lines.append(f"initialization, {run}: " + ", ".join(f"{name} {spent:.2f} s" for name, spent in seconds.items()))
    for name, result in results["jobs"].get("training", {}).items():
        if name == "ratio":
            lines.append(f"training, tokens a second: {result:.2f}x the stock model's")
        elif "refused" in result:
            lines.append(f"training, {name}: {result['refused']}")
        else:
            lines.append(f"training, {name}: {result['tokens_per_second']:,.0f} tokens/s, batch {result['batch']}")
    return lines


def _tests(results: dict) -> list[str]:
    lines = []
    for name, found in results["tests"].items():
        if not found:
            continue
        skipped = sum(found["skipped"].values())
        lines.append(f"tests, {name}: {found['passed']} passed, {len(found['failed'])} failed, {skipped} skipped")
        wrong = []
        for test, text in found["failed"].items():
            said = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]  # as pytest marks errors
            said = said or text.splitlines()[-1:]  # of a process that ended
            wrong.append(f"  failed: {test}: {said[0] if said else ''}"[:200])
        wrong += [f"  did not end: {test}"[:200] for test in found["running"]]
        lines += wrong[:MOST_TESTS]
        if len(wrong) > MOST_TESTS:
            lines.append(f"  and {len(wrong) - MOST_TESTS} more, all of them in the JSON")
        for kernel, count in sorted(found.get("reports", {}).items(), key=lambda item: -item[1])[:MOST_TESTS]:
            lines.append(f"  compute-sanitizer reports {kernel} {count} times"[:200])
        for test, why in found["broken"].items():
            lines.append(f"  the GPU could no longer be used after {test}: {why}"[:200])
    return lines


def _steps(results: dict) -> list[str]:
    return [f"{name}: {done['status']} in {done['seconds']} s" for name, done in results["steps"].items()]
