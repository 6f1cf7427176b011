"""Seed and sizes of the small model and of its training."""

from janus_hf.shapes import SIDE


SEED = 20261121  # every source of random numbers is seeded with this, or with this plus a number of its own
PATCH = 8  # pixels per side of an image token: a quarter of a cell, so the world has 4 x 8 x 4 + 1 distinct patches
WIDTH = 192  # hidden size of the language model
VOCAB_SIZE = 512  # text tokens
CONTEXT = 256  # positions of the language model
LENGTH = 248  # positions of a training row: three prompts with images, or one and an image with its questions
ROWS_PER_STEP = 21
MATRIX_DECAY = 0.1  # without it the matrices' norms grew sevenfold in 4,000 steps, and nothing new was learned
GUIDANCE_SCALE = 1.25  # with which this model generates best: 1.5 costs counting, 1 costs positions

TEXT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": WIDTH,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
}
VISION = {
    "image_size": SIDE,
    "patch_size": PATCH,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "projection_dim": WIDTH,
}
CODEC = {
    "image_size": SIDE,
    "base_channels": 32,
    "channel_multiplier": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "latent_channels": 32,
    "num_embeddings": 256,
    "embed_dim": 8,
    "projection_dim": WIDTH,
    "image_token_embed_dim": WIDTH,
}
