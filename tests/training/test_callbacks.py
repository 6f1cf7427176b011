"""`SampleCallback`: samples are written and logged, and the training is the same as without them."""

import json
import random

import numpy as np
import pytest
import torch
import toy
from PIL import Image

from janus_hf.training import SampleCallback


def sampling(every=2):
    """Return a callback with two prompts, a question about an image and a question without one."""
    question = {"question": "What is this?", "image": Image.new("RGB", (20, 30), "red")}
    return SampleCallback(
        toy.load_processor(),
        prompts=["a dog", "a cat"],
        questions=[question, {"question": "Hello?"}],
        every=every,
        max_new_tokens=3,
    )


@pytest.mark.parametrize("stage", ["stage2", "lora_both"])
def test_training_with_samples_equals_training_without(stage, tmp_path):
    fields = {"lora_dropout": 0.3} if stage == "lora_both" else {}
    runs = []
    for callbacks in ([], [sampling()]):
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        trainer = toy.trainer_for(toy.config_for(tmp_path, stage, max_steps=3, **fields), callbacks=callbacks)
        trainer.train()
        states = [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]
        runs.append((toy.trajectory(trainer), states, [module.training for module in trainer.model.modules()]))
    assert runs[0] == runs[1]
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        "step-2.json",
        "step-2.png",
        "step-3.json",
        "step-3.png",
    ]
    with Image.open(tmp_path / "samples" / "step-3.png") as grid:
        assert grid.size == (128, 64)
    written = json.loads((tmp_path / "samples" / "step-3.json").read_text())
    assert written["prompts"] == ["a dog", "a cat"]
    assert [entry["question"] for entry in written["answers"]] == ["What is this?", "Hello?"]


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="0 prompts and 0 questions"):
        SampleCallback(toy.load_processor())
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="broken.png"):
        SampleCallback(toy.load_processor(), questions=[{"question": "?", "image": str(tmp_path / "broken.png")}])


def test_tensorboard_gets_images_and_answers(tmp_path):
    """The trainer gives its callbacks to the `SampleCallback`, which finds TensorBoard's among them."""
    from transformers.integrations import TensorBoardCallback

    calls = []

    class Writer:
        def __getattr__(self, name):
            return lambda *args, **kwargs: calls.append(name)

    board = TensorBoardCallback.__new__(TensorBoardCallback)
    board.tb_writer = Writer()
    callback = sampling(every=1)
    trainer = toy.trainer_for(toy.config_for(tmp_path, "stage1", max_steps=1), callbacks=[board, callback])
    callback.log_samples(trainer.args, 1, [Image.new("RGB", (4, 4))] * 2, ["x", "y"])
    assert calls == ["add_image", "add_image", "add_text"]


def test_the_configuration_asks_for_samples(tmp_path):
    fields = {"sample_steps": 1, "sample_prompts": ["a dog"], "sample_questions": [{"question": "Hello?"}]}
    trainer = toy.trainer_for(
        toy.config_for(tmp_path, "stage1", max_steps=1, sample_max_new_tokens=2, sample_guidance_scale=1.0, **fields)
    )
    trainer.train()
    assert (tmp_path / "samples" / "step-1.png").is_file()
    # `sample_steps=0` alone turns samples off, whatever else a recipe says about them.
    without = toy.trainer_for(toy.config_for(tmp_path, "stage1", **(fields | {"sample_steps": 0})))
    assert not [callback for callback in without.callback_handler.callbacks if isinstance(callback, SampleCallback)]
