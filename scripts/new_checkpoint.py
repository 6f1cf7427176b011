"""Functions that write the tokenizer and the files of a new, small checkpoint; shared by the scripts that make one."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from janus_hf import JanusProForConditionalGeneration, JanusProProcessor


SPECIAL_TOKENS = [
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜▁pad▁｜>",
    "<begin_of_image>",
    "<end_of_image>",
    "<image_placeholder>",
    "<|User|>",
    "<|Assistant|>",
]


def write_tokenizer(folder: Path, corpus: Iterable[str], *, vocab_size: int, context: int) -> None:
    """Train a byte-level BPE tokenizer, add DeepSeek's special tokens and write it to a folder.

    The files are those of the released checkpoints: `tokenizer.json` and `tokenizer_config.json`.

    Args:
        folder: Existing folder to write into.
        corpus: Texts to train the tokenizer on.
        vocab_size: Largest number of tokens in the vocabulary, special tokens included.
        context: Largest number of tokens in a text, written as `model_max_length`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    size, alphabet = vocab_size - len(SPECIAL_TOKENS), sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(corpus, BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False))
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "LlamaTokenizerFast",
        "add_bos_token": True,
        "bos_token": SPECIAL_TOKENS[0],
        "eos_token": SPECIAL_TOKENS[1],
        "pad_token": SPECIAL_TOKENS[2],
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def save_checkpoint(model: JanusProForConditionalGeneration, processor: JanusProProcessor, folder: Path) -> None:
    """Copy the processor's special token ids into the model's configs and save model and processor in `folder`."""
    model.config.image_token_id = processor.image_token_id
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(processor, name))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
