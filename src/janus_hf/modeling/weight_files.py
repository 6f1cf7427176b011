"""Checks that a checkpoint is complete and is loaded completely.

Its files must exist and must not be truncated, and no loader may leave weights at random values.
"""

import inspect
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import load_checkpoint_in_model
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import load_state_dict
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, GENERATION_CONFIG_NAME

from ..errors import CheckpointError
from ..files import open_to_others, read_json
from ..hub.fetching import fetch_files
from ..protocols import TypedModel
from .checkpoint import accept_original_names, check_loaded


if TYPE_CHECKING:
    from transformers.modeling_utils import LoadStateDictConfig
    from transformers.utils.loading_report import LoadStateDictInfo


# Names of weight files and their indices, in the order in which transformers looks for them.
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def check_configurations(source: str | os.PathLike[str], *, has_config: bool, **hub_kwargs: Any) -> None:
    """Raise unless every configuration file of a checkpoint can be read.

    Without this check transformers would build a default model if config.json is missing, and ignore a
    generation_config.json or adapter_config.json that is broken or whose download fails.

    Args:
        source: Repository id or folder of a checkpoint or of an adapter.
        has_config: Whether the caller has given the model's configuration, so that no config.json is needed.
        hub_kwargs: Arguments of Hub calls (`HUB_ARGUMENTS`).

    Raises:
        CheckpointError: If there is neither config.json nor adapter_config.json although `has_config` is False, or one
            of the files is not JSON.
        OSError: If a file exists and cannot be downloaded or read; see `find_file`.
    """
    names = (CONFIG_NAME, GENERATION_CONFIG_NAME, ADAPTER_CONFIG_NAME)
    paths = fetch_files(source, needed=[], optional=names, **hub_kwargs)
    for path in filter(None, paths.values()):
        read_json(path)
    if not has_config and paths[CONFIG_NAME] is None and paths[ADAPTER_CONFIG_NAME] is None:
        raise CheckpointError(
            f"{str(source)!r} must hold a config.json, or an adapter_config.json if it is an adapter, got neither: "
            "name the folder or repository of a checkpoint, or copy the file there."
        )


def check_local_files(
    folder: str | os.PathLike[str],
    subfolder: str = "",
    variant: str | None = None,
    use_safetensors: bool | None = None,
) -> None:
    """Raise a `CheckpointError` if a local checkpoint's index is unreadable, or a weight file is missing or truncated.

    Only the files that `from_pretrained` will load are opened, and only the table of contents of each is read. The
    download of a checkpoint from the Hub checks its files itself. The arguments are those of
    `PreTrainedModel.from_pretrained`.
    """
    for name in weight_file_names(variant, use_safetensors):
        path = os.path.join(folder, subfolder, name)
        if os.path.isfile(path):
            for file in _indexed_files(path) if name.endswith(".json") else [path]:
                _check_table_of_contents(file)
            return


def weight_file_names(variant: str | None = None, use_safetensors: bool | None = None) -> list[str]:
    """Return the names that the weight file of a checkpoint, or its index, may have.

    transformers loads the first one that exists. The arguments are those of `PreTrainedModel.from_pretrained`.
    """
    names = [name for name in _WEIGHT_FILES if use_safetensors is not False or not name.startswith("model.")]
    return [
        ".".join([*name.rsplit(".", 1)[:1], variant, name.rsplit(".", 1)[1]]) if variant else name for name in names
    ]


def _indexed_files(path: str) -> list[str]:
    """Return the paths of the weight files (shards) that are listed in the index file at `path`.

    Raises:
        CheckpointError: If the index is unreadable or a shard does not exist.
    """
    try:
        with open(path, encoding="utf-8") as file:
            shards = sorted(set(json.load(file)["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{path} must be JSON with a 'weight_map' of weight names to files, got {error!r}: it is not a checkpoint "
            "index. Download it again."
        ) from error
    root = os.path.dirname(path)
    lost = [shard for shard in shards if not os.path.isfile(os.path.join(root, shard))]
    if lost:
        raise CheckpointError(
            f"{path} names {len(shards)} shard(s) and {len(lost)} of them are missing: {', '.join(lost)}. "
            "Download them into the same folder."
        )
    return [os.path.join(root, shard) for shard in shards]


def _check_table_of_contents(path: str) -> None:
    """Raise a `CheckpointError` if the weight file at `path` is empty, truncated or of another format."""
    try:
        if path.endswith(".safetensors"):
            with safe_open(path, framework="pt"):
                pass
        elif not os.path.getsize(path):
            raise EOFError("the file is empty")
        else:
            with open(path, "rb") as file:
                is_zip = file.read(2) == b"PK"  # files of torch before 1.6 are bare pickles without a table
            if is_zip:
                zipfile.ZipFile(path).close()
    except (SafetensorError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}): it is cut short or holds no weights. Download it again."
        ) from error


