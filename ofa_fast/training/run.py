"""``train``: from a model folder and text files to a trained model folder."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from ofa_fast._extras import require
from ofa_fast._files import atomic_folder
from ofa_fast.training import cost, report, settings
from ofa_fast.training.checkpoints import Checkpoints
from ofa_fast.training.data import Stream, causal_collator, masking_collator
from ofa_fast.training.packing import packed_sequences
from ofa_fast.training.text import Files, check_files, states

REPORT = "training.json"


def train(
    model_dir: str | os.PathLike,
    train_files: Files,
    out: str | os.PathLike,
    *,
    eval_files: Files = (),
    steps: int | None = None,
    epochs: float = 1.0,
    batch_size: int = 32,
    gradient_accumulation_steps: int | None = None,
    effective_batch_size: int | None = None,
    learning_rate: float = 5e-5,
    schedule: str = "linear",
    warmup_steps: float = 0,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    max_length: int | None = None,
    temperature: float = 1.0,
    documents: str | None = None,
    mlm_probability: float = 0.15,
    whole_words: bool = False,
    freeze: str = "none",
    freeze_steps: int | None = None,
    seed: int = 0,
    precision: str = "float32",
    fsdp: bool = False,
    save_steps: int = 500,
    keep_checkpoints: int = 2,
    eval_steps: int | None = None,
    milestones: Sequence[int] = (),
    at_milestone: Callable[[int, Path], None] | None = None,
    log_steps: int = 10,
    tensorboard: bool = False,
    workers: int = 0,
    device: str | None = None,
    country: str | None = None,
    energy_of: str = "machine",
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
    function returns), ``losses.csv`` (every step), ``evaluations.csv`` (held-out loss and perplexity by language) and,
    where matplotlib is installed, ``loss.png``. Until then the state lives beside it in ``<out>.checkpoints``, which
    goes when ``out`` is there. SIGINT and SIGTERM save a checkpoint, say how to go on, and exit with 128 + the signal's
    number.

    ``ofa_fast.training.PRESETS`` has published recipes: ``train(…, **PRESETS["ofa"] | {"precision": "bfloat16"})``.

    Runs under ``torchrun`` as well; batch sizes are per process, and a process takes one GPU.

    Args:
        model_dir: folder (or hub id) of a masked or causal language model and its tokenizer. A model saved without its
            head gets a fresh one, with its output layer tied to the table.
        train_files: paths, (language, path) pairs, or a mapping; a path's stem is its language where none is given.
            UTF-8 text with one sentence or paragraph a line; .jsonl and .parquet with the key or column "text" and,
            optionally, "language"; folders that `datasets` saved.
        eval_files: held-out text; its loss and perplexity are measured before, every ``eval_steps``, and after.
        steps: optimiser steps; ``None`` for ``epochs`` passes over the text.
        batch_size: sequences a forward pass; a step takes this times ``gradient_accumulation_steps`` (default: 1)
            times processes.
        effective_batch_size: sequences a step; ``gradient_accumulation_steps`` follows from it.
        schedule: of the learning rate, a name that transformers knows: "linear", "cosine", "constant_with_warmup", …
        warmup_steps: below 1 a share of all steps.
        max_length: tokens a sequence with its special tokens; default: the model's limit, at most 512.
        temperature: T of the shares of the languages, p ∝ n^(1/T) with n a language's sequences; above 1, small
            languages are seen more often than their text is long.
        documents: of a sequence: "joined", or kept "apart", each with special tokens of its own and without attention
            to the others. Default: joined for an encoder, as the paper has it, apart for a decoder that can.
        mlm_probability: share of the tokens that an encoder predicts.
        whole_words: mask all pieces of a word or none of them.
        freeze: what is not trained: "none", the "table" (input embedding and head over the vocabulary), the "body" (all
            else), or what was "copied" (all but the rows of tokens that are new to the model, known from the
            initialisation in ``model_dir``; such a table has no weight decay).
        freeze_steps: train everything after so many steps.
        precision: "float32", "bfloat16" or, on a GPU, "float16" (autocast); weights and optimiser states stay float32.
        fsdp: under ``torchrun``, shard weights, gradients and optimiser states over the processes (FSDP2) instead of
            replicating them (DDP).
        milestones: steps after which a checkpoint is saved and held-out text measured, too.
        at_milestone: called on the first process with the step of a milestone and the folder of its checkpoint, which
            holds the model without its tokenizer; called again where a run goes on from that checkpoint. The time that
            it takes does not count as training.
        tensorboard: write losses, learning rate and perplexities for TensorBoard, too: to ``<out>.checkpoints`` while
            it runs, and to ``out/tensorboard`` in the end.
        workers: processes that prepare batches; 0 for none.
        device: "cpu" to stay off the GPU.
        country: ISO 3166 code of three letters, such as "DEU", whose electricity the report counts CO2e for.
        energy_of: "machine", or "process" for this process and its children, where other runs share the machine. The
            energy includes that of measurements on held-out text and of ``at_milestone``.
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
            model's table has rows, or that knows no ``whole_words``; ``max_length`` over the model's positions; an
            argument out of range; ``resume`` with other arguments than the run was started with; a loss that is not
            finite.
    """
    not_recorded = ("at_milestone", "resume", "overwrite", "progress")
    arguments = {name: value for name, value in locals().items() if name not in not_recorded}
    require("accelerate", "train")
    settings.check(arguments)
    gradient_accumulation_steps = arguments["gradient_accumulation_steps"] = settings.accumulation(arguments)
    grams_per_kwh = cost.carbon_intensity(country)
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

    from ofa_fast.training.freezing import Freezing
    from ofa_fast.training.loading import (
        check_tokenizer,
        digest,
        documents_apart,
        first_position,
        load_model,
        sequence_length,
    )
    from ofa_fast.training.trainer import LanguageModelTrainer, Recorder

    first_step, checkpoint = checkpoints.latest() if resume else (0, None)
    args = settings.training_arguments(arguments, checkpoints.partial, bool(eval_files), checkpoint is None)
    if fsdp:
        from ofa_fast.training.sharding import ShardedTrainer, check_processes

        check_processes()
    is_main = args.process_index == 0
    progress = progress and is_main
    logging.disable_progress_bar()  # one for each file that it reads or writes, in the middle of ours

    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model, new_weights, causal = load_model(checkpoint or model_dir)
    check_tokenizer(tokenizer, model, causal)
    if causal and whole_words:
        raise ValueError("whole_words: a causal model predicts every token; only an encoder's words are masked")
    max_length = sequence_length(max_length, model)
    apart = documents_apart(model, causal, documents, progress)
    freezing = Freezing(model, freeze, freeze_steps, model_dir)
    text = (model_dir, digest(tokenizer), max_length, checkpoints.folder / "data", progress, causal, whole_words, apart)
    begin = time.perf_counter()
    with args.main_process_first(desc="tokenising"):
        train_sequences, eval_sequences = (
            packed_sequences(own, name, *text) if own else None for name, own in files.items()
        )
    tokenised = time.perf_counter() - begin
    batch = batch_size * gradient_accumulation_steps * args.world_size
    args.max_steps = steps = steps or math.ceil(epochs * len(train_sequences) / batch)
    run = {
        **{name: arguments[name] for name in settings.DECISIVE},
        "steps": steps,
        "max_length": max_length,
        "documents_apart": apart,
        "processes": args.world_size,
        "tokenizer": digest(tokenizer),
        "train_files": [
            (language, sum(size for _, size, _ in states(path))) for language, path in files["train_files"]
        ],
    }
    if is_main:
        (checkpoints.resume if checkpoint else checkpoints.start)(run)

    if causal:
        collator = causal_collator(tokenizer, apart)
    else:
        collator = masking_collator(tokenizer, mlm_probability, seed, first_position(model) if apart else None)
    trainer = (ShardedTrainer if fsdp else LanguageModelTrainer)(
        model=model,
        args=args,
        collator=collator,
        train_stream=Stream(train_sequences, steps * batch, seed, temperature),
        eval_sequences=eval_sequences,
        freezing=freezing,
        progress=progress,
    )
    trainer.accelerator.wait_for_everyone()
    meter = cost.EnergyMeter(energy_of)
    recorder = Recorder(
        trainer, checkpoints, keep_checkpoints, log_steps, len(train_sequences) / batch, meter, tensorboard
    )
    recorder.milestones, recorder.at_milestone = frozenset(milestones), at_milestone
    trainer.add_callback(recorder)
    if progress and checkpoint:
        print(f"resuming after step {first_step} of {steps}", file=sys.stderr)
    if is_main and checkpoint:
        recorder.reach(first_step, checkpoint)
    with recorder.catching_signals(), meter if args.local_process_index == 0 else nullcontext():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.state.global_step < steps:
        if is_main:
            print(
                f"stopped after step {trainer.state.global_step} of {steps}; the same call with resume goes on from "
                f"{checkpoints.folder}",
                file=sys.stderr,
            )
        raise SystemExit(128 + recorder.signal)

    weights, energy, watts = trainer.weights(), recorder.energy(), recorder.watts()
    if is_main:
        about = {
            "arguments": {**arguments, "steps": steps, "max_length": max_length},
            "data": report.text_statistics(train_sequences, temperature),
            "objective": "causal" if causal else "masked",
            "documents_apart": apart,
            "processes": args.world_size,
            "sequences_per_step": batch,
            "parameters": report.parameters(model) | {"trained": freezing.trained()},
            "new_weights": new_weights,
            **report.losses(checkpoints.losses(), trainer.state.log_history),
            "tokenising_seconds": tokenised,
            "evaluation_seconds": trainer.evaluation_seconds,
            "cost": cost.emissions(energy, watts, country, grams_per_kwh, meter.source),
            "memory": cost.table_memory(model, trainer.optimizer),
            **report.machine(args.device),
        }
        if causal:  # the Trainer has turned it off, in the checkpoints, too
            model.config.use_cache = getattr(AutoConfig.from_pretrained(model_dir), "use_cache", True)
        with atomic_folder(out, overwrite=overwrite) as work:
            model.save_pretrained(work, state_dict=weights)
            tokenizer.save_pretrained(work)
            checkpoints.copy_tables(work)
            report.plot(checkpoints.losses(), about["evaluations"], work / "loss.png")
            (work / REPORT).write_text(json.dumps(about, indent=2, default=str))
    trainer.accelerator.wait_for_everyone()
    return _finished(out, checkpoints)


def _finished(out: Path, checkpoints: Checkpoints) -> dict:
    if os.environ.get("RANK", "0") == "0":
        checkpoints.delete()
    return json.loads((out / REPORT).read_text())


def _check_unused(out: Path, checkpoints: Checkpoints, resume: bool) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(f"out: {out} exists already: choose another folder, or overwrite it explicitly")
    if checkpoints.complete() and not resume:
        raise FileExistsError(
            f"out: {checkpoints.folder} holds an unfinished run: resume it, or overwrite it explicitly"
        )
