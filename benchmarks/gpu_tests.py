"""The tests of `benchmarks/gpu.py`: pytest, and what is known of them in a file after each, however they end.

  python -m benchmarks.gpu_tests --json FILE ARGUMENTS OF PYTEST

FILE has how many passed, why some were skipped, the end of each failure's text, and what was running when it was
written last: a test that hangs or ends the process is there. After an illegal access all that a process asks of the GPU
fails. Where a failed test left it so, `broken` says how, and the process ends: the rest would only fail along with it,
and of processes side by side a new one takes over.
"""

from __future__ import annotations

import collections
import json
import os
import sys
from pathlib import Path

import pytest
import torch

TEXT = 2000  # characters of a failure
BROKEN = "the GPU can no longer be used"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> None:
    if call.excinfo is None or not torch.cuda.is_available():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        item.user_properties.append((BROKEN, str(error).partition("\n")[0]))


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Ends this process, if the test ran in it, when its failure has been recorded or sent."""
    if BROKEN in dict(report.user_properties) and not hasattr(report, "node"):
        print(f"{report.nodeid}: {BROKEN}: {dict(report.user_properties)[BROKEN]}", flush=True)
        os._exit(1)


class Recorder:
    """A plugin of pytest; with processes side by side the one that leads them records."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known = {"passed": 0, "failed": {}, "broken": {}, "skipped": collections.Counter(), "running": []}
        self.write()

    def write(self) -> None:
        whole = self.file.with_suffix(".part")
        whole.write_text(json.dumps(self.known, indent=1) + "\n")
        whole.replace(self.file)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.known["running"].append(nodeid)
        self.write()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            before = self.known["failed"].get(report.nodeid, "")  # of a process that then ended
            self.known["failed"][report.nodeid] = (before + report.longreprtext)[-TEXT:]
            if BROKEN in (properties := dict(report.user_properties)):
                self.known["broken"][report.nodeid] = properties[BROKEN]
                self.pytest_runtest_logfinish(report.nodeid)  # which nobody else will say
        elif report.skipped:
            self.known["skipped"][str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else "expected"] += 1
        elif report.when == "call":
            self.known["passed"] += 1
        else:
            return
        self.write()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.known["failed"][report.nodeid] = report.longreprtext[-TEXT:]
            self.write()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if nodeid in self.known["running"]:
            self.known["running"].remove(nodeid)
            self.write()


def main() -> int:
    if sys.argv[1:2] != ["--json"] or len(sys.argv) < 4:
        raise SystemExit(__doc__)
    # by its name, so that processes side by side load it, too
    command = ["-v", "-p", "no:cacheprovider", "-p", "benchmarks.gpu_tests", *sys.argv[3:]]
    return pytest.main(command, plugins=[Recorder(Path(sys.argv[2]))])


if __name__ == "__main__":
    raise SystemExit(main())
