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
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.core_model_loading import Chunk, ConversionOps, WeightConverter, WeightRenaming, WeightTransform
from transformers.models.janus.modeling_janus import JanusVisionModel

from ..errors import CheckpointError
from ..layouts import janus_pro


# Input of a weight conversion, as transformers passes it: by name in the file, one tensor or a list of those that
# matched the name.
Tensors = dict[str, list[torch.Tensor] | torch.Tensor]

# Prefixes of weight names that DistributedDataParallel and torch.compile add, and that savers such as
# `Accelerator.save_model` write into files.
_WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")

# Parts of weight names that PEFT inserts where an adapter wraps a module of the model.
_ADAPTER_LAYERS = re.compile(r"\.(base_layer|original_module|token_adapter)(?=\.)")


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
    root = root_conversions(_root_prefix(model))
    scoped = [t for t in get_model_conversion_mapping(model, add_legacy=False) if t.scope_prefix is not None]
    return root + scoped


def accept_original_names(
    module: PreTrainedModel, state_dict: dict[str, torch.Tensor], prefix: str, *others: object
) -> None:
    """Bring original weights (deepseek-ai/Janus) in `state_dict` to the names and shapes of `module`, in place.

    This is a hook of `load_state_dict` (`register_load_state_dict_pre_hook`). Loaders that read our files by
    themselves and then call `load_state_dict`, such as transformers' `Trainer` when it resumes, need no more to load
    the original layout. Weights that already have the module's names, and names that are unknown, stay as they are.
    Names of a model without adapters are those of the base model if PEFT has added adapters to `module`.
    As in `from_pretrained`, the prefix "model." is added or removed where the file was saved from a model with or
    without the text head, and weights that no path uses, such as the pooling head of the vision tower, are removed.

    Args:
        module: A model of this package: the whole one, the one without its text head, the vision tower or the codec.
            The weights of a codec that is saved alone have its own names in every layout.
        state_dict: Weights by name, possibly of one shard of a checkpoint only.
        prefix: Prefix of the module's names in `state_dict`.
        others: Further arguments that torch passes to hooks.
    """
    named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers())  # a tied head has two names
    names = {name for name, _ in named}
    own = {_ADAPTER_LAYERS.sub("", name): name for name in names}
    ignored = module._keys_to_ignore_on_load_unexpected or ()
    for key in [key for key in state_dict if key.startswith(prefix) and key[len(prefix) :] not in names]:
        converted = _convert(module, key[len(prefix) :], state_dict[key])
        if converted.keys() <= own.keys():
            del state_dict[key]
            state_dict.update({prefix + own[new]: tensor for new, tensor in converted.items()})
        elif any(re.search(pattern, new) for pattern in ignored for new in converted):
            del state_dict[key]


def with_own_names(model: PreTrainedModel, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights to save by their names in the model, from these names or those of the original layout.

    Weights may be missing, because with some ways of sharding only one process passes them.

    Raises:
        ValueError: If a name is unknown.
    """
    state_dict = dict(state_dict)
    accept_original_names(model, state_dict, "")
    if unknown := sorted(state_dict.keys() - model.state_dict().keys()):
        raise ValueError(
            f"state_dict must hold weights of the model, got {len(unknown)} unknown names such as {unknown[0]!r}: "
            "pass the state_dict of this model."
        )
    return state_dict


def _root_prefix(model: PreTrainedModel) -> str:
    """Return the prefix of the weight names in `model`: "model." for the full model, "" for `JanusProModel`."""
    return f"{model.base_model_prefix}." if hasattr(model, model.base_model_prefix) else ""


def _convert(model: PreTrainedModel, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return a weight by its name, or names, in the model that is loaded, for a name that this model does not have.

    Args:
        model: The model that is loaded.
        name: Name of the weight in the original layout, or in a file of the model with or without its text head,
            possibly with the prefix of a wrapper.
        tensor: The weight.
    """
    name = _WRAPPERS.sub("", name)
    if isinstance(model, JanusVisionModel):
        return _convert_tower(name, tensor)
    return convert_original(name, tensor, _root_prefix(model))


def convert_original(name: str, tensor: torch.Tensor, root: str = "model.") -> dict[str, torch.Tensor]:
    """Return a weight of the original layout (deepseek-ai/Janus) by its name, or names, in this package's models.

    A name that is one of this package's already, or that is unknown, is kept.

    Args:
        name: Name of the weight in the original layout.
        tensor: The weight. The fused qkv projection of the vision tower `(3 C, ...)` becomes three weights, and its
            position embedding `(1, N, C)` becomes `(N, C)`.
        root: Prefix of the names in the model: "model." for `JanusProForConditionalGeneration`, "" for
            `JanusProModel`.
    """
    if name.startswith(("lm_head.", "language_model.lm_head.")):
        return {name.removeprefix("language_model."): tensor}
    name = _rename(name.removeprefix("model."), janus_pro.ROOT_NAMES)
    if not name.startswith("vision_model."):
        return {root + name: tensor}
    tower = _convert_tower(name.removeprefix("vision_model."), tensor)
    return {f"{root}vision_model.{new}": part for new, part in tower.items()}


def _convert_tower(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return an original weight of the vision tower by its name, or names, in `JanusProVisionModel`.

    The parts of the fused qkv projection are copies, because with `load_state_dict(assign=True)` they become the
    parameters, and safetensors refuses to save parameters that share storage.
    """
    name = _rename(name, janus_pro.TOWER_NAMES)
    if ".attn.qkv." in name:
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {name.replace("attn.qkv", f"self_attn.{letter}_proj"): part.clone() for letter, part in parts}
    if name == "pos_embed":
        return {"embeddings.position_embedding.weight": tensor.squeeze(0)}
    return {name: tensor}


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
    "convert_original",
    "copy_tied_head",
    "register_conversions",
    "root_conversions",
    "tower_conversions",
    "with_own_names",
]
