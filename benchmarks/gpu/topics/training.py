"""Topic "training": tokens per second, share of the GPU's peak performance, and peak memory of two recipes."""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from ...memory import PeakDeviceMemory
from ...peers import BOI, BOS, IMAGE, make_ours
from ..bench import Bench
from ..tables import Column, Part, Topic


RECIPES = Path(__file__).parents[3] / "recipes"
# Words in a GPU's name -> dense bfloat16 operations per second, from the makers' data sheets.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "RTX 4090": 165e12, "L40S": 362e12}
MICRO_BATCHES = 2  # micro-batches per step; the recipes accumulate more, which takes the same time per token
STEPS = 5  # number of steps; the first is not timed
# Task -> number of tokens of a document, as in the third training stage of the Janus-Pro paper.
LENGTHS = {"drawing": 620, "understanding": 760, "text": 900}


class Packs(Dataset[dict[str, torch.Tensor]]):
    """Packs of random documents; a pack takes documents until the next one does not fit.

    Args:
        config: The model's config.
        tasks: Tasks of the documents of a pack, which take turns.
        length: Largest length of a pack in tokens.
        count: Number of packs.
    """

    def __init__(self, config: Any, tasks: tuple[str, ...], length: int, count: int) -> None:
        self.config, self.tasks, self.length, self.count = config, tasks, length, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        documents: list[tuple[torch.Tensor, torch.Tensor]] = []
        images, free = 0, self.length
        for task in self.tasks * self.length:
            ids, labels = self._document(task, generator)
            if len(ids) > free:
                break
            documents.append((ids, labels))
            images, free = images + (task == "understanding"), free - len(ids)
        side = self.config.vision_config.image_size
        pack = {
            "input_ids": torch.cat([ids for ids, _ in documents])[None],
            "labels": torch.cat([labels for _, labels in documents])[None],
            "position_ids": torch.cat([torch.arange(len(ids)) for ids, _ in documents])[None],
        }
        return pack | ({"pixel_values": torch.rand(images, 3, side, side) * 2 - 1} if images else {})

    def _document(self, task: str, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids and labels `(n,)` of a document; prompts and image placeholders are not trained."""
        text, vq = self.config.text_config, self.config.vq_config
        placeholders = self.config.vision_config.num_image_tokens
        # A dry run has small images, and so short documents.
        length = LENGTHS[task] if vq.num_image_tokens == 576 else 90
        words = torch.randint(10, 90000, (length,), generator=generator)
        words[0] = BOS
        if task == "text":
            start = 1
        elif task == "understanding":
            words[1], words[2 : 2 + placeholders] = BOI, IMAGE
            start = length - min(100, length // 10)
        else:
            start = length - vq.num_image_tokens
            codes = torch.randint(vq.num_embeddings, (vq.num_image_tokens,), generator=generator)
            words[start - 1], words[start:] = BOI, text.vocab_size + codes
        labels = words.clone()
        labels[:start] = -100
        return words, labels


def train(bench: Bench, size: str, recipe: str, tasks: tuple[str, ...]) -> None:
    """Train a few steps with the trainer and the settings of a recipe, on random packs."""
    with bench.row(size, recipe, ", ".join(dict.fromkeys(tasks))) as row, tempfile.TemporaryDirectory() as folder:
        _train(bench, size, recipe, tasks, folder, row)


def _train(bench: Bench, size: str, recipe: str, tasks: tuple[str, ...], folder: str, row: dict[str, Any]) -> None:
    """Train, and set the values of the row `row`; `folder` is the output folder of the trainer."""
    # These need TRL and PEFT, without which only this topic fails.
    from transformers import TrainerCallback

    from janus_hf import JanusProProcessor
    from janus_hf.assets import DEFAULT_MODEL
    from janus_hf.training import JanusProSFTConfig, JanusProSFTTrainer
    from janus_hf.training.recipes import load_recipe

    content = load_recipe(RECIPES / f"{recipe}.yaml")
    length = bench.pick(content.training["max_length"], 256)
    changed = {
        "output_dir": folder, "max_steps": STEPS, "total_batch_size": None, "warmup_steps": 1, "save_strategy": "no",
        "gradient_accumulation_steps": MICRO_BATCHES, "max_length": length, "dataloader_num_workers": 0,
        "resume_from_checkpoint": None, "report_to": "none", "logging_steps": STEPS, "disable_tqdm": True,
        "sample_steps": 0, "use_cpu": not bench.cuda,
    }  # fmt: skip
    left_out = ("save_steps", "save_total_limit", "sample_prompts")
    settings = {key: value for key, value in content.training.items() if key not in left_out} | changed
    arguments = JanusProSFTConfig(**settings)
    # Adapters are trained on a model in the dtype of the released files; everything else starts from float32.
    dtype = torch.float32 if content.model["dtype"] == "float32" else bench.dtype
    ends: list[float] = []

    class Ends(TrainerCallback):
        """Callback that records when each step ends, and ends training when the time of the part is over."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Record the time, and end training if less than two seconds are left."""
            if bench.cuda:
                torch.cuda.synchronize()
            ends.append(time.perf_counter())
            control.should_training_stop = bench.left() < 2

    with PeakDeviceMemory(bench.device) as memory:
        model = make_ours(bench.size(size), dtype, bench.device)
        packs = Packs(model.config, tasks, length, STEPS * MICRO_BATCHES)
        trainer = JanusProSFTTrainer(
            model,
            arguments,
            train_dataset=packs,
            data_collator=lambda rows: rows[0],
            processing_class=JanusProProcessor.from_pretrained(DEFAULT_MODEL),
            callbacks=[Ends()],
        )
        trainer.train()
    if len(ends) < 2:
        raise RuntimeError("there was time for one step only, which is not counted")
    seconds = (ends[-1] - ends[0]) / (len(ends) - 1)
    tokens = sum(packs[index]["input_ids"].numel() for index in range(MICRO_BATCHES))
    weights = sum(
        parameter.numel()
        for name, parameter in trainer.base_model.model.language_model.layers.named_parameters()
        if "lora" not in name
    )
    row.update(tokens=tokens // MICRO_BATCHES, rate=tokens / seconds, peak=memory.bytes / 1e9)
    row["step"] = seconds
    # A forward pass takes two operations per weight and token. A backward pass takes two for the gradients of the
    # inputs and, unless the weights are frozen under adapters, two more for those of the weights.
    operations = (4 if content.training["stage"].startswith("lora") else 6) * weights * tokens / seconds
    row["operations"] = operations / 1e12
    if bench.cuda:
        name = torch.cuda.get_device_name()
        peak = next((value for word, value in PEAKS.items() if word in name), None)
        row["use"] = None if peak is None else operations / peak


# The mixtures of the recipes: stage 2 has understanding, text and drawing in the ratio 2:3:5.
_MIXED = (*("drawing", "text", "drawing", "understanding") * 2, "drawing", "text")
_RUNS = (("1b", "stage2_1b", _MIXED, 18.0), ("7b", "lora_drawing", ("drawing",), 22.0))


def _part(size: str, recipe: str, tasks: tuple[str, ...], seconds: float) -> Part:
    """Return the part that trains with a recipe."""
    labels = (size, recipe, ", ".join(dict.fromkeys(tasks)))
    return Part(f"{size} {recipe}", seconds, (labels,), lambda bench: train(bench, size, recipe, tasks))


TOPIC = Topic(
    title="Training",
    explanation=f"The trainer with the settings of a recipe, one pack of random documents per micro-batch, "
    f"{MICRO_BATCHES} micro-batches per step. Operations count the matrices of the language model's layers, 6 per "
    "weight and token (4 with frozen weights), and neither recomputation, attention nor heads. MFU is their share of "
    "the card's dense bfloat16 operations on its data sheet.",
    labels=("model", "recipe", "tasks"),
    columns=(
        Column("tokens", "tokens per pack", "d"),
        Column("step", "s per step", ".2f"),
        Column("rate", "tokens/s", ",.0f"),
        Column("operations", "TFLOP/s", ".1f"),
        Column("use", "MFU", ".1%"),
        Column("peak", "peak memory, GB", ".1f"),
    ),
    parts=tuple(_part(*run) for run in _RUNS),
)
