"""The page of the study from its numbers: python examples/study_page.py out/study/study.json docs

Writes study.md and plots/study-*.svg; no number in it is typed by hand.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def write_page(numbers: Path, folder: Path) -> None:
    pass
