"""The modules in four trainers: the scripts in examples/ give the losses of plain torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
STEPS = 6
# One process of a group of one, on the CPU: what `torchrun` tells DeepSpeed.
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


def losses(trainer: str, **environment: str) -> list[float]:
    code = f"import json, {trainer}; print(json.dumps({trainer}.main({STEPS})))"
    environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=EXAMPLES, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def plain() -> list[float]:
    return losses("trainer_torch")


def test_plain_torch_learns(plain):
    assert len(plain) == STEPS and plain[-1] < plain[0] - 0.1


@pytest.mark.parametrize("trainer", ["accelerate", "lightning", "deepspeed"])
def test_others_give_the_losses_of_plain_torch(trainer, plain):
    if find_spec(trainer) is None:
        pytest.skip(f"{trainer} is not installed")
    environment = ALONE if trainer == "deepspeed" else {}
    assert losses(f"trainer_{trainer}", **environment) == pytest.approx(plain, abs=1e-4)
