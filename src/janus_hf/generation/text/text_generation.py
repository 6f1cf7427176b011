"""The mixin with which transformers' `generate` writes text about images, and which checks a call beforehand.

The decoding loops are transformers' own. `B` prompts, `T` tokens of a prompt, `M` images of the batch, `P` positions
per image, `D` width of the language model.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.generation.configuration_utils import GenerationMode

from ...arguments import describe
from ...protocols import ImageReader
from ...tokenizer import check_text_ids
from ..context import EndOfContext, context_length
from ..generation_arguments import check_integer_tensor
from .answer_steps import AnswerCache
from .text_values import SAMPLING, check_text_values


# Decoding modes that transformers runs itself. It fetches the code of all others from the Hub, which gets no images.
MODES = frozenset(
    {
        GenerationMode.GREEDY_SEARCH,
        GenerationMode.SAMPLE,
        GenerationMode.BEAM_SEARCH,
        GenerationMode.BEAM_SAMPLE,
        GenerationMode.ASSISTED_GENERATION,
    }
)

# Settings that no Janus can follow, with what to do instead.
REFUSED = {
    "assistant_early_exit": "pass a smaller model as assistant_model",
    "use_mtp": "pass a smaller model as assistant_model, because this one has no heads for several tokens",
    "speculation_type": "pass a smaller Janus as assistant_model, because there are no drafts of another kind for it",
}
# The same for prompts with images.
REFUSED_WITH_IMAGES = {
    "token_healing": "leave it out, because it writes the prompt again without its images",
    "assistant_tokenizer": "take a draft with this model's tokenizer, because the prompt is written again without its "
    "images",
}
# Settings of assisted generation, which guesses several tokens ahead.
_ASSISTING = ("assistant_model", "prompt_lookup_num_tokens")

# Key of `mm_encoder_outputs` under which a draft finds what it sees of the images itself.
_OF_DRAFT = "draft"


class TextGenerationMixin(GenerationMixin):
    """Mixin that adds transformers' `generate`, with checks and with drafts that see the images.

    The model's attribute `model` must be an `ImageReader`, which is the model without its text head.
    """

    config: PreTrainedConfig
    model: ImageReader

    # Any: the arguments and the result are those of transformers' method.
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Generate text tokens with transformers' `GenerationMixin.generate`.

        Args:
            inputs: `(B, T)` token ids of the prompts, left-padded; `input_ids` does the same.
            generation_config: Settings; keyword arguments of the same name have precedence.
            args: Further arguments in the order of transformers' method.
            kwargs: `pixel_values` `(M, 3, S, S)`, `inputs_embeds` `(B, T, D)`, settings (`max_new_tokens`, ...), and
                all other arguments of transformers' method and of `forward`.

        Returns:
            Prompts and answers `(B, T)` int64, or with `return_dict_in_generate=True` transformers' output object.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If an id is that of no token, placeholders and images do not match, prompt and new tokens
                exceed the context, or a setting is out of range or does not work with this model or with images; or
                as transformers' method. Ids from the size of the text vocabulary on are image tokens, as in `forward`,
                which `negative_prompt_ids` must not hold.
        """
        if not getattr(generation_config, "is_assistant", False):  # a draft continues what was checked already
            self._check_values(generation_config, kwargs)
            settings = self._settings(generation_config, kwargs)
            ids = kwargs.get("input_ids") if inputs is None else inputs
            self._check_settings(settings, kwargs)
            self._check_prompt(ids, settings, kwargs)
            kwargs = self._show_to_draft(kwargs)
        return super().generate(inputs, generation_config, *args, **kwargs)

    def generate_batch(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Generate text for prompts that join and leave a running batch, as transformers' method does, without images.

        Raises:
            ValueError: If a prompt holds the placeholder of an image or an id that is that of no token, or images are
                given, which that method ignores.
        """
        placeholder = self.config.image_token_id
        if kwargs.get("pixel_values") is not None or any(placeholder in list(row) for row in inputs):
            raise ValueError(
                "`inputs` must be prompts without images for continuous batching, got images: call `generate`, or the "
                "pipeline's `ask` with a list of questions."
            )
        for row in inputs:
            self._check_ids(torch.as_tensor(row), "inputs")
        return super().generate_batch(inputs, *args, **kwargs)

    # The parameters have names, because transformers looks for `inputs_embeds` among them.
    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the arguments of `forward` for one step, as transformers' method does.

        Two cases of assisted generation differ. A draft reads the prompt with features of the images, which
        transformers drops. And tokens that are guessed after the prompt may be placeholders copied out of it: these
        stand for no image, so they are embedded like any other token.
        """
        prepared: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        # transformers needs it to find `stop_strings`, and hands it to the model too.
        prepared.pop("tokenizer", None)
        ids, images = prepared.get("input_ids"), kwargs.get("mm_encoder_outputs") or {}
        is_draft = "mm_encoder_outputs" not in prepared
        features = images.get(_OF_DRAFT, images.get("image")) if is_draft else images.get("image")
        if ids is None or features is None or (past_key_values is not None and past_key_values.get_seq_length() > 0):
            return prepared
        prepared["mm_encoder_outputs"] = {"image": features}
        mask, aligned = self.model.find_placeholders(ids), features.pooler_output
        num_features = aligned.shape[0] * aligned.shape[1]
        if len(ids) == 1 and int(mask.sum()) > num_features:
            mask[0, mask[0].nonzero()[num_features:, 0]] = False
            embeds = self.model.embed_ids(ids)
            embeds = embeds.masked_scatter(mask.unsqueeze(-1), aligned.to(embeds))
            prepared |= {"input_ids": None, "inputs_embeds": embeds, "mm_encoder_outputs": None}
        return prepared

    def _settings(self, generation_config: GenerationConfig | None, kwargs: Mapping[str, Any]) -> GenerationConfig:
        """Return the settings of a call: its keyword arguments, then its configuration, then that of the model."""
        settings = copy.deepcopy(self.generation_config if generation_config is None else generation_config)
        settings.update(**{name: value for name, value in kwargs.items() if hasattr(settings, name)})
        for name, value in self.generation_config.to_dict().items():
            if getattr(settings, name, value) is None:
                setattr(settings, name, value)
        return settings

    def _check_values(self, generation_config: GenerationConfig | None, kwargs: Mapping[str, Any]) -> None:
        """Raise an error for a setting of the caller that is of the wrong type or out of range.

        What the caller's configuration has in common with the model's own is not checked, and neither are settings of
        sampling without sampling, of which transformers warns, and which harnesses pass with every call.
        """
        own = vars(self.generation_config)
        stated = {} if generation_config is None else vars(generation_config)
        said = {name: value for name, value in stated.items() if own.get(name) != value} | dict(kwargs)
        if generation_config is not None:
            said["generation_config"] = generation_config
        samples = said.get("do_sample", stated.get("do_sample", own.get("do_sample")))
        unchecked = {*_refused(kwargs), *(() if samples is not None and samples is not False else SAMPLING)}
        check_text_values({name: value for name, value in said.items() if name not in unchecked})

    def _check_settings(self, settings: GenerationConfig, kwargs: Mapping[str, Any]) -> None:
        """Raise a ValueError for settings that this model cannot follow, or not with images.

        Args:
            settings: The settings of the call.
            kwargs: The keyword arguments of the call.
        """

        def value(name: str) -> Any:  # Any: settings are of many types
            return kwargs.get(name, getattr(settings, name, None))

        has_images = _has_images(kwargs)
        for name, advice in _refused(kwargs).items():
            if value(name) is not None and value(name) is not False:
                raise ValueError(f"`{name}` must be left out, got {describe(value(name))}: {advice}.")
        assisting = next((name for name in _ASSISTING if value(name) is not None), None)
        clashes = {"num_beams": (value("num_beams") or 1) > 1, "inputs_embeds": value("inputs_embeds") is not None}
        clashes["prefill_chunk_size"] = has_images and value("prefill_chunk_size") is not None
        if assisting and (others := [name for name, is_set in clashes.items() if is_set]):
            raise ValueError(
                f"`{others[0]}` must be left out of assisted generation, got it beside `{assisting}`: leave out one "
                "of the two."
            )
        if not has_images:
            return
        mode = settings.get_generation_mode(kwargs.get("assistant_model"))
        if mode not in MODES or isinstance(kwargs.get("custom_generate"), str):
            raise ValueError(
                "Prompts with images must be decoded by code of transformers, got "
                f"{kwargs.get('custom_generate') or mode.value}, whose code from the Hub does not know the images: "
                "use greedy decoding, sampling, beam search or assisted generation."
            )
        if settings.cache_implementation == "paged":
            raise ValueError(
                "`cache_implementation` must not be 'paged' with images, got it: leave it out, because continuous "
                "batching would drop them."
            )

    def _check_prompt(self, ids: torch.Tensor | None, settings: GenerationConfig, kwargs: Mapping[str, Any]) -> None:
        """Raise a ValueError for ids of no token, other placeholders than images, or more than the context holds.

        Args:
            ids: `(B, T)` token ids, or None if embeddings are given or generation starts from BOS.
            settings: The settings of the call.
            kwargs: The keyword arguments of the call.
        """
        cache = kwargs.get("past_key_values")
        # Prompts with an `AnswerCache` come from `answer`, which has checked ids and counted placeholders.
        is_checked = isinstance(cache, AnswerCache)
        for name, given in (("input_ids", ids), ("negative_prompt_ids", kwargs.get("negative_prompt_ids"))):
            if given is not None and not is_checked:
                self._check_ids(given, name)
        prompt = kwargs.get("inputs_embeds") if ids is None else ids
        if prompt is None or (kwargs.get("past_key_values") is not None and ids is None):
            return
        is_new = not is_checked and not (cache and cache.get_seq_length())
        if ids is not None and self.config.image_token_id is not None and is_new:
            per_image = self.config.vision_config.num_image_tokens
            encoded = (kwargs.get("mm_encoder_outputs") or {}).get("image")
            pixels = kwargs.get("pixel_values")
            count = 0 if pixels is None else len(pixels)
            shape = (count, per_image) if encoded is None else encoded.pooler_output.shape[:2]
            self.model.check_placeholders(self.model.find_placeholders(ids), ids.new_empty(*shape, 0))
        if any(isinstance(one, EndOfContext) for one in kwargs.get("stopping_criteria") or ()):
            return
        length, limit = prompt.shape[1], context_length(self.config.text_config)
        new = settings.max_new_tokens
        if new is None and settings.max_length is not None:
            new = settings.max_length - length
        if new is not None and length + new > limit:
            name = "max_length" if settings.max_new_tokens is None else "max_new_tokens"
            most = limit if settings.max_new_tokens is None else limit - length
            raise ValueError(
                f"`{name}` must be at most {most}, got {getattr(settings, name)}: lower it, because the prompt takes "
                f"{length} tokens, and the model's context holds {limit}."
            )

    def _check_ids(self, ids: torch.Tensor, name: str) -> None:
        """Raise an error unless the argument `name` holds ids of tokens, placeholders of images included."""
        check_integer_tensor(ids, name, "(B, T)")
        limit = self.config.text_config.vocab_size
        if name != "negative_prompt_ids":  # an image cannot be avoided in a text
            limit += self.config.vq_config.num_embeddings
        check_text_ids(ids, limit, placeholder=self.config.image_token_id, name=name)

    @torch.no_grad()
    def _show_to_draft(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call with what a draft of this class sees of the images.

        transformers hands a draft the features of the main model only. The widths of the two differ, and a draft has
        learned to read those of its own vision tower and aligner.
        """
        draft, pixels = kwargs.get("assistant_model"), kwargs.get("pixel_values")
        if pixels is None or draft is self or not isinstance(draft, TextGenerationMixin):
            return kwargs
        features = draft.model.get_image_features(pixels.to(draft.device), return_dict=True)
        return {**kwargs, "mm_encoder_outputs": {**(kwargs.get("mm_encoder_outputs") or {}), _OF_DRAFT: features}}


def _has_images(kwargs: Mapping[str, Any]) -> bool:
    """Return whether the keyword arguments of a call hold images, as pixels or encoded."""
    return kwargs.get("pixel_values") is not None or bool((kwargs.get("mm_encoder_outputs") or {}).get("image"))


def _refused(kwargs: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the settings that a call with these keyword arguments cannot follow, with what to do instead."""
    return {**REFUSED, **(REFUSED_WITH_IMAGES if _has_images(kwargs) else {})}


__all__ = ["MODES", "REFUSED", "REFUSED_WITH_IMAGES", "TextGenerationMixin"]
