"""Conversions between original weights (deepseek-ai/Janus) and this package's modules, and checks of loaded weights.

transformers applies registered weight conversions when it loads a model and when it saves one. Two registrations let
`from_pretrained` read both file layouts, that of deepseek-ai/Janus and that of transformers' own Janus, and let
`save_pretrained` write both:

* `multi_modality`, a model type: the conversions of the whole model. They only rename weights.
* `JanusProVisionModel`, a class name: the conversions inside the vision tower. They rename weights, split the fused
  qkv projection and reshape the position embedding. They are registered for the tower alone, because otherwise saving
  would also fuse the language model's projections.

The tables of names are in `layouts/janus_pro.py`. Operations on tensors are defined here, because `layouts` imports no
torch.
"""

import os
import re
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.core_model_loading import Chunk, ConversionOps, WeightConverter, WeightRenaming, WeightTransform

from ..errors import CheckpointError
from ..layouts import janus_pro


# Input of a weight conversion, as transformers passes it: by name in the file, one tensor or a list of those that
# matched the name.
Tensors = dict[str, list[torch.Tensor] | torch.Tensor]


class SplitInThree(Chunk):
    """Split the fused qkv projection of the vision tower into three tensors with storage of their own.

    transformers' `Chunk` returns views of one tensor. safetensors refuses to save parameters that share storage, and
    with it `Accelerator.save_state`, `Accelerator.save_model` and `safetensors.torch.save_model`.
    """

    def convert(
        self, input_dict: Tensors, source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        parts = super().convert(input_dict, source_patterns, target_patterns, **kwargs)
        return {name: part.clone() for name, part in parts.items()}


class DropLeadingAxis(ConversionOps):
    """Weight conversion that reshapes the original position embedding `(1, N, C)` to an embedding table `(N, C)`.

    `N` is the number of positions and `C` the width of the vision tower.
    """

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
    """Weight conversion that reshapes an embedding table `(N, C)` to the original position embedding `(1, N, C)`.

    It is the inverse of `DropLeadingAxis`, used when a model is saved.
    """

    def _reshape(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.unsqueeze(0)

    @property
    def reverse_op(self) -> ConversionOps:
        return DropLeadingAxis()


def _only_tensor(input_dict: Tensors) -> torch.Tensor:
    """Return the only tensor in the input of a weight conversion, which is passed bare or in a list of one."""
    (value,) = input_dict.values()
    return value[0] if isinstance(value, list) else value


def root_conversions(prefix: str) -> list[WeightTransform]:
    """Return the weight conversions that rename the original weights (deepseek-ai/Janus) of a whole model.

    Names inside the vision tower are not covered; `tower_conversions` renames those.

    Args:
        prefix: Prefix of the weight names in the class that is loaded: "model." for
            `JanusProForConditionalGeneration`, "" for `JanusProModel`.
    """
    escaped = prefix.replace(".", r"\.")
    # Only targets anchored with `^` get the prefix. The other rules act on names that already have it.
    renamings = [
        (theirs, f"^{escaped}{ours[1:]}" if ours.startswith("^") else ours) for theirs, ours in janus_pro.ROOT_NAMES
    ]
    renamings.append((r"^language_model\.lm_head\.", r"^lm_head\."))
    return [WeightRenaming(theirs, ours) for theirs, ours in renamings]


def tower_conversions() -> list[WeightTransform]:
    """Return the weight conversions for the original weights (deepseek-ai/Janus) inside the vision tower.

    They rename weights, split the fused qkv projection into three and reshape the position embedding.
    """
    return [
        *(WeightRenaming(theirs, ours) for theirs, ours in janus_pro.TOWER_NAMES),
        WeightConverter(
            "attn.qkv", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], operations=[SplitInThree(dim=0)]
        ),
        WeightConverter("pos_embed", "embeddings.position_embedding.weight", operations=[DropLeadingAxis()]),
    ]


def register_conversions(model_type: str = janus_pro.MODEL_TYPE) -> None:
    """Register the conversions of original weights (deepseek-ai/Janus) with transformers.

    Calling this function again has no further effect.

    Args:
        model_type: Model type of the configuration class. transformers looks conversions up by it, so a subclass of
            `JanusProConfig` with a model type of its own needs them under that type too.
    """
    register_checkpoint_conversion_mapping(model_type, root_conversions("model."), overwrite=True)
    register_checkpoint_conversion_mapping("JanusProVisionModel", tower_conversions(), overwrite=True)


def all_conversions(model: PreTrainedModel) -> list[WeightTransform]:
    """Return every weight conversion between the original file layout (deepseek-ai/Janus) and the names in `model`.

    The result does not depend on the file layout that `model` was loaded from.
    """
    root = root_conversions(f"{model.base_model_prefix}." if hasattr(model, model.base_model_prefix) else "")
    scoped = [t for t in get_model_conversion_mapping(model, add_legacy=False) if t.scope_prefix is not None]
    return root + scoped


def accept_original_names(
    module: nn.Module, state_dict: dict[str, torch.Tensor], prefix: str, *others: object
) -> None:
    """Bring original weights (deepseek-ai/Janus) in `state_dict` to the names and shapes of `module`, in place.

    This is a hook of `load_state_dict` (`register_load_state_dict_pre_hook`). Loaders that read our files by
    themselves and then call `load_state_dict`, such as transformers' `Trainer` when it resumes, need no more to load
    the original layout. Weights that already have the module's names, and names that are unknown, stay as they are.

    Args:
        module: `JanusProForConditionalGeneration`.
        state_dict: Weights by name, possibly of one shard of a checkpoint only.
        prefix: Prefix of the module's names in `state_dict`.
        others: Further arguments that torch passes to hooks.
    """
    own = {name for named in (module.named_parameters(), module.named_buffers()) for name, _ in named}
    for key in [key for key in state_dict if key.startswith(prefix) and key[len(prefix) :] not in own]:
        converted = _convert(key[len(prefix) :], state_dict[key])
        unused = [pattern for pattern in janus_pro.STORED_BUT_UNUSED for new in converted if re.search(pattern, new)]
        if unused:
            del state_dict[key]
        elif converted.keys() <= own:
            del state_dict[key]
            state_dict.update({prefix + new: tensor for new, tensor in converted.items()})


def _convert(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return an original weight of the whole model by its name, or names, in `JanusProForConditionalGeneration`."""
    if name.startswith("language_model.lm_head."):
        return {name.removeprefix("language_model."): tensor}
    name = _rename(name, janus_pro.ROOT_NAMES)
    tower, inside = name.startswith("vision_model."), name.removeprefix("vision_model.")
    if not tower:
        return {f"model.{name}": tensor}
    inside = "model.vision_model." + _rename(inside, janus_pro.TOWER_NAMES)
    if ".attn.qkv." in inside:
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {inside.replace("attn.qkv", f"self_attn.{letter}_proj"): part for letter, part in parts}
    if inside.endswith("pos_embed"):
        return {inside.replace("pos_embed", "embeddings.position_embedding.weight"): tensor.squeeze(0)}
    return {inside: tensor}


def _rename(name: str, table: tuple[tuple[str, str], ...]) -> str:
    """Apply the rows of a table of names (regular expressions) one after the other, as transformers does."""
    for theirs, ours in table:
        name = re.sub(theirs, ours.removeprefix("^").replace("\\", ""), name)
    return name


def check_loaded(info: dict[str, Any], source: str | os.PathLike[str] | None) -> None:
    """Raise a `CheckpointError` unless the files of a checkpoint held exactly the weights of the model.

    Weights that are missing, unexpected or of the wrong shape raise it, and so do errors that transformers reports.

    Args:
        info: The loading info that transformers' `from_pretrained` returns with `output_loading_info=True`.
        source: Folder or repository id of the checkpoint, for the message.
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


def copy_tied_head(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state dict in which `lm_head.weight` is a copy that shares no memory with the input embedding.

    Files in the original layout (deepseek-ai/Janus) always contain `lm_head.weight`, but safetensors writes only one
    of two tensors that share memory. A state dict without `lm_head.weight` is returned unchanged.
    """
    if "lm_head.weight" in state_dict:
        state_dict = {**state_dict, "lm_head.weight": state_dict["lm_head.weight"].clone()}
    return state_dict


__all__ = [
    "all_conversions",
    "check_loaded",
    "copy_tied_head",
    "register_conversions",
    "root_conversions",
    "tower_conversions",
]
