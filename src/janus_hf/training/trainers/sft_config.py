"""`JanusProSFTConfig`: TRL's `SFTConfig` with the defaults of the Janus-Pro paper and with options of this package.

Options of TRL that prepare data or choose a loss are refused, because this package does both itself.
"""

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from trl import SFTConfig

from ..distributed.zero import keep_float32
from ..resuming.resume_fields import check_resume_changes
from ..stages import find_stage
from ..validation.benchmarks import is_loss
from .option_tables import SFT_FIXED, changed, check_fixed, check_kinds
from .run_arguments import RunArguments


def _is_set(variable: str) -> bool:
    """Return whether an environment variable is set to "1" or "true", in upper or lower case."""
    return os.environ.get(variable, "").lower() in ("1", "true")


def _option(default: Any, help: str) -> Any:
    """Return a dataclass field with a default value, and with a help text in its metadata."""
    return field(default=default, metadata={"help": help})


@dataclass
class JanusProSFTConfig(SFTConfig, RunArguments):
    """Settings of a training run, except the model and the data.

    Fields of TRL and transformers keep their names. Their defaults are those of the Janus-Pro paper where it states
    them: AdamW with betas 0.9 and 0.95, no weight decay, gradients clipped at norm 1, constant learning rate after the
    warm-up, rows of up to 4096 tokens.

    Raises:
        ValueError: If a value is out of range, an option has no effect because of another one, options contradict each
            other, or an option of TRL or transformers is changed that must keep its value here (`SFT_FIXED`).
    """

    stage: str = _option(
        "", "Which parts of the model are trained: stage1, stage2, stage3, full, or a lora_ stage. Required."
    )
    train_generation_embeddings: bool | None = _option(
        None, "Train the embeddings of the image codes: true, false, or the stage's own choice (null)."
    )
    caption_drop: float = _option(
        0.1, "Share of image prompts that are replaced by the unconditional prompt, which guidance needs."
    )
    ratios: dict[str, float] = field(
        default_factory=dict,
        metadata={"help": "Share of each source in the rows, by name, for the card; set by the recipe."},
    )

    lora_r: int = _option(16, "Rank of the adapters.")
    lora_alpha: float = _option(32.0, "Adapters are scaled by lora_alpha / lora_r.")
    lora_dropout: float = _option(0.0, "Dropout probability of the adapters' inputs.")
    lora_vision_tower: bool = _option(False, "Add adapters to the vision tower as well.")
    lora_targets: str | None = _option(
        None, "Regular expression for whole module names; the default matches every projection of the language model."
    )

    gradient_accumulation_steps: int | None = _option(
        None, "Micro-batches per optimizer step; null is 1, or what total_batch_size needs."
    )
    total_batch_size: int | None = _option(
        None, "Packs per optimizer step over all processes; sets gradient_accumulation_steps."
    )
    num_processes: int | None = _option(
        None, "Number of processes that the run must have; another number is an error."
    )
    stop_step: int | None = _option(
        None, "Step after which the run ends, if max_steps, the length of its schedule and its data, is larger."
    )
    resume_changes: list[str] = field(
        default_factory=list,
        metadata={"help": "Settings that may differ from those of the checkpoint that is resumed, and are applied."},
    )
    allow_unreached: bool = _option(
        False,
        "Allow parts that the stage trains as a whole and that no row of the data reaches; they stay as they are.",
    )
    peak_tflops: float | None = _option(
        None, "Peak of the device in TFLOP/s, of which the log's mfu is the share; null takes that of a known card."
    )
    save_layout: str = _option("original", "Layout of saved weights: original or transformers.")

    sample_steps: int | None = _option(
        None, "Number of steps between samples; 0 turns samples off. Required if there is anything to sample."
    )
    sample_prompts: list[str] = field(
        default_factory=list, metadata={"help": "Prompts of the images that are generated as samples."}
    )
    sample_questions: list[dict[str, str]] = field(
        default_factory=list,
        metadata={"help": "Questions that are answered as samples: keys question and, optionally, image (a path)."},
    )
    sample_guidance_scale: float | None = _option(
        None, "Guidance scale of the sampled images; null uses the model's default."
    )
    sample_max_new_tokens: int = _option(64, "Upper bound on the number of tokens of a sampled answer.")

    # These fields of TRL and transformers have other defaults: the paper's, and those that our data and loss require.
    learning_rate: float | None = _option(None, "Peak learning rate; null uses the stage's default.")  # type: ignore[assignment]
    enable_jit_checkpoint: bool = _option(
        True, "On SIGTERM, finish the step, save a checkpoint and end the run as unfinished."
    )
    lr_scheduler_type: str = _option("constant_with_warmup", "Schedule after the warm-up.")
    adam_beta1: float = _option(0.9, "AdamW's first beta.")
    adam_beta2: float = _option(0.95, "AdamW's second beta.")
    weight_decay: float = _option(0.0, "Weight decay.")
    max_grad_norm: float = _option(1.0, "Norm at which gradients are clipped.")
    max_length: int | None = _option(4096, "Length in tokens up to which packs are filled.")
    activation_checkpointing: bool | None = _option(
        True, "Recompute activations in the backward pass instead of keeping them."
    )
    gradient_checkpointing: bool | None = _option(None, "Former name of activation_checkpointing; use that.")  # type: ignore[assignment]
    bf16: bool | None = _option(None, "Compute in bfloat16 (autocast); null does so if the GPU supports it.")
    train_sampling_strategy: str = _option(
        "sequential", "sequential, the order of the plan, or random, for data without a plan; it loses the ratios."
    )
    hub_token: str | None = field(
        default=None,
        repr=False,
        metadata={"help": "Hub token of uploads; null uses the environment's. No file of the run contains it."},
    )
    remove_unused_columns: bool = _option(False, "Must stay false.")
    logging_nan_inf_filter: bool = _option(False, "Must stay false.")
    prediction_loss_only: bool = _option(True, "Must stay true.")
    ddp_find_unused_parameters: bool | None = _option(
        False, "Not needed, because every batch passes through every trained part."
    )

    def __post_init__(self) -> None:
        check_kinds(self)
        stage = find_stage(self.stage)
        if self.learning_rate is None:
            self.learning_rate = stage.learning_rate
        # `bf16` is set before TRL's __post_init__, which would set it to true on every device unless fp16 is set.
        if self.bf16 is None:
            self.bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported() and not self.use_cpu
        check_fixed(self, SFT_FIXED)
        # TRL would otherwise tokenize the dataset, whose rows are token ids already.
        self.dataset_kwargs = {"skip_prepare_dataset": True}
        self._check_effects()
        self._check_ranges()
        self._check_lora(stage.lora)
        # transformers knows losses by the end of their name only, which `loss_drawing` does not have.
        if is_loss(self.metric_for_best_model or "") and not changed(self, "greater_is_better"):
            self.greater_is_better = False
        self._check_extent()
        check_resume_changes(self.resume_changes)
        accumulation = self.gradient_accumulation_steps
        self.gradient_accumulation_steps = 1 if accumulation is None else accumulation
        super().__post_init__()
        self._check_processes(accumulation)
        if self.deepspeed_plugin is not None:
            # from_pretrained reads this configuration under ZeRO-3, and the trainer again.
            keep_float32(self.deepspeed_plugin, bf16=bool(self.bf16))
            self.deepspeed_plugin.set_deepspeed_weakref()
        if self.wants_fsdp:
            # Without this, every process would hold the gradients of the whole model between micro-batches.
            given = self.accelerator_config.gradient_accumulation_kwargs or {}
            self.accelerator_config.gradient_accumulation_kwargs = {"sync_each_batch": True, **given}

    @property
    def packs_per_step(self) -> int:
        """Number of packs that all processes together train on in one optimizer step."""
        return self.per_device_train_batch_size * (self.gradient_accumulation_steps or 1) * self.world_size

    @property
    def wants_fsdp(self) -> bool:
        """Whether these arguments or the launcher request FSDP.

        FSDP need not be active then: accelerate leaves it out silently without a GPU.
        """
        return bool(self.fsdp) or _is_set("ACCELERATE_USE_FSDP")

    @property
    def sharded(self) -> bool:
        """Whether these arguments or the launcher request FSDP or DeepSpeed.

        With either, every process must run every part of the model in every batch, or the others wait for it.
        """
        return self.wants_fsdp or bool(self.deepspeed) or _is_set("ACCELERATE_USE_DEEPSPEED")

    def _check_effects(self) -> None:
        """Raise `ValueError` if an option has no effect because of another one."""
        for names, needed, met in (
            ("do_eval", "eval_strategy", self.eval_strategy != "no"),
            ("data_seed", "train_sampling_strategy='random'", self.train_sampling_strategy == "random"),
            ("sample_guidance_scale", "sample_prompts", bool(self.sample_prompts)),
            ("sample_max_new_tokens", "sample_questions", bool(self.sample_questions)),
        ):
            if not met and (given := changed(self, names)):
                raise ValueError(
                    f"`{given[0]}` must come together with {needed}, without which it has no effect, got "
                    f"{getattr(self, given[0])!r} alone: set it too, or leave {given[0]} out."
                )
        if self.auto_find_batch_size and self.total_batch_size is not None:
            raise ValueError(
                "`auto_find_batch_size` must be False with total_batch_size, which a smaller batch would change, got "
                "True: leave one of them out."
            )

    def _check_extent(self) -> None:
        """Raise `ValueError` if an option that says how long the run is is out of range."""
        if self.num_train_epochs <= 0:
            raise ValueError(f"`num_train_epochs` must be positive, got {self.num_train_epochs}: raise it.")
        # A stop_step above max_steps is allowed: a recipe with one is tried with fewer steps.
        if self.stop_step is not None and self.stop_step < 1:
            raise ValueError(f"`stop_step` must be at least 1, got {self.stop_step}: raise it, or leave it out.")

    def _check_ranges(self) -> None:
        """Raise `ValueError` if an option of this package is out of range or contradicts another.

        Options of LoRA adapters and of the number of processes are not checked here.
        """
        if not 0 <= self.caption_drop < 1:
            raise ValueError(f"`caption_drop` must be in [0, 1), got {self.caption_drop}: set a share below 1.")
        if self.peak_tflops is not None and not 0 < self.peak_tflops < float("inf"):
            raise ValueError(
                f"`peak_tflops` must be above 0, got {self.peak_tflops}: set the card's TFLOP/s of dense bfloat16 "
                "matrix multiplication, or leave it out."
            )
        if self.save_layout not in ("original", "transformers"):
            raise ValueError(
                f"`save_layout` must be 'original' or 'transformers', got {self.save_layout!r}: choose one of them."
            )
        if self.max_length is None or self.max_length < 2:
            raise ValueError(
                f"`max_length` must be at least 2 tokens, got {self.max_length}: set the length of packs."
            )
        has_samples = bool(self.sample_prompts or self.sample_questions)
        if self.sample_steps is None and has_samples:
            raise ValueError(
                "`sample_steps` must be set together with `sample_prompts` or `sample_questions`, got None: set the "
                "number of steps between samples, or 0 for no samples."
            )
        self.sample_steps = self.sample_steps or 0
        if self.sample_steps < 0 or self.sample_max_new_tokens < 1:
            raise ValueError(
                "`sample_steps` must be 0 or more and `sample_max_new_tokens` at least 1, got "
                f"{self.sample_steps} and {self.sample_max_new_tokens}: set sample_steps to 0 for no samples."
            )
        # Prompts are allowed with sample_steps=0, which alone turns the samples of a recipe off.
        if self.sample_steps and not has_samples:
            raise ValueError(
                "`sample_steps` must be set together with `sample_prompts` or `sample_questions`, got "
                f"{self.sample_steps} alone: set one of them, or sample_steps to 0 for no samples."
            )
        for question in self.sample_questions:
            if set(question) - {"image"} != {"question"}:
                raise ValueError(
                    f"`sample_questions` must have the keys question and, optionally, image, got {question}: rename "
                    "or remove the other keys."
                )
        if any(ratio < 0 for ratio in self.ratios.values()):
            raise ValueError(f"`ratios` must not be negative, got {self.ratios}: use 0 to leave a source out.")

    def _check_lora(self, lora: bool) -> None:
        """Raise `ValueError` if an option of LoRA adapters is out of range, or set in a stage that does not use it.

        Args:
            lora: Whether the training stage has adapters.
        """
        if self.lora_r < 1 or self.lora_alpha <= 0 or not 0 <= self.lora_dropout < 1:
            raise ValueError(
                "`lora_r` must be at least 1, `lora_alpha` above 0 and `lora_dropout` in [0, 1), got "
                f"{self.lora_r}, {self.lora_alpha} and {self.lora_dropout}: change what is out of range."
            )
        idle = changed(
            self, "save_layout" if lora else "lora_r lora_alpha lora_dropout lora_vision_tower lora_targets"
        )
        if idle and lora:
            raise ValueError(
                f"`save_layout` must be left out in stages with adapters, which are saved in PEFT's format, got stage "
                f"{self.stage!r} and {self.save_layout!r}: give `--layout` to `janus-hf merge`."
            )
        if idle:
            raise ValueError(
                f"`{idle[0]}` must be left out in stages without adapters, got {getattr(self, idle[0])!r} in stage "
                f"{self.stage!r}: leave it out, or choose a lora_ stage."
            )

    def _check_processes(self, accumulation: int | None) -> None:
        """Check the number of processes, and set `gradient_accumulation_steps` if `total_batch_size` is given.

        The number of accumulation steps is `total_batch_size / (per_device_train_batch_size * world_size)`.

        Args:
            accumulation: The `gradient_accumulation_steps` that were given; None if none were.

        Raises:
            ValueError: If a process sees several GPUs, the number of processes is not the requested one, or the batch
                sizes contradict each other.
        """
        if self.n_gpu > 1:
            # transformers would wrap the model in DataParallel, which splits the rows of a micro-batch over GPUs.
            raise ValueError(
                f"One process must see one GPU, got {self.n_gpu} GPUs: start one process per GPU with `accelerate "
                "launch --config_file accelerate_configs/ddp.yaml -m janus_hf_cli train ...`, or set "
                "CUDA_VISIBLE_DEVICES=0."
            )
        if self.num_processes is not None and self.num_processes != self.world_size:
            raise ValueError(
                f"`num_processes` must be the number of running processes, {self.world_size}, got "
                f"{self.num_processes}: start that number. On machines without GPUs use `accelerate launch "
                "--multi_gpu --num_processes N` and use_cpu=true, because `--cpu` silently starts one process."
            )
        if self.total_batch_size is None:
            return
        packs_at_once = self.per_device_train_batch_size * self.world_size
        if self.total_batch_size < 1 or self.total_batch_size % packs_at_once:
            raise ValueError(
                "`total_batch_size` must be a multiple of per_device_train_batch_size x processes "
                f"({self.per_device_train_batch_size} x {self.world_size} = {packs_at_once}), got "
                f"{self.total_batch_size}: change one of them."
            )
        steps = self.total_batch_size // packs_at_once
        if accumulation not in (None, steps):
            raise ValueError(
                f"`gradient_accumulation_steps` must be {steps} with total_batch_size={self.total_batch_size} on "
                f"{self.world_size} processes, got {accumulation}: leave it out."
            )
        self.gradient_accumulation_steps = steps


__all__ = ["JanusProSFTConfig"]
