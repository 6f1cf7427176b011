"""What each argument of text generation may be: a table that `ask`, `chat` and the model's `generate` share.

transformers checks few of these values, some of them only while it generates, and takes others for "off". Its own
check of how the settings fit together, `GenerationConfig.validate`, is made strict in `text_arguments.py`.
"""

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from transformers import CompileConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation import BaseWatermarkingConfig

from ...arguments import (
    FLAG,
    FUNCTION,
    NOT_NEGATIVE,
    POSITIVE,
    SOME_SHARE,
    Value,
    check_values,
    integer,
    number,
    of_kind,
    one_of,
)


# Any: these functions decide whether a value of any kind is of the kind that they name.
def _is_id(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, (bool, np.bool_)) and int(value) >= 0


def _is_id_tensor(value: Any) -> bool:
    is_tensor = isinstance(value, torch.Tensor) and not value.is_floating_point() and value.dtype != torch.bool
    return is_tensor and bool(value.numel()) and bool((value >= 0).all())


def _is_ids(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(_is_id(one) for one in value)


def _is_id_or_ids(value: Any) -> bool:
    return _is_id(value) or _is_ids(value) or _is_id_tensor(value)


def _is_lists_of_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_ids, value))


def _is_streamer(value: Any) -> bool:
    return not isinstance(value, type) and hasattr(value, "put") and hasattr(value, "end")


def _is_texts(value: Any) -> bool:
    texts = [value] if isinstance(value, str) else value
    return isinstance(texts, (list, tuple)) and bool(texts) and all(isinstance(one, str) and one for one in texts)


def _is_decay(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and _is_id(value[0])
        and isinstance(value[1], Real)
        and float(value[1]) > 0
    )


def _is_stopping(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, str) and value == "never")


_SHARE = ("lie in [0, 1]", lambda value: 0 <= value <= 1)
_SMALL_SHARE = ("lie in [0, 1)", lambda value: 0 <= value < 1)
_INNER_SHARE = ("lie in (0, 1)", lambda value: 0 < value < 1)

_ID = of_kind("a token id", lambda value: _is_id(value) or _is_id_tensor(value), 0)
_IDS = of_kind("a list of token ids", lambda value: _is_ids(value) or _is_id_tensor(value), [0])
_ID_OR_IDS = of_kind("a token id or a list of them", _is_id_or_ids, 0)
_ID_TENSOR = of_kind(
    "a tensor of token ids (B, T)", _is_id_tensor, torch.ones(1, 1, dtype=torch.long), "pass token ids"
)
_MASK = of_kind("a tensor of zeros and ones (B, T)", torch.Tensor, torch.ones(1, 1), "pass that of the token ids")
_TOKENIZER = of_kind("a tokenizer of transformers", PreTrainedTokenizerBase, None)

# Arguments that have an effect on sampling only.
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")

