"""`JanusProModel`, Janus-Pro without its text head: it maps text tokens, images and image codes to hidden states.

`model.py` explains how ids of text tokens and image codes share one range.

`B` batch, `T` sequence, `M` images to be understood in the batch, `P` positions or codes per image, `D` width, `V`
text vocabulary, `K` codebook entries.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from transformers import AutoModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..arguments import check_keywords
from ..configuration import JanusProConfig
from ..generation.context import check_context, settle_packing
from ..generation.text.answer_steps import AnswerCache
from ..layouts.janus_pro import STORED_BUT_UNUSED
from .heads import JanusProAligner, JanusProImageHead
from .image_codec import JanusProVQModel
from .outputs import JanusProModelOutput
from .pretrained import JanusProPreTrainedModel
from .vision_encoder import VISION_KEYWORDS, JanusProVisionModel


if TYPE_CHECKING:
    Forward = TypeVar("Forward", bound=Callable[..., Any])

    def can_return_tuple(forward: Forward) -> Forward:
        """transformers' decorator, which has no types: let `forward` return a tuple with `return_dict=False`."""
        ...
else:
    from transformers.utils import can_return_tuple


# Keyword arguments of the language model that `forward` passes on. `TransformersKwargs` of transformers has more
# names; those are refused below, because a Llama ignores them.
LANGUAGE_KEYWORDS = frozenset(
    {
        "output_attentions",
        "output_hidden_states",
        "is_causal",
        # Starts of documents, for the variable-length kernels of flash-attention.
        "cu_seq_lens_q",
        "cu_seq_lens_k",
        "max_length_q",
        "max_length_k",
        # What `generate_batch` of transformers passes to the attention of a paged cache.
        "cache",
        "block_table",
        "read_index",
        "write_index",
        "logits_indices",
        "logits_processor_args",
    }
)
REFUSED_KEYWORDS = {
    "output_router_logits": "the language model has no router",
    "seq_idx": "the language model tells documents in one row apart by position_ids that start again at 0",
    "token_type_ids": "the kind of a token follows from its id",
    "image_sizes": "all images have the size of the vision tower's input",
    "pixel_attention_mask": "all images have the size of the vision tower's input",
}


