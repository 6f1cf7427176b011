"""Original weights <-> ours, through transformers' registered weight conversion, and loading that never guesses.

Two registrations make `from_pretrained` read all layouts and `save_pretrained` write them:

* `multi_modality` (the root): names only. The table below is read in both directions; `^` anchors keep it off the
  names of the transformers layout, which pass through unchanged.
* `JanusProVisionModel` (scoped to the tower): names inside the tower, the fused qkv and the position embedding's
  shape. It must be scoped: unscoped, saving would fuse the language model's projections too.
"""

import json
from collections.abc import Iterator
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.core_model_loading import Chunk, ConversionOps, WeightConverter, WeightRenaming, WeightTransform
from transformers.utils import cached_file

from ..errors import CheckpointError
from ..layouts.janus_pro import _ROOT_NAMES, _TOWER_NAMES, SPECIAL_TOKENS


class DropLeadingAxis(ConversionOps):
    """`(1, N, C)` of the original position embedding -> `(N, C)` of an embedding table."""

    def convert(
        self, input_dict: dict[str, Any], source_patterns: Any, target_patterns: Any, **kwargs: Any
    ) -> dict[str, Any]:
        (tensor,) = input_dict.values()
        tensor = tensor[0] if isinstance(tensor, list) else tensor
        return {target_patterns[0]: tensor.squeeze(0)}

    @property
    def reverse_op(self) -> ConversionOps:
        return AddLeadingAxis()


class AddLeadingAxis(ConversionOps):
    """The inverse of `DropLeadingAxis`."""

    def convert(
        self, input_dict: dict[str, Any], source_patterns: Any, target_patterns: Any, **kwargs: Any
    ) -> dict[str, Any]:
        (tensor,) = input_dict.values()
        tensor = tensor[0] if isinstance(tensor, list) else tensor
        return {target_patterns[0]: tensor.unsqueeze(0)}

    @property
    def reverse_op(self) -> ConversionOps:
        return DropLeadingAxis()


def root_conversions(prefix: str) -> list[WeightTransform]:
    """Renamings of the whole model; `prefix` is `"model."` for the model with heads and empty for the bare one."""
    escaped = prefix.replace(".", r"\.")
    # Only the anchored targets move under the prefix; the others act on names that already did.
    renamings = [(theirs, f"^{escaped}{ours[1:]}" if ours.startswith("^") else ours) for theirs, ours in _ROOT_NAMES]
    renamings.append((r"^language_model\.lm_head\.", r"^lm_head\."))
    return [WeightRenaming(theirs, ours) for theirs, ours in renamings]


def tower_conversions() -> list[WeightTransform]:
    """Renamings and reshapings inside the vision tower."""
    return [
        *(WeightRenaming(theirs, ours) for theirs, ours in _TOWER_NAMES),
        WeightConverter(
            "attn.qkv", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], operations=[Chunk(dim=0)]
        ),
        WeightConverter("pos_embed", "embeddings.position_embedding.weight", operations=[DropLeadingAxis()]),
    ]


def register_conversions() -> None:
    """Tell transformers how to read and write original weights. Safe to call again."""
    register_checkpoint_conversion_mapping("multi_modality", root_conversions("model."), overwrite=True)
    register_checkpoint_conversion_mapping("JanusProVisionModel", tower_conversions(), overwrite=True)


def all_conversions(model: Any) -> list[WeightTransform]:
    """Every conversion between the original layout and `model`'s names, whatever layout it was loaded from."""
    root = root_conversions(f"{model.base_model_prefix}." if hasattr(model, model.base_model_prefix) else "")
    scoped = [t for t in get_model_conversion_mapping(model, add_legacy=False) if t.scope_prefix is not None]
    return root + scoped


def check_loaded(info: dict[str, Any], source: Any) -> None:
    """Raise a `CheckpointError` unless the files held exactly the model.

    Args:
        info: transformers' loading info (`output_loading_info=True`).
        source: Name of the checkpoint, for the message.
    """
    missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
    mismatched, errors = list(info["mismatched_keys"]), info.get("error_msgs") or []
    if missing or unexpected or mismatched or errors:
        raise CheckpointError(
            f"The weights of {str(source)!r} are not exactly those of the model its config.json describes, so nothing "
            "was loaded. Check that every shard is complete and belongs to this config; a fine-tuned adapter loads "
            "with "
            "load_adapter or load_lora_weights instead." + "".join(f"\n  {error}" for error in errors),
            missing=missing,
            unexpected=unexpected,
            mismatched=mismatched,
        )


def special_token_ids(source: Any, **hub_kwargs: Any) -> dict[str, int]:
    """Ids of the special tokens, looked up by string in the checkpoint's `tokenizer.json`.

    They differ between released checkpoints and stand in no original config. A string that the file lacks is left out,
    as is everything when there is no such file (a folder with weights only).

    Args:
        source: Repository id or folder.
        hub_kwargs: Arguments of `transformers.utils.cached_file`.
    """
    path = cached_file(source, "tokenizer.json", _raise_exceptions_for_missing_entries=False, **hub_kwargs)
    if path is None:
        return {}
    with open(path, encoding="utf-8") as file:
        ids = dict(_vocabulary(json.load(file)))
    return {name: ids[token] for name, token in SPECIAL_TOKENS.items() if token in ids}


def _vocabulary(tokenizer: dict[str, Any]) -> Iterator[tuple[str, int]]:
    vocab = tokenizer.get("model", {}).get("vocab", {})
    yield from vocab.items() if isinstance(vocab, dict) else ((piece, i) for i, (piece, _) in enumerate(vocab))
    for token in tokenizer.get("added_tokens", []):
        yield token["content"], token["id"]


def clone_tied_head(model: Any, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`state_dict` with its own copy of `lm_head.weight`: original files always store one, tied or not."""
    if "lm_head.weight" in state_dict:
        state_dict = {**state_dict, "lm_head.weight": state_dict["lm_head.weight"].clone()}
    return state_dict
