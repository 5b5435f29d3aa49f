"""Train on a corpus of many gigabytes, and watch the memory: ``python tests/training/large_corpus.py [GIGABYTES]``.

The corpus is the verses of examples/data/bible, repeated, in plain text and, with their language, in .jsonl. The
tokenizer is that of a model folder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from ofa_fast import build_model

BIBLE = Path(__file__).parents[2] / "examples" / "data" / "bible"
SECONDS = 0.5


def corpus(folder: Path, size: int) -> list[str]:
    """Arguments for ``--train-file``: two files of together ``size`` bytes."""
    verses = [(path.stem, line) for path in sorted(BIBLE.glob("*.txt")) for line in path.read_text("utf-8").split("\n")]
    plain = "".join(f"{line}\n" for _, line in verses if line).encode()
    rows = "".join(json.dumps({"text": line, "language": own}) + "\n" for own, line in verses if line).encode()
    for name, content in (("all.txt", plain), ("rows.jsonl", rows)):
        with open(folder / name, "wb") as file:
            for _ in range(max(1, size // 2 // len(content))):
                file.write(content)
    return [str(folder / "all.txt"), str(folder / "rows.jsonl")]


def private(process: int) -> int:
    """Bytes of memory that no file stands behind."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines[1:]}
    return sizes["Private_Clean"] + sizes["Private_Dirty"] - sizes.get("Private_Hugetlb", 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gigabytes", type=float, nargs="?", default=2.0)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
        sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
        dense = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **sizes))
        table = SimpleNamespace(coordinates=torch.randn(len(tokenizer), 16), basis=torch.randn(16, 64) / 100, bias=None)
        build_model(dense, table, tokenizer).save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        files = corpus(folder, int(args.gigabytes * 1e9))
        size = sum(Path(file).stat().st_size for file in files)
        command = ["train", str(folder / "model"), "--out", str(folder / "out"), "--steps", str(args.steps)]
        command += ["--batch-size", "4", "--save-steps", "50", "--train-file", *files]
        process = subprocess.Popen([sys.executable, "-m", "ofa_fast.cli", *command])
        samples: dict[str, list[int]] = {}
        data = folder / "out.checkpoints" / "data"
        while process.poll() is None:
            written = sum(file.stat().st_size for file in data.glob(".*/tokens.bin"))
            phase = f"{written / 1e9:6.1f} GB of tokens written" if written else "before or in training"
            with suppress(OSError):  # it has just ended
                samples.setdefault(phase, []).append(private(process.pid) // 2**20)
            time.sleep(SECONDS)
        if process.wait():
            sys.exit("training failed")
        report = json.loads((folder / "out" / "training.json").read_text())
    tokens, seconds = sum(part["tokens"] for part in report["data"].values()), report["tokenising_seconds"]
    print(f"{size / 1e9:.2f} GB, {tokens / 1e6:,.0f} M tokens in {len(report['data'])} languages")
    print(
        f"tokenised and packed in {seconds:.0f} s: {size / seconds / 1e6:.1f} MB/s, {tokens / seconds / 1e6:.2f} M/s; "
        f"{args.steps} steps in {report['seconds']:.0f} s"
    )
    print("private memory, MiB:")
    for phase, own in samples.items():
        print(f"  {phase:30} {min(own):5} to {max(own):5}")


if __name__ == "__main__":
    main()