class JanusProModel(JanusProPreTrainedModel):
    """Janus-Pro without the text head: maps text tokens, images and image codes to hidden states.

    Text ids are embedded by the language model's embedding. An id `V + c`, where `V` is the size of the text
    vocabulary, is embedded as code `c` of the image codec and passed through the generation aligner. Placeholder ids
    are replaced by SigLIP features of `pixel_values`, passed through the understanding aligner. The language model
    turns the resulting sequence into hidden states. The image codec and the image head are submodules too, but
    `forward` does not call them; image generation and the training loss do.
    """

    _keys_to_ignore_on_load_unexpected: tuple[str, ...] = (*STORED_BUT_UNUSED, r"^lm_head\.")

    def __init__(self, config: JanusProConfig) -> None:
        super().__init__(config)
        text, vision, vq = config.text_config, config.vision_config, config.vq_config
        # transformers' own models build their submodels with `_from_config` too: the constructor ignores the config's
        # dtype, and `AutoModel.from_config` knows only classes that are registered with it.
        self.vision_model = JanusProVisionModel._from_config(vision)
        self.aligner = JanusProAligner(vision.hidden_size, vision.projection_dim, vision.depth)
        self.vqmodel = JanusProVQModel._from_config(vq)
        self.generation_embeddings = nn.Embedding(vq.num_embeddings, vq.embed_dim)
        self.generation_aligner = JanusProAligner(vq.embed_dim, vq.projection_dim, vq.num_hidden_layers)
        self.generation_head = JanusProImageHead(text.hidden_size, vq.image_token_embed_dim, vq.num_embeddings)
        self.language_model = AutoModel.from_config(text)
        # The row at padding_idx would get no gradient, but the unconditional prompt consists of padding tokens.
        self.language_model.get_input_embeddings().padding_idx = None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    @can_return_tuple
    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Encode images as features that the language model reads in place of text embeddings.

        Args:
            pixel_values: `(M, 3, H, W)`: `M` images, normalised by the image processor.
            kwargs: `interpolate_pos_encoding`, `output_hidden_states` and `output_attentions`, which the vision tower
                uses, and `return_dict`.

        Returns:
            An output whose `last_hidden_state` `(M, P, width)` holds the features of the vision tower, `P` per image,
            and whose `pooler_output` `(M, P, D)` holds the same features mapped to the language model's width `D`.
            With `return_dict=False`, or with such a config, it is a tuple that begins with these two.

        Raises:
            TypeError: If the vision tower knows no such argument.
        """
        check_keywords(kwargs, "get_image_features", passed_on=VISION_KEYWORDS)
        features = self.vision_model(pixel_values.to(self.vision_model.dtype), return_dict=True, **kwargs)
        features.pooler_output = self.aligner(features.last_hidden_state)
        return features

    def embed_image_ids(self, image_ids: torch.Tensor) -> torch.Tensor:
        """Embed codes `(...)` of the image codec, each in `[0, K)`, as inputs `(..., D)` of the language model."""
        return self.generation_aligner(self.generation_embeddings(image_ids))

    def embed_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embed ids `(B, T)` of text tokens and image codes as inputs `(B, T, D)` of the language model.

        Ids below the size `V` of the text vocabulary are text tokens, and id `V + c` is image code `c`. For every
        position both a text embedding and a code embedding are computed, and the one that fits the id is selected.
        This needs no synchronisation of CPU and accelerator, has static shapes, and lets every rank of a distributed
        run use both embeddings. The code embedding adds 0.3 % to the arithmetic of the 1B model.
        """
        num_text = self.config.text_config.vocab_size
        # If the placeholder was added to a tokenizer, its id may lie past the vocabulary. Its embedding is replaced by
        # image features later, so any text embedding can be used here.
        is_code = input_ids >= num_text
        if self.config.image_token_id is not None and self.config.image_token_id >= num_text:
            is_code = is_code & (input_ids != self.config.image_token_id)
        text_embeds = self.get_input_embeddings()(input_ids.clamp(max=num_text - 1))
        code_embeds = self.embed_image_ids(torch.where(is_code, input_ids - num_text, 0))
        return torch.where(is_code.unsqueeze(-1), code_embeds.to(text_embeds.dtype), text_embeds)

    def _check_ids(self, input_ids: torch.Tensor) -> None:
        """Raise an IndexError if an id is that of no text token and no image code.

        The embedding tables of a CPU would raise an error too, which does not say what is wrong. On an accelerator the
        check would wait for the device, and so it is left out there.
        """
        if torch.compiler.is_compiling() or input_ids.device.type != "cpu" or not input_ids.numel():
            return
        num_text, num_codes = self.config.text_config.vocab_size, self.config.vq_config.num_embeddings
        known = (input_ids >= 0) & (input_ids < num_text + num_codes)
        if self.config.image_token_id is not None:
            known = known | (input_ids == self.config.image_token_id)
        if not known.all():
            raise IndexError(
                f"input_ids must be ids of text tokens in [0, {num_text}) or of image codes in [{num_text}, "
                f"{num_text + num_codes}), got {sorted(set(input_ids[~known].tolist()))[:5]}: after adding tokens "
                "call model.resize_token_embeddings(len(processor.tokenizer)), or use the tokenizer of this model."
            )

    def find_placeholders(
        self, input_ids: torch.Tensor | None = None, inputs_embeds: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return which positions of a sequence are placeholders of images, as `(B, T)` bool.

        Args:
            input_ids: `(B, T)` ids, or None if embeddings are given.
            inputs_embeds: `(B, T, D)`: a placeholder is found by its embedding, which must be exactly that of the
                placeholder's id.

        Raises:
            ValueError: If the config states no placeholder.
        """
        placeholder = self.config.image_token_id
        if placeholder is None:
            raise ValueError(
                "config.image_token_id must be given with images, got None: set `model.config.image_token_id = "
                "processor.image_token_id`."
            )
        if input_ids is not None:
            return input_ids == placeholder
        assert inputs_embeds is not None
        # A placeholder past the vocabulary has the embedding of the last token; see `embed_ids`.
        row = torch.tensor([min(placeholder, self.config.text_config.vocab_size - 1)], device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(row).to(inputs_embeds)).all(dim=-1)

    def check_placeholders(self, mask: torch.Tensor, features: torch.Tensor | None) -> None:
        """Raise a ValueError unless a prompt has as many placeholders as its images have features.

        Args:
            mask: `(B, T)`, which positions are placeholders.
            features: `(M, P, D)`: aligned features of `M` images, or None without images.
        """
        found, expected = int(mask.sum()), 0 if features is None else features.shape[0] * features.shape[1]
        if found != expected:
            per_image = self.config.vision_config.num_image_tokens
            raise ValueError(
                f"input_ids must hold {per_image} image placeholders for each of the {expected // per_image} "
                f"images in pixel_values, got {found} placeholders ({found / per_image:g} images): build both in "
                "one call of the processor, with one <image_placeholder> in the text for every image. Placeholders in "
                "inputs_embeds are found by their embedding; if that was changed, pass input_ids."
            )

    def _splice(
        self,
        inputs_embeds: torch.Tensor,
        input_ids: torch.Tensor | None,
        features: torch.Tensor | None,
        *,
        continues: bool,
    ) -> torch.Tensor:
        """Return the input embeddings with those of image placeholders replaced by image features, in reading order.

        Args:
            inputs_embeds: `(B, T, D)`.
            input_ids: `(B, T)` ids of text tokens, placeholders and image codes, or None if the caller passed
                embeddings.
            features: `(M, P, D)`: aligned features of `M` images, or None without images.
            continues: Whether a cached prompt is continued.

        Raises:
            ValueError: If the number of placeholders is not that of the features. This is not checked of ids while a
                cached prompt is continued, because text generation may then pass any id: assisted decoding copies
                placeholders out of the prompt. It is not checked of embeddings without images. Also raised if there
                are features, but no placeholder id in the config.
        """
        has_ids = input_ids is not None and self.config.image_token_id is not None
        if features is None and (not has_ids or continues or torch.compiler.is_compiling()):
            return inputs_embeds
        mask = self.find_placeholders(input_ids, inputs_embeds)
        if not torch.compiler.is_compiling():
            self.check_placeholders(mask, features)
        if features is None:
            return inputs_embeds
        return inputs_embeds.masked_scatter(mask.unsqueeze(-1), features.to(inputs_embeds))

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        use_cache: bool | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> JanusProModelOutput:
        """Run the language model over a sequence that may mix text tokens, images to be understood and image codes.

        Args:
            input_ids: `(B, T)`: text tokens in `[0, V)`, where `V` is the size of the text vocabulary, image
                placeholders, and image code `c` as `V + c`.
            attention_mask: `(B, T)`, 1 for real positions, 0 for padding (on the left). If several training sequences
                are packed into one row, pass `position_ids` that restart at 0 with every sequence, and no mask, or one
                without padding.
            position_ids: `(B, T)`. By default they continue from the length of the cache, or start at 0 without a
                cache; `generate` passes positions that do not count padding.
            past_key_values: Key-value cache of the positions before these.
            inputs_embeds: `(B, T, D)` in place of `input_ids`. With images, the positions that have the embedding of
                the placeholder are those of the images.
            pixel_values: `(M, 3, H, W)`, all images of the batch in reading order.
            use_cache: Whether to return a key-value cache. The default is the config's, but False with `position_ids`
                and no `past_key_values`.
            mm_encoder_outputs: `{"image": get_image_features(...)}` in place of `pixel_values`, if it is already
                computed.
            kwargs: Further arguments of the language model (`LANGUAGE_KEYWORDS`), such as `output_hidden_states`, and
                `return_dict`.

        Raises:
            ValueError: If placeholders and images do not match, arguments exclude each other, packed sequences would
                read each other, or the sequence exceeds the context.
            IndexError: If an id is that of no text token and no image code.
            TypeError: If an argument is unknown.
        """
        check_keywords(kwargs, "forward", passed_on=LANGUAGE_KEYWORDS, refused=REFUSED_KEYWORDS)
        if kwargs.get("cu_seq_lens_q") is not None and position_ids is None:
            raise ValueError(
                "`position_ids` must be given with `cu_seq_lens_q`, got None: let them start at 0 with every "
                "document, because only flash-attention reads the latter."
            )
        if (input_ids is None) == (inputs_embeds is None):
            given = "neither" if input_ids is None else "both"
            raise ValueError(f"exactly one of input_ids and inputs_embeds must be given, got {given}: pass one.")
        answers = isinstance(past_key_values, AnswerCache)  # to prompts of text and placeholders, one in each row
        if answers and input_ids is not None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        elif input_ids is not None:
            self._check_ids(input_ids)
            inputs_embeds = self.embed_ids(input_ids)
        assert inputs_embeds is not None
        cached = 0 if past_key_values is None else past_key_values.get_seq_length()
        # `generate` passes positions, and has checked the whole length. The length of a preallocated cache is a
        # tensor, for which the check would wait for the device.
        counted = cached if position_ids is None and isinstance(cached, int) else 0
        check_context(counted + inputs_embeds.shape[1], self.config.text_config, "shorten the input")

        encoded = (mm_encoder_outputs or {}).get("image")
        if encoded is not None and pixel_values is not None:
            raise ValueError("pixel_values must be None with mm_encoder_outputs, got both: pass one, not both.")
        if pixel_values is not None:
            encoded = self.get_image_features(pixel_values, return_dict=True)
        features = None if encoded is None else encoded.pooler_output
        # The paged cache of `generate_batch`, with which prompts hold no images, is not in `past_key_values`.
        continues = inputs_embeds.shape[1] == 1 or kwargs.get("cache") is not None or bool(cached)
        inputs_embeds = self._splice(inputs_embeds, input_ids, features, continues=continues)
        if use_cache is None and position_ids is not None and past_key_values is None:
            # transformers recognises packed training sequences by their positions only if no cache is made.
            use_cache = False
        if not answers:
            attention_mask = settle_packing(attention_mask, position_ids, past_key_values, use_cache)

        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        return JanusProModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=features,
        )

    if TYPE_CHECKING:

        def __call__(self, *args: Any, **kwargs: Any) -> JanusProModelOutput:
            """Call `forward` through PyTorch's hooks; PyTorch's own annotation of the result is Any."""
            ...


__all__ = ["LANGUAGE_KEYWORDS", "REFUSED_KEYWORDS", "JanusProModel"]
