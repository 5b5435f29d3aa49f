"""What a test runs in two processes: ``torchrun … two_processes.py JOBS``, with a JSON list of jobs for ``train``.

A job's ``stop_at`` ends it with SIGTERM in that step and resumes it; ``kill_at`` kills the second process there.
"""

from __future__ import annotations

import json
import os
import signal
import sys

from ofa_fast.training import train
from ofa_fast.training.trainer import LanguageModelTrainer

step = LanguageModelTrainer.training_step


def run(kill_at=None, stop_at=None, **arguments):
    def interrupted(self, *inputs):
        now = self.state.global_step + 1
        if now == kill_at and self.args.process_index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if now == stop_at and self.args.process_index == 1 and not arguments.get("resume"):
            signal.raise_signal(signal.SIGTERM)
        return step(self, *inputs)

    LanguageModelTrainer.training_step = interrupted
    try:
        train(**arguments)
    except SystemExit as exit:
        assert stop_at and exit.code == 128 + signal.SIGTERM, exit.code
        arguments["resume"] = True
        train(**arguments)


for job in json.loads(sys.argv[1]):
    run(**job)
