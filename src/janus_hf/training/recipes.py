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

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from .trainers.sft_config import JanusProSFTConfig


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


__all__ = ["Recipe", "load_recipe"]
