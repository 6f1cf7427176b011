"""Functions that make the text tokenizer and the model from which the training stages start."""

from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig

from janus_hf import JanusProConfig, JanusProForConditionalGeneration, JanusProImageProcessor, JanusProProcessor
from janus_hf.modeling import JanusProVQModel
from janus_hf.shapes import SIDE, TAGS, ask, describe, make_drawing, random_scene
from new_checkpoint import save_checkpoint, write_tokenizer

from .settings import CODEC, CONTEXT, PATCH, SEED, TEXT, VISION, VOCAB_SIZE
from .tower import pretrain_tower


def make_tokenizer(folder: Path) -> None:
    """Train a byte-level BPE tokenizer, as the released models have, and write it to `folder`.

    It is trained on the prompts, captions, questions and answers of random scenes.
    """
    rng = np.random.default_rng(SEED + 2)
    corpus = []
    for index in range(6000):
        scene = random_scene(rng)
        question = ask(scene, rng)
        corpus.append(f"{make_drawing(TAGS[index % len(TAGS)], rng, detailed=index % 2 == 0).prompt}\n\n")
        corpus.append(f" There is {describe(scene)}. {question.question}\n\n {question.answer} There is.\n\n")
    write_tokenizer(folder, corpus, vocab_size=VOCAB_SIZE, context=CONTEXT)


def make_start(folder: Path) -> None:
    """Make the tokenizer and the model from which the training stages start, and save them in `folder`.

    The model has the trained image codec of the folder `codec` beside `folder`, and a vision encoder that is
    pre-trained here. Image token embeddings are copied from the codec. All other weights are random.
    """
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
    # The language model has its own embedding table for image tokens, which starts as a copy of the codec's codebook.
    model.model.generation_embeddings.weight.data.copy_(codec.quantize.embedding.weight)
    pretrain_tower(model.model.vision_model)
    save_checkpoint(model, processor, folder)
