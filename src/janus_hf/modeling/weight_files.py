"""Checks of a checkpoint before it is loaded: its files must exist and must not be cut short."""

import json
import os
import zipfile
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, GENERATION_CONFIG_NAME

from ..errors import CheckpointError
from ..files import fetch_files, read_json


# Names of weight files and their indices, in the order in which transformers looks for them.
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def check_configurations(source: str | os.PathLike[str], *, has_config: bool, **hub_kwargs: Any) -> None:
    """Raise unless every configuration file of a checkpoint can be read.

    transformers would load a default model in place of a missing config.json, and ignore a generation_config.json or
    an adapter_config.json that is broken or whose download fails.

    Args:
        source: Repository id or folder of a checkpoint or of an adapter.
        has_config: Whether the caller has given the model's configuration, so that no config.json is needed.
        hub_kwargs: Arguments of Hub calls (`HUB_ARGUMENTS`).

    Raises:
        CheckpointError: If config.json is missing, or one of the files is not JSON.
        OSError: If a file exists and cannot be had; see `find_file`.
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
    """Raise a `CheckpointError` if a local checkpoint's index is unreadable, or a weight file is missing or cut short.

    Only the files that `from_pretrained` will load are opened, and only the table of contents of each is read.
    Checkpoints on the Hub are checked by the download itself. The arguments are those of
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
    """Raise a `CheckpointError` if the weight file at `path` is empty, cut short or of another format."""
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


__all__ = ["check_local_files", "weight_file_names"]
