"""One process that times our op when it is told to, with the package installed or with that in the folder given.

python benchmarks/worker.py [FOLDER]   reads a JSON object a line and answers each with one; see benchmarks/base.py
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path


def main(folder: str | None) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print is no answer
    sys.path[0] = str(Path(__file__).parent.parent)
    if folder:
        sys.path.insert(0, folder)
        # an editable install of the present sources would come before any path
        sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]

    import torch

    import ofa_fast
    from benchmarks import harness

    if folder and not Path(ofa_fast.__file__).is_relative_to(folder):
        raise SystemExit(f"imported {ofa_fast.__file__}, not the package in {folder}")

    entry = device = None
    control = torch.randn(1024, 1024)
    for line in sys.stdin:
        message = json.loads(line)
        try:
            if "op" in message:
                device, entry = message["device"], None  # the last size's memory is free before the next is made
                torch.set_num_threads(message["threads"])
                module = importlib.import_module(f"benchmarks.{message['op']}")
                folders = [Path(path) for path in message["folders"]]
                size = module.SIZES[message["size"]]
                entry = module.contest(**size, device=device, folders=folders).entries[harness.OURS]
                entry()
                answer = {"calls": harness.calls_a_sample(entry, device, 5 * harness.SAMPLE)}
            else:
                answer = {
                    "seconds": harness.timed(entry, device, message["calls"])[0],
                    "control": harness.timed(lambda: control @ control, "cpu", 4)[0],
                }
        except Exception as error:
            answer = {"refused": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
