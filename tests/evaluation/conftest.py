"""Fixtures of the evaluation tests: the shipped pipeline, and a small copy of DPG-Bench's data."""

import csv
from pathlib import Path

import pytest
import torch

from janus_hf import JanusProPipeline
from janus_hf.assets import DEFAULT_MODEL


DPG_COLUMNS = ["item_id", "text", "keywords", "proposition_id", "dependency", "category_broad", "category_detailed"]
DPG_COLUMNS += ["tuple", "question_natural_language"]
# Three prompts. The official script in effect reads the first row as a header and so loses "a first?".
DPG_ROWS = [
    ("a", 1, "0", "entity - whole (sky)", "a first?"),
    ("a", 2, "0", "global - (photo)", "a second?"),
    ("b", 1, "0", "entity - whole (dog)", "dog?"),
    ("b", 2, "1", "attribute - color (dog, red)", "red dog?"),
    ("b", 3, "1,2", "relation - spatial (dog, mat, on)", "dog on mat?"),
    ("c", 1, "0", "entity - whole (cat)", "cat?"),
    ("c", 2, "0", "entity - part (cat, tail)", "tail?"),
]


@pytest.fixture(scope="session")
def pipe() -> JanusProPipeline:
    """The shipped model in float32, without progress bars. Shared: do not change it."""
    pipe = JanusProPipeline.from_pretrained(DEFAULT_MODEL, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def dpg_data(tmp_path) -> Path:
    """A folder `dpg_bench` with the prompts "a", "b" and "c" of `DPG_ROWS`."""
    folder = tmp_path / "dpg_bench"
    (folder / "prompts").mkdir(parents=True)
    with (folder / "dpg_bench.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(DPG_COLUMNS)
        for item, number, parents, what, question in DPG_ROWS:
            table.writerow([item, f"prompt {item}, long", "", number, parents, "", "", what, question])
    for item in "abc":
        (folder / "prompts" / f"{item}.txt").write_text(f"prompt {item}, long\n")
    return folder
