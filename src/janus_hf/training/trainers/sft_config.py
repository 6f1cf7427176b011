"""`JanusProSFTConfig`: TRL's `SFTConfig` with the paper's defaults, plus what is ours.

`max_length` is the context that packs are filled to; the data package reads it. The options of TRL that prepare data
or choose a loss are refused, because neither is TRL's here.
"""

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from trl import SFTConfig

from ..stages import find_stage, trained_parts


# TRL's option -> the only value it may have here, and why.
_NOT_OURS = {
    "packing": (False, "packs are planned by `janus-hf prepare` and the data package"),
    "padding_free": (False, "packs are planned by `janus-hf prepare` and the data package"),
    "loss_type": ("nll", "the loss is the model's own: text head and image head, cross-entropy each"),
    "label_smoothing_factor": (0.0, "the loss is the model's own, and never holds the logits this needs"),
    "completion_only_loss": (None, "what is trained is decided by the rows' labels"),
    "assistant_only_loss": (False, "what is trained is decided by the rows' labels"),
    "use_liger_kernel": (False, "it replaces the model's forward"),
    "remove_unused_columns": (False, "the batch's own keys are the contract"),
    "average_tokens_across_devices": (True, "without it the loss depends on how rows fall on processes"),
    "logging_nan_inf_filter": (False, "a loss that is not finite stops the training instead of being hidden"),
    "neftune_noise_alpha": (None, "noise on text embeddings would not reach image codes"),
    "fp16": (False, "the released weights are bfloat16 and overflow float16: use bf16 or float32"),
}


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true")


def _option(default: Any, help: str) -> Any:
    """A field with its doc line."""
    return field(default=default, metadata={"help": help})


