"""Fixtures of the data tests: the tiny checkpoint in float32, and a few raw rows of every kind."""

from collections.abc import Callable
from typing import Any

import datasets
import pytest
import torch
from PIL import Image

from janus_hf import JanusProForConditionalGeneration, JanusProProcessor
from tiny import TINY_MODEL


datasets.disable_progress_bars()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give `datasets` an empty cache, so that no test reads what another one left there."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def model() -> JanusProForConditionalGeneration:
    """The tiny checkpoint. All tests share it, so none may change it."""
    return JanusProForConditionalGeneration.from_pretrained(TINY_MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def processor() -> JanusProProcessor:
    """The processor of the tiny checkpoint."""
    return JanusProProcessor.from_pretrained(TINY_MODEL)


def _noise(seed: int, size: tuple[int, int] = (70, 66)) -> Image.Image:
    """Make an RGB image of noise that no other seed gives."""
    return Image.effect_noise(size, 90 + seed).convert("RGB").resize(size).rotate(seed)


@pytest.fixture(scope="session")
def make_image() -> Callable[..., Image.Image]:
    """A function that makes an image of noise from a seed and a size."""
    return _noise


@pytest.fixture(scope="session")
def drawings() -> list[dict[str, Any]]:
    """Six raw drawing rows with six different images."""
    return [{"prompt": f"a board with {n} dots", "image": _noise(n)} for n in range(6)]


@pytest.fixture(scope="session")
def conversations() -> list[dict[str, Any]]:
    """Five raw rows: one image, two images in two turns, one after a system message, and two texts."""

    def say(*turns: str, system: str | None = None) -> list[dict[str, str]]:
        spoken = [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)]
        return ([{"role": "system", "content": system}] if system is not None else []) + spoken

    return [
        {"messages": say("What is this?", "Noise."), "images": [_noise(1)]},
        {
            "messages": say("<image> first", "One.", "then <image>", "Two."),
            "images": [_noise(2), _noise(3, (40, 90))],
        },
        {"messages": say("<image>\nHm?", "Yes.", system="Be brief."), "images": [_noise(4)]},
        {"messages": say("Hello", "Hi there!", "Bye", "See you."), "images": []},
        {"messages": say("2 + 2?", "4", system="")},
    ]
