"""Shared fixtures: the goldens of the original code, and tiny random models of other sizes than the goldens'.

Session-scoped models are shared between tests and must not be changed. A test that changes a model takes
`golden_model_copy` or `make_model`.
"""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.hf_api
import pytest
import torch
import transformers.utils.hub
from huggingface_hub import constants
from safetensors.torch import load_file
from transformers.utils import logging

import janus_hf_cli
import janus_hf_cli.model_arguments
from hub_server import LocalHub
from janus_hf import JanusProConfig, JanusProForConditionalGeneration


GOLDENS = Path(__file__).parent / "goldens"

torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other
logging.disable_progress_bar()


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    return GOLDENS


@pytest.fixture(scope="session")
def golden_checkpoint() -> Path:
    """A tiny checkpoint in the original layout: two bfloat16 `.bin` shards, tokenizer and processor files."""
    return GOLDENS / "checkpoint"


@pytest.fixture(scope="session")
def golden() -> dict[str, torch.Tensor]:
    """Tensors that the original code computed (float32, CPU). `manifest.json` explains each of them."""
    return load_file(GOLDENS / "golden.safetensors")


@pytest.fixture(scope="session")
def manifest() -> dict[str, Any]:
    return json.loads((GOLDENS / "manifest.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def golden_model(golden_checkpoint: Path) -> JanusProForConditionalGeneration:
    """The golden checkpoint in float32. Shared: do not change it."""
    return JanusProForConditionalGeneration.from_pretrained(golden_checkpoint, dtype=torch.float32)


@pytest.fixture
def golden_model_copy(golden_model: JanusProForConditionalGeneration) -> JanusProForConditionalGeneration:
    return copy.deepcopy(golden_model)


def _released_config(language: dict[str, Any], width: int) -> dict[str, Any]:
    projector = {"depth": 2, "n_embed": width, "projector_type": "mlp_gelu"}
    tower = {
        "image_size": 384,
        "model_name": "siglip_large_patch16_384",
        "select_feature": "same",
        "select_layer": -1,
    }

    def block(cls: str, model_type: str, **params: Any) -> dict[str, Any]:
        return {"cls": cls, "model_type": model_type, "params": params}

    return {
        "architectures": ["MultiModalityCausalLM"],
        "model_type": "multi_modality",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.33.1",
        "language_config": {
            "max_position_embeddings": 16384,
            "model_type": "llama",
            "torch_dtype": "bfloat16",
            "vocab_size": 102400,
            **language,
        },
        "vision_config": block("CLIPVisionTower", "vision", **tower),
        "aligner_config": block("MlpProjector", "aligner", input_dim=1024, **projector),
        "gen_vision_config": block("VQ-16", "gen_vision", image_token_size=16384, n_embed=8),
        "gen_aligner_config": block("MlpProjector", "gen_aligner", input_dim=8, **projector),
        "gen_head_config": block(
            "vision_head", "gen_head", image_token_embed=width, image_token_size=16384, n_embed=width
        ),
    }


@pytest.fixture(scope="session")
def released() -> dict[str, dict[str, Any]]:
    """`config.json` of the released 1B and 7B. That of the 7B leaves most sizes of the text part to Llama."""
    sizes_1b = {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "num_key_value_heads": 16,
    }
    return {"1b": _released_config(sizes_1b, 2048), "7b": _released_config({"num_hidden_layers": 30}, 4096)}


TINY_TEXT = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 160,
    "initializer_range": 0.2,
    "bos_token_id": 92,
    "eos_token_id": 93,
}
TINY_VISION = {
    "image_size": 12,
    "patch_size": 4,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "projection_dim": 48,
    "depth": 3,
    "initializer_range": 0.2,
}
TINY_VQ = {
    "num_patches": 4,
    "base_channels": 32,
    "channel_multiplier": [1, 2],
    "num_res_blocks": 1,
    "latent_channels": 16,
    "embed_dim": 6,
    "num_embeddings": 40,
    "projection_dim": 48,
    "num_hidden_layers": 1,
    "image_token_embed_dim": 56,
    "initializer_range": 0.2,
}
PAD_ID, BOI_ID, IMAGE_ID = 91, 94, 90


def _tiny_config(
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    vq: dict[str, Any] | None = None,
    **overrides: Any,
) -> JanusProConfig:
    return JanusProConfig(
        text_config=TINY_TEXT | (text or {}),
        vision_config=TINY_VISION | (vision or {}),
        vq_config=TINY_VQ | (vq or {}),
        **({"image_token_id": IMAGE_ID} | overrides),
    )


def _make_model(config: JanusProConfig | None = None, seed: int = 0) -> JanusProForConditionalGeneration:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = JanusProForConditionalGeneration(config or _tiny_config()).eval()
    model.generation_config.pad_token_id = PAD_ID
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., JanusProConfig]:
    """Function `tiny_config(text={}, vision={}, vq={}, **overrides)` for a config without sizes equal by chance.

    It has grouped queries, 9 patches of an image to be understood but 16 codes of a generated one, an image head wider
    than the model, and aligners of depth 3 and 1.
    """
    return _tiny_config


@pytest.fixture(scope="session")
def interop_config() -> JanusProConfig:
    """A tiny config that transformers' own Janus can express: one grid, and an image head as wide as the model."""
    return _tiny_config(vq={"num_patches": 3, "image_token_embed_dim": 48})


@pytest.fixture(scope="session")
def make_model() -> Callable[..., JanusProForConditionalGeneration]:
    """Function `make_model(config=None, seed=0)` for a random float32 model in eval mode."""
    return _make_model


@pytest.fixture(scope="session")
def tiny_model() -> JanusProForConditionalGeneration:
    """A random model on `tiny_config()`. Shared: do not change it."""
    return _make_model()


@pytest.fixture(scope="session")
def interop_model(interop_config: JanusProConfig) -> JanusProForConditionalGeneration:
    """A random model on `interop_config`. Shared: do not change it."""
    return _make_model(interop_config, seed=1)


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Function `run("ask", ...)` that runs the command line in an empty folder, on the CPU.

    It returns the exit status, the standard output and the standard error.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(janus_hf_cli.model_arguments, "best_device", lambda: "cpu")

    def run(*arguments):
        capsys.readouterr()
        status = janus_hf_cli.main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def _hub_server() -> Iterator[LocalHub]:
    hub = LocalHub()
    hub.start()
    yield hub
    hub.stop()


@pytest.fixture
def local_hub(_hub_server: LocalHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LocalHub:
    """An empty Hub on this machine with the user "me", and an empty cache.

    The client in this process reaches it, because the constants that huggingface_hub reads from the environment at
    import are set; processes that a test starts reach it through the environment.
    """
    _hub_server.reset()
    home = tmp_path / "hub_home"
    for name, value in {
        "HF_ENDPOINT": _hub_server.url,
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_me",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "0",
    }.items():
        monkeypatch.setenv(name, value)
    for name, value in {
        "ENDPOINT": _hub_server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": _hub_server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_URL_HOSTS": frozenset({"127.0.0.1"}),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", _hub_server.url)
    # transformers keeps the client of its first request. If that has another endpoint, it is tried for a minute.
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
    return _hub_server
