"""How the trainers treat every option of transformers and TRL: a table that sorts them, and its checks.

`PASSED_ON` are used by transformers, TRL or accelerate as they document them, and some by this package as well. The
others may have one value only (or one of a few), because a trainer of this package would accept any other value and
ignore it, or train something else. A test compares the tables with the fields of the installed versions.
"""

import os
from collections.abc import Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from ...arguments import FUNCTION, POSITIVE, Value, check_values, describe, number, of_kind


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


PASSED_ON = _names(
    """
    output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type
    lr_scheduler_kwargs warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon
    optim_target_modules gradient_accumulation_steps max_grad_norm bf16 bf16_full_eval fp16_full_eval tf32
    activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs
    torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps auto_find_batch_size
    logging_strategy logging_steps logging_first_step log_on_each_node log_level log_level_replica disable_tqdm
    report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id
    eval_strategy eval_steps eval_delay per_device_eval_batch_size eval_on_start do_train do_eval
    save_only_model save_strategy save_steps save_on_each_node save_total_limit enable_jit_checkpoint
    load_best_model_at_end metric_for_best_model greater_is_better ignore_data_skip
    restore_callback_states_from_checkpoint resume_from_checkpoint full_determinism seed data_seed use_cpu
    push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision
    accelerator_config parallelism_config dataloader_drop_last dataloader_num_workers dataloader_pin_memory
    dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order
    ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout
    fsdp fsdp_config deepspeed debug skip_memory_metrics local_rank
    """
)
# Passed on by one trainer, and fixed by the other.
SFT_PASSED_ON = PASSED_ON | _names("include_num_input_tokens_seen activation_offloading max_length")
CODEC_PASSED_ON = PASSED_ON | _names(
    """
    fp16 logging_nan_inf_filter remove_unused_columns prediction_loss_only eval_do_concat_batches
    eval_use_gather_object eval_accumulation_steps include_for_metrics batch_eval_metrics
    """
)

# An option's only values here, and the reason, which follows the word "because".
Fixed = Mapping[str, tuple[tuple[Any, ...], str]]

_ORDER = "packs have one length, so `sequential` keeps the order of the plan and `random` is all that can replace it"
_BOTH: Fixed = {
    "use_liger_kernel": ((False,), "it replaces the model's forward"),
    "liger_kernel_config": ((None,), "it replaces the model's forward"),
    "use_cache": ((False,), "a training batch is read once, so a cache is not used"),
    "length_column_name": (("length",), "rows are not grouped by length"),
    "do_predict": ((False,), "nothing is predicted; call the pipeline, or `janus-hf eval`, with the result"),
}

_READY = "rows are tokenized already, by `janus-hf prepare` and the data package"
_PACKS = "packs are planned by `janus-hf prepare` and the data package"
_LABELS = "the labels of the rows decide which tokens are trained"
_LOSS = "the loss is the model's own, and never holds the logits that this needs"
SFT_FIXED: Fixed = {
    **_BOTH,
    "packing": ((False,), _PACKS),
    "packing_strategy": (("bfd",), _PACKS),
    "eval_packing": ((None,), _PACKS),
    "padding_free": ((False,), _PACKS),
    "pad_to_multiple_of": (("auto", None), "the collator pads; give it `pad_to`"),
    "shuffle_dataset": ((False,), "the plan is shuffled already; call the dataset's own shuffle before the trainer"),
    "train_sampling_strategy": (("sequential", "random"), _ORDER),
    "dataset_text_field": (("text",), _READY),
    "dataset_kwargs": ((None, {"skip_prepare_dataset": True}), _READY),
    "dataset_num_proc": ((None,), _READY),
    "truncation_mode": (("keep_start",), _READY),
    "chat_template_path": ((None,), _READY),
    "eos_token": ((None,), "the processor's own tokens are those of the model"),
    "pad_token": ((None,), "the processor's own tokens are those of the model"),
    "loss_type": (("nll",), "the loss is the model's own: text head and image head, cross-entropy each"),
    "label_smoothing_factor": ((0.0,), _LOSS),
    "router_aux_loss_coef": ((None,), "the model has no experts"),
    "completion_only_loss": ((None,), _LABELS),
    "assistant_only_loss": ((False,), _LABELS),
    "label_names": ((None, ["labels"]), _LABELS),
    "remove_unused_columns": ((False,), "the model needs all keys of the batch"),
    "average_tokens_across_devices": ((True,), "without it the loss depends on how rows are split over processes"),
    "logging_nan_inf_filter": ((False,), "a loss that is not finite stops the training instead of being hidden"),
    "model_init_kwargs": ((None,), "the model is loaded before the trainer is made"),
    "trust_remote_code": ((False,), "the model is loaded before the trainer is made, and no code of it is run"),
    "neftune_noise_alpha": ((None,), "noise on text embeddings would not reach image tokens"),
    "fp16": ((False,), "the released weights are bfloat16 and overflow float16: use bf16 or float32"),
    "prediction_loss_only": ((True,), _LOSS),
    "include_for_metrics": (([],), _LOSS),
    "batch_eval_metrics": ((False,), _LOSS),
    "eval_do_concat_batches": ((True,), _LOSS),
    "eval_use_gather_object": ((False,), _LOSS),
    "eval_accumulation_steps": ((None,), _LOSS),
}

