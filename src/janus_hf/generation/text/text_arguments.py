"""The keyword arguments of text generation: a table that sorts those of transformers' `generate`, and its check.

`answer`, and with it the pipeline's `ask` and `chat`, take the arguments of `generate` and the fields of
`GenerationConfig`. Each stands in one of three groups: `PASSED_ON` reach `generate` unchanged, `USED` are used by
`answer` itself, and `REFUSED` raise an error, because they could not change a text answer. A name that is in no group
is refused too, and a test then names it.
"""

from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig

from ...arguments import by_name, describe
from .text_values import SAMPLING, VALUES, check_text_values


MAX_NEW_TOKENS = 512  # of an answer, unless the caller says another number

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

_ASSISTED = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")
# Argument -> the arguments of which one must be set for it to have an effect; transformers would only warn, or not.
NEEDS = {
    **dict.fromkeys(SAMPLING, ("do_sample",)),
    **dict.fromkeys(("early_stopping", "length_penalty"), ("num_beams",)),
    **dict.fromkeys(("negative_prompt_ids", "negative_prompt_attention_mask"), ("guidance_scale",)),
    **dict.fromkeys(("num_assistant_tokens", "num_assistant_tokens_schedule"), _ASSISTED),
    **dict.fromkeys(
        ("assistant_tokenizer", "assistant_ensemble_weight", "assistant_confidence_threshold", "speculation_type"),
        ("assistant_model",),
    ),
    "tokenizer": ("stop_strings", "token_healing", "assistant_tokenizer"),
    **dict.fromkeys(("assistant_lookbehind", "target_lookbehind"), ("assistant_tokenizer",)),
    "max_matching_ngram_size": ("prompt_lookup_num_tokens",),
    **dict.fromkeys(("cache_config", "max_cache_len"), ("cache_implementation",)),
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
        The arguments by name, with checked values; `max_new_tokens` is always among them.

    Raises:
        TypeError: If an argument is unknown or of the wrong type.
        ValueError: If an argument is of the group `REFUSED`, out of range, or has no effect because of another one.
    """
    said = {name: value for name, value in arguments.items() if value is not None}
    _refuse(said, "")
    config = said.pop("generation_config", None)
    if config is not None:
        VALUES["generation_config"].check(config, "generation_config")
        fields = _fields(config, own)
        _refuse(fields, " of `generation_config`")
        said = fields | said
    _check_effects(said)
    said = check_text_values({"max_new_tokens": MAX_NEW_TOKENS} | said)
    if said.pop("num_return_sequences", 1) != 1:
        raise ValueError(
            "`num_return_sequences` must be 1, got more: there is one answer to each question; ask again with "
            "do_sample=True, or pass several conversations to `chat`."
        )
    _check_together(said)
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
    if said.get("max_cache_len") is not None and "static" not in str(said.get("cache_implementation")):
        raise ValueError(
            "`max_cache_len` must come together with cache_implementation='static', got "
            f"{describe(said.get('cache_implementation'))}: other caches grow; leave it out."
        )
    if said.get("cache_implementation") == "paged":
        raise ValueError(
            "`cache_implementation` must not be 'paged' here, got 'paged': it leaves out images; choose 'dynamic' or "
            "'static'."
        )


def _check_together(said: Mapping[str, Any]) -> None:
    """Raise a ValueError for what transformers' own check of a configuration finds, also where it would only warn."""
    settings = GenerationConfig()
    for name, value in said.items():
        if hasattr(settings, name):
            setattr(settings, name, value)
    try:
        settings.validate(strict=True)
    except ValueError as error:
        raise ValueError(
            f"The arguments of text generation must be valid together, got some that are not: {error}"
        ) from error


__all__ = ["MAX_NEW_TOKENS", "NEEDS", "PASSED_ON", "REFUSED", "USED", "text_arguments"]
