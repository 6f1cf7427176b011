"""Weight-only quantisation by torchao, for real; `make test-slow` installs it (the extra `quant`)."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, TorchAoConfig

from janus_hf import JanusProForConditionalGeneration


GOLDENS = Path(__file__).parents[1] / "goldens"
IDS = torch.arange(20).unsqueeze(0)

pytestmark = pytest.mark.slow


def int8(**kwargs: object) -> TorchAoConfig:
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), **kwargs)


def quantised_weights(model: torch.nn.Module) -> set[str]:
    return {name for name, weight in model.named_parameters() if type(weight.data) is not torch.Tensor}


@pytest.fixture(scope="module")
def quantised() -> JanusProForConditionalGeneration:
    return AutoModel.from_pretrained(GOLDENS / "checkpoint", dtype=torch.float32, quantization_config=int8())


def test_only_the_language_models_layers_are_quantised(quantised: JanusProForConditionalGeneration):
    linears = {
        f"model.language_model.{name}.weight"
        for name, module in quantised.model.language_model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert quantised_weights(quantised) == linears
    assert len(linears) == 2 * 7


def test_quantised_logits_are_close(quantised: JanusProForConditionalGeneration):
    exact = AutoModel.from_pretrained(GOLDENS / "checkpoint", dtype=torch.float32)
    with torch.no_grad():
        error = (quantised(input_ids=IDS).logits - exact(input_ids=IDS).logits).abs().max()
        spread = exact(input_ids=IDS).logits.std()
    # Measured 0.10 where logits spread by 2.0: int8 rounds weights to 1/254 of each row's largest. Zero would mean
    # that nothing was quantised, the spread itself that weights were lost.
    assert 0 < error < 0.15 * spread


def test_quantised_save_and_reload(quantised: JanusProForConditionalGeneration, tmp_path: Path):
    with pytest.raises(ValueError, match="layout='transformers'"):
        quantised.save_pretrained(tmp_path, layout="original")
    quantised.save_pretrained(tmp_path)
    reloaded = JanusProForConditionalGeneration.from_pretrained(tmp_path)
    assert quantised_weights(reloaded) == quantised_weights(quantised)
    with torch.no_grad():
        assert torch.equal(reloaded(input_ids=IDS).logits, quantised(input_ids=IDS).logits)


def test_the_users_own_skip_list_is_kept():
    config = int8(modules_to_not_convert=["model.vision_model", "model.language_model.layers.0"])
    model = AutoModel.from_pretrained(GOLDENS / "checkpoint", quantization_config=config)
    names = quantised_weights(model)
    assert any(name.startswith("model.language_model.layers.1.") for name in names)
    assert not any(name.startswith("model.language_model.layers.0.") for name in names)
    assert "model.generation_head.vision_head.weight" in names
