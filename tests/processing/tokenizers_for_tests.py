"""Small tokenizer.json files in every style that a Janus repository may have."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from janus_hf.processing.prompts import BOI_TOKEN, BOS_TOKEN, EOI_TOKEN, EOS_TOKEN, IMAGE_TOKEN, PAD_TOKEN


SPECIAL = (
    EOI_TOKEN,
    PAD_TOKEN,
    IMAGE_TOKEN,
    BOS_TOKEN,
    BOI_TOKEN,
    EOS_TOKEN,
)  # no checkpoint has this order, so ids must be looked up
STYLES = ("byte level, no BOS", "byte level, BOS", "metaspace, BOS", "sentencepiece, no BOS")


def build_tokenizer(style: str, special: tuple[str, ...] = SPECIAL) -> Tokenizer:
    """Return an untrained tokenizer of one of `STYLES`: byte level, or SentencePiece-like with byte fallback."""
    if style.startswith("byte level"):
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate([*alphabet, "Ġt"])}, [("Ġ", "t")]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    else:
        vocab = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz:?.", "▁t"]
        bpe = models.BPE({token: i for i, token in enumerate(vocab)}, [("▁", "t")], unk_token="<unk>")
        bpe.byte_fallback = True
        tokenizer = Tokenizer(bpe)
        tail = [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), *tail])
        if style.startswith("metaspace"):
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        else:
            tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if style.endswith(", BOS"):
        bos = (BOS_TOKEN, tokenizer.token_to_id(BOS_TOKEN))
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS_TOKEN} $A", pair=f"{BOS_TOKEN} $A $B", special_tokens=[bos]
        )
    return tokenizer


def write_tokenizer(folder: Path, style: str, special: tuple[str, ...] = SPECIAL, *, config: bool = True) -> Path:
    """Write tokenizer.json and, with `config`, a tokenizer_config.json that names the originals' class."""
    folder.mkdir(exist_ok=True)
    build_tokenizer(style, special).save(str(folder / "tokenizer.json"))
    if config:
        named = {"bos_token": BOS_TOKEN, "eos_token": EOS_TOKEN, "tokenizer_class": "LlamaTokenizerFast"}
        (folder / "tokenizer_config.json").write_text(json.dumps(named | {"add_bos_token": True}), encoding="utf-8")
    return folder
