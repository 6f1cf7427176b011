"""The embedded checkpoint in float32, and rows of every kind in the small."""

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
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def model() -> JanusProForConditionalGeneration:
    """Shared: do not change it."""
    return JanusProForConditionalGeneration.from_pretrained(TINY_MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def processor() -> JanusProProcessor:
    return JanusProProcessor.from_pretrained(TINY_MODEL)


def _picture(seed: int, size: tuple[int, int] = (70, 66)) -> Image.Image:
    return Image.effect_noise(size, 90 + seed).convert("RGB").resize(size).rotate(seed)


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    return _picture


@pytest.fixture(scope="session")
def drawings() -> list[dict[str, Any]]:
    """Six raw drawing rows, no two pictures alike."""
    return [{"prompt": f"a board with {n} dots", "image": _picture(n)} for n in range(6)]


@pytest.fixture(scope="session")
def conversations() -> list[dict[str, Any]]:
    """Five raw rows: one picture, two pictures in two turns, a system message, and two texts."""

    def say(*turns: str, system: str | None = None) -> list[dict[str, str]]:
        spoken = [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)]
        return ([{"role": "system", "content": system}] if system is not None else []) + spoken

    return [
        {"messages": say("What is this?", "Noise."), "images": [_picture(1)]},
        {
            "messages": say("<image> first", "One.", "then <image>", "Two."),
            "images": [_picture(2), _picture(3, (40, 90))],
        },
        {"messages": say("<image>\nHm?", "Yes.", system="Be brief."), "images": [_picture(4)]},
        {"messages": say("Hello", "Hi there!", "Bye", "See you."), "images": []},
        {"messages": say("2 + 2?", "4", system="")},
    ]
