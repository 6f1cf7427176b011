"""Constants of the small model and its training: the seed, sizes, and arguments of the model's configs."""

from janus_hf.shapes import SIDE


SEED = 20261121  # every random generator is seeded with this number, or with this plus a constant of its own
# Side of the image patch of one image token, in pixels: half the side of a board's cell. Boards are therefore made of
# 4 x 8 x 4 + 1 distinct patches: four per object, eight colours, four shapes, and the empty patch.
PATCH = 8
WIDTH = 192  # hidden size of the language model
VOCAB_SIZE = 512  # number of text tokens
CONTEXT = 256  # largest number of positions of the language model
# Number of positions of a training sequence, into which several examples are packed: three prompts with images to
# generate, or one of these and an image with its questions.
LENGTH = 248
ROWS_PER_STEP = 21  # training sequences per optimizer step
# Weight decay of the language model's matrices. Without it their norms grew sevenfold in 4,000 steps, and nothing new
# was learned.
MATRIX_DECAY = 0.1
GUIDANCE_SCALE = 1.25  # scale at which this model generates best: 1.5 is worse at counting, 1 at positions

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
