"""Conversion of original weights to our modules and back, and checks that loading took every weight from the files.

transformers applies registered conversions when it loads and saves. Two registrations make `from_pretrained` read all
layouts and `save_pretrained` write them:

* `multi_modality`, for the whole model: names only.
* `JanusProVisionModel`, for the vision tower: names inside the tower, the fused qkv and the position embedding's
  shape. This one is bound to the tower, because without that bound saving would fuse the language model's projections
  too.

The tables of names are in `layouts/janus_pro.py`. What changes a tensor stands here, since layouts import no torch.
"""

import json
import os
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.core_model_loading import Chunk, ConversionOps, WeightConverter, WeightRenaming, WeightTransform
from transformers.utils import cached_file

from ..errors import CheckpointError
from ..layouts import janus_pro


# Tensors by source name, as transformers passes them to a conversion: one tensor, or a list of those that matched.
Tensors = dict[str, list[torch.Tensor] | torch.Tensor]


class DropLeadingAxis(ConversionOps):
    """`(1, N, C)` of the original position embedding -> `(N, C)` of an embedding table."""

    def convert(
        self, input_dict: Tensors, source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        return {target_patterns[0]: self._reshape(_only_tensor(input_dict))}

    def _reshape(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.squeeze(0)

    @property
    def reverse_op(self) -> ConversionOps:
        return AddLeadingAxis()


class AddLeadingAxis(DropLeadingAxis):
    """The inverse: `(N, C)` of an embedding table -> `(1, N, C)` of the original position embedding."""

    def _reshape(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.unsqueeze(0)

    @property
    def reverse_op(self) -> ConversionOps:
        return DropLeadingAxis()


def _only_tensor(input_dict: Tensors) -> torch.Tensor:
    (value,) = input_dict.values()
    return value[0] if isinstance(value, list) else value


def root_conversions(prefix: str) -> list[WeightTransform]:
    """Return the renamings of the whole model.

    Args:
        prefix: What precedes our names: "model." for the model with text head, "" for the bare one.
    """
    escaped = prefix.replace(".", r"\.")
    # Only the anchored targets move under the prefix; the others act on names that already did.
    renamings = [
        (theirs, f"^{escaped}{ours[1:]}" if ours.startswith("^") else ours) for theirs, ours in janus_pro.ROOT_NAMES
    ]
    renamings.append((r"^language_model\.lm_head\.", r"^lm_head\."))
    return [WeightRenaming(theirs, ours) for theirs, ours in renamings]


def tower_conversions() -> list[WeightTransform]:
    """Return the renamings and reshapings inside the vision tower."""
    return [
        *(WeightRenaming(theirs, ours) for theirs, ours in janus_pro.TOWER_NAMES),
        WeightConverter(
            "attn.qkv", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], operations=[Chunk(dim=0)]
        ),
        WeightConverter("pos_embed", "embeddings.position_embedding.weight", operations=[DropLeadingAxis()]),
    ]


def register_conversions() -> None:
    """Register the conversions of original weights with transformers. Calling it again has no further effect."""
    register_checkpoint_conversion_mapping(janus_pro.MODEL_TYPE, root_conversions("model."), overwrite=True)
    register_checkpoint_conversion_mapping("JanusProVisionModel", tower_conversions(), overwrite=True)


def all_conversions(model: PreTrainedModel) -> list[WeightTransform]:
    """Return every conversion between the original layout and the names of `model`.

    The result does not depend on the layout that the model was loaded from.
    """
    root = root_conversions(f"{model.base_model_prefix}." if hasattr(model, model.base_model_prefix) else "")
    scoped = [t for t in get_model_conversion_mapping(model, add_legacy=False) if t.scope_prefix is not None]
    return root + scoped


def check_loaded(info: dict[str, Any], source: str | os.PathLike[str] | None) -> None:
    """Raise a `CheckpointError` unless the files held exactly the weights of the model.

    Args:
        info: transformers' loading info (`output_loading_info=True`).
        source: Name of the checkpoint, for the message.
    """
    missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
    mismatched, errors = list(info["mismatched_keys"]), info.get("error_msgs") or []
    if missing or unexpected or mismatched or errors:
        raise CheckpointError(
            f"The weights of {str(source)!r} must be exactly those of the model that its config.json describes, so "
            "nothing was loaded. Check that every shard is complete and belongs to this config; load a fine-tuned "
            "adapter with load_adapter or load_lora_weights instead." + "".join(f"\n  {error}" for error in errors),
            missing=missing,
            unexpected=unexpected,
            mismatched=mismatched,
        )


def read_special_token_ids(source: str | os.PathLike[str], **hub_kwargs: Any) -> dict[str, int]:
    """Return the ids of the special tokens in a checkpoint's `tokenizer.json`, by field of the configuration.

    The ids differ between released checkpoints and stand in no original config. A token that the file lacks is left
    out. A checkpoint without `tokenizer.json`, such as a folder with weights only, gives an empty dictionary.

    Args:
        source: Repository id or folder.
        hub_kwargs: Arguments of `transformers.utils.cached_file`.
    """
    # `_raise_exceptions_for_missing_entries` has no public counterpart: without it a missing file is an OSError, which
    # an unreachable Hub raises too.
    path = cached_file(source, "tokenizer.json", _raise_exceptions_for_missing_entries=False, **hub_kwargs)
    if path is None:
        return {}
    with open(path, encoding="utf-8") as file:
        return janus_pro.special_token_ids(json.load(file))


def copy_tied_head(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state dict whose `lm_head.weight` shares no memory with another weight.

    Original files always store one, but safetensors writes only one of two tensors that share memory.
    """
    if "lm_head.weight" in state_dict:
        state_dict = {**state_dict, "lm_head.weight": state_dict["lm_head.weight"].clone()}
    return state_dict


__all__ = [
    "all_conversions",
    "check_loaded",
    "copy_tied_head",
    "read_special_token_ids",
    "register_conversions",
    "root_conversions",
    "tower_conversions",
]
