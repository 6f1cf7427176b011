"""Data, models and trainers for trainer tests; the collator makes batches like those of `JanusProCollator`.

The model has the tiny checkpoint's architecture and processor. The scripts of tests with two ranks import this too.
"""

import copy
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from janus_hf import JanusProConfig, JanusProForConditionalGeneration, JanusProProcessor
from janus_hf.training import JanusProSFTConfig, JanusProSFTTrainer
from janus_hf.training.mixture import TrainingData


# Not from tiny.py: the two-rank script has only this folder on its path.
TINY_MODEL = Path(__file__).parents[1] / "goldens" / "tiny-janus-pro"

TEXT, UNDERSTANDING, DRAWING = range(3)


def load_model(seed: int = 0) -> JanusProForConditionalGeneration:
    """Return the tiny checkpoint's architecture with random float32 weights, large enough that every path matters."""
    return copy.deepcopy(_model(seed))


@cache
def _model(seed: int) -> JanusProForConditionalGeneration:
    config = JanusProForConditionalGeneration.config_class.from_pretrained(TINY_MODEL)
    for part in (config.text_config, config.vision_config, config.vq_config):
        part.initializer_range = 0.1
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = JanusProForConditionalGeneration(config).float()
    processor = load_processor()
    model.config.image_token_id = processor.image_token_id
    model.generation_config.pad_token_id = processor.pad_token_id
    model.generation_config.eos_token_id = processor.eos_token_id
    return model


@cache
def load_processor() -> JanusProProcessor:
    """Return the tiny checkpoint's processor, shared by all tests."""
    return JanusProProcessor.from_pretrained(TINY_MODEL)


def document(kind: int, seed: int, config: JanusProConfig) -> dict[str, Any]:
    """Return a random document of a kind (TEXT, UNDERSTANDING or DRAWING); the labels of its prompt are -100."""
    generator = torch.Generator().manual_seed(seed)

    def words(count: int) -> list[int]:
        return torch.randint(5, 300, (count,), generator=generator).tolist()

    vq, tower = config.vq_config, config.vision_config
    prompt = words(3 + seed % 4)
    pixel_values = None
    if kind == DRAWING:
        codes = torch.randint(0, vq.num_embeddings, (vq.num_image_tokens,), generator=generator)
        answer = (codes + config.text_config.vocab_size).tolist()
    else:
        answer = words(4 + seed % 3)
    if kind == UNDERSTANDING:
        prompt = [prompt[0], *[config.image_token_id] * tower.num_image_tokens, *prompt[1:]]
        pixel_values = torch.rand(1, 3, tower.image_size, tower.image_size, generator=generator) * 2 - 1
    ids = [1, *prompt, *answer]
    labels = [-100] * (1 + len(prompt)) + answer
    return {"kind": kind, "input_ids": ids, "labels": labels, "pixel_values": pixel_values}


class Packs(Dataset):
    """Dataset whose rows are lists of `per_row` documents; the documents take the `kinds` in turn."""

    def __init__(self, config: JanusProConfig, *, rows: int, kinds: tuple[int, ...], per_row: int = 1):
        self.config, self.rows, self.kinds, self.per_row = config, rows, kinds, per_row

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> list[dict[str, Any]]:
        numbers = range(row * self.per_row, (row + 1) * self.per_row)
        return [document(self.kinds[i % len(self.kinds)], i, self.config) for i in numbers]


def collate(rows: list[list[dict[str, Any]]], *, with_tasks: bool = True) -> dict[str, torch.Tensor]:
    """Make a batch of rows; padding is one more document without labels."""
    length = max(sum(len(part["input_ids"]) for part in row) for row in rows)
    columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "position_ids": [], "task_ids": []}
    for row in rows:
        filled = sum(len(part["input_ids"]) for part in row)
        pad = {"kind": 0, "input_ids": [0] * (length - filled), "labels": [-100] * (length - filled)}
        parts = [*row, pad]
        columns["input_ids"].append([i for part in parts for i in part["input_ids"]])
        columns["labels"].append([i for part in parts for i in part["labels"]])
        columns["position_ids"].append([i for part in parts for i in range(len(part["input_ids"]))])
        columns["task_ids"].append([part["kind"] for part in parts for _ in part["input_ids"]])
    batch = {name: torch.tensor(values) for name, values in columns.items()}
    images = [part["pixel_values"] for row in rows for part in row if part["pixel_values"] is not None]
    if images:
        batch["pixel_values"] = torch.cat(images)
    if not with_tasks:
        del batch["task_ids"]
    return batch


def load_data(
    section: dict[str, Any],
    args: JanusProSFTConfig,
    model: JanusProForConditionalGeneration,
    processor: JanusProProcessor,
) -> TrainingData:
    """Return 24 rows of all kinds instead of a recipe's data."""
    return TrainingData(
        Packs(model.config, rows=24, kinds=(DRAWING, UNDERSTANDING, TEXT)), collate, {"plan_hash": "abc"}
    )


def config_for(folder: str | Path, stage: str = "stage3", **fields: Any) -> JanusProSFTConfig:
    """Return a configuration of six logged steps that uses no network and saves nothing; `fields` change it."""
    defaults = {
        "max_steps": 6,
        "logging_steps": 1,
        "per_device_train_batch_size": 6,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "activation_checkpointing": False,
        "max_length": 256,
    }
    return JanusProSFTConfig(output_dir=str(folder), stage=stage, **{**defaults, **fields})


def trainer_for(
    args: JanusProSFTConfig,
    *,
    model: JanusProForConditionalGeneration | None = None,
    kinds: tuple[int, ...] = (DRAWING, UNDERSTANDING, TEXT),
    per_row: int = 1,
    rows: int = 60,
    plan_hash: str = "a",
    **kwargs: Any,
) -> JanusProSFTTrainer:
    """Return a trainer on `rows` rows of `Packs`; `kwargs` are further arguments of the trainer."""
    model = model if model is not None else load_model()
    torch.manual_seed(0)
    return JanusProSFTTrainer(
        model,
        args,
        train_dataset=Packs(model.config, rows=rows, kinds=kinds, per_row=per_row),
        data_collator=kwargs.pop("data_collator", collate),
        processing_class=load_processor(),
        facts={"plan_hash": plan_hash},
        **kwargs,
    )


def launch(
    *arguments: str, processes: int = 2, how: str = "--multi_gpu", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script or module on several processes under accelerate's launcher, on the CPU and offline.

    Args:
        arguments: The script, or "-m" and a module, with its arguments.
        processes: Number of processes that the launcher starts.
        how: The launcher's option for the kind of run.
        cwd: Working directory.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch", how, f"--num_processes={processes}"]
    command += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CI": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, timeout=400, cwd=cwd
    )


def trajectory(trainer: JanusProSFTTrainer) -> list[tuple[float, ...]]:
    """Return `(loss, grad_norm, text_loss, image_loss)` of every logged step."""
    names = ("loss", "grad_norm", "text_loss", "image_loss")
    return [tuple(log[name] for name in names) for log in trainer.state.log_history if "loss" in log]
