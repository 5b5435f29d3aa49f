"""The tests of `benchmarks/gpu.py`: pytest, and what is known of them in a file after each, however they end.

  python -m benchmarks.gpu_tests --json FILE ARGUMENTS OF PYTEST

FILE has how many passed, why some were skipped, the end of each failure's text, and what was running when it was
written last: a test that hangs or ends the process is there.
"""

from __future__ import annotations

import collections
import json
import sys
from pathlib import Path

import pytest

TEXT = 2000  # characters of a failure


class Recorder:
    """A plugin of pytest; with processes side by side the one that leads them records."""

    def __init__(self, file: Path) -> None:
        self.file, self.known = file, {"passed": 0, "failed": {}, "skipped": collections.Counter(), "running": []}
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
            self.known["failed"][report.nodeid] = report.longreprtext[-TEXT:]
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
    return pytest.main(["-v", "-p", "no:cacheprovider", *sys.argv[3:]], plugins=[Recorder(Path(sys.argv[2]))])


if __name__ == "__main__":
    raise SystemExit(main())
