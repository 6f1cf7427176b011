"""Runs that must agree, however rows are split over accumulation steps, packs and processes, and after a resume.

float32 on one thread; sums in another order differ by about 1e-6, so five decimals are compared.
"""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import toy
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback


ROWS = 36
STAGES = ["stage3", "lora_both"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Return a function: `straight(stage)` is the trajectory of an uninterrupted run with batches of six rows."""
    known = {}

    def run(stage):
        if stage not in known:
            trainer = toy.trainer_for(toy.config_for(tmp_path_factory.mktemp("run"), stage), rows=ROWS)
            trainer.train()
            known[stage] = toy.trajectory(trainer)
        return known[stage]

    return run


def assert_same(found, expected):
    assert len(found) == len(expected) == 6
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=1e-5, rtol=1e-5)
    losses = torch.tensor(expected)[:, 0]
    assert losses.max() - losses.min() > 1e-2, "a run whose loss does not change proves nothing"


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize(("batch", "accumulation"), [(3, 2), (1, 6)])
@pytest.mark.parametrize("stage", STAGES)
def test_any_accumulation_split_is_one_batch(straight, stage, batch, accumulation, checkpointing, tmp_path):
    args = toy.config_for(
        tmp_path,
        stage,
        per_device_train_batch_size=batch,
        total_batch_size=6,
        activation_checkpointing=checkpointing,
    )
    assert args.gradient_accumulation_steps == accumulation
    trainer = toy.trainer_for(args, rows=ROWS)
    trainer.train()
    assert_same(toy.trajectory(trainer), straight(stage))


@pytest.mark.parametrize("per_row", [2, 3])
@pytest.mark.parametrize("stage", STAGES)
def test_packed_is_unpacked(straight, stage, per_row, tmp_path):
    args = toy.config_for(tmp_path, stage, per_device_train_batch_size=6 // per_row)
    trainer = toy.trainer_for(args, rows=ROWS // per_row, per_row=per_row)
    trainer.train()
    assert_same(toy.trajectory(trainer), straight(stage))


@pytest.mark.parametrize(
    ("stage", "layout"), [("stage3", "original"), ("stage3", "transformers"), ("lora_both", "original")]
)
def test_resumed_is_straight(straight, stage, layout, tmp_path):
    """In stage3 the resumed model starts from other weights, so that all of them must come from the checkpoint."""

    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                raise KeyboardInterrupt

    fields = {"save_strategy": "steps", "save_steps": 3, "save_layout": layout}
    killed = toy.trainer_for(toy.config_for(tmp_path, stage, **fields), rows=ROWS, callbacks=[Kill()])
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    model = toy.load_model(seed=5 if stage == "stage3" else 0)
    resumed = toy.trainer_for(toy.config_for(tmp_path, stage, **fields), model=model, rows=ROWS)
    resumed.train(resume_from_checkpoint=True)
    assert_same(toy.trajectory(resumed), straight(stage))


def test_resuming_another_run_is_refused(tmp_path):
    fields = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    toy.trainer_for(toy.config_for(tmp_path, "stage1", **fields)).train()
    with pytest.raises(ValueError, match="plan_hash 'a'.*this run has 'b'"):
        toy.trainer_for(toy.config_for(tmp_path, "stage1", **fields), plan_hash="b").train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="stage 'stage1'.*this run has 'stage2'"):
        toy.trainer_for(toy.config_for(tmp_path, "stage2", **fields)).train(resume_from_checkpoint=True)


def test_resuming_another_run_is_refused_without_transformers_loading(tmp_path, monkeypatch):
    """FSDP and DeepSpeed load checkpoints without calling `_load_from_checkpoint`."""
    fields = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    toy.trainer_for(toy.config_for(tmp_path, "stage1", **fields)).train()
    trainer = toy.trainer_for(toy.config_for(tmp_path, "stage1", **fields), plan_hash="b")
    monkeypatch.setattr(trainer, "_load_from_checkpoint", lambda *args: None)
    with pytest.raises(ValueError, match="plan_hash 'a'.*'b'"):
        trainer.train(resume_from_checkpoint=True)


def test_a_checkpoint_that_lacks_a_weight_is_refused(tmp_path):
    """transformers would warn and keep the weight that the model has."""
    fields = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    toy.trainer_for(toy.config_for(tmp_path, "stage1", **fields)).train()
    file = tmp_path / "checkpoint-1" / "model.safetensors"
    weights = load_file(file)
    save_file({name: weight for name, weight in weights.items() if "aligner" not in name}, file, {"format": "pt"})
    trainer = toy.trainer_for(toy.config_for(tmp_path, "stage1", **fields | {"max_steps": 2}))
    with pytest.raises(ValueError, match=r"got one with \d+ missing and 0 unexpected ones, such as 'model.*aligner"):
        trainer.train(resume_from_checkpoint=True)


class KeepGradients(TrainerCallback):
    def __init__(self):
        self.gradients = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def embed(model, part):
    """Return the embeddings `(T, D)` of a document, computed one id after another."""
    inner, num_text = model.model, model.config.text_config.vocab_size
    patches = []
    if part["pixel_values"] is not None:
        patches = list(inner.aligner(inner.vision_model(part["pixel_values"]).last_hidden_state)[0])
    rows = []
    for number in part["input_ids"]:
        if number == model.config.image_token_id:
            rows.append(patches.pop(0))
        elif number >= num_text:
            rows.append(inner.generation_aligner(inner.generation_embeddings.weight[number - num_text]))
        else:
            rows.append(inner.language_model.embed_tokens.weight[number])
    assert not patches
    return torch.stack(rows)


@pytest.mark.parametrize("kinds", [(0, 1, 2), (2,), (0,)], ids=["mixed", "drawing", "text"])
def test_gradients_equal_plain_pytorch(kinds, tmp_path):
    """The reference runs each document alone, with full logits of both heads and one mean over all labels."""
    keep = KeepGradients()
    args = toy.config_for(tmp_path, "full", max_steps=1, per_device_train_batch_size=1, gradient_accumulation_steps=2)
    args.max_grad_norm = 0.0
    trainer = toy.trainer_for(args, kinds=kinds, per_row=3, callbacks=[keep])
    trainer.train()

    model = toy.load_model()
    num_text = model.config.text_config.vocab_size
    losses = []
    for i in range(6):
        part = toy.document(kinds[i % len(kinds)], i, model.config)
        labels = torch.tensor(part["labels"][1:])
        hidden = model.model.language_model(inputs_embeds=embed(model, part)[None]).last_hidden_state[0, :-1]
        for head, offset, chosen in (
            (model.lm_head, 0, (labels >= 0) & (labels < num_text)),
            (model.model.generation_head, num_text, labels >= num_text),
        ):
            losses.append(F.cross_entropy(head(hidden[chosen]), labels[chosen] - offset, reduction="none"))
    torch.cat(losses).mean().backward()
    for name, parameter in model.named_parameters():
        if "vqmodel" in name:
            assert name not in keep.gradients
            continue
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(keep.gradients[name], expected, atol=1e-5, rtol=1e-5, msg=name)
        difference = (keep.gradients[name] - expected).norm()  # small gradients would pass any absolute bound
        assert difference <= 1e-5 * expected.norm() + 1e-9, name


@pytest.mark.parametrize("stage", ["stage3", "lora_understanding"])
def test_micro_batches_without_images_reach_every_branch(stage, tmp_path):
    """If a micro-batch left out the tower, Adam would skip its weights, and ranks would wait for each other."""
    keep = KeepGradients()
    trainer = toy.trainer_for(toy.config_for(tmp_path, stage, max_steps=1), kinds=(2, 0), callbacks=[keep])
    trainer.train()
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert set(keep.gradients) == trained
    tower = [value for name, value in keep.gradients.items() if "aligner" in name and "generation" not in name]
    assert tower
    assert all(not value.any() for value in tower)


def launch(processes: int, folder: Path, *settings: str, how: str = "--multi_gpu") -> list[list[float]]:
    """Run `two_ranks.py` under accelerate's launcher and return its trajectory."""
    script = Path(__file__).with_name("two_ranks.py")
    result = toy.launch(str(script), str(folder), str(processes), *settings, processes=processes, how=how)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads((folder / "trajectory.json").read_text())


@pytest.mark.slow
def test_a_launcher_that_starts_one_process_is_caught(tmp_path):
    """`accelerate launch --cpu --num_processes 2` silently starts one process."""
    with pytest.raises(AssertionError, match="`num_processes` must be the number of running processes, 1, got 2"):
        launch(2, tmp_path, "stage3", "false", how="--cpu")


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["false", "true"])
@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_are_one(straight, stage, checkpointing, tmp_path):
    """One rank has an image to generate while the other has one to understand; the script asserts the world size."""
    assert_same(launch(2, tmp_path, stage, checkpointing), straight(stage))
