"""The error of teacher-forced logits against float32: the check of `benchmarks.drawing --check`."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import JanusForConditionalGeneration
from transformers.cache_utils import StaticCache

from janus_hf import JanusProForConditionalGeneration

from .contenders import PROMPT, Enough, make_prompts


@torch.no_grad()
def logit_errors(models: dict[str, Any], tokens: int = 16) -> dict[str, tuple[float, float]]:
    """Return the mean and the largest error of each model's logits against the same weights in float32.

    Every model is fed the same random image tokens and runs as it does in generation: one token at a time, through its
    cache.

    Args:
        models: The models by name; the first one must be ours, and gives the weights.
        tokens: Number of image tokens.
    """
    ours = next(iter(models.values()))
    ids = make_prompts(1, ours.device.type)
    forced = torch.randint(16384, (1, tokens), generator=torch.Generator().manual_seed(1)).to(ids.device)
    exact = copy.deepcopy(ours.model).float()
    embeds = torch.cat([exact.embed_ids(ids), exact.embed_image_ids(forced)], dim=1)
    hidden = exact.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    expected = exact.generation_head(hidden[:, PROMPT - 1 : -1])
    del exact  # before other models run: it takes twice the memory of bfloat16
    errors = {}
    for name, model in models.items():
        logits = (_in_tree_logits if name == "in_tree" else _our_logits)(model, ids, forced)
        difference = (logits.float() - expected).abs()
        errors[name] = (difference.mean().item(), difference.max().item())
    return errors


def _in_tree_logits(model: JanusForConditionalGeneration, ids: torch.Tensor, forced: torch.Tensor) -> torch.Tensor:
    """Return the same logits as `_our_logits`, but of transformers' own Janus."""
    cache = StaticCache(config=model.config.text_config, max_cache_len=PROMPT + 576)
    embeds, found = model.get_input_embeddings()(ids), []
    for token in forced.T[:, None]:
        hidden = model.model.language_model(inputs_embeds=embeds, past_key_values=cache).last_hidden_state
        found.append(model.model.generation_head(hidden[:, -1:]))
        embeds = model.prepare_embeddings_for_image_generation(token)
    return torch.cat(found, dim=1)


def _our_logits(model: JanusProForConditionalGeneration, ids: torch.Tensor, forced: torch.Tensor) -> torch.Tensor:
    """Return the logits `(1, n, K)` of our model, over K codebook entries, before each of n forced tokens `(1, n)`."""
    found: list[torch.Tensor] = []

    def collect(step: int, codes: torch.Tensor) -> torch.Tensor:
        if step == forced.shape[1]:
            raise Enough
        return forced[:, step]

    # Generation that is stopped returns no logits, and all 576 tokens would take too long. So the logits are taken
    # from the decoder's steps, and those of the first token, which comes from the prompt, from the image head.
    head = model.model.generation_head
    step = model._decoder.step

    def spy(*arguments: Any) -> Any:
        drawn = step(*arguments)
        found.append(drawn[1].clone())
        return drawn

    def note_first(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        found.append(output.float())
        hook.remove()

    hook = head.register_forward_hook(note_first)
    model._decoder.step = spy
    vars(model._decoder).pop("make_cache", None)  # undoes `start_half_way`: these logits are those of an image's start
    try:
        model.generate_images(ids, guidance_scale=1.0, do_sample=False, callback=collect)
    except Enough:
        pass
    finally:
        hook.remove()
        del model._decoder.step
    return torch.cat(found[: forced.shape[1]], dim=1)
