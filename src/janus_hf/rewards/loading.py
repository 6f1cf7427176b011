"""Models of transformers as judges: loaded when first needed, asked in batches."""

import os
from collections.abc import Hashable, Iterable, Iterator
from functools import cached_property
from typing import Any, TypeVar

import torch


Key = TypeVar("Key", bound=Hashable)


class Pretrained:
    """A transformers model with its processor, given or loaded when first needed.

    Args:
        model: A name on the Hub, a folder, or the model itself, which is put into evaluation mode.
        processor: The same for its processor; by default that of the model's name.
        device: By default CUDA where there is one, and for a given model the device it is on.
        dtype: By default float32, and for a given model its own.
        batch_size: Pictures, or texts, at a time.

    Raises:
        ValueError: If a model is given without a processor that is needed.
    """

    model_class = "AutoModel"
    needs_processor = True

    def __init__(
        self,
        model: Any,
        processor: Any = None,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        batch_size: int = 16,
    ) -> None:
        if self.needs_processor and processor is None and not _is_name(model):
            raise ValueError(
                f"{type(self).__name__} got a {type(model).__name__} without its processor: pass processor=..., or "
                "the model's name instead of the model."
            )
        self._model, self._processor = model, model if processor is None else processor
        self._device, self._dtype, self.batch_size = device, dtype, batch_size

    @property
    def source(self) -> str:
        """Where the model is from: its name or folder, or else its class."""
        if _is_name(self._model):
            return str(self._model)
        return self._model.config.name_or_path or type(self._model).__name__

    @cached_property
    def model(self) -> Any:
        """The model, loaded and in its place."""
        if not _is_name(self._model):
            model, device, dtype = self._model, self._device, self._dtype
        else:
            device = self._device or ("cuda" if torch.cuda.is_available() else "cpu")
            dtype = self._dtype or torch.float32
            model = self._load(self._model, dtype)
        return model.to(**{key: value for key, value in (("device", device), ("dtype", dtype)) if value}).eval()

    @cached_property
    def processor(self) -> Any:
        """The processor, loaded."""
        if not _is_name(self._processor):
            return self._processor
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(self._processor)

    def _load(self, name: str | os.PathLike[str], dtype: torch.dtype) -> Any:
        import transformers

        return getattr(transformers, self.model_class).from_pretrained(name, dtype=dtype)

    def _place(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return pixel_values.to(self.model.device, self.model.dtype)

    def _batches(self, count: int) -> Iterator[slice]:
        return (slice(start, start + self.batch_size) for start in range(0, count, self.batch_size))


def _is_name(model: Any) -> bool:
    return isinstance(model, (str, os.PathLike))


def group_indices(keys: Iterable[Key]) -> dict[Key, list[int]]:
    """Where each key stands, `"aba"` -> `{"a": [0, 2], "b": [1]}`: for batches of one size or length, which need no
    padding.
    """
    places: dict[Key, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    return places


__all__ = ["Pretrained", "group_indices"]
