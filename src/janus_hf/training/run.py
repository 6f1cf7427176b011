"""A recipe (one YAML file) -> a trained model.

```yaml
model:                      # what to start from
  path: deepseek-ai/Janus-Pro-1B
  dtype: auto               # of the weights: bfloat16 where they are frozen (LoRA) and the device computes in it,
                            # else float32; what is trained is always held in float32
  quantization: null        # 4bit or 8bit for QLoRA
data:                       # what to train on: folders of `janus-hf prepare`, or anything it reads
  sources:
    - {name: pictures, path: data/pictures, ratio: 1}
training:                   # fields of JanusProSFTConfig
  stage: lora_drawing
  output_dir: runs/pictures
```

`janus-hf train recipe.yaml training.learning_rate=2e-5 data.sources.0.path=elsewhere` changes single values.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.utils import broadcast_object_list
from huggingface_hub import HfApi
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..modeling import JanusProForConditionalGeneration
from ..processing import JanusProProcessor
from .mixture import TrainingData, load_mixture
from .recording import check_same_run
from .trainers.sft import JanusProSFTTrainer
from .trainers.sft_config import JanusProSFTConfig


logger = logging.getLogger(__name__)

_MODEL_KEYS = ("path", "revision", "dtype", "quantization", "attn_implementation", "processor")
_DATA_KEYS = ("sources", "seed", "streaming")


@dataclass
class Recipe:
    """A parsed recipe; the three sections as they stand in the file, overrides applied.

    Raises:
        ValueError: If a key is unknown or one that is needed is missing.
    """

    model: dict[str, Any]
    data: dict[str, Any]
    training: dict[str, Any]
    name: str = "recipe"

    def __post_init__(self) -> None:
        known = {entry.name for entry in fields(JanusProSFTConfig) if entry.init}
        _check_keys("model", self.model, _MODEL_KEYS, needed=("path",))
        _check_keys("data", self.data, _DATA_KEYS, needed=("sources",))
        _check_keys("training", self.training, known, needed=("stage", "output_dir"))
        if "ratios" in self.training:
            raise ValueError("training.ratios follows from data.sources: give every source its ratio there.")
        sources = self.data["sources"]
        if not isinstance(sources, list) or not sources:
            raise ValueError(f"data.sources must be a list of at least one source, got {sources!r}.")
        for source in sources:
            if not isinstance(source, dict) or not {"name", "path", "ratio"} <= set(source):
                raise ValueError(f"Every source needs a name, a path and a ratio; got {source!r}.")
        names = [source["name"] for source in sources]
        if len(set(names)) != len(names):
            raise ValueError(f"Sources need different names, got {names}.")

    @property
    def ratios(self) -> dict[str, float]:
        """Source -> its share, in any unit."""
        return {source["name"]: float(source["ratio"]) for source in self.data["sources"]}


LoadData = Callable[
    [dict[str, Any], JanusProSFTConfig, JanusProForConditionalGeneration, JanusProProcessor], TrainingData
]


def load_recipe(path: Any, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: YAML file.
        overrides: `section.key=value`, the value in YAML; list entries by number (`data.sources.0.path=...`).

    Raises:
        ValueError: If the file or an override is malformed, or a key is unknown.
        FileNotFoundError: If there is no such file.
    """
    content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold the sections model, data and training, got {type(content).__name__}.")
    for override in overrides:
        _override(content, override)
    _check_keys("a recipe", content, ("model", "data", "training"), needed=("model", "data", "training"))
    return Recipe(**content, name=Path(path).stem)


def build_trainer(
    recipe: Recipe,
    *,
    load_data: LoadData = load_mixture,
    model: JanusProForConditionalGeneration | None = None,
    processor: JanusProProcessor | None = None,
) -> JanusProSFTTrainer:
    """Everything up to the first step.

    Args:
        recipe: See `load_recipe`.
        load_data: Where rows come from, see `load_mixture`.
        model, processor: To use instead of loading the recipe's.
    """
    args = JanusProSFTConfig(**{"ratios": recipe.ratios, **recipe.training})  # before anything heavy is loaded
    processor = processor or _load_processor(recipe.model)
    model = model or _load_model(recipe.model, args)
    if model.config.image_token_id is None:
        model.config.image_token_id = processor.image_token_id
    data = load_data(recipe.data, args, model, processor)
    return JanusProSFTTrainer(
        model,
        args,
        train_dataset=data.dataset,
        data_collator=data.collator,
        processing_class=processor,
        facts={"recipe": recipe.name, **data.facts},
    )


