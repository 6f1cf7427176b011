"""The private names and habits of TRL and transformers that the trainers rely on.

If a test fails after an update of these libraries, read what they changed before changing the trainers.
"""

import inspect

import pytest
import toy
import transformers
import trl
from datasets import Dataset

from janus_hf import JanusProForConditionalGeneration
from janus_hf.training import JanusProSFTTrainer
from janus_hf.training.stages import base_model


def test_trl_still_replaces_the_forward_on_the_instance(tmp_path):
    """If this fails, TRL's `SFTTrainer` may serve as the parent of our trainers; see `base.py`."""
    model = toy.load_model()
    args = trl.SFTConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, dataset_kwargs={"skip_prepare_dataset": True}
    )
    trl.SFTTrainer(
        model,
        args,
        train_dataset=Dataset.from_dict({"input_ids": [[0]]}),
        data_collator=toy.collate,
        processing_class=toy.load_processor(),
    )
    assert "forward" in model.__dict__
    assert "fused_lm_head" in inspect.signature(model.__dict__["forward"], follow_wrapped=False).parameters
    assert set(vars(model)) - set(vars(toy.load_model())) <= {"forward", "model_tags"}, (
        "TRL changed something else too"
    )


@pytest.mark.parametrize("stage", ["stage3", "lora_both"])
def test_our_trainer_runs_the_models_own_forward(stage, tmp_path):
    trainer = toy.trainer_for(toy.config_for(tmp_path, stage))
    model = base_model(trainer.model)
    assert "forward" not in model.__dict__
    assert model.forward.__func__ is JanusProForConditionalGeneration.forward
    assert trainer.model_accepts_loss_kwargs
    assert trainer._loss_shifts_labels, "num_items_in_batch would count the first label of every row"


def test_methods_we_override_exist_with_these_arguments():
    def names(function):
        return list(inspect.signature(function).parameters)

    trainer = transformers.Trainer
    assert names(trainer.compute_loss) == ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]
    assert names(trainer._save) == ["self", "output_dir", "state_dict"]
    assert names(trainer._load_from_checkpoint) == ["self", "resume_from_checkpoint", "model"]
    assert names(trainer._issue_warnings_after_load) == ["self", "load_result"]
    assert names(trainer.training_step)[1:3] == ["model", "inputs"]
    assert names(trainer._clip_grad_norm) == ["self", "model"]
    assert names(trainer._prepare_for_training) == ["self", "max_steps", "train_dataloader", "resume_from_checkpoint"]
    assert names(trainer.train)[:2] == ["self", "resume_from_checkpoint"]
    assert names(trainer.init_hf_repo) == ["self", "token", "private"]
    assert names(trainer._push_from_checkpoint) == ["self", "checkpoint_folder"]
    assert names(trainer._finish_current_push) == ["self"]
    assert names(trainer.push_to_hub) == names(JanusProSFTTrainer.push_to_hub)
    assert names(trainer.log) == ["self", "logs", "start_time"]
    assert "create_model_card" in vars(trainer)


def test_private_names_we_read_exist():
    assert list(inspect.signature(transformers.Trainer.save_model).parameters)[-1] == "_internal_call"
    config = toy.load_model().config
    assert config._attn_implementation == "sdpa"
    assert not hasattr(config, "attn_implementation"), "mixture.py can read the public name"
