"""The function `answer`, which answers conversations in batches: it renders the chat template and calls `generate`.

The pipeline, the evaluation, samples during training and the adapters for other evaluation harnesses all call
`answer`, so the same conversation gets the same answer everywhere, and no answer runs past the end of the model's
context.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.cache_utils import Cache, DynamicCache

from .arguments import check_flag
from .errors import not_finite
from .generation.context import EndOfContext, context_length
from .generation.text.text_arguments import text_arguments
from .protocols import ChatProcessor, HasImageTokens
from .tokenizer import check_text_ids


Conversation = list[dict[str, Any]]

# Arguments of `generate` that choose tokens or show them, with any value.
_HARMLESS = {
    "bad_words_ids",
    "do_sample",
    "eos_token_id",
    "length_penalty",
    "logits_processor",
    "max_time",
    "min_new_tokens",
    "min_p",
    "no_repeat_ngram_size",
    "pad_token_id",
    "repetition_penalty",
    "stop_strings",
    "stopping_criteria",
    "streamer",
    "suppress_tokens",
    "temperature",
    "tokenizer",
    "top_k",
    "top_p",
    "typical_p",
}
# Further settings of `generate` -> the value with which every answer is one row, with a cache of one kind.
_ONE_ROW = {
    "cache_implementation": None,
    "compile_config": None,
    "guidance_scale": None,
    "num_beams": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "prefill_chunk_size": None,
    "prompt_lookup_num_tokens": None,
    "use_cache": True,
}


@torch.no_grad()
def answer(
    model: HasImageTokens | PreTrainedModel,
    processor: ChatProcessor,
    conversations: Sequence[Conversation],
    *,
    max_new_tokens: int | None = None,
    system_prompt: str | None = "default",
    roles: Sequence[str] | None = None,
    parse_special_tokens: bool | None = None,
    share_prefix: bool = False,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    **generate_kwargs: Any,
) -> list[str]:
    """Answer a batch of conversations. An answer does not depend on the other conversations of the batch.

    Args:
        model: A Janus model, or any transformers model that generates text from its processor's batches.
        processor: The model's processor.
        conversations: Lists of chat messages, each with any number of images.
        max_new_tokens: Upper bound on the number of tokens of an answer; None is 512. An answer also ends where the
            model's context is full.
        system_prompt: Text of the system prompt; "default" uses the processor's own, None or "" uses none.
        roles: Names of user and assistant in the prompt; None uses those of the processor.
        parse_special_tokens: Whether special tokens that stand in a message become special tokens; None uses the
            setting of the processor.
        share_prefix: Run the longest common prefix of the conversations once, images included, and batch only the
            rest. The conversations must show the same images. For Janus models only.
        device: Device of the inputs; None uses the model's.
        dtype: Dtype to which pixel values are converted, for models that do not convert them themselves; None keeps
            theirs.
        generate_kwargs: Further arguments of `model.generate`, also a `generation_config`, which decides where no
            single argument does. The default is greedy decoding. `generation.text.text_arguments` sorts them all.

    Returns:
        One string per conversation, without special tokens and surrounding white space. Bytes at the end of a sampled
        answer that form no character are left out.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a conversation leaves no space for an answer in the model's context, images and placeholders do
            not match, an argument could not change a text answer, or it is incompatible with `share_prefix`.
        FloatingPointError: If the text logits of a float16 model are NaN.
    """
    settings = text_arguments(
        generate_kwargs | {"max_new_tokens": max_new_tokens}, getattr(model, "generation_config", None)
    )
    most = settings.pop("max_new_tokens")
    # Arguments that only JanusProProcessor accepts are left out unless the caller gives them.
    template: dict[str, Any] = {} if system_prompt == "default" else {"system_prompt": system_prompt}
    if roles is not None:
        template["roles"] = roles
    if parse_special_tokens is not None:
        template["parse_special_tokens"] = parse_special_tokens
    shares_prefix = check_flag(share_prefix, "share_prefix") and len(conversations) > 1
    if shares_prefix:
        _check_shareable(settings)
    # Lengths and ids are read before the batch is moved, because reading them from a GPU would wait for it each time.
    batch = processor.apply_chat_template(
        list(conversations),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
        **template,
    )
    num_text_ids = getattr(model.config.get_text_config(), "vocab_size", None)
    if num_text_ids is not None:
        placeholder = getattr(model.config, "image_token_id", None)
        check_text_ids(batch["input_ids"], num_text_ids, placeholder=placeholder)
    rows = [ids[mask.bool()] for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    room = [_room(model, index, len(row), most) for index, row in enumerate(rows)]
    if shares_prefix and "pixel_values" in batch:
        batch["pixel_values"] = batch["pixel_values"][: len(batch["pixel_values"]) // len(rows)]
    inputs: dict[str, Any] = dict(
        batch.to(*[target for target in (device or model.device, dtype) if target is not None])
    )
    # JanusProProcessor has the id of the token that ends an answer; other models have it in their generation_config.
    stop = {name: getattr(processor, name) for name in ("eos_token_id", "pad_token_id") if hasattr(processor, name)}
    if settings.get("stop_strings") is not None or settings.get("token_healing"):
        settings.setdefault("tokenizer", getattr(processor, "tokenizer", processor))
    if model.dtype == torch.float16:  # other dtypes do not overflow
        guard = _NaNGuard(model, inputs.get("pixel_values"))
        settings["logits_processor"] = LogitsProcessorList([guard, *settings.get("logits_processor", [])])
    longest = inputs["input_ids"].shape[1]
    if min(room) < max(room):
        ends = EndOfContext(longest, room)
        settings["stopping_criteria"] = StoppingCriteriaList([ends, *settings.get("stopping_criteria", [])])
    with _answer_cache(model, longest + max(room), settings) as cache:
        if shares_prefix:
            device = inputs["input_ids"].device
            inputs = _run_prefix(model, rows, inputs.get("pixel_values"), stop["pad_token_id"], cache, device)
        elif cache is not None:
            inputs["past_key_values"] = cache
        output = model.generate(**inputs, **stop | {"do_sample": False} | settings, max_new_tokens=max(room))
    # Rows that have ended are padded until the last one ends.
    new = output[:, longest:].cpu()
    texts = [processor.decode(row[:end], skip_special_tokens=True) for row, end in zip(new, room, strict=True)]
    if settings.get("do_sample"):
        # Tokens may be single bytes, and sampling, or the limit of tokens, may end an answer with bytes that form no
        # character. Greedy answers keep them, because they are compared with the text of deepseek-ai/Janus.
        texts = [text.rstrip("\N{REPLACEMENT CHARACTER}") for text in texts]
    return [text.strip() for text in texts]


def _answer_cache(
    model: HasImageTokens | PreTrainedModel, length: int, settings: dict[str, Any]
) -> AbstractContextManager[Cache | None]:
    """Return a context manager with the cache that makes `generate` fast, or with None if the model has none.

    The result is None as well if an argument asks `generate` for another cache, or for more than a row per answer.

    Args:
        model: The model that answers.
        length: Largest number of positions, prompt and answer together.
        settings: Arguments of `generate`.
    """
    defaults = getattr(model, "generation_config", None)
    own = [name for name, value in _ONE_ROW.items() if getattr(defaults, name, None) not in (None, value)]
    fits = not own and all(name in _HARMLESS or value == _ONE_ROW.get(name) for name, value in settings.items())
    return model.answer_cache(length) if fits and hasattr(model, "answer_cache") else nullcontext()


class _NaNGuard(LogitsProcessor):
    """Raise an error where text logits are NaN, which would otherwise become an arbitrary answer.

    Args:
        model: The model that answers.
        pixel_values: The images of the batch, or None.
    """

    def __init__(self, model: HasImageTokens | PreTrainedModel, pixel_values: torch.Tensor | None) -> None:
        self.model, self.pixel_values = model, pixel_values

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the logits `(B, V)` unchanged, or raise a FloatingPointError that names the part of the model."""
        if not scores.isnan().any():
            return scores
        part = "the language model"
        if self.pixel_values is not None and hasattr(self.model, "get_image_features"):
            features = self.model.get_image_features(self.pixel_values).pooler_output
            part = part if features.isfinite().all() else "the vision tower, or its aligner"
        raise not_finite(
            "The model's text logits",
            part,
            self.model.dtype,
            "load the model with dtype='bfloat16', or with dtype='float32' where the device has no bfloat16",
        )


