"""The Janus-Pro models: one language model reads text and images, and predicts text tokens or image tokens.

An image enters in one of two ways. An image to be understood is given as `pixel_values`; features of its patches
replace the embeddings of the placeholder `image_token_id`. An image to be generated is a sequence of codes, which are
indices into the codebook of the image codec. Text tokens and codes share one range of ids, called joint ids: ids in
`[0, V)` are text tokens, and id `V + c` is code `c`. `input_ids` and `labels` may contain both; embeddings and heads
are chosen by id.

Submodules have the names of those in transformers' Janus, so that community checkpoints and LoRA adapters can be
loaded.

`B` batch, `T` sequence, `M` images to be understood in the batch, `P` positions or codes per image, `D` width, `V`
text vocabulary, `K` codebook entries.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import torch
from torch import nn
from transformers import AutoModel, GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..configuration import JanusProConfig
from ..generation.answer_steps import AnswerCache, AnswerMixin, next_logits
from ..layouts.janus_pro import STORED_BUT_UNUSED
from .heads import JanusProAligner, JanusProImageHead
from .image_codec import JanusProVQModel
from .loss import joint_loss
from .outputs import JanusProCausalLMOutput, JanusProModelOutput
from .pretrained import JanusProPreTrainedModel
from .vision_encoder import JanusProVisionModel


if TYPE_CHECKING:
    from transformers.generation.utils import GenerateOutput

    Forward = TypeVar("Forward", bound=Callable[..., Any])

    def can_return_tuple(forward: Forward) -> Forward:
        """transformers' decorator, which has no types: let `forward` return a tuple with `return_dict=False`."""
        ...
else:
    from transformers.utils import can_return_tuple


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

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Encode images as features that the language model reads in place of text embeddings.

        Args:
            pixel_values: `(M, 3, H, W)`: `M` images, normalised by the image processor.
            kwargs: Further arguments of the vision tower, such as `output_hidden_states`.

        Returns:
            An output whose `last_hidden_state` `(M, P, width)` holds the features of the vision tower, `P` per image,
            and whose `pooler_output` `(M, P, D)` holds the same features mapped to the language model's width `D`.
        """
        kwargs.pop("return_dict", None)
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

    def _splice(
        self,
        inputs_embeds: torch.Tensor,
        input_ids: torch.Tensor | None,
        features: torch.Tensor | None,
        past_key_values: Cache | None,
    ) -> torch.Tensor:
        """Return the input embeddings with those of image placeholders replaced by image features, in reading order.

        Args:
            inputs_embeds: `(B, T, D)`.
            input_ids: `(B, T)` ids of text tokens, placeholders and image codes, or None if the caller passed
                embeddings.
            features: `(M, P, D)`: aligned features of `M` images, or None without images.
            past_key_values: Key-value cache of the positions before these, or None.

        Raises:
            ValueError: If the number of placeholders is not that of the features (not checked while a cached prompt is
                continued, because assisted decoding copies placeholders out of the prompt); or if there are features,
                but no `input_ids` or no placeholder id in the config.
        """
        if input_ids is None or self.config.image_token_id is None:
            if features is not None:
                raise ValueError(
                    "input_ids and config.image_token_id must be given with images, got one of them as None: pass "
                    "input_ids (not inputs_embeds) with a placeholder for every image position, and set "
                    "`model.config.image_token_id = processor.image_token_id`."
                )
            return inputs_embeds
        continues = input_ids.shape[1] == 1 or (past_key_values is not None and past_key_values.get_seq_length() > 0)
        if features is None and (continues or torch.compiler.is_compiling()):
            return inputs_embeds
        mask = input_ids == self.config.image_token_id
        if not torch.compiler.is_compiling():
            found, expected = int(mask.sum()), 0 if features is None else features.shape[0] * features.shape[1]
            if found != expected:
                per_image = self.config.vision_config.num_image_tokens
                raise ValueError(
                    f"input_ids must hold {per_image} image placeholders for each of the {expected // per_image} "
                    f"images in pixel_values, got {found} placeholders ({found / per_image:g} images): build both in "
                    "one call of the processor, with one <image_placeholder> in the text for every image."
                )
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
                are packed into one row, pass no mask, but `position_ids` that restart at 0 with every sequence.
            position_ids: `(B, T)`. By default they continue from the length of the cache, or start at 0 without a
                cache; `generate` passes positions that do not count padding.
            past_key_values: Key-value cache of the positions before these.
            inputs_embeds: `(B, T, D)` in place of `input_ids`; images cannot be given then.
            pixel_values: `(M, 3, H, W)`, all images of the batch in reading order.
            use_cache: Whether to return a key-value cache. The default is the config's, but False with `position_ids`
                and no `past_key_values`.
            mm_encoder_outputs: `{"image": get_image_features(...)}` in place of `pixel_values`, if it is already
                computed.
            kwargs: Further arguments of the language model, such as `output_hidden_states`.

        Raises:
            ValueError: If placeholders and images do not match, arguments exclude each other, or the sequence exceeds
                the context.
        """
        if (input_ids is None) == (inputs_embeds is None):
            given = "neither" if input_ids is None else "both"
            raise ValueError(f"exactly one of input_ids and inputs_embeds must be given, got {given}: pass one.")
        if input_ids is not None:
            only_text = isinstance(past_key_values, AnswerCache)
            inputs_embeds = self.get_input_embeddings()(input_ids) if only_text else self.embed_ids(input_ids)
        assert inputs_embeds is not None
        if inputs_embeds.shape[1] > (limit := self.config.text_config.max_position_embeddings):
            raise ValueError(
                f"The sequence must fit the model's context of {limit} tokens, got {inputs_embeds.shape[1]} tokens: "
                "shorten the input."
            )

        encoded = (mm_encoder_outputs or {}).get("image")
        if encoded is not None and pixel_values is not None:
            raise ValueError("pixel_values must be None with mm_encoder_outputs, got both: pass one, not both.")
        if pixel_values is not None:
            encoded = self.get_image_features(pixel_values)
        features = None if encoded is None else encoded.pooler_output
        inputs_embeds = self._splice(inputs_embeds, input_ids, features, past_key_values)
        if use_cache is None and position_ids is not None and past_key_values is None:
            # transformers recognises packed training sequences by their positions only if no cache is made.
            use_cache = False

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