# Argument -> what it may be. None always means that an argument is left out.
VALUES: Mapping[str, Value] = {
    # sampling, beams and the shape of the distribution
    "do_sample": FLAG,
    "temperature": number(*POSITIVE, 0.7, "use do_sample=False for the most likely tokens"),
    "top_k": integer(0, 50),
    "top_p": number(*_SHARE, 0.9),
    "min_p": number(*_SHARE, 0.05),
    "top_h": number(*SOME_SHARE, 0.4),
    "typical_p": number(*SOME_SHARE, 0.95),
    "epsilon_cutoff": number(*_SMALL_SHARE, 3e-4),
    "eta_cutoff": number(*_SMALL_SHARE, 3e-4),
    "num_beams": integer(1, 4),
    "early_stopping": of_kind("True, False or 'never'", _is_stopping, True),
    "length_penalty": number("be a number", lambda value: value == value, 1.2),
    "guidance_scale": number(*NOT_NEGATIVE, 1.5),
    "renormalize_logits": FLAG,
    "remove_invalid_values": FLAG,
    "negative_prompt_ids": _ID_TENSOR,
    "negative_prompt_attention_mask": _MASK,
    "watermarking_config": of_kind("a WatermarkingConfig", BaseWatermarkingConfig, None),
    "repetition_penalty": number(*POSITIVE, 1.2),
    "encoder_repetition_penalty": number(*POSITIVE, 1.2),
    "exponential_decay_length_penalty": of_kind("a pair of a start and a factor above 0", _is_decay, (20, 1.1)),
    # which tokens may come, and when the answer ends
    "no_repeat_ngram_size": integer(0, 3),
    "encoder_no_repeat_ngram_size": integer(0, 3),
    "bad_words_ids": of_kind("a list of lists of token ids", _is_lists_of_ids, [[0]]),
    "sequence_bias": of_kind("a dict from tuples of token ids to numbers", (dict, list), {(0,): -1.0}),
    "suppress_tokens": _IDS,
    "begin_suppress_tokens": _IDS,
    "forced_eos_token_id": _ID_OR_IDS,
    "eos_token_id": _ID_OR_IDS,
    "pad_token_id": _ID,
    "prefix_allowed_tokens_fn": FUNCTION,
    "stopping_criteria": of_kind("a list of stopping criteria", list, None),
    "logits_processor": of_kind("a list of logits processors", list, None),
    "max_new_tokens": integer(1, 512),
    "min_new_tokens": integer(0, 8),
    "max_time": number(*POSITIVE, 60.0),
    "stop_strings": of_kind("a string, or a list of strings, of at least one character", _is_texts, ["."]),
    "token_healing": FLAG,
    "tokenizer": _TOKENIZER,
    "num_return_sequences": integer(1, 1),
    "streamer": of_kind(
        "a streamer of transformers",
        _is_streamer,
        None,
        "write TextStreamer(pipe.processor.tokenizer)",
    ),
    "generation_config": of_kind(
        "a GenerationConfig", GenerationConfig, None, "write GenerationConfig(max_new_tokens=9)"
    ),
    # how fast and in what memory
    "use_cache": FLAG,
    "cache_implementation": of_kind("a string", str, "static"),
    "cache_config": of_kind("a dict", dict, {}),
    "max_cache_len": integer(1, 4096),
    "prefill_chunk_size": integer(1, 512),
    "compile_config": of_kind("a CompileConfig", CompileConfig, None),
    "disable_compile": FLAG,
    "synced_gpus": FLAG,
    # guesses by an assistant
    "assistant_model": of_kind("a PreTrainedModel", PreTrainedModel, None),
    "assistant_tokenizer": _TOKENIZER,
    "assistant_confidence_threshold": number(*_SHARE, 0.4),
    "assistant_early_exit": integer(1, 4),
    "assistant_ensemble_weight": number(*_INNER_SHARE, 0.5),
    "assistant_lookbehind": integer(1, 10),
    "target_lookbehind": integer(1, 10),
    "num_assistant_tokens": integer(1, 5),
    "num_assistant_tokens_schedule": one_of("constant", "heuristic", "heuristic_transient"),
    "prompt_lookup_num_tokens": integer(1, 5),
    "max_matching_ngram_size": integer(1, 2),
    "use_mtp": FLAG,
    "speculation_type": of_kind("'dflash'", lambda value: value == "dflash", "dflash"),
}


# Any: values of arguments.
def check_text_values(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of text generation with their values checked; numbers become plain ones, None is left alone.

    Args:
        said: Arguments by name. Those that the table lacks are not checked.

    Raises:
        TypeError: If a value is of the wrong type.
        ValueError: If a value is out of range, or `min_new_tokens` is larger than `max_new_tokens`.
    """
    checked = {**said, **check_values({name: value for name, value in said.items() if value is not None}, VALUES)}
    least, most = checked.get("min_new_tokens"), checked.get("max_new_tokens")
    if least is not None and most is not None and least > most:
        raise ValueError(
            f"`min_new_tokens` must be at most `max_new_tokens`, {most}, got {least}: lower it, or raise "
            "max_new_tokens."
        )
    return checked


__all__ = ["SAMPLING", "VALUES", "check_text_values"]
