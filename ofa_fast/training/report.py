"""What a training run leaves behind to be read: training.json and loss.png."""

from __future__ import annotations

import platform
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

import ofa_fast
from ofa_fast.training.data import quotas

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ofa_fast.training.packing import Sequences

CURVE_POINTS = 200
EVALUATED = ("loss", "perplexity", "losses", "perplexities")


def text_statistics(sequences: Sequences, temperature: float) -> dict[str, dict]:
    """Of each language: its sequences, its tokens, and its share of the sequences that are drawn at ``temperature``."""
    names, codes = sequences.languages, sequences.rows["language"]
    counts = np.bincount(codes, minlength=len(names))
    tokens = np.bincount(codes, sequences.rows["length"], minlength=len(names))
    shares = quotas(counts, temperature) / len(sequences)
    return {
        name: {"sequences": int(counts[i]), "tokens": int(tokens[i]), "share": float(shares[i])}
        for i, name in enumerate(names)
    }


def curve(rows: list[dict]) -> list[dict]:
    """At most ``CURVE_POINTS`` means of consecutive steps; losses.csv has every step."""
    groups = np.array_split(np.arange(len(rows)), min(CURVE_POINTS, len(rows)))
    return [
        {"step": rows[group[-1]]["step"], "loss": float(np.mean([rows[i]["loss"] for i in group]))} for group in groups
    ]


def losses(rows: list[dict], log_history: list[dict]) -> dict:
    last = rows[-1]
    return {
        "final_loss": float(np.mean([row["loss"] for row in rows[-max(1, len(rows) // 20) :]])),
        "losses": curve(rows),
        "evaluations": [
            {"step": log["step"], **{name: log[f"eval_{name}"] for name in EVALUATED}}
            for log in log_history
            if "eval_loss" in log
        ],
        "tokens": last["tokens"],
        "seconds": last["seconds"],
        "tokens_per_second": last["tokens"] / last["seconds"],
    }


def parameters(model: PreTrainedModel) -> dict[str, int]:
    table = model.get_input_embeddings()
    return {
        "total": sum(p.numel() for p in model.parameters()),
        "table": sum(p.numel() for p in table.parameters()),
        "dense_table": table.num_embeddings * table.embedding_dim,
    }


def machine(device: torch.device) -> dict:
    import transformers

    gpu = device.type == "cuda"
    return {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": torch.cuda.get_device_name(device) if gpu else platform.machine() + " CPU",
        "threads": torch.get_num_threads(),
        # Linux counts the peak resident set in KiB.
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device)
        if gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "versions": {
            "ofa-fast": ofa_fast.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


def plot(rows: list[dict], evaluations: list[dict], path: Path) -> None:
    """The loss over the steps; nothing where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    axes = (figure := Figure(figsize=(7, 4), layout="constrained")).subplots()
    axes.plot([r["step"] for r in rows], [r["loss"] for r in rows], color="tab:blue", alpha=0.3, linewidth=1)
    means = curve(rows)
    axes.plot([p["step"] for p in means], [p["loss"] for p in means], color="tab:blue", label="training")
    if evaluations:
        axes.plot(
            [e["step"] for e in evaluations],
            [e["loss"] for e in evaluations],
            "o-",
            color="tab:orange",
            label="held out",
        )
    axes.set(xlabel="step", ylabel="loss (nats a token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
