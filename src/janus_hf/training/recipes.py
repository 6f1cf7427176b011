"""Reader of training recipes: `load_recipe` reads a YAML file, applies overrides, checks it and returns a `Recipe`.

A recipe describes a training run: the model to start from, the data, and the settings.

```yaml
model:                      # the model to start from
  path: deepseek-ai/Janus-Pro-1B
  dtype: auto               # dtype of the weights: bfloat16 if they are frozen (LoRA) and the device computes in
                            # bfloat16, else float32; trained weights are always held in float32
  quantization: null        # 4bit or 8bit for QLoRA
data:                       # the training data: folders written by `janus-hf prepare`, or any input of this command
  sources:
    - {name: pictures, path: data/pictures, ratio: 1}
training:                   # the settings: fields of JanusProSFTConfig
  stage: lora_drawing
  output_dir: runs/pictures
```

Overrides on the command line replace single values of the file:

`janus-hf train recipe.yaml training.learning_rate=2e-5 data.sources.0.path=elsewhere`
"""

import copy
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from ..arguments import by_name, describe
from .trainers.sft_config import JanusProSFTConfig


_MODEL_KEYS = ("path", "revision", "dtype", "quantization", "attn_implementation", "processor")
_DATA_KEYS = ("sources", "seed", "streaming", "shuffle", "shuffle_buffer")
# Fields of the configuration of which a recipe may use only one value, or none, and the reason.
_NO_EVALUATION = "a recipe has no data for evaluation; run `janus-hf eval` afterwards, or set sample_steps"
_PLANNED = "the plan of the data is shuffled already, from data.seed, and another order would lose its ratios"
_REFUSED = by_name(
    {
        _NO_EVALUATION: (
            "eval_strategy eval_steps eval_delay eval_on_start per_device_eval_batch_size do_eval bf16_full_eval "
            "fp16_full_eval load_best_model_at_end metric_for_best_model greater_is_better"
        ),
        _PLANNED: "train_sampling_strategy data_seed",
        "training.ratios follows from data.sources; give every source its ratio there": "ratios",
    }
)
_NEUTRAL = {"eval_strategy": "no", "train_sampling_strategy": "sequential"}
# Fields with the value "no", which YAML reads as False unless it is in quotation marks.
_STRATEGIES = ("save_strategy", "logging_strategy", "eval_strategy", "include_num_input_tokens_seen")


@dataclass
class Recipe:
    """The three sections of a recipe file (model, data and settings of a training run), with overrides applied.

    Args:
        model: Section `model`, with the key `path` and optionally `revision`, `dtype`, `quantization`,
            `attn_implementation` and `processor`.
        data: Section `data`, with the key `sources` and optionally `seed`, `streaming`, `shuffle` and
            `shuffle_buffer`.
        training: Section `training`, with fields of `JanusProSFTConfig`.
        name: Name of the recipe, which is stated on the model card.

    Raises:
        ValueError: If a key is unknown, a required key is missing, or two sources have the same name.
    """

    model: dict[str, Any]
    data: dict[str, Any]
    training: dict[str, Any]
    name: str = "recipe"

    def __post_init__(self) -> None:
        # Fields of the configuration without `init` are computed by transformers and cannot be set.
        known = {entry.name for entry in fields(JanusProSFTConfig) if entry.init}
        _check_keys("model", self.model, _MODEL_KEYS, required=("path",))
        _check_keys("data", self.data, _DATA_KEYS, required=("sources",))
        _check_keys("training", self.training, known, required=("stage", "output_dir"))
        self.training.update({name: "no" for name in _STRATEGIES if self.training.get(name) is False})
        for name, reason in _REFUSED.items():
            value = self.training.get(name)
            if value not in (None, False, _NEUTRAL.get(name)):
                raise ValueError(f"training.{name} must be left out of a recipe, got {value!r}: {reason}.")
        for name, kind in {"seed": int, "streaming": bool, "shuffle": str, "shuffle_buffer": int}.items():
            if (value := self.data.get(name)) is not None and type(value) is not kind:
                raise ValueError(f"data.{name} must be of type {kind.__name__}, got {describe(value)}: change it.")
        _check_shuffle(self.data)
        sources = self.data["sources"]
        if not isinstance(sources, list) or not sources:
            raise ValueError(
                f"data.sources must be a list of at least one source, got {_hide_tokens(sources)!r}: add a source "
                "with name, path and ratio."
            )
        for source in sources:
            if not isinstance(source, dict) or not {"name", "path", "ratio"} <= set(source):
                raise ValueError(
                    f"Every source must have a name, a path and a ratio, got {_hide_tokens(source)!r}: add the "
                    "missing keys."
                )
            ratio = source["ratio"]
            if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio < float("inf"):
                raise ValueError(
                    f"The ratio of the source {source['name']!r} must be a number of 0 or more, got "
                    f"{describe(ratio)}: give its share of the rows."
                )
        # A source's name is its key in the data plan and the name of the folder of its prepared rows. Two sources with
        # the same name would overwrite each other.
        names = [source["name"] for source in sources]
        if len(set(names)) != len(names):
            raise ValueError(f"The names of the sources must differ, got {names}: rename one.")

    def __repr__(self) -> str:
        """Return the recipe as text, without the Hub token."""
        sections = (f"{name}={_hide_tokens(getattr(self, name))}" for name in ("model", "data", "training"))
        return f"Recipe({', '.join(sections)}, name={self.name!r})"

    @property
    def ratios(self) -> dict[str, float]:
        """The share of each data source in the training rows, by the source's name; they need not add up to 1."""
        return {source["name"]: float(source["ratio"]) for source in self.data["sources"]}


