"""Compare models' teacher-forced logits with those in float32, for the option `--check` of `benchmarks.drawing`."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import JanusForConditionalGeneration
from transformers.cache_utils import StaticCache

from janus_hf import JanusProForConditionalGeneration

from .contenders import PROMPT, Enough, make_prompts, start_at_beginning


@torch.no_grad()
def logit_errors(models: dict[str, Any], tokens: int = 16) -> dict[str, tuple[float, float]]:
    """Return the mean and the largest absolute error of each model's logits against the same weights in float32.

    Every model is teacher-forced with the same random image tokens and runs as in generation: one token at a time,
    through its key-value cache.

    Args:
        models: The models by name. The first must be this package's unquantised model: the float32 logits are computed
            with its weights.
        tokens: Number of image tokens.

    Returns:
        Name of the model -> (mean error, largest error).
    """
    ours = next(iter(models.values()))
    ids = make_prompts(1, ours.device.type)
    forced = torch.randint(16384, (1, tokens), generator=torch.Generator().manual_seed(1)).to(ids.device)
    exact = copy.deepcopy(ours.model).float()
    embeds = torch.cat([exact.embed_ids(ids), exact.embed_image_ids(forced)], dim=1)
    hidden = exact.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    expected = exact.generation_head(hidden[:, PROMPT - 1 : -1])
    del exact  # free it before other models run, because it takes twice the memory of bfloat16
    errors = {}
    for name, model in models.items():
        logits = (_in_tree_logits if name == "in_tree" else _our_logits)(model, ids, forced)
        difference = (logits.float() - expected).abs()
        errors[name] = (difference.mean().item(), difference.max().item())
    return errors


def _in_tree_logits(model: JanusForConditionalGeneration, ids: torch.Tensor, forced: torch.Tensor) -> torch.Tensor:
    """Return the logits `(1, n, K)` with which transformers' own Janus predicts each of n forced image tokens.

    Args:
        model: transformers' own Janus.
        ids: Prompt `(1, PROMPT)`.
        forced: Image tokens `(1, n)` that are fed instead of generated ones.

    Returns:
        Logits over the K codebook entries.
    """
    cache = StaticCache(config=model.config.text_config, max_cache_len=PROMPT + 576)
    embeds, found = model.get_input_embeddings()(ids), []
    for token in forced.T[:, None]:
        hidden = model.model.language_model(inputs_embeds=embeds, past_key_values=cache).last_hidden_state
        found.append(model.model.generation_head(hidden[:, -1:]))
        embeds = model.prepare_embeddings_for_image_generation(token)
    return torch.cat(found, dim=1)


def _our_logits(model: JanusProForConditionalGeneration, ids: torch.Tensor, forced: torch.Tensor) -> torch.Tensor:
    """Return the logits `(1, n, K)` with which this package's model predicts each of n forced image tokens.

    Args:
        model: This package's model.
        ids: Prompt `(1, PROMPT)`.
        forced: Image tokens `(1, n)` that are fed instead of generated ones.

    Returns:
        Logits over the K codebook entries.
    """
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
    start_at_beginning(model)  # the tokens are an image's first
    try:
        model.generate_images(ids, guidance_scale=1.0, do_sample=False, callback=collect)
    except Enough:
        pass
    finally:
        hook.remove()
        del model._decoder.step
    return torch.cat(found[: forced.shape[1]], dim=1)