@dataclass
class JanusProSFTConfig(SFTConfig):
    """Everything about a training run except the model and the data.

    Fields of TRL and transformers keep their names. Their defaults are the paper's where it states one: AdamW with
    betas 0.9 and 0.95, no weight decay, gradients clipped at 1, constant learning rate after the warm-up, context
    4096.

    Raises:
        ValueError: If a value is out of range, options contradict each other, or an option of TRL is set that has no
            meaning here.
    """

    stage: str = _option("", "What is trained: stage1, stage2, stage3, full, or a lora_ stage. Must be chosen.")
    train_generation_embeddings: bool | None = _option(
        None, "Train the code embeddings as a whole: true, false, or the stage's own choice (null)."
    )
    caption_drop: float = _option(
        0.1, "Share of drawing prompts replaced by the unconditional prompt, which guidance needs."
    )
    ratios: dict[str, float] = field(
        default_factory=dict, metadata={"help": "Source -> its share of the rows, for the card; set by the recipe."}
    )

    lora_r: int = _option(16, "Rank of the adapters.")
    lora_alpha: float = _option(32.0, "Adapters are scaled by lora_alpha / lora_r.")
    lora_dropout: float = _option(0.0, "Dropout before the adapters.")
    lora_vision_tower: bool = _option(False, "Put adapters into the understanding tower as well.")
    lora_targets: str | None = _option(
        None, "Regular expression over whole module names; the default is every projection of the language model."
    )

    gradient_accumulation_steps: int = _option(1, "Micro-batches per optimiser step; see total_batch_size.")
    total_batch_size: int | None = _option(
        None, "Packs per optimiser step over all processes; sets gradient_accumulation_steps."
    )
    num_processes: int | None = _option(
        None, "How many processes the run must have. A launcher that started fewer is caught."
    )
    save_layout: str = _option("original", "Layout of saved weights: original or transformers.")

    sample_steps: int = _option(0, "Draw and answer every so many steps; 0 never.")
    sample_prompts: list[str] = field(default_factory=list, metadata={"help": "What to draw."})
    sample_questions: list[dict[str, str]] = field(
        default_factory=list,
        metadata={"help": "What to answer: each a question, and an image's path if it is about one."},
    )
    sample_guidance_scale: float | None = _option(None, "Guidance of the sampled pictures; null: the model's own.")
    sample_max_new_tokens: int = _option(64, "Longest answer.")

    # The paper's, and what our own data and loss need.
    learning_rate: float | None = _option(None, "Peak learning rate; null is the stage's own.")  # type: ignore[assignment]
    lr_scheduler_type: str = _option("constant_with_warmup", "Schedule after the warm-up.")
    adam_beta1: float = _option(0.9, "AdamW's first beta.")
    adam_beta2: float = _option(0.95, "AdamW's second beta.")
    weight_decay: float = _option(0.0, "Weight decay.")
    max_grad_norm: float = _option(1.0, "Gradients are clipped at this norm.")
    max_length: int | None = _option(4096, "Context that packs are filled to.")
    activation_checkpointing: bool | None = _option(
        True, "Compute activations again in the backward pass instead of keeping them."
    )
    gradient_checkpointing: bool | None = _option(None, "transformers' old name; use activation_checkpointing.")  # type: ignore[assignment]
    bf16: bool | None = _option(None, "Autocast to bfloat16; null: if the accelerator can.")
    train_sampling_strategy: str = _option("sequential", "The plan is shuffled already; random would lose its ratios.")
    remove_unused_columns: bool = _option(False, "Must stay false.")
    logging_nan_inf_filter: bool = _option(False, "Must stay false.")
    ddp_find_unused_parameters: bool | None = _option(
        False, "Not needed: every batch passes through every trained branch."
    )

    def __post_init__(self) -> None:
        stage = find_stage(self.stage)
        trained_parts(self.stage, self.train_generation_embeddings)
        if self.learning_rate is None:
            self.learning_rate = stage.learning_rate
        if self.bf16 is None:
            self.bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported() and not self.use_cpu
        self.dataset_kwargs = {"skip_prepare_dataset": True}
        self._check_options_of_trl()
        self._check_ranges()
        self._check_lora(stage.lora)
        super().__post_init__()
        self._check_processes()
        if self.wants_fsdp:  # else every process would hold the gradients of the whole model between micro-batches
            given = self.accelerator_config.gradient_accumulation_kwargs or {}
            self.accelerator_config.gradient_accumulation_kwargs = {"sync_each_batch": True, **given}

    @property
    def wants_fsdp(self) -> bool:
        """Whether these arguments or the launcher ask for FSDP. (accelerate leaves it out silently without a GPU.)"""
        return bool(self.fsdp) or _is_set("ACCELERATE_USE_FSDP")

    @property
    def sharded(self) -> bool:
        """Whether FSDP or DeepSpeed is asked for: every process then calls every part of the model at every step."""
        return self.wants_fsdp or bool(self.deepspeed) or _is_set("ACCELERATE_USE_DEEPSPEED")

    def _check_options_of_trl(self) -> None:
        for name, (only, reason) in _NOT_OURS.items():
            if (value := getattr(self, name)) != only:
                raise ValueError(f"{name}={value!r} has no meaning here ({reason}): leave it at {only!r}.")

    def _check_ranges(self) -> None:
        if not 0 <= self.caption_drop < 1:
            raise ValueError(f"caption_drop must be in [0, 1), got {self.caption_drop}.")
        if self.save_layout not in ("original", "transformers"):
            raise ValueError(f"save_layout must be 'original' or 'transformers', got {self.save_layout!r}.")
        if self.max_length is None or self.max_length < 2:
            raise ValueError(f"max_length must be at least 2 tokens, got {self.max_length}.")
        if self.sample_steps < 0 or self.sample_max_new_tokens < 1:
            raise ValueError(
                "sample_steps must be 0 or more and sample_max_new_tokens at least 1, got "
                f"{self.sample_steps} and {self.sample_max_new_tokens}."
            )
        if bool(self.sample_steps) != bool(self.sample_prompts or self.sample_questions):
            raise ValueError("sample_steps and what to sample (sample_prompts, sample_questions) go together.")
        for question in self.sample_questions:
            if set(question) - {"image"} != {"question"}:
                raise ValueError(f"A sample question has the keys question and, if need be, image; got {question}.")
        if any(ratio < 0 for ratio in self.ratios.values()):
            raise ValueError(f"ratios must not be negative, got {self.ratios}.")

    def _check_lora(self, lora: bool) -> None:
        if self.lora_r < 1 or self.lora_alpha <= 0 or not 0 <= self.lora_dropout < 1:
            raise ValueError(
                "lora_r must be at least 1, lora_alpha above 0 and lora_dropout in [0, 1), got "
                f"{self.lora_r}, {self.lora_alpha} and {self.lora_dropout}."
            )
        if not lora and (self.lora_vision_tower or self.lora_targets):
            raise ValueError(
                f"{self.stage} trains whole parts: lora_vision_tower and lora_targets need a lora_ stage."
            )

    def _check_processes(self) -> None:
        if self.n_gpu > 1:
            raise ValueError(
                f"One process sees {self.n_gpu} GPUs. Start one process per GPU with `accelerate launch --config_file "
                "accelerate_configs/ddp.yaml -m janus_hf_cli train ...`, or show it one GPU: CUDA_VISIBLE_DEVICES=0."
            )
        if self.num_processes is not None and self.num_processes != self.world_size:
            raise ValueError(
                f"num_processes={self.num_processes} was asked for and {self.world_size} is running. On machines "
                "without GPUs start with `accelerate launch --multi_gpu --num_processes N` and use_cpu=true: `--cpu` "
                "silently starts one process."
            )
        if self.total_batch_size is None:
            return
        at_once = self.per_device_train_batch_size * self.world_size
        if self.total_batch_size < 1 or self.total_batch_size % at_once:
            raise ValueError(
                f"total_batch_size ({self.total_batch_size}) must be a multiple of per_device_train_batch_size x "
                f"processes ({self.per_device_train_batch_size} x {self.world_size} = {at_once})."
            )
        steps = self.total_batch_size // at_once
        if self.gradient_accumulation_steps not in (1, steps):
            raise ValueError(
                f"total_batch_size={self.total_batch_size} means {steps} accumulation steps on {self.world_size} "
                f"processes; gradient_accumulation_steps={self.gradient_accumulation_steps} contradicts it. Leave it "
                "out."
            )
        self.gradient_accumulation_steps = steps


__all__ = ["JanusProSFTConfig"]
