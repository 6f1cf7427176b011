"""The whole way from images to a trained model that generates them, and a run that is killed and resumed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import toy
import yaml

from janus_hf import JanusProPipeline
from janus_hf.data import JanusProCollator, PackedDataset, make_plan, prepare, prepare_rows
from janus_hf.shapes import TAGS, ask, make_drawing, picture, random_scene
from janus_hf.training import JanusProSFTTrainer


@pytest.fixture(scope="module")
def rows():
    """Return 16 images with different prompts and 16 different questions about different images."""
    rng = np.random.default_rng(4)
    drawings, questions = {}, {}
    while len(drawings) < 16:
        drawing = make_drawing(TAGS[len(drawings) % len(TAGS)], rng, detailed=True)
        drawings[drawing.prompt] = {"prompt": drawing.prompt, "image": picture(drawing.scene)}
    while len(questions) < 16:
        scene = random_scene(rng)
        question = ask(scene, rng)
        messages = [
            {"role": "user", "content": f"<image>\n{question.question}"},
            {"role": "assistant", "content": question.answer},
        ]
        questions[question.question] = {"messages": messages, "images": [picture(scene)]}
    return {"drawing": list(drawings.values()), "questions": list(questions.values())}


@pytest.mark.slow
def test_images_and_answers_are_learned_by_heart(rows, tmp_path):
    """32 rows are prepared, packed, trained, saved and loaded as a pipeline, which generates them exactly."""
    model, processor = toy.load_model(), toy.load_processor()
    prepared = {name: prepare_rows(source, model, processor) for name, source in rows.items()}
    lengths = {name: source.lengths for name, source in prepared.items()}
    steps = 300
    plan = make_plan(lengths, max_length=500, ratios={"drawing": 1, "questions": 1}, num_packs=4 * steps)
    trainer = JanusProSFTTrainer(
        model,
        toy.config_for(
            tmp_path,
            "full",
            max_steps=steps,
            per_device_train_batch_size=4,
            learning_rate=3e-3,
            lr_scheduler_type="cosine",
            logging_steps=steps,
            max_length=500,
        ),
        train_dataset=PackedDataset(prepared, plan),
        data_collator=JanusProCollator(processor, caption_drop=0.0, return_task_ids=True),
        processing_class=processor,
    )
    trainer.train()
    trainer.save_model()

    pipe = JanusProPipeline.from_pretrained(tmp_path, dtype="float32")
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe([row["prompt"] for row in rows["drawing"]], do_sample=False, guidance_scale=1, batch_size=16)
    wanted = pipe.encode([row["image"] for row in rows["drawing"]])
    assert torch.equal(drawn.image_ids, wanted)
    for row in rows["questions"]:
        question, answer = (message["content"].removeprefix("<image>\n") for message in row["messages"])
        assert pipe.ask(row["images"][0], question, max_new_tokens=60) == answer  # which ends by itself


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage3", "lora_both"])
def test_killed_and_resumed_is_straight(stage, rows, tmp_path):
    """A run is killed at a random batch and resumed.

    Captions are dropped and LoRA has dropout, so that a lost random state would change the losses.
    """
    model, processor = toy.load_model(), toy.load_processor()
    for part in (model, processor):
        part.save_pretrained(tmp_path / "base")
    for name, source in rows.items():
        prepare(source, tmp_path / name, model, processor, num_shards=2)
    sources = [{"name": name, "path": str(tmp_path / name), "ratio": 1} for name in rows]
    training = {
        "stage": stage,
        "learning_rate": 1e-3,
        "max_steps": 12,
        "save_steps": 3,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_length": 256,
        "caption_drop": 0.5,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "resume_from_checkpoint": "auto",
    }
    if stage.startswith("lora"):
        training["lora_dropout"] = 0.1
    content = {"model": {"path": str(tmp_path / "base")}, "data": {"sources": sources}, "training": training}

    def start(name: str) -> subprocess.Popen:
        """Start a process that trains into the folder `name` and writes hashes of its batches to `name.hashes`."""
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(yaml.safe_dump({**content, "training": {**training, "output_dir": str(tmp_path / name)}}))
        script = Path(__file__).with_name("resumable.py")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / f"{name}.hashes"), str(recipe)],
            env=environment,
            stderr=(tmp_path / f"{name}.err").open("a"),
            stdout=subprocess.DEVNULL,
        )

    def batches(name: str) -> list[str]:
        path = tmp_path / f"{name}.hashes"
        return path.read_text().splitlines() if path.exists() else []

    def losses(name: str) -> dict[int, float]:
        log = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        return {entry["step"]: entry["loss"] for entry in log if "loss" in entry}

    assert start("straight").wait() == 0, (tmp_path / "straight.err").read_text()[-3000:]
    kill_after = random.Random(stage).randint(2 * 4, 2 * 11)  # batches: at least one checkpoint is there
    process = start("killed")
    while len(batches("killed")) < kill_after and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(batches("killed"))
    assert before < len(batches("straight"))
    assert start("killed").wait() == 0, (tmp_path / "killed.err").read_text()[-3000:]

    resumed = batches("killed")[before:]
    assert 0 < len(resumed) < len(batches("straight"))
    assert resumed == batches("straight")[-len(resumed) :]
    assert list(losses("killed")) == list(range(1, 13))
    assert losses("killed") == pytest.approx(losses("straight"), abs=1e-5)