def _room(model: HasImageTokens | PreTrainedModel, index: int, length: int, max_new_tokens: int) -> int:
    """Return the largest number of new tokens, at most `max_new_tokens`, that fit into the model's context.

    Args:
        model: The model, whose config gives the size of the context.
        index: Number of the conversation, for the error message.
        length: Number of tokens of the conversation.
        max_new_tokens: Upper bound on the result.

    Raises:
        ValueError: If the conversation leaves no space for an answer.
    """
    text_config = model.config.get_text_config()
    if getattr(text_config, "max_position_embeddings", None) is None:
        return max_new_tokens
    limit = context_length(text_config)
    if length >= limit:
        raise ValueError(
            f"Conversation {index} takes {length} tokens and the model's context holds {limit}: there is no room for "
            "an answer. Leave out earlier turns, text or images."
        )
    return min(max_new_tokens, limit - length)


def _run_prefix(
    model: HasImageTokens,
    rows: list[torch.Tensor],
    pixel_values: torch.Tensor | None,
    pad_token_id: int,
    cache: Cache | None,
    device: torch.device,
) -> dict[str, Any]:
    """Run the common prefix of several conversations once, and return the inputs of `generate` for the whole batch.

    Args:
        model: A Janus model.
        rows: Token ids of each conversation, `(T,)` on the CPU; all conversations have the same images.
        pixel_values: The `M` images of one conversation, `(M, 3, S, S)`, or None.
        pad_token_id: Id of the padding token.
        cache: An empty cache to fill, or None for a new one.
        device: Device of the inputs.

    Returns:
        A dictionary with `input_ids` and `attention_mask` `(B, T)`, in which every row is prefix, padding, rest; and
        `past_key_values`, a cache that holds the prefix. Padding is masked, and positions are counted without it.
    """
    shared = min(map(len, rows)) - 1  # `generate` needs at least one token that is not in the cache
    differs = torch.stack([row[:shared] != rows[0][:shared] for row in rows]).any(dim=0)
    if differs.any():
        shared = int(differs.int().argmax())
    length = max(map(len, rows))
    ids = rows[0].new_full((len(rows), length), pad_token_id)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        rest = slice(length - (len(row) - shared), length)
        ids[number, :shared], mask[number, :shared] = row[:shared], 1
        ids[number, rest], mask[number, rest] = row[shared:], 1
    ids, mask = ids.to(device), mask.to(device)
    cache = DynamicCache(config=model.config.text_config) if cache is None else cache
    model.model(input_ids=ids[:1, :shared], pixel_values=pixel_values, past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(len(rows))
    return {"input_ids": ids, "attention_mask": mask, "past_key_values": cache}


def _check_shareable(settings: dict[str, Any]) -> None:
    """Raise a ValueError if an argument of `generate` does not work with a cache that already holds the prefix.

    The prefix is the common beginning of the prompts.
    """
    allowed = {"num_beams": 1, "use_cache": True, "cache_implementation": None}
    given = [name for name, value in allowed.items() if settings.get(name, value) not in (value, None)]
    if settings.get("streamer") is not None:
        given.append("streamer")
    if given:
        raise ValueError(f"A list of questions cannot be answered with {', '.join(given)}: ask one at a time.")


__all__ = ["Conversation", "answer"]