_PIXELS = "the codec's losses are about pixels and codes, which are no tokens"
CODEC_FIXED: Fixed = {
    **_BOTH,
    "train_sampling_strategy": (("random", "sequential"), "images have one size"),
    "label_names": ((["pixel_values"],), "images are their own labels"),
    "label_smoothing_factor": ((0.0,), _PIXELS),
    "average_tokens_across_devices": ((True,), _PIXELS),
    "include_num_input_tokens_seen": (("no", False), _PIXELS),
    "neftune_noise_alpha": ((None,), _PIXELS),
}

# Keyword arguments of the trainers' base classes that are passed on, and those that are refused, with the reason.
SFT_KEYWORDS = frozenset({"eval_dataset", "callbacks", "optimizers", "optimizer_cls_and_kwargs"})
CODEC_KEYWORDS = SFT_KEYWORDS | {
    *("args", "data_collator", "train_dataset", "processing_class", "compute_metrics"),
    "preprocess_logits_for_metrics",
}
_SETTINGS = "set `stage` and the lora_ fields of `args`, from which it follows"
_METRIC = "evaluation measures the losses (eval_loss, eval_text_loss, eval_image_loss), because logits are not kept"
SFT_REFUSED = {
    "peft_config": _SETTINGS,
    "quantization_config": "load the model with it before",
    "compute_loss_func": "the loss is the model's own; override `compute_loss` in a subclass",
    "compute_metrics": f"{_METRIC}; for others use `janus-hf eval`, or a callback",
    "preprocess_logits_for_metrics": _METRIC,
    "formatting_func": "rows are tokenized already; make them with janus_hf.data.prepare",
    "model_init": "pass the model",
}


def _are_callbacks(value: Any) -> bool:  # Any: an argument of any kind
    kinds = [one if isinstance(one, type) else type(one) for one in value] if isinstance(value, (list, tuple)) else []
    return isinstance(value, (list, tuple)) and all(issubclass(kind, TrainerCallback) for kind in kinds)


def _are_optimizers(value: Any) -> bool:  # Any: an argument of any kind
    is_pair = isinstance(value, (list, tuple)) and len(value) == 2
    return is_pair and all(one is None or hasattr(one, "step") for one in value)


def _is_optimizer_class(value: Any) -> bool:  # Any: an argument of any kind
    return (
        isinstance(value, (list, tuple)) and len(value) == 2 and callable(value[0]) and isinstance(value[1], Mapping)
    )


def _is_dataset(value: Any) -> bool:  # Any: an argument of any kind
    return not isinstance(value, (str, bytes)) and (hasattr(value, "__getitem__") or hasattr(value, "__iter__"))


_ROWS = of_kind("a dataset", _is_dataset, None, "make one with janus_hf.data")
# What the arguments of the trainers may be that transformers takes as they come.
KEYWORD_VALUES: Mapping[str, Value] = {
    "train_dataset": _ROWS,
    "eval_dataset": _ROWS,
    "facts": of_kind("a dict", Mapping, None, "name each fact by its key"),
    "callbacks": of_kind(
        "a list of TrainerCallback objects or classes", _are_callbacks, None, "write callbacks=[callback]"
    ),
    "optimizers": of_kind("a pair of an optimizer and a scheduler, each of which may be None", _are_optimizers, None),
    "optimizer_cls_and_kwargs": of_kind("a pair of a class and a dict", _is_optimizer_class, None),
    **dict.fromkeys(
        ("data_collator", "compute_metrics", "preprocess_logits_for_metrics", "perceptual", "adversarial", "teacher"),
        FUNCTION,
    ),
    "temperature": number(*POSITIVE, 0.05),
}
CODEC_REFUSED = {
    "compute_loss_func": "pass `perceptual` or `adversarial`, which are added to the codec's losses",
    "model_init": "pass the model",
}


