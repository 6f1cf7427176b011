"""The record of a run that every checkpoint holds, and its comparison with the run that resumes the checkpoint."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.trainer import TRAINER_STATE_NAME

from ..recording import FACTS_FILE, read_state
from ..stages import base_model
from .resume_fields import FIXED, ON_REQUEST


if TYPE_CHECKING:
    from peft import PeftModel

    from ...modeling import JanusProForConditionalGeneration
    from ..trainers.sft_config import JanusProSFTConfig

# Entries of the record that cannot change and are no fields of the configuration. Those of `facts` come first.
_FACTS = ("stage", "plan_hash")
_EXTENT = ("packs_per_step", "sharding")
# Schedules whose learning rate at a step does not depend on the number of steps of the run.
_ENDLESS = ("constant", "constant_with_warmup", "inverse_sqrt", "reduce_lr_on_plateau", "greedy")
# Schedules with a state of their own, which no other schedule can take over.
STATEFUL = ("reduce_lr_on_plateau", "greedy")


# Any: settings by name, as JSON.
def run_settings(args: "JanusProSFTConfig", model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run that a checkpoint records, because they cannot change, or only on request.

    Args:
        args: The configuration of the run.
        model: The settings of the loaded model, from `model_settings`.
    """
    found = {name: getattr(args, name) for name in sorted(FIXED | ON_REQUEST) if "." not in name}
    found |= {
        **model,
        "packs_per_step": args.packs_per_step,
        "sharding": "fsdp" if args.wants_fsdp else "deepspeed" if args.sharded else "none",
    }
    # The value as a reader of the file gets it, so that two records can be compared.
    settings: dict[str, Any] = json.loads(json.dumps(found, default=_plain))
    return settings


# Any: settings by name, as JSON.
def model_settings(model: "JanusProForConditionalGeneration | PeftModel") -> dict[str, Any]:
    """Return the settings of a loaded model under the names that they have in a recipe, such as `model.path`."""
    model = base_model(model)
    quantization = getattr(model.config, "quantization_config", None)
    if quantization is not None and not isinstance(quantization, dict):
        quantization = quantization.to_dict()
    bits = {key: quantization.get(key) for key in ("quant_method", "load_in_4bit")} if quantization else None
    return {
        "model.path": str(getattr(model, "name_or_path", "") or ""),
        "model.revision": getattr(model, "loaded_revision", None),
        "model.dtype": str(model.dtype).removeprefix("torch."),
        "model.quantization": None if bits is None else str(bits),
        # transformers has no public attribute for this; `mixture.py` reads it too.
        "model.attn_implementation": model.config._attn_implementation,
    }


