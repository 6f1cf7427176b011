"""Tokenizer and untrained model."""

from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig

from janus_hf import JanusProConfig, JanusProForConditionalGeneration, JanusProImageProcessor, JanusProProcessor
from janus_hf.modeling import JanusProVQModel
from janus_hf.shapes import SIDE, TAGS, ask, describe, make_drawing, random_scene
from new_checkpoint import write_tokenizer

from .encoders import pretrain_tower
from .settings import CODEC, CONTEXT, PATCH, SEED, TEXT, VISION, VOCAB_SIZE


def make_tokenizer(folder: Path) -> None:
    """Byte-level BPE with DeepSeek's special tokens, as the released one, learned from what is said in this world."""
    rng = np.random.default_rng(SEED + 2)
    corpus = []
    for index in range(6000):
        scene = random_scene(rng)
        question = ask(scene, rng)
        corpus.append(f"{make_drawing(TAGS[index % len(TAGS)], rng, detailed=index % 2 == 0).prompt}\n\n")
        corpus.append(f" There is {describe(scene)}. {question.question}\n\n {question.answer} There is.\n\n")
    write_tokenizer(folder, corpus, vocab_size=VOCAB_SIZE, context=CONTEXT)


def make_start(folder: Path) -> None:
    """Tokenizer and model: the trained codec, everything else at random."""
    make_tokenizer(folder)
    processor = JanusProProcessor.from_pretrained(
        folder,
        image_processor=JanusProImageProcessor(image_size=SIDE, min_size=PATCH),
        num_image_tokens=(SIDE // PATCH) ** 2,
        system_prompt="",
    )
    torch.manual_seed(SEED)
    config = JanusProConfig(text_config=LlamaConfig(**TEXT), vision_config=VISION, vq_config=CODEC)
    model = JanusProForConditionalGeneration(config)
    codec = JanusProVQModel.from_pretrained(folder.parent / "codec")
    model.model.vqmodel.load_state_dict(codec.state_dict())
    # The language model reads codes through a table of its own; at the start it holds what the codec's does.
    model.model.generation_embeddings.weight.data.copy_(codec.quantize.embedding.weight)
    pretrain_tower(model.model.vision_model)
    model.config.image_token_id = processor.image_token_id
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(processor, name))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