_PLAIN = {bool: (bool,), int: (int,), float: (int, float), str: (str, os.PathLike), NoneType: (NoneType,)}
_WORDS = {bool: "True or False", int: "an integer", float: "a number", str: "a string", NoneType: "None"}


def check_kinds(args: TrainingArguments) -> None:
    """Raise a TypeError for the first option whose value is not of the kind that its class declares.

    Only options of plain kinds (numbers, strings, True and False) are checked. A string such as "false" or "0.1" would
    otherwise be true, or fail in words that do not name the option.
    """
    hints = get_type_hints(type(args))
    for entry in fields(args):
        hint, value = hints[entry.name], getattr(args, entry.name)
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        # True resumes from the newest checkpoint, although transformers declares a string.
        if not set(kinds) <= _PLAIN.keys() or value is entry.default or entry.name == "resume_from_checkpoint":
            continue
        is_flag = isinstance(value, (bool, np.bool_))
        if is_flag and bool in kinds:
            continue
        plain = value.item() if isinstance(value, np.generic) else value
        if is_flag or not isinstance(plain, tuple(one for kind in kinds for one in _PLAIN[kind])):
            expected = " or ".join(_WORDS[kind] for kind in kinds)
            raise TypeError(f"`{entry.name}` must be {expected}, got {describe(value)}: convert it.")


def check_fixed(args: TrainingArguments, table: Fixed) -> None:
    """Raise a ValueError for the first option that has none of the values that the table allows."""
    for name, (allowed, reason) in table.items():
        if (value := getattr(args, name)) not in allowed:
            only = " or ".join(map(repr, allowed))
            raise ValueError(f"`{name}` must be {only} here, got {value!r}: leave it out, because {reason}.")


def refuse_keywords(given: Mapping[str, Any], table: Mapping[str, str], passed_on: frozenset[str]) -> None:
    """Raise an error for the first keyword argument of a trainer that is not passed on, or is of the wrong kind.

    Args:
        given: Keyword arguments by name; None says nothing.
        table: The arguments that are refused, with the reason.
        passed_on: Names of the arguments that transformers' trainer uses.
    """
    for name, value in given.items():
        if name in table and value is not None:
            raise TypeError(f"`{name}` must be left out of this trainer, got {describe(value)}: {table[name]}.")
        if name not in table and name not in passed_on:
            raise TypeError(
                f"`{name}` must be an argument of this trainer, got {describe(value)} for a name that is none: leave "
                "it out, or check its spelling."
            )
    check_values({name: value for name, value in given.items() if value is not None}, KEYWORD_VALUES)


def changed(args: TrainingArguments, names: str) -> list[str]:
    """Return those of the names (between spaces) whose option does not have the default value of its class."""
    defaults = {entry.name: entry.default for entry in fields(args)}
    return [name for name in names.split() if getattr(args, name) != defaults[name]]


def check_report_to(args: TrainingArguments) -> None:
    """Raise a ValueError if a logging package that `report_to` names is not installed."""
    # transformers' list leaves out Flyte, and Azure ML beside MLflow.
    available = get_available_reporting_integrations()
    if missing := [name for name in args.report_to if name not in (*available, "flyte", "azure_ml")]:
        raise ValueError(
            f"`report_to` must name logging packages that are installed ({', '.join(available) or 'none is'}), got "
            f"{missing[0]!r}: install it with pip, or write report_to='none'."
        )


__all__ = [
    "CODEC_FIXED",
    "CODEC_KEYWORDS",
    "CODEC_PASSED_ON",
    "CODEC_REFUSED",
    "KEYWORD_VALUES",
    "PASSED_ON",
    "SFT_FIXED",
    "SFT_KEYWORDS",
    "SFT_PASSED_ON",
    "SFT_REFUSED",
    "changed",
    "check_fixed",
    "check_kinds",
    "check_report_to",
    "refuse_keywords",
]
