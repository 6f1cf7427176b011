"""Functions that make full-size models with random weights: this package's model, and transformers' own Janus."""

from typing import Any

import torch
from transformers import JanusConfig, JanusForConditionalGeneration, LlamaConfig, initialization

from janus_hf import JanusProConfig, JanusProForConditionalGeneration


BOS, PAD, BOI, IMAGE = 100000, 100015, 100016, 100581  # token ids in the released checkpoints
SIZES: dict[str, dict[str, Any]] = {
    "1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 30, "num_attention_heads": 32},
    # The widths of the 1B with two layers, for comparisons with a CPU.
    "1b, 2 layers": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 2,
        "num_attention_heads": 16,
    },
    # For tests of the benchmark itself; vocabulary and image codec have the sizes of the 1B.
    "tiny": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4},
    # The same with images of 64 pixels, 64 tokens each, and a small image codec; the codebook has the size of the 1B.
    "dry": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4},
}
_SMALL_IMAGES: dict[str, dict[str, Any]] = {
    "vision_config": {"image_size": 64, "patch_size": 8, "hidden_size": 64, "num_attention_heads": 4},
    "vq_config": {"num_patches": 8, "base_channels": 32, "channel_multiplier": [1, 1, 1, 1], "latent_channels": 32}
    | {"num_res_blocks": 1},
}


def make_config(size: str) -> JanusProConfig:
    """Return the configuration of a size, a key of `SIZES`; "1b" and "7b" are those of the released models."""
    width = SIZES[size]["hidden_size"]
    vision_layers = 24 if size in ("1b", "7b") else 1  # image generation does not run the vision encoder
    small = _SMALL_IMAGES if size == "dry" else {"vision_config": {}, "vq_config": {}}
    return JanusProConfig(
        text_config=LlamaConfig(**SIZES[size], vocab_size=102400, max_position_embeddings=16384),
        vision_config={"image_size": 384, "patch_size": 16, "hidden_size": 1024, "num_hidden_layers": vision_layers}
        | {"num_attention_heads": 16, "projection_dim": width}
        | small["vision_config"],
        vq_config={"projection_dim": width, "image_token_embed_dim": width} | small["vq_config"],
        image_token_id=IMAGE,
    )


def make_ours(size: str, dtype: torch.dtype, device: str) -> JanusProForConditionalGeneration:
    """Return this package's model of a size, a key of `SIZES`, with random weights about as large as trained ones.

    The weights are made on `device`, so that a model of 14 GB takes a GPU no longer than a small one.
    """
    config = make_config(size)
    torch.manual_seed(0)
    # transformers' initialisation is skipped, because the weights are set below.
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), initialization.no_init_weights():
            model = JanusProForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                parameter.uniform_(-0.035, 0.035)
    model.generation_config.bos_token_id, model.generation_config.pad_token_id = BOS, PAD
    return model.eval()


def make_theirs(ours: JanusProForConditionalGeneration) -> JanusForConditionalGeneration:
    """Return transformers' own Janus with the configuration and weight tensors of this package's model `ours`.

    Raises:
        RuntimeError: If transformers' model has weights that `ours` lacks.
    """
    with torch.device("meta"):
        theirs = JanusForConditionalGeneration(JanusConfig.from_dict(ours.config.to_file_dict("transformers")))
    theirs.load_state_dict(ours.state_dict(), strict=False, assign=True)
    lost = [name for name, tensor in theirs.named_parameters() if tensor.is_meta]
    if lost:
        raise RuntimeError(f"transformers' Janus has weights that ours has not: {lost[:5]}")
    # Buffers that are computed and not saved, such as RoPE frequencies, have no values yet: take those of `ours`.
    for module in theirs.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                twin = ours.get_submodule(next(n for n, m in theirs.named_modules() if m is module))
                setattr(module, name, twin.get_buffer(name))
    theirs.generation_config.update(bos_token_id=BOS, pad_token_id=PAD, eos_token_id=PAD)
    theirs.generation_config.generation_kwargs = {"boi_token_id": BOI}
    return theirs.eval()
