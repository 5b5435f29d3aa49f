"""``train``: from a model folder and text files to a trained model folder."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from pathlib import Path

import torch

from ofa_fast._files import atomic_folder
from ofa_fast.training import report
from ofa_fast.training.checkpoints import Checkpoints
from ofa_fast.training.data import Stream, causal_collator, masking_collator
from ofa_fast.training.packing import packed_sequences
from ofa_fast.training.text import Files, check_files, states

REPORT = "training.json"

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
    "seed",
    "bf16",
)


def train(
    model_dir: str | os.PathLike,
    train_files: Files,
    out: str | os.PathLike,
    *,
    eval_files: Files = (),
    steps: int | None = None,
    epochs: float = 1.0,
    batch_size: int = 32,
    gradient_accumulation_steps: int = 1,
    learning_rate: float = 5e-5,
    schedule: str = "linear",
    warmup_steps: float = 0,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    max_length: int | None = None,
    temperature: float = 1.0,
    mlm_probability: float = 0.15,
    seed: int = 0,
    bf16: bool = False,
    save_steps: int = 500,
    keep_checkpoints: int = 2,
    eval_steps: int | None = None,
    log_steps: int = 10,
    workers: int = 0,
    device: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> dict:
    """Continue the pretraining of the language model ``model_dir`` on text, and write the result to ``out``.

    An encoder predicts masked tokens, a decoder the next token. The loss of a step is -1/M Σ log p(token at position i
    | what the model sees) over the M labelled positions of its whole batch. A model with a factorised table computes it
    with ``factorized_cross_entropy``, without logits; any other model of transformers computes its own, so that dense
    baselines train with the same call.

    Sequences are packed: the lines of a file, tokenised and joined by the separator token, are cut every
    ``max_length`` tokens. For a decoder every line is a document that ends with the end-of-sequence token, and tokens
    do not attend to the documents before their own wherever the model can be told so. Order and masks are functions of
    the seed and the step, so a resumed run sees what the uninterrupted run would have seen; on a CPU with the same
    number of threads its loss curve is the same bit for bit.

    ``out`` appears by a rename when everything is written: config, weights, tokenizer, ``training.json`` (what this
    function returns), ``losses.csv`` (every step) and, where matplotlib is installed, ``loss.png``. Until then the
    state lives beside it in ``<out>.checkpoints``, which goes when ``out`` is there. SIGINT and SIGTERM save a
    checkpoint, say how to go on, and exit with 128 + the signal's number.

    Runs under ``torchrun`` as well; batch sizes are per process.

    Args:
        model_dir: folder (or hub id) of a masked or causal language model and its tokenizer. A model saved without its
            head gets a fresh one, with its output layer tied to the table.
        train_files: paths, (language, path) pairs, or a mapping; a path's stem is its language where none is given.
            UTF-8 text with one sentence or paragraph a line; .jsonl and .parquet with the key or column "text" and,
            optionally, "language"; folders that `datasets` saved.
        eval_files: held-out text; its loss and perplexity are measured before, every ``eval_steps``, and after.
        steps: optimiser steps; ``None`` for ``epochs`` passes over the text.
        batch_size: sequences a forward pass; a step takes this times ``gradient_accumulation_steps`` times processes.
        schedule: of the learning rate, a name that transformers knows: "linear", "cosine", "constant_with_warmup", …
        warmup_steps: below 1 a share of all steps.
        max_length: tokens a sequence with its special tokens; default: the model's limit, at most 512.
        temperature: T of the shares of the languages, p ∝ n^(1/T) with n a language's sequences; above 1, small
            languages are seen more often than their text is long.
        bf16: compute in bfloat16 (autocast); weights and optimiser states stay float32.
        workers: processes that prepare batches; 0 for none.
        device: "cpu" to stay off the GPU.
        resume: go on from the last complete checkpoint, or start where there is none. A finished ``out`` is returned
            as it is.
        overwrite: replace ``out``, and forget the checkpoints of an earlier run.

    Peak memory: weights, gradients, two Adam moments (16 bytes a parameter), the activations of one micro-batch; of
    the text only the pages in use.

    Raises:
        FileNotFoundError: a text file does not exist.
        FileExistsError: ``out``, or an unfinished run beside it, exists, and neither ``resume`` nor ``overwrite``.
        ValueError: a file without text or not UTF-8, or with a malformed line; a model without language-model head; a
            tokenizer without mask token (a decoder's: without end-of-sequence token) or with more tokens than the
            model's table has rows; ``max_length`` over the model's positions; an argument out of range; ``resume``
            with other arguments than the run was started with; a loss that is not finite.
    """
    arguments = {name: value for name, value in locals().items() if name not in ("resume", "overwrite", "progress")}
    _check_numbers(arguments)
    out = Path(out)
    checkpoints = Checkpoints(out)
    if resume and (out / REPORT).exists():
        return _finished(out, checkpoints)
    if not overwrite:
        _check_unused(out, checkpoints, resume)
    files = {
        "train_files": check_files(train_files, "train_files"),
        "eval_files": check_files(eval_files, "eval_files") if eval_files else [],
    }

    from transformers import AutoConfig, AutoTokenizer, set_seed
    from transformers.utils import logging

    from ofa_fast.training.loading import check_tokenizer, digest, load_model, separates_documents, sequence_length
    from ofa_fast.training.trainer import LanguageModelTrainer, Recorder

    first_step, checkpoint = checkpoints.latest() if resume else (0, None)
    args = _training_arguments(arguments, checkpoints, bool(eval_files), checkpoint is None)
    is_main = args.process_index == 0
    progress = progress and is_main
    logging.disable_progress_bar()  # one for each file that it reads or writes, in the middle of ours

    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model, new_weights, causal = load_model(checkpoint or model_dir)
    check_tokenizer(tokenizer, model, causal)
    max_length = sequence_length(max_length, model)
    text = (model_dir, digest(tokenizer), max_length, checkpoints.folder / "data", progress, causal)
    with args.main_process_first(desc="tokenising"):
        train_sequences, eval_sequences = (
            packed_sequences(own, name, *text) if own else None for name, own in files.items()
        )
    batch = batch_size * gradient_accumulation_steps * args.world_size
    args.max_steps = steps = steps or math.ceil(epochs * len(train_sequences) / batch)
    run = {
        **{name: arguments[name] for name in DECISIVE},
        "steps": steps,
        "max_length": max_length,
        "processes": args.world_size,
        "tokenizer": digest(tokenizer),
        "train_files": [
            (language, sum(size for _, size, _ in states(path))) for language, path in files["train_files"]
        ],
    }
    if is_main:
        (checkpoints.resume if checkpoint else checkpoints.start)(run)

    apart = causal and separates_documents(model)
    if causal and not apart and progress:
        print(f"{model.config.model_type} cannot keep packed documents apart: attention crosses them", file=sys.stderr)
    collator = causal_collator(tokenizer, apart) if causal else masking_collator(tokenizer, mlm_probability, seed)
    trainer = LanguageModelTrainer(
        model=model,
        args=args,
        collator=collator,
        train_stream=Stream(train_sequences, steps * batch, seed, temperature),
        eval_sequences=eval_sequences,
        progress=progress,
    )
    trainer.accelerator.wait_for_everyone()
    recorder = Recorder(trainer, checkpoints, keep_checkpoints, log_steps, len(train_sequences) / batch)
    trainer.add_callback(recorder)
    if progress and checkpoint:
        print(f"resuming after step {first_step} of {steps}", file=sys.stderr)
    with recorder.catching_signals():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.state.global_step < steps:
        if is_main:
            print(
                f"stopped after step {trainer.state.global_step} of {steps}; the same call with resume goes on from "
                f"{checkpoints.folder}",
                file=sys.stderr,
            )
        raise SystemExit(128 + recorder.signal)

    if is_main:
        about = {
            "arguments": {**arguments, "steps": steps, "max_length": max_length},
            "data": report.text_statistics(train_sequences, temperature),
            "objective": "causal" if causal else "masked",
            "documents_apart": apart,
            "processes": args.world_size,
            "sequences_per_step": batch,
            "parameters": report.parameters(model),
            "new_weights": new_weights,
            **report.losses(checkpoints.losses(), trainer.state.log_history),
            **report.machine(args.device),
        }
        if causal:  # the Trainer has turned it off, in the checkpoints, too
            model.config.use_cache = getattr(AutoConfig.from_pretrained(model_dir), "use_cache", True)
        with atomic_folder(out, overwrite=overwrite) as work:
            model.save_pretrained(work)
            tokenizer.save_pretrained(work)
            shutil.copyfile(checkpoints.losses_file, work / "losses.csv")
            report.plot(checkpoints.losses(), about["evaluations"], work / "loss.png")
            (work / REPORT).write_text(json.dumps(about, indent=2, default=str))
    trainer.accelerator.wait_for_everyone()
    return _finished(out, checkpoints)


def _finished(out: Path, checkpoints: Checkpoints) -> dict:
    if os.environ.get("RANK", "0") == "0":
        checkpoints.delete()
    return json.loads((out / REPORT).read_text())


def _training_arguments(arguments: dict, checkpoints: Checkpoints, evaluate: bool, fresh: bool):
    from transformers import TrainingArguments

    on_cpu = arguments["device"] == "cpu" or not torch.accelerator.is_available()
    return TrainingArguments(
        output_dir=str(checkpoints.partial),
        per_device_train_batch_size=arguments["batch_size"],
        per_device_eval_batch_size=arguments["batch_size"],
        lr_scheduler_type=arguments["schedule"],
        dataloader_num_workers=arguments["workers"],
        dataloader_pin_memory=not on_cpu,
        use_cpu=on_cpu,
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
        **{
            name: arguments[name]
            for name in (
                "gradient_accumulation_steps",
                "learning_rate",
                "warmup_steps",
                "weight_decay",
                "max_grad_norm",
                "bf16",
                "seed",
                "save_steps",
            )
        },
    )


def _check_numbers(arguments: dict) -> None:
    for name in (
        "steps",
        "batch_size",
        "gradient_accumulation_steps",
        "max_length",
        "save_steps",
        "keep_checkpoints",
        "eval_steps",
        "log_steps",
    ):
        value = arguments[name]
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}: expected a positive whole number, got {value!r}")
    if not arguments["epochs"] > 0:
        raise ValueError(f"epochs: expected a number above 0, got {arguments['epochs']!r}")
    if not arguments["temperature"] >= 1:
        raise ValueError(f"temperature: expected a number of at least 1, got {arguments['temperature']!r}")
    if not 0 < arguments["mlm_probability"] <= 1:
        raise ValueError(f"mlm_probability: expected a share above 0 and up to 1, got {arguments['mlm_probability']!r}")


def _check_unused(out: Path, checkpoints: Checkpoints, resume: bool) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(f"out: {out} exists already: choose another folder, or overwrite it explicitly")
    if checkpoints.complete() and not resume:
        raise FileExistsError(
            f"out: {checkpoints.folder} holds an unfinished run: resume it, or overwrite it explicitly"
        )
