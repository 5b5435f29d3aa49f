"""The arguments of a training run: presets, checks, and the transformers arguments that follow from them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

# Published recipes, as far as they do not depend on the model and its text.
PRESETS = {
    # Liu et al. 2024, arXiv 2311.08849: 384 sequences of 512 tokens, fp16, AdamW; 12 sequences a GPU in its scripts.
    "ofa": {
        "learning_rate": 5e-5,
        "schedule": "linear",
        "batch_size": 12,
        "effective_batch_size": 384,
        "max_length": 512,
        "mlm_probability": 0.15,
        "precision": "float16",
    },
    # Özeren, Liu & Schütze 2025, arXiv 2504.21018: 4,000 steps of 512 sequences. Sequences a GPU and fp16 are those of
    # its scripts, which leave the learning rate, its schedule, the length and the masking to the defaults of OFA's.
    "hyperofa": {
        "learning_rate": 5e-5,
        "schedule": "linear",
        "batch_size": 32,
        "effective_batch_size": 512,
        "max_length": 512,
        "mlm_probability": 0.15,
        "precision": "float16",
        "steps": 4000,
        "save_steps": 1000,
    },
}
# An argument that is given takes the place of what a preset says of another one.
REPLACES = {"epochs": "steps", "gradient_accumulation_steps": "effective_batch_size"}

PRECISIONS = {"float32": {}, "bfloat16": {"bf16": True}, "float16": {"fp16": True}}
FREEZE = ("none", "table", "body", "copied")

# What decides the loss curve: a run is resumed with the same values.
DECISIVE = (
    "batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "schedule",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "temperature",
    "mlm_probability",
    "whole_words",
    "seed",
    "precision",
    "fsdp",
    "freeze",
    "freeze_steps",
)
COUNTS = (
    "steps",
    "batch_size",
    "gradient_accumulation_steps",
    "effective_batch_size",
    "max_length",
    "save_steps",
    "keep_checkpoints",
    "eval_steps",
    "log_steps",
    "freeze_steps",
)
CHOICES = {
    "precision": tuple(PRECISIONS),
    "freeze": FREEZE,
    "documents": (None, "apart", "joined"),
    "energy_of": ("machine", "process"),
    "device": (None, "cpu"),
}


def with_preset(name: str, given: dict) -> dict:
    """The arguments of a preset, with those that are ``given`` in place of its own."""
    replaced = {REPLACES.get(argument) for argument in given}
    return {argument: value for argument, value in PRESETS[name].items() if argument not in replaced} | given


def check(arguments: dict) -> None:
    """
    Raises:
        ValueError: an argument is out of range, or does not go with another one.
    """
    for name in COUNTS:
        value = arguments[name]
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}: expected a positive whole number, got {value!r}")
    for name, choices in CHOICES.items():
        if arguments[name] not in choices:
            raise ValueError(f"{name}: expected one of {', '.join(filter(None, choices))}, got {arguments[name]!r}")
    if not arguments["epochs"] > 0:
        raise ValueError(f"epochs: expected a number above 0, got {arguments['epochs']!r}")
    if not arguments["temperature"] >= 1:
        raise ValueError(f"temperature: expected a number of at least 1, got {arguments['temperature']!r}")
    if not 0 < arguments["mlm_probability"] <= 1:
        raise ValueError(f"mlm_probability: expected a share above 0 and up to 1, got {arguments['mlm_probability']!r}")
    if arguments["freeze_steps"] and arguments["freeze"] == "none":
        raise ValueError("freeze_steps: nothing is frozen; say what with freeze, as in freeze='body'")
    if arguments["fsdp"] and (arguments["freeze"] == "copied" or arguments["freeze_steps"]):
        raise ValueError("fsdp: sharded weights are frozen whole and for good; train with DDP, or freeze otherwise")
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise ValueError("fsdp: accelerate is configured to shard by itself; launch without that, and with fsdp here")
    if arguments["fsdp"] and arguments["precision"] == "float16":
        raise ValueError("fsdp: sharded gradients have no loss scaling for float16; choose bfloat16 or float32")
    if arguments["precision"] == "float16" and on_cpu(arguments["device"]):
        raise ValueError(
            "precision: float16 needs a GPU and its loss scaling, without which small gradients vanish; "
            "on a CPU choose float32 or bfloat16"
        )


def on_cpu(device: str | None) -> bool:
    return device == "cpu" or not torch.accelerator.is_available()


def accumulation(arguments: dict) -> int:
    """Forward passes a step.

    Raises:
        ValueError: ``effective_batch_size`` is not what whole batches of all processes add up to.
    """
    steps, effective = arguments["gradient_accumulation_steps"], arguments["effective_batch_size"]
    if effective is None:
        return steps or 1
    processes = int(os.environ.get("WORLD_SIZE", 1))
    at_once = arguments["batch_size"] * processes
    if effective % at_once or steps not in (None, effective // at_once):
        factors = f"batch_size {arguments['batch_size']} × {processes} processes"
        raise ValueError(
            f"effective_batch_size: {effective} is not {factors} × "
            + (f"gradient_accumulation_steps {steps}" if steps else "a whole number; choose another batch_size")
        )
    return effective // at_once


def training_arguments(arguments: dict, folder: Path, evaluate: bool, fresh: bool):
    """transformers' ``TrainingArguments``, for a Trainer that writes to ``folder``."""
    from transformers import SchedulerType, TrainingArguments

    schedules = [schedule.value for schedule in SchedulerType]
    if arguments["schedule"] not in schedules:
        raise ValueError(f"schedule: expected one of {', '.join(schedules)}, got {arguments['schedule']!r}")
    cpu = on_cpu(arguments["device"])
    args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=arguments["batch_size"],
        per_device_eval_batch_size=arguments["batch_size"],
        lr_scheduler_type=arguments["schedule"],
        dataloader_num_workers=arguments["workers"],
        dataloader_pin_memory=not cpu,
        # Otherwise the host waits for every batch to be copied, and so for all that was asked of the GPU before.
        accelerator_config={"non_blocking": not cpu},
        use_cpu=cpu,
        save_strategy="steps",
        eval_strategy="steps" if evaluate else "no",
        eval_on_start=evaluate and fresh,
        eval_steps=arguments["eval_steps"] or sys.maxsize,
        # The stream is shuffled already; Recorder and LanguageModelTrainer do the rest.
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        average_tokens_across_devices=True,
        ddp_find_unused_parameters=False,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=[],
        **PRECISIONS[arguments["precision"]],
        **{
            name: arguments[name]
            for name in (
                "gradient_accumulation_steps",
                "learning_rate",
                "warmup_steps",
                "weight_decay",
                "max_grad_norm",
                "seed",
                "save_steps",
            )
        },
    )
    # With several GPUs and one process the Trainer would take nn.DataParallel, which splits each batch.
    args._n_gpu = min(args.n_gpu, 1)
    return args
