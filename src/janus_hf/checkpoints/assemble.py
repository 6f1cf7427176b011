"""A function that assembles the start of stage 1 from a language model, a vision tower and an image codec."""

import os
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from transformers.utils.logging import tqdm

from ..arguments import check_choice
from ..configuration import JanusProConfig
from ..hub.cards import CARD_FILE, finish_card, model_card, repository_of
from ..hub.fetching import hub_arguments
from ..hub.opening import Source
from ..layouts import Layout
from ..layouts.part_layouts import Part
from ..modeling import JanusProForConditionalGeneration
from ..processing import JanusProImageProcessor, JanusProProcessor
from .assembly.fresh_weights import TOKEN_TABLES, fill_rows, fresh_weights
from .assembly.part_files import card_name, locate, open_part
from .assembly.part_plan import PartPlan, make_plan
from .assembly.part_sizes import make_config, read_text_config
from .assembly.start_tokenizer import StartTokenizer, make_tokenizer
from .verify import check_new_folder, save_and_verify


DtypeName = Literal["float32", "bfloat16"]

_TITLES: dict[Part, str] = {
    "language_model": "language model",
    "vision_tower": "understanding encoder",
    "codec": "image codec",
}


def assemble_checkpoint(
    language_model: str | os.PathLike[str],
    vision_tower: str | os.PathLike[str],
    codec: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    dtype: DtypeName = "float32",
    layout: Layout = "original",
    seed: int = 0,
    max_shard_size: int | str = "5GB",
    **hub_kwargs: Any,
) -> Path:
    """Assemble a Janus-Pro that stage 1 can start from, write it, and check the files by reloading them.

    The language model, the vision tower and the image codec keep their weights. Both aligners, the embeddings of image
    tokens and the image head are drawn from a normal distribution with the standard deviation `initializer_range` of
    the language model's config; their biases are zero. Special tokens of Janus-Pro that the tokenizer lacks are added,
    and their rows of the text embedding and the text head are the mean of the rows of the language model's own tokens.
    The paper states none of these initial values.

    Every name and shape is checked before a value is read. The parts are read one weight at a time from files that are
    mapped into memory, and so are the written files that are compared with them, so that memory holds the model about
    once.

    Args:
        language_model: A Llama in the layout of transformers, such as deepseek-ai/deepseek-llm-7b-base; or a
            checkpoint of DeepSeek-VL or Janus, of which only the language model is taken, such as
            deepseek-ai/deepseek-vl-1.3b-base. This and the next two are folders, files, or on the Hub
            `organisation/name[@revision][/file]`.
        vision_tower: A SigLIP in the layout of transformers, timm or open_clip; or a checkpoint of DeepSeek-VL or
            Janus.
        codec: The image tokenizer of LlamaGen; or a checkpoint of Janus.
        destination: Folder to write to. It must be empty, or not exist yet.
        tokenizer: Folder or repository of a tokenizer that extends that of the language model, such as a released
            Janus-Pro, whose ids are kept. By default the tokenizer of the language model.
        dtype: Dtype of the written weights. float32 keeps every value of the parts.
        layout: File layout: "original" (that of deepseek-ai's releases) or "transformers" (that of transformers' own
            Janus).
        seed: Seed of the new weights.
        max_shard_size: Largest size of one weight file, in bytes or as a string such as "5GB".
        hub_kwargs: Arguments of Hub calls for all parts: `token`, `cache_dir`, `local_files_only`, ...

    Returns:
        The path of the destination.

    Raises:
        CheckpointError: If a part has weights that are unknown, missing or of the wrong shape, a file is damaged, or
            the reloaded model differs.
        OSError: If a repository or one of its files cannot be had.
        TypeError: If an argument is unknown.
        ValueError: If a part is of another kind, sizes do not fit together, or the destination is not empty.
    """
    check_choice(dtype, "dtype", get_args(DtypeName))
    check_choice(layout, "layout", get_args(Layout))
    if unknown := sorted(hub_kwargs.keys() - hub_arguments(hub_kwargs).keys()):
        raise TypeError(f"assemble_checkpoint() got unknown arguments {unknown}: check the spelling.")
    if "revision" in hub_kwargs:
        raise ValueError("`revision` must be left out, got one for all parts: name a part organisation/name@REVISION.")
    folder = check_new_folder(destination)
    sources: dict[Part, str | os.PathLike[str]] = {
        "language_model": language_model,
        "vision_tower": vision_tower,
        "codec": codec,
    }
    files = {part: open_part(part, source, hub_kwargs) for part, source in sources.items()}
    text = read_text_config(files["language_model"])
    plans = {part: make_plan(opened, tied_head=text.tie_word_embeddings) for part, opened in files.items()}
    config = make_config(text, plans["vision_tower"], plans["codec"])
    shapes = _shapes(config)
    for plan in plans.values():
        plan.check(shapes)
    given = None if tokenizer is None else locate(tokenizer, "tokenizer", hub_kwargs)[0]
    start = make_tokenizer(files["language_model"].source, given, text.vocab_size)
    processor = _make_processor(config, start)

    weights = _read_weights(list(plans.values()), start, getattr(torch, dtype))
    text = config.text_config
    weights |= fresh_weights(shapes, std=text.initializer_range, seed=seed, dtype=getattr(torch, dtype))
    text.vocab_size = len(weights["lm_head.weight"])
    model = JanusProForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=weights, dtype=getattr(torch, dtype)
    )
    del weights
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(processor.tokenizer, name))
    save_and_verify(model, folder, layout=layout, max_shard_size=max_shard_size)
    processor.save_pretrained(folder, layout=layout)
    (folder / CARD_FILE).write_text(_card(model, list(plans.values()), given, start, seed), encoding="utf-8")
    return folder


