"""Bad values of the configuration are refused; defaults follow the stage."""

import pytest

from janus_hf.training import JanusProSFTConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stage": "stage9"}, "no stage 'stage9'"),
        ({"stage": ""}, "stage must be one of"),
        ({"caption_drop": 1.5}, "caption_drop"),
        ({"save_layout": "mine"}, "save_layout"),
        ({"packing": True}, "packing=True has no meaning here"),
        ({"loss_type": "dft"}, "loss_type"),
        ({"fp16": True}, "bf16 or float32"),
        ({"lora_targets": "x"}, "need a lora_ stage"),
        ({"stage": "lora_both", "lora_r": 0}, "lora_r"),
        ({"num_processes": 2}, "num_processes=2 was asked for and 1 is running"),
        ({"total_batch_size": 7, "per_device_train_batch_size": 2}, "must be a multiple"),
        ({"total_batch_size": 8, "gradient_accumulation_steps": 3}, "contradicts"),
        ({"sample_steps": 5}, "go together"),
        ({"sample_prompts": ["a"]}, "go together"),
        ({"sample_steps": 5, "sample_questions": [{"text": "?"}]}, "keys question"),
        ({"max_length": None}, "max_length"),
    ],
)
def test_bad_configurations_are_refused(fields, message, tmp_path):
    defaults = {"output_dir": str(tmp_path), "stage": "stage1", "use_cpu": True}
    with pytest.raises(ValueError, match=message):
        JanusProSFTConfig(**{**defaults, **fields})


def test_two_gpus_without_a_launcher_are_refused(tmp_path, monkeypatch):
    """transformers would wrap the model in DataParallel, which splits rows of one micro-batch by their number."""
    monkeypatch.setattr(JanusProSFTConfig, "n_gpu", property(lambda self: 2))
    with pytest.raises(ValueError, match="sees 2 GPUs.*accelerate launch.*CUDA_VISIBLE_DEVICES=0"):
        JanusProSFTConfig(output_dir=str(tmp_path), stage="stage1", use_cpu=True)


def test_learning_rate_follows_the_stage(tmp_path):
    def rate(stage, **fields):
        return JanusProSFTConfig(output_dir=str(tmp_path), stage=stage, use_cpu=True, **fields).learning_rate

    assert [rate(f"stage{i}") for i in (1, 2, 3)] == [1e-3, 1e-4, 4e-5]
    assert rate("stage1", learning_rate=0.5) == 0.5
