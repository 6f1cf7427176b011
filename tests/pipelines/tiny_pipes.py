"""Sizes of the tiny model, and helpers that the tests of the pipeline share."""

import copy

import torch

from janus_hf import JanusProPipeline
from tiny import TINY_MODEL


SIDE, NUM_TOKENS, CODEBOOK, CONTEXT = 64, 64, 256, 512


def load(source=TINY_MODEL, **kwargs):
    """Load a pipeline, in float32 unless `dtype` says otherwise."""
    return silent(JanusProPipeline.from_pretrained(source, **{"dtype": torch.float32, **kwargs}))


def silent(pipe):
    """Return the pipeline, which writes no progress bar from now on."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


def copy_of(pipe):
    """Return a pipeline with a copy of the model, which a test may change."""
    return silent(JanusProPipeline(copy.deepcopy(pipe.model), pipe.processor))


def seeded(*seeds):
    """Return a random generator for each seed."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def generate_ids(pipe, prompt="a red fox", seeds=(0,), **kwargs):
    """Return the image tokens `(N, P)` of images generated with these seeds, one per image."""
    return pipe(prompt, generator=seeded(*seeds), output_type="latent", **kwargs).images


def same_weights(first, second):
    """Return whether two models have the same tensors, bit by bit."""
    mine, theirs = first.state_dict(), second.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
