"""What happens to every setting of a run that is resumed with another value: a table of all fields.

A setting that can have more than one value belongs to one of four kinds. `APPLIED` settings may change at any time,
because they do not change what is learned: how often the run logs, saves and samples, where results go, how it ends.
`ON_REQUEST` settings change what is learned from there on, and transformers restores some of them from the checkpoint
without a word. Another value is refused, unless `resume_changes` names the setting; then it is applied. `FIXED`
settings cannot change, because the rows would not continue where they stopped, or the weights and states of the
checkpoint would not fit. `BATCH` settings may change as long as a step trains on the same number of packs.

Names of the fields of `JanusProSFTConfig` stand alone; those of the other sections of a recipe have the section before
them. A test compares the table with the fields of the installed versions.
"""

from collections.abc import Sequence

from ..trainers.option_tables import SFT_FIXED


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


APPLIED = _names(
    """
    output_dir max_steps num_train_epochs stop_step resume_from_checkpoint resume_changes ignore_data_skip
    restore_callback_states_from_checkpoint allow_unreached
    logging_strategy logging_steps logging_first_step log_on_each_node log_level log_level_replica disable_tqdm
    include_num_input_tokens_seen peak_tflops report_to run_name project trackio_space_id trackio_bucket_id
    trackio_static_space_id debug skip_memory_metrics
    eval_strategy eval_steps eval_delay per_device_eval_batch_size eval_on_start do_train do_eval bf16_full_eval
    fp16_full_eval load_best_model_at_end metric_for_best_model greater_is_better
    save_only_model save_strategy save_steps save_on_each_node save_total_limit save_layout enable_jit_checkpoint
    push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision
    sample_steps sample_prompts sample_questions sample_guidance_scale sample_max_new_tokens
    activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs
    activation_offloading torch_empty_cache_steps auto_find_batch_size
    dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
    dataloader_multiprocessing_context dataloader_in_order
    ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout
    fsdp fsdp_config deepspeed local_rank
    model.processor data.evaluation
    """
)
BATCH = _names("per_device_train_batch_size gradient_accumulation_steps total_batch_size num_processes")
ON_REQUEST = _names(
    """
    learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps
    weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm
    caption_drop lora_alpha lora_dropout
    bf16 tf32 torch_compile torch_compile_backend torch_compile_mode full_determinism use_cpu
    accelerator_config parallelism_config
    model.path model.revision model.dtype model.quantization model.attn_implementation
    """
)
FIXED = _names(
    """
    stage train_generation_embeddings lora_r lora_vision_tower lora_targets optim optim_args optim_target_modules
    seed data_seed ratios max_length train_sampling_strategy dataloader_drop_last
    data.sources data.seed data.streaming data.shuffle data.shuffle_buffer
    """
)
# Settings that have one value in every run (`option_tables`), or some that mean the same.
CONSTANT = frozenset(SFT_FIXED.keys() - {"train_sampling_strategy"})

# Settings from which the learning rate of every step follows.
SCHEDULE = _names("learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps max_steps")
# Settings of the optimizer's groups of parameters -> the key in these groups.
GROUP_KEYS = {"weight_decay": "weight_decay", "adam_beta1": "betas", "adam_beta2": "betas", "adam_epsilon": "eps"}


def check_resume_changes(names: Sequence[str]) -> None:
    """Raise a ValueError if `resume_changes` names a setting that does not exist, or that cannot change.

    Args:
        names: The value of `resume_changes`.
    """
    for name in names:
        if name in BATCH:
            raise ValueError(
                f"`resume_changes` must name settings that may change, got {name!r}: leave it out; another value is "
                "used without it, as long as the packs per step stay the same."
            )
        if name in FIXED | CONSTANT:
            raise ValueError(
                f"`resume_changes` must name settings that may change, got {name!r}, which cannot change when a run "
                "is resumed: leave it out, and start a new run from the checkpoint's weights to change it."
            )
        if name not in APPLIED | ON_REQUEST:
            raise ValueError(
                f"`resume_changes` must name settings of the run, got {name!r}, which is none: choose from "
                f"{', '.join(sorted(ON_REQUEST))}."
            )


__all__ = ["APPLIED", "BATCH", "CONSTANT", "FIXED", "GROUP_KEYS", "ON_REQUEST", "SCHEDULE", "check_resume_changes"]