def train(
    path: Any,
    overrides: Sequence[str] = (),
    *,
    load_data: LoadData = load_mixture,
    report: Callable[[str], Any] = logger.info,
) -> Path:
    """Train a recipe from beginning to end, or go on where it stopped.

    With `training.resume_from_checkpoint: auto` the newest checkpoint in the output folder is continued, if there is
    one.

    Args:
        path, overrides: See `load_recipe`.
        load_data: See `build_trainer`.
        report: Called with lines for people, on the main process.

    Returns:
        The output folder: the model (or adapter), its processor and its card.
    """
    trainer = build_trainer(load_recipe(path, overrides), load_data=load_data)
    args = trainer.args
    main = trainer.is_world_process_zero()
    if main:
        report(trainer.trainable_table)
    checkpoint = args.resume_from_checkpoint
    if checkpoint in ("auto", True):  # the main process chooses: file systems do not show everyone the same at once
        (checkpoint,) = broadcast_object_list([_newest_checkpoint(Path(args.output_dir))])
    finished = _is_finished(args, checkpoint)
    if not finished:
        trainer.train(resume_from_checkpoint=checkpoint)
    elif args.sharded:  # such a model is loaded by training only
        check_same_run(checkpoint, trainer.facts)
    else:
        trainer._load_from_checkpoint(checkpoint)
        trainer.state = _state_of(checkpoint)
    exported = not (finished and args.sharded)
    if exported:
        trainer.save_model(_internal_call=True)  # else it would push, with the last card
        trainer.save_state()
        trainer.create_model_card()
    trainer.accelerator.wait_for_everyone()  # a group that one rank has left does not always let the others go
    trainer.accelerator.end_training()
    if main and exported:
        if args.push_to_hub:  # now that nobody waits for it
            _push(trainer)
        report(f"{args.output_dir}: {args.stage}, {trainer.state.global_step} steps")
    elif main:
        report(f"{checkpoint} is the last of this run and holds the trained model: nothing is left to do")
    return Path(args.output_dir)


def _newest_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end: the trainer's state is the last of its files."""
    complete = [path.parent for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}")]
    return str(max(complete, key=lambda path: int(path.name.split("-")[-1]))) if complete else None


def _is_finished(args: JanusProSFTConfig, checkpoint: Any) -> bool:
    """Whether the checkpoint is the run's last: transformers would train one step more."""
    return bool(checkpoint) and 0 < args.max_steps <= _state_of(checkpoint).global_step


def _state_of(checkpoint: Any) -> TrainerState:
    return TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))


def _push(trainer: JanusProSFTTrainer) -> None:
    """Upload what `Trainer.push_to_hub` uploads; that one saves first once more, which takes all processes."""
    trainer._finish_current_push()
    HfApi(token=trainer.args.hub_token).upload_folder(
        repo_id=trainer.hub_model_id,
        folder_path=trainer.args.output_dir,
        commit_message="End of training",
        ignore_patterns=["_*", f"{PREFIX_CHECKPOINT_DIR}-*"],
        revision=trainer.args.hub_revision,
    )


def _load_processor(section: Mapping[str, Any]) -> JanusProProcessor:
    """That of the model, at its revision, unless the recipe names another."""
    if section.get("processor"):
        return JanusProProcessor.from_pretrained(section["processor"])
    revision = {"revision": section["revision"]} if section.get("revision") else {}
    return JanusProProcessor.from_pretrained(section["path"], **revision)


def _load_model(section: Mapping[str, Any], args: JanusProSFTConfig) -> JanusProForConditionalGeneration:
    kwargs = {key: section[key] for key in ("revision", "attn_implementation") if section.get(key) is not None}
    if quantization := section.get("quantization"):
        from transformers import BitsAndBytesConfig

        if quantization not in ("4bit", "8bit"):
            raise ValueError(f"model.quantization must be 4bit or 8bit, got {quantization!r}.")
        if not args.stage.startswith("lora_"):
            raise ValueError(f"Quantised weights cannot be trained: {args.stage} needs an unquantised model.")
        four = quantization == "4bit"
        kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=four,
            load_in_8bit=not four,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    dtype = section.get("dtype") or "auto"
    if dtype == "auto":
        dtype = "bfloat16" if args.bf16 and args.stage.startswith("lora_") else "float32"
    return JanusProForConditionalGeneration.from_pretrained(section["path"], dtype=dtype, **kwargs)


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a number; YAML 1.1 wants a dot and a sign there."""


_Loader.yaml_implicit_resolvers = {**yaml.SafeLoader.yaml_implicit_resolvers}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _check_keys(where: str, found: Any, known: Any, *, needed: Sequence[str]) -> None:
    if not isinstance(found, dict):
        raise ValueError(f"{where} must be a mapping, got {found!r}.")
    if unknown := [key for key in found if key not in known]:
        raise ValueError(f"{where} has no key {unknown[0]!r}; it knows {', '.join(sorted(known))}.")
    if missing := [key for key in needed if found.get(key) in (None, "")]:
        raise ValueError(f"{where} needs the key {missing[0]!r}.")


def _override(content: Any, override: str) -> None:
    path, equals, value = override.partition("=")
    *parents, last = path.split(".")
    if not equals or not parents:
        raise ValueError(f"An override is section.key=value, got {override!r}.")
    place = content
    try:
        for name in parents:
            place = place[int(name)] if isinstance(place, list) else place[name]
        key: Any = int(last) if isinstance(place, list) else last
        place[key] = yaml.load(value, Loader=_Loader)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{override!r} names a place that the recipe does not have.") from error


__all__ = ["Recipe", "TrainingData", "build_trainer", "load_recipe", "train"]