def load_recipe(source: str | os.PathLike[str] | Mapping[str, Any] | Recipe, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply overrides to it, check it and return it.

    Args:
        source: The recipe: its YAML file, a mapping with the sections `model`, `data` and `training` and optionally a
            `name`, or a `Recipe`. Mappings and recipes are not changed.
        overrides: Changes of single values, each written `section.key=value` with the value in YAML. Entries of lists
            are addressed by their index (`data.sources.0.path=...`).

    Raises:
        ValueError: If the file or an override is malformed, a key is unknown, or a required key is missing.
        FileNotFoundError: If there is no such file.
    """
    content: Any  # Any: what the YAML file contains is checked below
    if isinstance(source, Recipe | Mapping):
        content = copy.deepcopy(dict(source) if isinstance(source, Mapping) else vars(source))
        name = content.pop("name", "recipe")
    else:
        name = Path(source).stem
        if not Path(source).is_file():
            raise FileNotFoundError(
                f"`source` must be the YAML file of a recipe, got {os.fspath(source)!r}, which is no file seen from "
                f"{os.getcwd()!r}: check the path."
            )
        content = yaml.load(Path(source).read_text(encoding="utf-8"), Loader=_Loader)
    if not isinstance(content, dict):
        raise ValueError(
            f"A recipe must be a mapping with the sections model, data and training, got {type(content).__name__}: "
            f"add them to {source}."
        )
    # Overrides come before the checks, so that the checks apply to the values that are used.
    for override in overrides:
        _apply_override(content, override)
    _check_keys("a recipe", content, ("model", "data", "training"), required=("model", "data", "training"))
    return Recipe(**content, name=name)


class _Loader(yaml.SafeLoader):
    """YAML loader that reads `1e-4` as a number.

    `yaml.SafeLoader` follows YAML 1.1, which requires a dot and a signed exponent in such numbers, and would read it
    as a string.
    """


# The table is copied first, because `add_implicit_resolver` would otherwise change the one that all SafeLoaders share.
_Loader.yaml_implicit_resolvers = {**yaml.SafeLoader.yaml_implicit_resolvers}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _check_keys(where: str, section: Any, known: Iterable[str], *, required: Sequence[str]) -> None:
    """Raise `ValueError` unless a section of a recipe is a mapping with only known keys and with all required keys.

    Args:
        where: Name of the section in error messages.
        section: Content of the section, as read from YAML.
        known: All allowed keys.
        required: Keys that must be present, with values that are neither null nor empty.
    """
    if not isinstance(section, dict):
        raise ValueError(
            f"{where} must be a mapping, got {_hide_tokens(section)!r}: write `key: value` lines below it."
        )
    known = set(known)
    if unknown := [key for key in section if key not in known]:
        raise ValueError(f"{where} has no key {unknown[0]!r}: remove it, or choose one of {', '.join(sorted(known))}.")
    if missing := [key for key in required if section.get(key) in (None, "")]:
        raise ValueError(f"{where} needs the key {missing[0]!r}: add it.")


def _check_shuffle(data: dict[str, Any]) -> None:
    """Raise `ValueError` unless the order of the rows in a recipe's section `data` is one that exists."""
    shuffle, buffer = data.get("shuffle"), data.get("shuffle_buffer")
    if shuffle not in (None, "exact", "shards"):
        raise ValueError(
            f"data.shuffle must be exact (all rows of a source are shuffled) or shards (shards are shuffled, and the "
            f"rows of a few of them), got {shuffle!r}: choose one."
        )
    if data.get("streaming") and (shuffle or buffer):
        name = "shuffle" if shuffle else "shuffle_buffer"
        raise ValueError(
            f"data.{name} must be left out with data.streaming, which reads shards in an order of its own, got "
            f"{data[name]!r}: remove one of them."
        )
    if buffer is not None and (shuffle != "shards" or buffer < 1):
        raise ValueError(
            f"data.shuffle_buffer must be a number of rows of 1 or more and needs data.shuffle=shards, got {buffer!r} "
            f"with data.shuffle={shuffle or 'exact'}: change one of them."
        )


def _hide_tokens(value: Any) -> Any:  # Any: a value of a recipe
    """Return a value of a recipe for a message, with `<TOKEN>` instead of the Hub tokens in it."""
    if isinstance(value, dict):
        return {
            key: "<TOKEN>" if entry and str(key).endswith("token") else _hide_tokens(entry)
            for key, entry in value.items()
        }
    return [_hide_tokens(entry) for entry in value] if isinstance(value, list) else value


def _apply_override(content: dict[str, Any], override: str) -> None:
    """Apply one override, a change of a single value, to the content of a recipe file.

    Args:
        content: Content of the YAML file; changed in place.
        override: The change, written `section.key=value`.

    Raises:
        ValueError: If the override is malformed, or a key or an index before its last one does not exist.
    """
    path, equals, value = override.partition("=")
    *parents, last = path.split(".")
    if not equals or not parents:
        shown = path + equals + ("..." if value else "")  # without the value, which may be a token
        raise ValueError(f"An override must be section.key=value, got {shown!r}: write it in this form.")
    target: Any = content
    try:
        for name in parents:
            target = target[int(name)] if isinstance(target, list) else target[name]
        key: Any = int(last) if isinstance(target, list) else last
        target[key] = yaml.load(value, Loader=_Loader)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path!r} names a position that the recipe does not have: check the keys and indices before the last one."
        ) from error


__all__ = ["Recipe", "load_recipe"]