def _shapes(config: JanusProConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights of the model with this configuration, by name."""
    with torch.device("meta"):  # parameters without memory
        model = JanusProForConditionalGeneration(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _make_processor(config: JanusProConfig, start: StartTokenizer) -> JanusProProcessor:
    """Return the processor of the model, and write the ids of its special tokens into the configuration."""
    vision = config.vision_config
    images = JanusProImageProcessor(image_size=vision.image_size, min_size=min(14, vision.image_size))
    processor = JanusProProcessor(images, start.tokenizer, num_image_tokens=vision.num_image_tokens)
    config.image_token_id = processor.image_token_id
    config.text_config.bos_token_id = processor.tokenizer.bos_token_id
    config.text_config.eos_token_id = processor.tokenizer.eos_token_id
    # Otherwise the embedding of padding, of which the unconditional prompt consists, would get no gradient.
    config.text_config.pad_token_id = None
    return processor


def _read_weights(plans: list[PartPlan], start: StartTokenizer, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the weights of all parts by their names in the model, with rows for the added tokens."""
    weights: dict[str, torch.Tensor] = {}
    with tqdm(total=sum(len(plan.targets) for plan in plans), unit="weight") as progress:
        for plan in plans:
            progress.set_description(f"Reading the {_TITLES[plan.files.part]}")
            for name in plan.targets:
                weights |= plan.read(name, dtype)
                progress.update()
    for name in TOKEN_TABLES:
        weights[name] = fill_rows(weights[name], start.known, start.added)
    return weights


def _card(
    model: JanusProForConditionalGeneration,
    plans: list[PartPlan],
    given: Source | None,
    start: StartTokenizer,
    seed: int,
) -> str:
    """Return the text of the model card, which names the parts."""
    card = model_card(model)
    repositories = [repository for plan in plans if (repository := repository_of(plan.files.source.path))]
    card.data.base_model = repositories or None
    lines = [
        f"* {_TITLES[plan.files.part]}: {card_name(plan.files.source, *plan.files.files)}, "
        f"{len(plan.targets)} weights, {len(plan.ignored)} without a place in Janus"
        for plan in plans
    ]
    if given is not None:
        lines.append(f"* tokenizer: {card_name(given)}")
    card.text += (
        "\n\nThis is the start of stage 1 and must be trained before it generates images or answers questions about "
        "them. It is assembled from\n\n" + "\n".join(lines) + "\n\n"
        f"Both aligners, the embeddings of image tokens and the image head are random (seed {seed}, standard "
        f"deviation {model.config.text_config.initializer_range}). {len(start.added)} tokens have the mean of the "
        "language model's token vectors.\n"
    )
    return finish_card(card, [])


__all__ = ["assemble_checkpoint"]
