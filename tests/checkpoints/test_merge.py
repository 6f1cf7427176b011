"""`merge_adapter` needs a base and notices files that differ; tests/training/test_sft.py tests the merged outputs."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model

from janus_hf import CheckpointError, JanusProForConditionalGeneration
from janus_hf.checkpoints.merge import merge_adapter
from tiny import TINY_MODEL


@pytest.fixture
def adapter(tmp_path):
    """The folder of an adapter of the tiny model that changes nothing and names its base."""
    model = JanusProForConditionalGeneration.from_pretrained(TINY_MODEL)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_must_name_its_base(adapter, tmp_path):
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="`base` must be the model that .* was trained on, got None.*: name the base"):
        merge_adapter(adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    folder = merge_adapter(adapter, tmp_path / "merged", base=TINY_MODEL)
    merged = JanusProForConditionalGeneration.from_pretrained(folder).state_dict()
    base = JanusProForConditionalGeneration.from_pretrained(TINY_MODEL).state_dict()
    assert merged.keys() == base.keys()
    assert all(torch.equal(merged[name], base[name]) for name in base)  # a new adapter adds zero


def test_a_merged_model_that_differs_is_noticed(adapter, tmp_path, monkeypatch):
    save = JanusProForConditionalGeneration.save_pretrained

    def save_and_change(self, folder, **kwargs):
        save(self, folder, **kwargs)
        with torch.no_grad():
            self.lm_head.weight[0, 0] += 1  # the model in memory is compared with the files

    monkeypatch.setattr(JanusProForConditionalGeneration, "save_pretrained", save_and_change)
    with pytest.raises(CheckpointError, match="differs from the model after reloading; do not use it") as error:
        merge_adapter(adapter, tmp_path / "merged")
    assert [name for name, *_ in error.value.mismatched] == ["lm_head.weight"]
