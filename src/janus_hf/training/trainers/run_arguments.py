"""`RunArguments`, the base class of the configurations of this package's trainers."""

import copy
import os
from dataclasses import fields
from pathlib import Path
from typing import Any, Self

import torch
from transformers import TrainingArguments

from .option_tables import check_report_to


class RunArguments(TrainingArguments):
    """Training arguments that keep the Hub token secret and check the number of processes.

    The token is in no file, log or `repr`. Logging libraries do not receive paths of this machine either.

    Pickles, such as `training_args.bin` and the arguments of a spawned process, contain None as `hub_token`. The
    process that loads a pickle must set the token again or take it from the environment. Copies in the same process
    keep the token.

    A subclass must declare the field `hub_token` with `repr=False`, because `dataclass` generates a `repr` for each
    class. It must list this class last among its base classes, because this class would otherwise replace the defaults
    of the others.

    Raises:
        ValueError: If the launcher started another number of processes than these arguments use, or a logging package
            that `report_to` names is not installed.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        check_report_to(self)
        # A launcher sets WORLD_SIZE or initialises torch.distributed. transformers uses neither on a machine without
        # GPUs unless `use_cpu` is set; each process would then prepare the data and train alone.
        group = torch.distributed.is_available() and torch.distributed.is_initialized()
        launched = max(int(os.environ.get("WORLD_SIZE", "1")), torch.distributed.get_world_size() if group else 1)
        if launched != self.world_size:
            on_cpu = self.device.type == "cpu" and not self.use_cpu
            raise ValueError(
                f"The launcher started {launched} processes but this one works with {self.world_size}: "
                + ("set `use_cpu=True`, because there is no GPU." if on_cpu else "check the launcher's settings.")
            )

    # Any: pickle defines the state of an object as any value by name.
    def __getstate__(self) -> dict[str, Any]:
        """Return the state that pickle writes: all attributes, with None as `hub_token`."""
        return {**self.__dict__, "hub_token": None}

    def __copy__(self) -> Self:
        """Return a shallow copy that keeps the token, which a copy made through pickle's protocol would lose."""
        duplicate = object.__new__(type(self))
        duplicate.__dict__.update(self.__dict__)
        return duplicate

    # Any: `copy.deepcopy` passes its memo, a dict of objects by id.
    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return a deep copy that keeps the token, which a copy made through pickle's protocol would lose."""
        duplicate = object.__new__(type(self))
        memo[id(self)] = duplicate
        duplicate.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return duplicate

    # Any: as in transformers, a dict of the values of all fields.
    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name for logging libraries: without tokens, each path shortened to its last part."""
        hidden: dict[str, Any] = hide_folders(super().to_dict())  # Any: the values of all fields
        return hidden

    def published(self) -> Self:
        """Return a copy for an upload: without tokens, and with each path shortened to its last part."""
        duplicate = copy.copy(self)
        for entry in fields(self):
            if entry.init:
                setattr(duplicate, entry.name, hide_folders(getattr(self, entry.name)))
        # DeepSpeed's plugin and its configuration are not fields and hold the path of DeepSpeed's file.
        for name in ("deepspeed_plugin", "hf_deepspeed_config"):
            duplicate.__dict__.pop(name, None)
        duplicate.hub_token = None
        return duplicate


# Any: values of arguments and of JSON files.
def hide_folders(value: Any) -> Any:
    """Return a value in which each absolute path that exists on this machine is shortened to its last part.

    Lists and dicts are searched too, and returned as copies. A string is not a path merely because it begins with a
    slash, since a prompt may do so as well.
    """
    if isinstance(value, dict):
        return {key: hide_folders(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [hide_folders(entry) for entry in value]
    if isinstance(value, (str, os.PathLike)) and os.path.isabs(value) and os.path.lexists(value):
        return Path(value).name
    return value


__all__ = ["RunArguments", "hide_folders"]
