"""Trainer tests need the `train` extra and must not use the network."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tiny import TINY_MODEL


sys.path.insert(0, str(Path(__file__).parent))  # for `toy`
pytest.importorskip("trl")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")  # otherwise TRL sends telemetry


@pytest.fixture
def recipe_file(tmp_path):
    """Write a recipe of two steps, for tests that pass their own data instead of the recipe's. Return its path."""
    content = {
        "model": {"path": str(TINY_MODEL)},
        "data": {"sources": [{"name": "mine", "path": "nowhere", "ratio": 1}]},
        "training": {
            "stage": "lora_both",
            "output_dir": str(tmp_path / "out"),
            "max_steps": 2,
            "save_steps": 1,
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "max_length": 256,
        },
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture
def raw_recipe(tmp_path):
    """Write a recipe of four steps, and its data as images and JSONL files. Return its path."""
    for i, colour in enumerate(["red", "green", "blue"]):
        Image.new("RGB", (70, 64), colour).save(tmp_path / f"{i}.png")
    drawing = [{"prompt": f"picture {i}", "image": f"{i}.png"} for i in range(3)]
    talk = [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A colour."}]
    understanding = [{"messages": talk, "images": [f"{i}.png"]} for i in range(3)]
    for name, rows in (("drawing", drawing), ("understanding", understanding)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model": {"path": str(TINY_MODEL)},
        "data": {
            "sources": [
                {"name": name, "path": str(tmp_path / f"{name}.jsonl"), "ratio": ratio}
                for name, ratio in (("drawing", 1), ("understanding", 2))
            ]
        },
        "training": {
            "stage": "full",
            "output_dir": str(tmp_path / "out"),
            "max_steps": 4,
            "save_steps": 2,
            "logging_steps": 4,
            "per_device_train_batch_size": 2,
            "max_length": 256,
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
        },
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path
