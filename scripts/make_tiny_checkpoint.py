"""Make the tiny untrained checkpoint for tests that need a complete checkpoint but no trained one.

    python scripts/make_tiny_checkpoint.py [FOLDER]

The checkpoint has all parts of a Janus-Pro in a smaller size: 64-pixel images of 8x8 image tokens, and a byte-level
tokenizer with DeepSeek's special tokens. Its weights are random with a fixed seed, in bfloat16, in the file layout of
deepseek-ai's releases. An existing FOLDER is replaced. The default is the folder that the tests read.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig

import janus_hf
from new_checkpoint import SPECIAL_TOKENS, save_checkpoint, write_tokenizer


FOLDER = Path(__file__).parents[1] / "tests" / "goldens" / "tiny-janus-pro"
SEED = 20251127
NUM_MERGED_TOKENS = 384
VOCAB_SIZE = NUM_MERGED_TOKENS + len(SPECIAL_TOKENS)
CORPUS = [
    "a photo of a red square above a blue circle",
    "two green triangles and one yellow star on a white board",
    "What is in this picture? There is a cat to the left of the tree.",
    "How many squares are there? There are three. Which colour is the circle? It is blue.",
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, "
    "and assist the user with a variety of tasks using natural language.",
]


def make_model() -> janus_hf.JanusProForConditionalGeneration:
    """Return a tiny Janus-Pro in bfloat16, with random weights drawn with the seed `SEED`."""
    text = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
    )
    config = janus_hf.JanusProConfig(
        text_config=text,
        vision_config={
            "image_size": 64,
            "patch_size": 8,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "projection_dim": 64,
        },
        vq_config={
            "image_size": 64,
            "base_channels": 32,
            "channel_multiplier": [1, 1, 1, 1],
            "num_res_blocks": 1,
            "latent_channels": 32,
            "num_embeddings": 256,
            "projection_dim": 64,
            "image_token_embed_dim": 64,
        },
    )
    torch.manual_seed(SEED)
    return janus_hf.JanusProForConditionalGeneration(config).to(torch.bfloat16)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else FOLDER)
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as tokenizer_folder:
        write_tokenizer(Path(tokenizer_folder), CORPUS, vocab_size=VOCAB_SIZE, context=512)
        processor = janus_hf.JanusProProcessor.from_pretrained(
            tokenizer_folder,
            image_processor=janus_hf.JanusProImageProcessor(image_size=64, min_size=8),
            num_image_tokens=64,
        )
    model = make_model()
    # The logits of special tokens become zero, which keeps these from being the most likely tokens. The untrained
    # model's answers are then readable random text of the requested length.
    for token in SPECIAL_TOKENS:
        model.lm_head.weight.data[processor.tokenizer.convert_tokens_to_ids(token)] = 0
    save_checkpoint(model, processor, folder)
    print(folder)


if __name__ == "__main__":
    main()
