"""The keyword arguments of text generation: a table that sorts those of transformers' `generate`, and its check.

`answer`, and with it the pipeline's `ask` and `chat`, take the arguments of `generate` and the fields of
`GenerationConfig`. Each stands in one of three groups: `PASSED_ON` reach `generate` unchanged, `USED` are used by
`answer` itself, and `REFUSED` raise an error, because they could not change a text answer. A name that is in no group
is refused too, and a test then names it.
"""

from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from ...arguments import by_name, check_flag, check_integer, describe


PASSED_ON = frozenset(
    {
        # sampling, beams and the shape of the distribution
        *("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"),
        *("num_beams", "early_stopping", "length_penalty", "guidance_scale", "renormalize_logits"),
        *("negative_prompt_ids", "negative_prompt_attention_mask", "remove_invalid_values", "watermarking_config"),
        *("repetition_penalty", "encoder_repetition_penalty", "exponential_decay_length_penalty"),
        # which tokens may come, and when the answer ends
        *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "sequence_bias"),
        *("suppress_tokens", "begin_suppress_tokens", "forced_eos_token_id"),
        *("prefix_allowed_tokens_fn", "stopping_criteria", "min_new_tokens", "max_time"),
        # how fast and in what memory
        *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size"),
        *("compile_config", "disable_compile", "synced_gpus"),
        # guesses by an assistant
        *("assistant_model", "assistant_tokenizer", "assistant_confidence_threshold", "assistant_early_exit"),
        *("assistant_ensemble_weight", "assistant_lookbehind", "target_lookbehind", "num_assistant_tokens"),
        *("num_assistant_tokens_schedule", "prompt_lookup_num_tokens", "max_matching_ngram_size"),
        *("use_mtp", "speculation_type"),
    }
)

USED = frozenset(
    {
        *("generation_config", "max_new_tokens", "do_sample", "num_return_sequences", "streamer"),
        *("eos_token_id", "pad_token_id", "logits_processor", "tokenizer", "stop_strings", "token_healing"),
    }
)

_FED = "the messages and images decide what the model reads; call `model.generate` to set it"
_RETURNED = "an answer is a string; call `model.generate` to have it"
_REMOVED = "transformers runs this kind of decoding only with code from the Hub; call `model.generate` with that code"
REFUSED = by_name(
    {
        _FED: (
            "inputs input_ids inputs_embeds attention_mask position_ids pixel_values past_key_values "
            "image_ids labels mm_encoder_outputs logits_to_keep num_items_in_batch cache_position "
            "bos_token_id decoder_start_token_id is_assistant"
        ),
        _RETURNED: "return_dict_in_generate output_scores output_logits output_attentions output_hidden_states",
        _REMOVED: (
            "custom_generate trust_remote_code penalty_alpha dola_layers constraints force_words_ids "
            "num_beam_groups diversity_penalty low_memory"
        ),
        "it counts the prompt and its images too; set `max_new_tokens`": "max_length",
        "it counts the prompt and its images too; set `min_new_tokens`": "min_length",
        "it acts on an empty prompt only": "forced_bos_token_id",
        "conversations are answered in one batch; call `model.generate_batch` to use it": "continuous_batching_config",
    }
)

_ASSISTED = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp", "speculation_type")
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
# Argument -> the arguments of which one must be set for it to have an effect; transformers would only warn, or not.
NEEDS = {
    **dict.fromkeys(_SAMPLING, ("do_sample",)),
    **dict.fromkeys(("early_stopping", "length_penalty"), ("num_beams",)),
    **dict.fromkeys(("negative_prompt_ids", "negative_prompt_attention_mask"), ("guidance_scale",)),
    **dict.fromkeys(("num_assistant_tokens", "num_assistant_tokens_schedule"), _ASSISTED),
    **dict.fromkeys(
        ("assistant_tokenizer", "assistant_ensemble_weight", "assistant_confidence_threshold"), ("assistant_model",)
    ),
    **dict.fromkeys(("assistant_lookbehind", "target_lookbehind"), ("assistant_tokenizer",)),
    "max_matching_ngram_size": ("prompt_lookup_num_tokens",),
    **dict.fromkeys(("cache_config", "max_cache_len"), ("cache_implementation",)),
}
_KINDS = {
    "generation_config": GenerationConfig,
    "assistant_model": PreTrainedModel,
    "logits_processor": list,
    "stopping_criteria": list,
}
# Entries of a configuration that say where it comes from.
_ORIGIN = ("transformers_version",)