class JanusProForConditionalGeneration(JanusProPreTrainedModel, AnswerMixin, GenerationMixin):
    """The complete Janus-Pro, with text head and image head. transformers' Auto classes load this class.

    `generate`, which is transformers' own method, generates text tokens. `generate_images` generates images as codes
    of the image codec. `decode_image_ids` turns codes into pixels, and `encode_image_ids` turns pixels into codes.
    `forward(labels=...)` returns the training loss of both heads.
    """

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # if tie_word_embeddings
    output_modalities = ("image", "text")
    model: JanusProModel
    accepts_loss_kwargs = True

    def __init__(self, config: JanusProConfig) -> None:
        super().__init__(config)
        self.model = JanusProModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def enable_input_require_grads(self) -> None:
        """Make the outputs of the input embeddings require gradients, as reentrant gradient checkpointing needs.

        This overrides transformers' method, which would include a frozen vision tower. The tower would then keep its
        activations and be back-propagated through without need.
        """
        tower = self.model.vision_model
        inputs = [self.get_input_embeddings()]
        if any(parameter.requires_grad for parameter in tower.parameters()):
            inputs.append(tower.get_input_embeddings())
        # transformers' `disable_input_require_grads` reads this attribute. There is no public method to add to it.
        self._require_grads_hooks = [
            module.register_forward_hook(lambda module, args, output: output.requires_grad_(True)) for module in inputs
        ]

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Encode images `(M, 3, H, W)` as features for the language model; see `JanusProModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def encode_image_ids(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode images `(B, 3, S, S)` in [-1, 1] as codes `(B, P)` int64, indices into the codec's codebook.

        See `JanusProVQModel.encode_image_ids`.
        """
        return self.model.vqmodel.encode_image_ids(pixel_values)

    def decode_image_ids(self, image_ids: torch.Tensor) -> torch.Tensor:
        """Decode codes `(B, P)` (indices into the codec's codebook) to images `(B, 3, S, S)` in about [-1, 1].

        See `JanusProVQModel.decode_image_ids`.
        """
        return self.model.vqmodel.decode_image_ids(image_ids)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> JanusProCausalLMOutput:
        """Compute text logits, or, if `labels` are given, the training losses of the text head and the image head.

        Arguments that are not listed here are those of `JanusProModel.forward`.

        Args:
            labels: `(B, T)` ids as in `input_ids`. The label at position `t` is predicted from position `t - 1`.
                Labels of -100 are ignored; the first label of every training sequence must be -100. Labels below the
                size of the text vocabulary are scored by the text head, the others by the image head.
            logits_to_keep: Number of positions at the end for which text logits are computed (0 means all), or a
                tensor with the indices of these positions.
            num_items_in_batch: Number by which the summed loss is divided. With gradient accumulation or several ranks
                it is the number of labels in all accumulated batches on all ranks. By default it is this batch's own
                number of labels.

        Returns:
            A `JanusProCausalLMOutput`. With `labels` its `logits` is None, because logits are computed in chunks and
            freed.
        """
        if (logits := next_logits(past_key_values, input_ids, attention_mask, position_ids)) is not None:
            return JanusProCausalLMOutput(logits=logits, past_key_values=past_key_values)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            use_cache=use_cache,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        losses: dict[str, torch.Tensor] = {}
        if labels is None:
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(outputs.last_hidden_state[:, keep])
        else:
            losses = joint_loss(
                self.lm_head,
                self.model.generation_head,
                outputs.last_hidden_state,
                labels,
                num_text=self.config.text_config.vocab_size,
                num_items=num_items_in_batch,
            )
        return JanusProCausalLMOutput(
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
            **losses,
        )

    if TYPE_CHECKING:

        def __call__(self, *args: Any, **kwargs: Any) -> JanusProCausalLMOutput:
            """Call `forward` through PyTorch's hooks; PyTorch's own annotation of the result is Any."""
            ...

        @overload
        def generate(
            self, inputs: torch.Tensor | None = None, *, return_dict_in_generate: Literal[True], **kwargs: Any
        ) -> GenerateOutput: ...

        @overload
        def generate(
            self, inputs: torch.Tensor | None = None, *, return_dict_in_generate: Literal[False] = False, **kwargs: Any
        ) -> torch.Tensor: ...

        def generate(self, inputs: torch.Tensor | None = None, **kwargs: Any) -> Any:
            """Generate text tokens with transformers' `GenerationMixin.generate`.

            Returns:
                Prompts and answers `(B, T)` int64, or with `return_dict_in_generate=True` transformers' output object.
            """
            ...


__all__ = ["JanusProForConditionalGeneration", "JanusProModel"]