# Any: facts and settings by name, as JSON.
def write_record(folder: Path, facts: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Write the facts and the settings of a run into a checkpoint's folder, as `janus_training.json`."""
    text = json.dumps({**facts, "settings": settings}, indent=2, default=str)
    (folder / FACTS_FILE).write_text(text + "\n", encoding="utf-8")


# Any: facts and settings by name, as JSON.
def check_same_run(
    checkpoint: str | os.PathLike[str], facts: Mapping[str, Any], settings: Mapping[str, Any], *, changes: list[str]
) -> list[str]:
    """Raise unless a run may resume a checkpoint: with the same rows and settings, but for those it asks to change.

    Args:
        checkpoint: Folder of the checkpoint.
        facts: Facts about the run that resumes, such as its `stage` and `plan_hash` (a hash of the order of the data).
        settings: The settings of the run that resumes, from `run_settings`.
        changes: The run's `resume_changes`.

    Returns:
        Names of the settings that differ, all of them in `changes`.

    Raises:
        ValueError: If something differs that cannot change, or that `changes` does not name, or the folder is no
            checkpoint of a trainer of this package.
    """
    record = _read_record(checkpoint)
    for name, was, now in _differences(record, facts, settings, _fixed(record["settings"], settings)):
        raise ValueError(
            f"{checkpoint} was trained with {name} {was!r}, this run has {now!r}: the run cannot go on with another "
            f"{name}. Resume with the same value, or start a new run from its weights in another output_dir."
        )
    changed = _differences(record, facts, settings, ON_REQUEST)
    if refused := [entry for entry in changed if entry[0] not in changes]:
        values = "; ".join(f"`{name}` must be {was!r} as in {checkpoint}, got {now!r}" for name, was, now in refused)
        names = ", ".join([*changes, *(name for name, _, _ in refused)])
        raise ValueError(
            f"{values}: restore what was there, or train on with the new value by training.resume_changes=[{names}]."
        )
    state = read_state(checkpoint)
    was, now = record.get("packs"), facts.get("packs")
    if None not in (was, now) and was != now and state.global_step * settings["packs_per_step"] > was:
        raise ValueError(
            f"{checkpoint} is at the end of its data, {was} packs, whose last step was a smaller one, and this run "
            f"has {now} packs: its steps would not fall on the same packs. Resume an earlier checkpoint, or start a "
            "new run from its weights."
        )
    return [name for name, _, _ in changed]


# Any: facts and settings by name, as JSON.
def is_same_run(folder: str | os.PathLike[str], facts: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Return whether a folder holds the trainer's state of a run with the same rows and settings.

    Args:
        folder: Output folder of the run; it need not exist.
        facts: Facts about the current run; see `check_same_run`.
        settings: The settings of the current run, from `run_settings`.
    """
    if not all((Path(folder) / name).is_file() for name in (FACTS_FILE, TRAINER_STATE_NAME)):
        return False
    content = json.loads((Path(folder) / FACTS_FILE).read_text(encoding="utf-8"))
    names = _fixed(settings) | ON_REQUEST
    return "settings" in content and not _differences(content, facts, settings, names)


def depends_on_steps(args: "JanusProSFTConfig") -> bool:
    """Return whether the learning rate at a step depends on the number of steps of the run."""
    kind = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    return kind not in _ENDLESS or 0 < args.warmup_steps < 1  # a share of the steps


def _fixed(*settings: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of all entries of a record that cannot change, given the settings of the runs to compare."""
    fixed = FIXED | {*_FACTS, *_EXTENT}
    # A schedule with a state of its own can neither be replaced nor be given another learning rate.
    stateful = any(entries.get("lr_scheduler_type") in STATEFUL for entries in settings)
    return fixed | ({"learning_rate", "lr_scheduler_type"} if stateful else set())


# Any: the content of a JSON file.
def _read_record(checkpoint: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the content of a checkpoint's record; raise a ValueError if it has none, or is not complete."""
    file = Path(checkpoint) / FACTS_FILE
    if not file.is_file():
        raise ValueError(
            f"`resume_from_checkpoint` must be a checkpoint of this trainer, got {checkpoint}, which has no "
            f"{FACTS_FILE}: name a folder checkpoint-N of a run of this package."
        )
    if not (Path(checkpoint) / TRAINER_STATE_NAME).is_file():
        raise ValueError(
            f"`resume_from_checkpoint` must be a complete checkpoint, got {checkpoint}, which has no "
            f"{TRAINER_STATE_NAME}, the file that is saved last: name an earlier one, or use 'auto'."
        )
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if "settings" not in record:
        raise ValueError(
            f"`resume_from_checkpoint` must be a checkpoint that records its settings, got {checkpoint}, whose "
            f"{FACTS_FILE} is of an earlier version of this package: start a new run from its weights."
        )
    return record


def _differences(
    record: Mapping[str, Any], facts: Mapping[str, Any], settings: Mapping[str, Any], names: frozenset[str]
) -> list[tuple[str, Any, Any]]:
    """Return `(name, recorded value, present value)` of the entries with these names that differ.

    Facts come first. A setting that the record lacks is one that the version of its writer did not have.
    """
    found = [(name, record.get(name), facts.get(name)) for name in _FACTS if name in names]
    recorded = record["settings"]
    for name in sorted(names & settings.keys() & recorded.keys() - {*_FACTS}):
        found.append((name, recorded[name], settings[name]))
    return [entry for entry in found if not _equal(*entry)]


def _equal(name: str, was: Any, now: Any) -> bool:
    """Return whether two values of an entry are the same."""
    if was == now:
        return True
    # A checkpoint from the Hub names only the last part of a folder of the machine that wrote it.
    return name == "model.path" and os.path.basename(str(now)) == was


def _plain(value: Any) -> Any:  # Any: a value that JSON cannot hold
    """Return a value that JSON can hold: a configuration as a dict, another object as text."""
    return value.to_dict() if hasattr(value, "to_dict") else str(getattr(value, "value", value))


__all__ = [
    "STATEFUL",
    "check_same_run",
    "depends_on_steps",
    "is_same_run",
    "model_settings",
    "run_settings",
    "write_record",
]
