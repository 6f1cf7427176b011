"""`EvaluatingTrainer`, the base class of trainers: it measures losses, runs benchmarks, and finds the best checkpoint.

The losses are those of `LossRecord`: means over all labels of the evaluation data, whatever the batch size and the
number of processes. transformers' own `eval_loss` is a mean over batches, and if the rows cannot be divided evenly
among the processes, its loader repeats some of them.
"""

import copy
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
from torch.utils.data import DataLoader
from transformers import TrainerControl
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy

from ...data import JanusProCollator
from ...data.documents import IGNORE
from ...processing import JanusProProcessor
from ..batches import Collator, MapStyleDataset, TrainingRows
from ..callbacks import sampling_mode, undisturbed
from ..distributed.sharding_trainer import ShardingTrainer
from ..metrics import LossRecord, mean_losses
from .benchmarks import Benchmark, without_prefix


logger = logging.getLogger(__name__)

# Folder of the benchmarks' images and reports in the output folder. `push_to_hub` leaves it out, because its name
# begins with an underscore: reports contain questions of benchmarks, which not everyone may distribute.
EVALUATIONS = "_evaluations"


class EvaluatingTrainer(ShardingTrainer):
    """A trainer that evaluates its model without disturbing the training; see `evaluate`."""

    processing_class: JanusProProcessor
    control: TrainerControl
    data_collator: Collator
    eval_dataset: Any  # Any: a dataset, or a dict of datasets by name, as in transformers
    loss_record: LossRecord
    # Weight of each source of `eval_dataset` in the losses over all sources, by name; 1 where a name is missing.
    evaluation_ratios: Mapping[str, float] = {}
    benchmarks: Mapping[str, Benchmark] = {}
    benchmark_steps: int | None = None
    # True while an evaluation runs, whose losses must not be taken for those of the training.
    is_evaluating = False

    def add_benchmarks(self, benchmarks: Mapping[str, Benchmark], *, every: int | None = None) -> None:
        """Run benchmarks in evaluations; a trainer without evaluation data then needs `eval_dataset={}`.

        Args:
            benchmarks: The benchmarks by name.
            every: Run them only in evaluations at multiples of this number of steps, and in the last one. None runs
                them in each.
        """
        self.benchmarks, self.benchmark_steps = benchmarks, every

    # Any: a dataset of any kind, as in transformers.
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Measure the losses on the evaluation data, run the benchmarks that are due, and log the results.

        Captions are not dropped, dropout is off, and every row counts once. Random states and the modes of modules are
        the same afterwards as before, so a run trains in the same way with evaluations as without.

        Benchmarks are run by all processes. They share the work, unless the model is sharded: then each process does
        all of it, because none can run the model alone.

        Args:
            eval_dataset: Data to evaluate on instead of the trainer's own, without benchmarks: a dataset, a dict of
                datasets by name, or the name of one of the trainer's own.
            ignore_keys: Not used, because only losses are kept of the model's outputs.
            metric_key_prefix: Prefix of the names in the result.

        Returns:
            `eval_loss`, `eval_text_loss`, `eval_image_loss` and `eval_loss_<task>`, means in nats per label;
            `eval_<name>_loss` of each dataset of a dict; numbers of labels; `eval_<benchmark>_<metric>`; and
            `eval_runtime` in seconds.

        Raises:
            ValueError: If there is nothing to evaluate on, or a dataset has no rows.
        """
        start = time.time()
        self.is_evaluating = True
        try:
            with undisturbed(self.model):
                metrics = self._measure_losses(self._find_sources(eval_dataset))
                if eval_dataset is None and self.benchmarks and self._benchmarks_are_due():
                    metrics |= self._run_benchmarks()
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
            metrics[f"{metric_key_prefix}_runtime"] = round(time.time() - start, 4)
            self.log(metrics)
        finally:
            self.is_evaluating = False
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # Losses

    # Any: a dataset of any kind, as in transformers.
    def _find_sources(self, eval_dataset: Any) -> dict[str, TrainingRows]:
        """Return the datasets to evaluate on by name; a dataset that is not in a dict has the name ""."""
        if isinstance(eval_dataset, str):
            return {"": self.eval_dataset[eval_dataset]}
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        if rows is None:
            if self.benchmarks:
                return {}
            raise ValueError(
                "`eval_dataset` must be given for an evaluation, got None: pass it here or to the trainer."
            )
        return dict(rows) if isinstance(rows, dict) else {"": rows}

    def _measure_losses(self, sources: Mapping[str, TrainingRows]) -> dict[str, float]:
        """Return the mean losses over all sources, and the loss of each source that has a name."""
        total: list[float] | None = None
        numbers: dict[str, float] = {}
        metrics: dict[str, float] = {}
        self.loss_record.forget(training=False)  # `predict`, or an evaluation that failed, leaves sums
        for name, rows in sources.items():
            output = self.evaluation_loop(
                self._make_loader(name, rows), description="Evaluation", prediction_loss_only=True
            )
            sums = self.loss_record.take(self.accelerator, training=False)
            if sums is None:  # a trainer whose `compute_loss` does not use the record
                metrics[f"{name}_loss" if name else "loss"] = output.metrics["eval_loss"]
                continue
            means = mean_losses(sums)
            if name:
                metrics[f"{name}_loss"] = means["loss"]
            weight = self.evaluation_ratios.get(name, 1.0)
            weighted = [weight * value for value in sums]
            total = weighted if total is None else [one + other for one, other in zip(total, weighted, strict=True)]
            for key in ("text_labels", "image_labels"):
                numbers[key] = numbers.get(key, 0.0) + means[key]
        losses = {} if total is None else mean_losses(total) | numbers
        losses.pop("tokens", None)  # it counts padding, and so depends on the batches
        return losses | metrics

    def _make_loader(self, name: str, rows: TrainingRows) -> DataLoader[Any]:
        """Return a loader of one evaluation source for this process; all processes get the same number of batches.

        Args:
            name: Name of the source, for the error.
            rows: Its rows.

        Raises:
            ValueError: If there are no rows.
        """
        # `Trainer` has one collator, and keeps loaders with persistent workers by the name of the dataset. The loader
        # keeps the rows, so no other rows get the same id later.
        key = str(id(rows))
        if not isinstance(rows, datasets.IterableDataset):
            if len(rows) == 0:
                raise ValueError(f"The evaluation data {name!r} must have rows, got none: leave them out.")
            rows = _Filled(rows, self.args.eval_batch_size * self.args.world_size)
        sources, collator = self.eval_dataset, self.data_collator
        self.eval_dataset, self.data_collator = {key: rows}, _EvaluationCollator(collator)
        try:
            loader: DataLoader[Any] = self.get_eval_dataloader(key)
        finally:
            self.eval_dataset, self.data_collator = sources, collator
        return loader

    # Benchmarks

    def _benchmarks_are_due(self) -> bool:
        """Return whether the benchmarks are run in an evaluation at the present step."""
        step, every = self.state.global_step, self.benchmark_steps
        return every is None or not self.is_in_train or step % every == 0 or step >= self.state.max_steps

    def _run_benchmarks(self) -> dict[str, float]:
        """Run all benchmarks on the model, and return their metrics as `<benchmark>_<metric>`."""
        metrics: dict[str, float] = {}
        folder = Path(self.args.output_dir) / EVALUATIONS / f"step-{self.state.global_step}"
        device_type = next(self.model.parameters()).device.type
        for name, benchmark in self.benchmarks.items():
            with (
                sampling_mode(self.model),
                torch.no_grad(),
                torch.autocast(device_type, torch.bfloat16, enabled=bool(self.args.bf16)),
            ):
                found = benchmark(self.base_model, self.processing_class, folder / name, shared=not self.args.sharded)
            if missing := sorted(benchmark.metrics.keys() - found.keys()):
                logger.warning(
                    "The benchmark %s has no %s at step %d, because items could not be judged: see %s.",
                    *(name, ", ".join(missing), self.state.global_step, folder / name),
                )
            metrics |= {f"{name}_{metric}": value for metric, value in found.items()}
        return metrics

    # The best checkpoint

    # transformers compares the metric after every evaluation. No public argument limits that to some of them.
    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Return whether the model is the best one so far, and remember its metric and step if so.

        It is compared only if a checkpoint of it is saved, because another model cannot be loaded at the end, and only
        in evaluations that ran the benchmark of the metric.
        """
        name = without_prefix(self.args.metric_for_best_model or "")
        of_benchmarks = {f"{key}_{metric}" for key, one in self.benchmarks.items() for metric in one.metrics}
        unsaved = self.args.save_strategy != SaveStrategy.BEST and not self.control.should_save
        if (name in of_benchmarks and f"eval_{name}" not in metrics) or (self.args.load_best_model_at_end and unsaved):
            return False
        self._forget_other_metric(f"eval_{name}")
        is_best: bool = super()._determine_best_metric(metrics, trial)
        return is_best

    def _forget_other_metric(self, name: str) -> None:
        """Forget the best model so far if it was chosen by another metric than `name`, before the run was resumed."""
        state = self.state
        logged = (log.get(name) for log in state.log_history if log["step"] == state.best_global_step)
        if state.best_global_step and state.best_metric not in logged:
            logger.warning(
                "The best checkpoint so far, that of step %d, was chosen by another metric than %s and is forgotten.",
                *(state.best_global_step, name),
            )
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None

    @property
    def best_fact(self) -> dict[str, str]:
        """An entry of the model card about the checkpoint that was loaded at the end; empty if it is the last one."""
        if not self.args.load_best_model_at_end or not self.state.best_global_step:
            return {}
        metric = f"eval_{without_prefix(self.args.metric_for_best_model or '')}"
        return {"best checkpoint": f"step {self.state.best_global_step}, {metric} {self.state.best_metric:.6g}"}

    def find_weights(self, checkpoint: str | os.PathLike[str]) -> str:
        """Return the folder of the run's best checkpoint with `load_best_model_at_end`, else the last one's.

        Args:
            checkpoint: Folder of the last checkpoint of this run, whose state is the trainer's, or its output folder.
        """
        if self.best_fact and not Path(checkpoint).samefile(self.args.output_dir):  # there the best one is saved
            best = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
            if best.is_dir():
                self.state.best_model_checkpoint = str(best)
                return str(best)
            logger.warning("The best checkpoint, %s, is gone: the model is that of %s.", best, checkpoint)
        return super().find_weights(checkpoint)


