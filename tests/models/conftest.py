import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `tiny_models`, under --import-mode=importlib

from tiny_models import TEXT, train_tokenizer


@pytest.fixture(scope="session")
def tokenizers():
    return {"bert": train_tokenizer("bert"), "roberta": train_tokenizer("roberta")}


@pytest.fixture(scope="session")
def verses() -> list[str]:
    return (TEXT / "eng.txt").read_text(encoding="utf-8").splitlines()[200:264]
