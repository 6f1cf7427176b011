"""Base class `Pretrained` of the transformers models that score images, and the function `group_indices`."""

import os
from collections.abc import Hashable, Iterable, Iterator
from functools import cached_property
from typing import TypeAlias, TypeVar

import torch
from transformers import PreTrainedModel, ProcessorMixin


Key = TypeVar("Key", bound=Hashable)
# A name on the Hub, a folder, or the loaded object. For a processor, None means the one saved under the model's name.
ModelSource: TypeAlias = PreTrainedModel | str | os.PathLike[str]
ProcessorSource: TypeAlias = ProcessorMixin | str | os.PathLike[str] | None


class Pretrained:
    """A transformers model and its processor. If they are given by name, they are loaded at their first use.

    Args:
        model: Name on the Hub, folder, or loaded model. A loaded model is put into evaluation mode.
        processor: Name, folder or loaded processor; by default the processor saved under the model's name.
        device: Device to move the model to. By default, a model given by name is moved to CUDA if it is available, and
            a loaded model stays on its device.
        dtype: Dtype to load the weights in, or to convert a loaded model to. By default, a model given by name is
            loaded in float32 and a loaded model keeps its dtype. For a model given by name, "auto" is the dtype of the
            checkpoint.
        batch_size: Number of images or texts per forward pass.

    Raises:
        ValueError: If a loaded model is given without the processor that it needs.
    """

    model_class = "AutoModel"  # name of the transformers class that loads the model
    needs_processor = True  # False where a subclass prepares the inputs itself

    def __init__(
        self,
        model: ModelSource,
        processor: ProcessorSource = None,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        batch_size: int = 16,
    ) -> None:
        if processor is None and isinstance(model, str | os.PathLike):
            processor = model
        if processor is None and self.needs_processor:
            raise ValueError(
                f"`processor` must be given with a loaded model, got only a {type(model).__name__} for "
                f"{type(self).__name__}: pass processor=..., or the model's name instead of the model."
            )
        self._model, self._processor = model, processor
        self._device, self._dtype, self.batch_size = device, dtype, batch_size

    @property
    def source(self) -> str:
        """Name or folder that the model was loaded from; for a loaded model without either, the name of its class."""
        if isinstance(self._model, str | os.PathLike):
            return str(self._model)
        return self._model.config.name_or_path or type(self._model).__name__

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model in evaluation mode, on its device; the first access loads it."""
        if isinstance(self._model, str | os.PathLike):
            device = self._device or ("cuda" if torch.cuda.is_available() else "cpu")
            return self._load(self._model, self._dtype or torch.float32).to(device).eval()
        changes = {key: value for key, value in (("device", self._device), ("dtype", self._dtype)) if value}
        # Quantised and offloaded models refuse `to`, so it is called only if there is something to change.
        return (self._model.to(**changes) if changes else self._model).eval()

    @cached_property
    def processor(self) -> ProcessorMixin:
        """The model's processor; the first access loads it."""
        if not isinstance(self._processor, str | os.PathLike):
            return self._processor
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(self._processor)

    def load(self) -> None:
        """Load the model and the processor now instead of at their first use."""
        _ = self.model, self.processor

    def _load(self, name: str | os.PathLike[str], dtype: torch.dtype | str) -> PreTrainedModel:
        """Load and return the model `name`, a name on the Hub or a folder, with the class `model_class`."""
        import transformers

        return getattr(transformers, self.model_class).from_pretrained(name, dtype=dtype)

    def _to_model(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the pixel values on the model's device and in its dtype."""
        return pixel_values.to(self.model.device, self.model.dtype)

    def _batches(self, count: int) -> Iterator[slice]:
        """Return an iterator of slices that split a sequence of `count` items into batches of `self.batch_size`."""
        return (slice(start, start + self.batch_size) for start in range(0, count, self.batch_size))


def group_indices(keys: Iterable[Key]) -> dict[Key, list[int]]:
    """Map each key to the indices at which it occurs in `keys`: `"aba"` becomes `{"a": [0, 2], "b": [1]}`.

    Images that are grouped by size, or texts by length, form batches that need no padding.
    """
    indices: dict[Key, list[int]] = {}
    for index, key in enumerate(keys):
        indices.setdefault(key, []).append(index)
    return indices


__all__ = ["ModelSource", "Pretrained", "ProcessorSource", "group_indices"]
