"""Bad values of the configuration are refused; defaults follow the stage."""

import pytest

from janus_hf.training import JanusProSFTConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stage": "stage9"}, "`stage` must be one of stage1.*got 'stage9'"),
        ({"stage": ""}, "`stage` must be one of"),
        ({"caption_drop": 1.5}, "caption_drop"),
        ({"save_layout": "mine"}, "save_layout"),
        ({"packing": True}, "`packing` must be False here, got True"),
        ({"loss_type": "dft"}, "loss_type"),
        ({"fp16": True}, "bf16 or float32"),
        ({"lora_targets": "x"}, "choose a lora_ stage"),
        ({"stage": "lora_both", "lora_r": 0}, "lora_r"),
        ({"num_processes": 2}, "`num_processes` must be the number of running processes, 1, got 2"),
        ({"total_batch_size": 7, "per_device_train_batch_size": 2}, "must be a multiple"),
        (
            {"total_batch_size": 8, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3},
            "`gradient_accumulation_steps` must be 4 with total_batch_size=8",
        ),
        ({"sample_steps": 5}, "`sample_steps` must be set together"),
        ({"sample_prompts": ["a"]}, "`sample_steps` must be set together"),
        ({"sample_questions": [{"question": "?"}]}, "`sample_steps` must be set together"),
        ({"model_init_kwargs": {"token": "x"}}, "the model is loaded before the trainer"),
        ({"sample_steps": 5, "sample_questions": [{"text": "?"}]}, "keys question"),
        ({"max_length": None}, "max_length"),
    ],
)
def test_bad_configurations_are_refused(fields, message, tmp_path):
    defaults = {"output_dir": str(tmp_path), "stage": "stage1", "use_cpu": True}
    with pytest.raises(ValueError, match=message):
        JanusProSFTConfig(**{**defaults, **fields})


def test_two_gpus_without_a_launcher_are_refused(tmp_path, monkeypatch):
    """transformers would wrap the model in DataParallel, which splits the rows of a micro-batch over the GPUs."""
    monkeypatch.setattr(JanusProSFTConfig, "n_gpu", property(lambda self: 2))
    with pytest.raises(ValueError, match="got 2 GPUs.*accelerate launch.*CUDA_VISIBLE_DEVICES=0"):
        JanusProSFTConfig(output_dir=str(tmp_path), stage="stage1", use_cpu=True)


def test_learning_rate_follows_the_stage(tmp_path):
    def rate(stage, **fields):
        return JanusProSFTConfig(output_dir=str(tmp_path), stage=stage, use_cpu=True, **fields).learning_rate

    assert [rate(f"stage{i}") for i in (1, 2, 3)] == [1e-3, 1e-4, 4e-5]
    assert rate("stage1", learning_rate=0.5) == 0.5
