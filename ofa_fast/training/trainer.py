"""transformers' Trainer with an exact loss under gradient accumulation, one loss a step, and safe checkpoints."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from ofa_fast.training.checkpoints import Checkpoints
from ofa_fast.training.cost import EnergyMeter
from ofa_fast.training.data import attention_within, examples

ALL = "(all)"  # the language of evaluations.csv for all held-out text


class LanguageModelTrainer(Trainer):
    """The loss of a step is the mean over all labelled tokens of its batch, over all micro-batches and processes.

    transformers hands models ``num_items_in_batch`` and counts on them to divide by it, but BERT, RoBERTa and XLM-R
    take it and ignore it: with gradient accumulation their gradients come out too large by the number of micro-batches.
    Here the model is asked for its own mean, which is then weighted by its share of the labelled tokens.
    """

    def __init__(self, *, model, args, collator, train_stream, eval_sequences, freezing, progress) -> None:
        super().__init__(
            model=model, args=args, data_collator=collator, train_dataset=train_stream, eval_dataset=eval_sequences
        )
        self.model_accepts_loss_kwargs = True
        self.freezing, self.progress = freezing, progress
        self.evaluation_seconds = 0.0
        self.step_loss = torch.zeros((), device=args.device)
        self.step_tokens = torch.zeros((), dtype=torch.int64, device=args.device)
        self.remove_callback(PrinterCallback)

    def weights(self) -> dict[str, torch.Tensor] | None:
        """All weights, on the first process; None where the model holds them itself."""
        return None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if "documents" in inputs:
            mask = {"attention_mask": attention_within(inputs["documents"])}
            inputs = {name: value for name, value in inputs.items() if name != "documents"} | mask
        elif "position_ids" in inputs:
            # In them transformers looks for documents where there is neither an attention mask nor a cache.
            inputs = {name: value for name, value in inputs.items() if name != "attention_mask"} | {"use_cache": False}
        outputs = model(**inputs)
        labelled = (inputs["labels"] != -100).sum()
        # A batch without a label has the mean 0 / 0; it counts for nothing.
        loss = torch.where(labelled > 0, outputs.loss.mean(), 0.0)
        if num_items_in_batch is not None:
            # Processes average their gradients, so each one's share is of a process's average.
            loss = loss * labelled * self.accelerator.num_processes / torch.as_tensor(num_items_in_batch).clamp(min=1)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.freezing.at(self.state.global_step, alone=self.args.world_size == 1)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.freezing.drop_gradients()
        self.step_loss = self.step_loss + loss
        self.step_tokens = self.step_tokens + inputs["attention_mask"].sum().to(self.step_tokens.device)
        return loss

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        """Nothing: the model was loaded from the checkpoint to begin with."""

    def get_decay_parameter_names(self, model) -> list[str]:
        # Decay would move rows without a gradient, too.
        return [name for name in super().get_decay_parameter_names(model) if name not in self.freezing.rows]

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """Mean loss and perplexity at labelled tokens, of all held-out text and by language; always the same masks."""
        start = time.perf_counter()
        self.model.eval()
        sequences = self.eval_dataset
        labels, codes = sequences.languages, sequences.rows["language"]
        size, processes, process = self.args.eval_batch_size, self.args.world_size, self.args.process_index
        totals = torch.zeros(len(labels), 2, dtype=torch.float64, device=self.args.device)
        for part, label in enumerate(labels):
            rows = np.flatnonzero(codes == part)
            batches = [rows[begin : begin + size].tolist() for begin in range(0, len(rows), size)]
            # A sharded model needs every process in each forward pass: one that has no batch left repeats another.
            turns = range(process, -(-len(batches) // processes) * processes, processes)
            mine = [(batches[turn % len(batches)], turn < len(batches)) for turn in turns]
            for batch, counts in tqdm(mine, desc=f"held out: {label}", leave=False, disable=not self.progress):
                inputs = self._prepare_inputs(self.data_collator(examples(sequences, batch, batch)))
                labelled = (inputs["labels"] != -100).sum() * counts
                totals[part, 0] += self.compute_loss(self.model, inputs).double() * labelled
                totals[part, 1] += labelled
        totals = self.accelerator.reduce(totals, "sum").cpu()
        mean = [loss / max(labelled, 1) for loss, labelled in [*totals.tolist(), totals.sum(0).tolist()]]
        perplexity = [math.exp(min(loss, 700)) for loss in mean]
        metrics = {
            f"{metric_key_prefix}_loss": mean[-1],
            f"{metric_key_prefix}_perplexity": perplexity[-1],
            f"{metric_key_prefix}_losses": dict(zip(labels, mean[:-1], strict=True)),
            f"{metric_key_prefix}_perplexities": dict(zip(labels, perplexity[:-1], strict=True)),
        }
        self.log(metrics)
        self.evaluation_seconds += time.perf_counter() - start
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class Recorder(TrainerCallback):
    """Loss curve, progress bar, checkpoints, and a clean stop on SIGINT or SIGTERM."""

    def __init__(
        self,
        trainer: LanguageModelTrainer,
        checkpoints: Checkpoints,
        keep: int,
        log_steps: int,
        steps_per_epoch: float,
        meter: EnergyMeter,
        tensorboard: bool = False,
    ) -> None:
        self.trainer, self.checkpoints, self.keep, self.log_steps = trainer, checkpoints, keep, log_steps
        self.steps_per_epoch, self.meter = steps_per_epoch, meter
        self.milestones: frozenset[int] = frozenset()
        self.at_milestone: Callable[[int, Path], None] | None = None
        self.signal: int | None = None
        self._pending: list[tuple] = []
        self._told: torch.Tensor | None = None
        self._board = None
        if tensorboard and trainer.is_world_process_zero():
            self._board = board(checkpoints.tensorboard, checkpoints.latest()[0])
        rows = checkpoints.losses()
        self._tokens, self._seconds = (rows[-1]["tokens"], rows[-1]["seconds"]) if rows else (0, 0.0)

    @contextmanager
    def catching_signals(self) -> Iterator[None]:
        """SIGINT or SIGTERM ends the training after the running step, that of several processes after the next one.

        A second one ends the process at once.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def stop(number, frame) -> None:
            self.signal = number
            restore()
            print("\nstopping: saving a checkpoint after this step (again: stop at once)", file=sys.stderr)

        for number in before:
            signal.signal(number, stop)
        try:
            yield
        finally:
            restore()

    def on_train_begin(self, args, state, control, **kwargs):
        self._start = time.perf_counter() - self._seconds - self.trainer.evaluation_seconds
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc="training",
            unit="step",
            disable=not self.trainer.progress,
        )

    def on_step_begin(self, args, state, control, lr_scheduler=None, **kwargs):
        self._learning_rate = lr_scheduler.get_last_lr()[0]

    def on_step_end(self, args, state, control, **kwargs):
        trainer = self.trainer
        row = {
            "step": state.global_step,
            "epoch": round(state.global_step / self.steps_per_epoch, 6),
            "learning_rate": self._learning_rate,
            "seconds": self._trained_for(),
        }
        # On a GPU the step may still be running: its numbers are fetched later, many at a time.
        self._pending.append((row, trainer.step_loss, trainer.step_tokens))
        trainer.step_loss = torch.zeros_like(trainer.step_loss)
        trainer.step_tokens = torch.zeros_like(trainer.step_tokens)
        self._bar.update()
        if state.global_step in self.milestones:
            control.should_save = True
            control.should_evaluate = trainer.eval_dataset is not None
        if self._stop_wanted():
            control.should_save = control.should_training_stop = True
        # What comes next would count as a part of the steps that a GPU has not done yet, or they as a part of it.
        if len(self._pending) >= self.log_steps or control.should_save or control.should_evaluate:
            self._write_losses()

    def _trained_for(self) -> float:
        """Seconds, without those of measurements."""
        return round(time.perf_counter() - self._start - self.trainer.evaluation_seconds, 4)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self._bar.unpause()
        if not state.is_world_process_zero:
            return
        losses = metrics["eval_losses"] | {ALL: metrics["eval_loss"]}
        perplexities = metrics["eval_perplexities"] | {ALL: metrics["eval_perplexity"]}
        rows = [
            {"step": state.global_step, "language": language, "loss": loss, "perplexity": perplexities[language]}
            for language, loss in losses.items()
        ]
        self.checkpoints.add(self.checkpoints.evaluations_file, rows)
        if self._board:
            for row in rows:
                for name in ("loss", "perplexity"):
                    self._board.add_scalar(f"held-out {name}/{row['language']}", row[name], row["step"])

    def on_save(self, args, state, control, **kwargs):
        self.trainer.accelerator.wait_for_everyone()
        energy = self.energy()
        if state.is_world_process_zero:
            self.checkpoints.commit(state.global_step, self.keep, energy)
            self.reach(state.global_step, self.checkpoints.complete()[state.global_step])
        self.trainer.accelerator.wait_for_everyone()

    def reach(self, step: int, checkpoint: Path) -> None:
        """Call ``at_milestone`` where ``step`` is one; this does not count as training time."""
        if self.at_milestone is None or step not in self.milestones:
            return
        start = time.perf_counter()
        # What it draws must not move the training's own random numbers, here or on this process's GPU; to look at the
        # generators of the others would take memory on each.
        device = self.trainer.args.device
        with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
            self.at_milestone(step, checkpoint)
        self.trainer.evaluation_seconds += time.perf_counter() - start

    def on_train_end(self, args, state, control, **kwargs):
        self._bar.close()
        if self._board:
            self._board.close()

    def energy(self) -> float | None:
        """kWh of all machines from the first step on; None where one of them does not know."""
        before, now = self.checkpoints.energy, self._of_machines(self.meter.kwh)
        return None if before is None or now is None else before + now

    def watts(self) -> float | None:
        return self._of_machines(self.meter.watts)

    def _of_machines(self, read: Callable[[], float | None]) -> float | None:
        args = self.trainer.args
        mine = read() if args.local_process_index == 0 else 0.0
        total = torch.tensor(math.nan if mine is None else mine, device=args.device)
        total = float(self.trainer.accelerator.reduce(total, "sum"))
        return None if math.isnan(total) else total

    def _stop_wanted(self) -> bool:
        if self.trainer.args.world_size == 1:
            return self.signal is not None
        # The signal reaches the processes at different steps, but they must stop after the same one. What they told
        # each other a step ago is read, as what they tell now is there only when a GPU has done this step.
        number = torch.full((), self.signal or 0, device=self.trainer.args.device)
        told, self._told = self._told, self.trainer.accelerator.gather(number)
        agreed = 0 if told is None else int(told.max())
        self.signal = agreed or self.signal
        return bool(agreed)

    def _write_losses(self) -> None:
        if not self._pending:
            return
        rows, losses, tokens = zip(*self._pending, strict=True)
        reduce = self.trainer.accelerator.reduce
        losses, tokens = reduce(torch.stack(losses), "mean").tolist(), reduce(torch.stack(tokens), "sum").tolist()
        rows[-1]["seconds"] = self._trained_for()  # a GPU has done the last of them only now
        for row, loss, count in zip(rows, losses, tokens, strict=True):
            self._tokens += count
            row |= {"loss": loss, "tokens": self._tokens}
        self._pending.clear()
        bad = next((row for row in rows if not math.isfinite(row["loss"])), None)
        if bad:
            raise ValueError(
                f"learning_rate: the loss is {bad['loss']} at step {bad['step']}; try a lower one, or precision float32"
            )
        self._bar.set_postfix(loss=f"{np.mean([row['loss'] for row in rows]):.4f}", refresh=False)
        if self.trainer.is_world_process_zero():
            self.checkpoints.add(self.checkpoints.losses_file, rows)
        if self._board:
            for row in rows:
                for name in ("loss", "learning_rate", "tokens"):
                    self._board.add_scalar(f"training/{name}", row[name], row["step"])
            self._board.flush()


def board(folder: Path, step: int):
    """A writer of events for TensorBoard, which then forgets those after ``step``.

    Raises:
        ValueError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("tensorboard: it is not installed; pip install tensorboard, or train without it") from None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