class LoadedWholeMixin(TypedModel):
    """Base class of this package's models that keeps loaders from silently leaving weights at random values.

    The loaders are those of transformers and accelerate, and `load_state_dict` of torch.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.register_load_state_dict_pre_hook(accept_original_names)
        self.register_load_state_dict_pre_hook(_refuse_weights_of_others)

    # Any: the arguments and the result are those of torch's method.
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the weights by name, as `torch.nn.Module.state_dict` does.

        Raises:
            CheckpointError: If accelerate's `load_checkpoint_in_model` is about to load a checkpoint whose weights
                have names that it would skip (see `_refuse_names_that_accelerate_skips`), so that weights of the model
                would stay at random values.
        """
        _refuse_names_that_accelerate_skips(self)
        return super().state_dict(*args, **kwargs)

    # Any: the arguments are those of transformers' method.
    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save the model as transformers does, with the permissions that the user's umask allows."""
        super().save_pretrained(save_directory, *args, **kwargs)
        open_to_others(save_directory)

    @staticmethod
    def _finalize_model_loading(
        model: PreTrainedModel, load_config: "LoadStateDictConfig", loading_info: "LoadStateDictInfo"
    ) -> "LoadStateDictInfo":
        """Finish loading as transformers does, and raise a `CheckpointError` if a weight was not taken from the files.

        This overrides a private method of transformers, because every way to load a model calls it. The public loading
        info (`output_loading_info`) is not enough: for the folder of an adapter it describes the adapter and not its
        base model.
        """
        loading_info = PreTrainedModel._finalize_model_loading(model, load_config, loading_info)
        check_loaded(loading_info.to_dict(), load_config.pretrained_model_name_or_path)
        return loading_info


def _refuse_weights_of_others(
    model: PreTrainedModel,
    state_dict: dict[str, torch.Tensor],
    prefix: str,
    local_metadata: object,
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Add a message to `error_msgs` if no weight in `state_dict` has a name of `model`.

    This is a hook of `load_state_dict`, after which torch raises a RuntimeError with the messages in `error_msgs`.
    Loaders that read a checkpoint file by file pass `strict=False` and ignore which names are missing. If they loaded
    the checkpoint of a whole model into a part of it, such as the codec, the part would stay at random values. This
    hook cannot check for single missing weights, because `state_dict` may hold only one shard.
    """
    if prefix or not state_dict:
        return
    if _names_of(model).isdisjoint(state_dict):
        error_msgs.append(_nothing_to_load(model, state_dict))


def _names_of(model: PreTrainedModel) -> set[str]:
    """Return the names of all parameters and buffers of a model, with every name of a tied weight."""
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers())
    return {name for name, _ in named}


def _nothing_to_load(model: PreTrainedModel, weights: Mapping[str, torch.Tensor]) -> str:
    """Return the error message for weights none of which has a name of `model`."""
    return (
        f"The weights must have names of {type(model).__name__}, got {len(weights)} other names such as "
        f"{next(iter(weights), None)!r}: nothing would be loaded. Load the model that the weights are of, and take "
        "the part from it."
    )


def _refuse_names_that_accelerate_skips(model: PreTrainedModel) -> None:
    """Raise a `CheckpointError` if accelerate is about to load a checkpoint whose weights have names `model` lacks.

    Such checkpoints are those in the original layout (deepseek-ai/Janus), those of a model with the text head if
    `model` has none, and the reverse.

    With a `device_map`, accelerate's `load_checkpoint_in_model` and `load_checkpoint_and_dispatch` look for each name
    of the file in `model.state_dict()` and skip names that are not there, which leaves the weights at random values.
    They pass the weights to no method of the model, and accelerate has no hook for loading. `state_dict` is the only
    method that they call on every model, so it calls this function, which reads the arguments of accelerate's public
    function from the call stack. Without a `device_map` accelerate calls `load_state_dict`, which accepts original
    names. But it passes the weights that the model already has too, so only this function can find out whether the
    checkpoint has any weight of the model.
    """
    # One variable for all frames, because a variable that still refers to a frame keeps the model in memory.
    frame = inspect.currentframe()
    frame = frame and frame.f_back  # `state_dict`
    frame = frame and frame.f_back  # its caller
    # `state_dict` of a model calls `state_dict` of its parts. Only the outermost call is checked.
    stops = (load_checkpoint_in_model.__code__, LoadedWholeMixin.state_dict.__code__)
    while frame is not None and frame.f_code not in stops:
        frame = frame.f_back
    if frame is None or frame.f_code is not load_checkpoint_in_model.__code__:
        return
    arguments = inspect.getargvalues(frame).locals
    names = _names_that_accelerate_reads(Path(arguments["checkpoint"]))
    renamed = dict.fromkeys(names, torch.empty(3, device="meta"))  # only the names are used; qkv is split in three
    accept_original_names(model, renamed, "")
    if arguments["device_map"] is None:
        if _names_of(model).isdisjoint(renamed):
            raise CheckpointError(_nothing_to_load(model, renamed))
    elif renamed.keys() - names:
        raise CheckpointError(
            f"With a device_map, accelerate loads a checkpoint only if its weights have the names of the weights of "
            f"{type(model).__name__}, got {str(arguments['checkpoint'])!r} with other names, which it would skip: "
            f"call {type(model).__name__}.from_pretrained(folder, device_map=...), which reads every layout, or save "
            "with save_pretrained(folder, layout='transformers').",
            unexpected=names - renamed.keys(),
        )


def _names_that_accelerate_reads(checkpoint: Path) -> set[str]:
    """Return the names of the weights in a checkpoint: a weight file, an index, or a folder that holds one of the two.

    accelerate has found the checkpoint already, so it exists. A folder is searched in the order of accelerate.
    """
    if checkpoint.is_dir():
        whole = [checkpoint / name for name in ("pytorch_model.bin", "model.safetensors")]
        checkpoint = next(path for path in (*whole, *checkpoint.glob("*.index.json")) if path.is_file())
    if checkpoint.suffix == ".json":
        index = json.loads(checkpoint.read_text(encoding="utf-8"))
        return set(index.get("weight_map", index))
    return set(load_state_dict(checkpoint, map_location="meta"))


__all__ = ["LoadedWholeMixin", "check_configurations", "check_local_files", "weight_file_names"]