# Any: values of arguments of `generate`.
def text_arguments(arguments: Mapping[str, Any], own: GenerationConfig | None) -> dict[str, Any]:
    """Return what a caller has said about text generation, as keyword arguments of `generate`.

    The fields of a `generation_config` among the arguments come out as single arguments, which explicit arguments
    replace. Arguments that are None say nothing and are left out.

    Args:
        arguments: The caller's keyword arguments: those of `generate`, and fields of `GenerationConfig`.
        own: The model's generation configuration, of which a given configuration may be a changed copy.

    Returns:
        The arguments by name; `max_new_tokens` and `do_sample` are a checked int and bool if they are given.

    Raises:
        TypeError: If an argument is unknown or of the wrong type.
        ValueError: If an argument is of the group `REFUSED`, or has no effect because of another argument.
    """
    said = {name: value for name, value in arguments.items() if value is not None}
    for name, kind in _KINDS.items():
        if name in said and not isinstance(said[name], kind):
            raise TypeError(f"`{name}` must be a {kind.__name__} or None, got {describe(said[name])}: convert it.")
    _refuse(said, "")
    config = said.pop("generation_config", None)
    if config is not None:
        fields = _fields(config, own)
        _refuse(fields, " of `generation_config`")
        said = fields | said
    for name in ("max_new_tokens", "num_beams", "num_return_sequences"):
        if name in said:
            said[name] = check_integer(said[name], name, "give 1 or more, or leave it out")
    if "do_sample" in said:
        said["do_sample"] = check_flag(said["do_sample"], "do_sample")
    if said.pop("num_return_sequences", 1) != 1:
        raise ValueError(
            "`num_return_sequences` must be 1, got more: there is one answer to each question; ask again with "
            "do_sample=True, or pass several conversations to `chat`."
        )
    _check_effects(said)
    return said


# Any: values of arguments of `generate`.
def _fields(config: GenerationConfig, own: GenerationConfig | None) -> dict[str, Any]:
    """Return the fields of a generation configuration that say something, by name.

    Fields that are equal to the model's own say nothing, because `generate` takes the model's own by itself; those
    that `answer` uses always count, because its defaults are others.
    """
    return {
        name: value
        for name, value in vars(config).items()
        if value is not None
        and not (name.startswith("_") or name in _ORIGIN)
        and (name in USED or value != getattr(own, name, None))
    }


def _refuse(given: Mapping[str, Any], where: str) -> None:
    """Raise an error for the first argument of the group `REFUSED`, or of no group; False asks for nothing.

    Args:
        given: Arguments by name.
        where: Words for the message that follow the name of the argument.
    """
    for name, value in given.items():
        if name in REFUSED and value is not False:
            raise ValueError(f"`{name}`{where} must be left out, got {describe(value)}: {REFUSED[name]}.")
        if name not in PASSED_ON | USED | REFUSED.keys():
            raise TypeError(
                f"`{name}`{where} must be an argument of text generation, got {describe(value)} for a name that is "
                "none: leave it out, or check its spelling."
            )


def _acts(value: object) -> bool:
    """Return whether the value of an argument asks for something; the number 1 is the neutral beam and guidance."""
    is_neutral = not isinstance(value, bool) and isinstance(value, (int, float)) and value == 1
    return value is not None and value is not False and not is_neutral


def _check_effects(said: Mapping[str, Any]) -> None:
    """Raise a ValueError for an argument that another argument, or the lack of one, leaves without an effect."""
    for name, needed in NEEDS.items():
        value = said.get(name)
        if value is not None and value is not False and not any(_acts(said.get(one)) for one in needed):
            raise ValueError(
                f"`{name}` must come together with {' or '.join(f'`{one}`' for one in needed)}, without which it has "
                f"no effect, got {describe(value)} alone: set {needed[0]}, or leave {name} out."
            )
    assisted = [name for name in _ASSISTED if _acts(said.get(name))]
    if assisted and _acts(said.get("num_beams")):
        raise ValueError(
            f"`{assisted[0]}` must be left out with `num_beams`, got both: guesses are checked for single "
            "sequences only."
        )
    if said.get("cache_implementation") == "paged":
        raise ValueError(
            "`cache_implementation` must not be 'paged' here, got 'paged': it leaves out images; choose 'dynamic' or "
            "'static'."
        )


__all__ = ["NEEDS", "PASSED_ON", "REFUSED", "USED", "text_arguments"]
