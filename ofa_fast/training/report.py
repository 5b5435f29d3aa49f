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
NAMED = 10  # languages in the legend of a plot
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
    """Loss, held-out perplexity by language and learning rate over the steps; nothing where matplotlib is missing."""
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ImportError:
        return
    heights = (3, 3, 1) if evaluations else (3, 1)
    figure = Figure(figsize=(9, 1.3 * sum(heights)), layout="constrained")
    losses, *middle, rates = figure.subplots(len(heights), sharex=True, height_ratios=heights)
    steps, values = [row["step"] for row in rows], [row["loss"] for row in rows]
    losses.plot(steps, values, color="tab:blue", alpha=0.3, linewidth=1, label="training, every step")
    if (width := len(rows) // 20) > 1:
        means = np.convolve(values, np.full(width, 1 / width), "valid")
        centres = steps[width // 2 :][: len(means)]
        losses.plot(centres, means, color="tab:blue", label=f"training, mean of {width} steps")
    for axes in middle:
        measured = [evaluation["step"] for evaluation in evaluations]
        losses.plot(measured, [e["loss"] for e in evaluations], "o-", color="tab:orange", label="held out")
        _plot_languages(axes, measured, [e["perplexities"] for e in evaluations], colormaps["tab10"])
        axes.set(ylabel="held-out perplexity", yscale="log")
    rates.plot(steps, [row["learning_rate"] for row in rows], color="tab:green")
    losses.set(ylabel="loss (nats a token)")
    losses.legend()
    rates.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    for axes in (losses, *middle, rates):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _plot_languages(axes, steps: list[int], perplexities: list[dict[str, float]], colors) -> None:
    """A line a language; beyond ``NAMED`` of them only the highest and the lowest have a name and a color."""
    last = perplexities[-1]
    falling = sorted(last, key=last.get, reverse=True)
    named = falling if len(last) <= NAMED else [*falling[: NAMED // 2], *falling[-NAMED // 2 :]]
    for language in falling:
        own = {"color": "lightgrey", "zorder": 1}
        if language in named:
            label = f"{language}  {last[language]:,.1f} at the end"
            own = {"color": colors(named.index(language)), "zorder": 2, "label": label}
        axes.plot(steps, [measured[language] for measured in perplexities], "o-", markersize=4, **own)
    title = None if named == falling else f"highest and lowest of {len(last)}"
    axes.legend(title=title, loc="center left", bbox_to_anchor=(1, 0.5))