class _Filled:
    """A dataset with rows repeated at its end, so that every process gets the same number of whole batches.

    An item is the pair of a row and whether it counts; repeated rows do not.

    Args:
        rows: The dataset.
        multiple: The length becomes a multiple of this number.
    """

    def __init__(self, rows: MapStyleDataset, multiple: int) -> None:
        self.rows, self.multiple = rows, multiple

    def __len__(self) -> int:
        return -(-len(self.rows) // self.multiple) * self.multiple

    # Any: a row of any type that the run's collator accepts.
    def __getitem__(self, index: int) -> tuple[Any, bool]:
        return self.rows[index % len(self.rows)], index < len(self.rows)


class _EvaluationCollator:
    """A collator for evaluations: captions are not dropped, and the labels of rows that do not count are removed.

    Args:
        collator: The run's collator. Row `i` of its batches must be row `i` of its argument.
    """

    def __init__(self, collator: Collator) -> None:
        if isinstance(collator, JanusProCollator):
            collator = copy.copy(collator)
            collator.caption_drop = 0.0
        self.collator = collator

    # Any: rows of any type that the run's collator accepts, or pairs of `_Filled`.
    def __call__(self, items: list[Any]) -> dict[str, Any]:
        if not (isinstance(items[0], tuple) and len(items[0]) == 2 and isinstance(items[0][1], bool)):
            return self.collator(items)  # a stream, which is not filled up
        batch = self.collator([row for row, _ in items])
        idle = [index for index, (_, counts) in enumerate(items) if not counts]
        if idle:
            if len(batch["labels"]) < len(items):
                raise ValueError(
                    f"`data_collator` must make one row of the batch of each of the {len(items)} rows, got "
                    f"{len(batch['labels'])}: give the evaluation data a length that is a multiple of "
                    "per_device_eval_batch_size x processes."
                )
            for name, nothing in (("labels", IGNORE), ("task_ids", -1)):
                if name in batch:
                    batch[name] = batch[name].clone()
                    batch[name][idle] = nothing
        return batch


__all__ = ["EVALUATIONS", "EvaluatingTrainer"]
