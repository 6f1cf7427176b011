"""Steps on a CPU that run as they do on a GPU."""

from collections.abc import Callable

import pytest
import torch

from janus_hf import JanusProForConditionalGeneration
from janus_hf.generation import drawing
from janus_hf.generation.decoders import plain
from janus_hf.generation.decoders.fused_layers import FusedModel


@pytest.fixture
def few_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let uncompiled steps launch few kernels on a CPU too, and compute their noise ahead."""
    for module in (plain, drawing):
        monkeypatch.setattr(module, "few_kernels_pay", lambda device: True)


@pytest.fixture
def images_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., torch.Tensor]:
    """Function `images_of(model, *arguments, fused=True, **settings)` for the image tokens of a model.

    With `fused=False` the steps run as on a CPU. With `fused=None` few kernels are asked for, but not available.
    """

    def run(
        model: JanusProForConditionalGeneration, *arguments: object, fused: bool | None = True, **settings: object
    ) -> torch.Tensor:
        made = []
        initialise = FusedModel.__init__

        def record(self: FusedModel, *args: object, **kwargs: object) -> None:
            made.append(self)
            initialise(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(FusedModel, "__init__", record)
            for module in (plain, drawing):
                patch.setattr(module, "few_kernels_pay", lambda device: fused is not False)
            images = model.generate_images(*arguments, **settings)
        assert len(made) == (1 if fused else 0)
        return images

    return run
