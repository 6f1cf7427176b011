"""Stage 1 trains what `janus-hf assemble` writes with its recipe, and the result has the original layout."""

import json
from pathlib import Path

import pytest
import torch
from part_standins import StandIns
from PIL import Image
from safetensors.torch import load_file

from janus_hf import JanusProForConditionalGeneration, JanusProPipeline, JanusProProcessor
from janus_hf.data import load_prepared
from janus_hf.training import train


ROOT = Path(__file__).parents[2]
UNUSED = ("vision_model.vision_tower.attn_pool.", "gen_vision_model.quantize.codebook_used")


def write_data(folder):
    """Write images by class, as ImageNet has them, and images with captions."""
    colours = ["red", "green", "blue", "white"]
    for colour in colours:
        for number in range(4):
            (folder / "imagenet" / f"{colour}_square").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (24 + number, 24), colour).save(
                folder / "imagenet" / f"{colour}_square" / f"{number}.png"
            )
    (folder / "captions").mkdir()
    rows = []
    for number, colour in enumerate(colours * 3):
        Image.new("RGB", (24, 24), colour).save(folder / "captions" / f"{number}.png")
        rows.append(json.dumps({"file_name": f"{number}.png", "caption": f"a {colour} square"}))
    (folder / "captions" / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["original", "transformers"])
def test_stage_1_trains_an_assembled_start(run, golden_checkpoint, tmp_path, layout):
    """The commands are those of docs/training.md, with the released recipe and ten of its steps."""
    standins = StandIns(golden_checkpoint, tmp_path)
    parts = ("--language-model", standins.llama(), "--vision-tower", standins.siglip(), "--codec", standins.llamagen())
    status, out, err = run("assemble", *parts, "-o", "start-1b", "--layout", layout)
    assert (status, out) == (0, f"start-1b: {layout} layout, reloaded and equal\n"), err
    write_data(tmp_path)
    for task, source, adapter in (
        ("drawing", "imagenet", "label"),
        ("understanding", "captions", "describe"),
    ):
        arguments = ("prepare", f"{task}={source}", "--adapter", adapter, "-o", "data/stage1", "-m", "start-1b")
        status, out, err = run(*arguments)
        assert status == 0, err
    recipe = ROOT / "recipes" / "stage1_1b.yaml"
    train(
        recipe,
        [
            *(
                "training.max_steps=10",
                "training.warmup_steps=2",
                "training.total_batch_size=2",
                "training.max_length=256",
            ),
            *(
                "training.use_cpu=true",
                "training.report_to=none",
                "training.disable_tqdm=true",
                "training.logging_steps=1",
            ),
            *("training.dataloader_num_workers=0", "training.save_steps=10"),
        ],
    )
    folder = tmp_path / "runs" / "stage1-1b"
    log = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    assert log["global_step"] == 10
    losses = [entry["loss"] for entry in log["log_history"] if "loss" in entry]
    assert len(losses) == 10
    assert losses[-1] < losses[0]

    stored = {name: tuple(tensor.shape) for name, tensor in load_file(folder / "model.safetensors").items()}
    assert stored == {name: tuple(w.shape) for name, w in standins.golden.items() if not name.startswith(UNUSED)}
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"] == "multi_modality"
    before, after = (
        JanusProForConditionalGeneration.from_pretrained(one, dtype=torch.float32).state_dict()
        for one in ("start-1b", folder)
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[1] for name in changed} == {"aligner", "generation_aligner", "generation_head"} | (
        {"generation_embeddings"} & {name.split(".")[1] for name in changed}
    )
    model, processor = (one.from_pretrained(folder) for one in (JanusProForConditionalGeneration, JanusProProcessor))
    assert len(load_prepared("data/stage1/drawing", model=model, processor=processor)) == 16  # serves stage 2 too
    pipe = JanusProPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    assert pipe("red square").images[0].size == (24, 24)
