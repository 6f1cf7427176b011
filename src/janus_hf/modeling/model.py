"""Janus-Pro: one language model that reads text, understanding features and image codes, and predicts text or image
codes.

One joint id space is used everywhere: ids in `[0, V)` are text tokens, image code `c` of the codec is id `V + c`.
`input_ids` and `labels` may mix both; embeddings and heads are chosen by id. Pictures to be understood enter as
`pixel_values` on `image_token_id` placeholders.

Module names are those of transformers' Janus, so that community checkpoints and LoRA adapters fit.

`B` batch, `T` sequence, `M` pictures in the batch, `P` slots or codes per picture, `D` width, `V` text vocabulary, `K`
codes.
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoModel, GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from ..configuration import JanusProConfig
from ..generation.images import ImageGenerationMixin
from ..layouts.janus_pro import STORED_BUT_UNUSED
from .heads import JanusProAligner, JanusProImageHead
from .image_codec import JanusProVQModel
from .loss import chunked_cross_entropy
from .outputs import JanusProCausalLMOutput, JanusProModelOutput
from .pretrained import JanusProPreTrainedModel
from .vision_encoder import JanusProVisionModel


class JanusProModel(JanusProPreTrainedModel):
    """Everything but the text head.

    Text ids become rows of the language model's embedding; image ids `V + c` become code embeddings passed through the
    generation aligner; placeholders become SigLIP features of `pixel_values` passed through the understanding aligner.
    The language model turns the resulting sequence into hidden states. The codec (pixels <-> codes) and the image head
    stand beside it and are used by whoever draws or trains.
    """

    _keys_to_ignore_on_load_unexpected: tuple[str, ...] = (*STORED_BUT_UNUSED, r"^lm_head\.")

    def __init__(self, config: JanusProConfig) -> None:
        super().__init__(config)
        text, vision, vq = config.text_config, config.vision_config, config.vq_config
        self.vision_model = JanusProVisionModel._from_config(vision)
        self.aligner = JanusProAligner(vision.hidden_size, vision.projection_dim, vision.depth)
        self.vqmodel = JanusProVQModel._from_config(vq)
        self.generation_embeddings = nn.Embedding(vq.num_embeddings, vq.embed_dim)
        self.generation_aligner = JanusProAligner(vq.embed_dim, vq.projection_dim, vq.num_hidden_layers)
        self.generation_head = JanusProImageHead(text.hidden_size, vq.image_token_embed_dim, vq.num_embeddings)
        self.language_model = AutoModel.from_config(text)
        # A padding_idx row gets no gradient, and pads are what the unconditional prompt is made of.
        self.language_model.get_input_embeddings().padding_idx = None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Pictures as the language model sees them.

        Args:
            pixel_values: `(M, 3, H, W)`, normalised by the image processor.

        Returns:
            `last_hidden_state` `(M, P, width)`: the tower's features; `pooler_output` `(M, P, D)`: aligned to the
            language model.
        """
        kwargs.pop("return_dict", None)
        features = self.vision_model(pixel_values.to(self.vision_model.dtype), return_dict=True, **kwargs)
        features.pooler_output = self.aligner(features.last_hidden_state)
        return features

    def embed_image_ids(self, image_ids: torch.Tensor) -> torch.Tensor:
        """Codes `(...)` in `[0, K)` -> input embeddings `(..., D)`."""
        return self.generation_aligner(self.generation_embeddings(image_ids))

    def embed_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Joint ids `(B, T)` -> input embeddings `(B, T, D)`.

        Both tables are read for every position and the right row is kept: no host synchronisation, static shapes, and
        every rank of a distributed run touches both (the code path adds 0.3 % of the 1B's arithmetic).
        """
        num_text = self.config.text_config.vocab_size
        # A tokenizer that had to add the placeholder may have put it past the vocabulary; its embedding is replaced
        # anyway.
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
    ) -> Any:
        """Put aligned features `(M, P, D)` on the placeholders, in reading order; both counts must agree.

        Not so once a prompt is cached: text generation may then feed any id; assisted decoding copies placeholders.
        """
        if input_ids is None or self.config.image_token_id is None:
            if features is not None:
                raise ValueError(
                    "Pictures are spliced in where input_ids hold the image placeholder: pass input_ids (not "
                    "inputs_embeds) and make sure that config.image_token_id is set (`model.config.image_token_id = "
                    "processor.image_token_id`)."
                )
            return inputs_embeds
        mask = input_ids == self.config.image_token_id
        continues = input_ids.shape[1] == 1 or (past_key_values is not None and past_key_values.get_seq_length() > 0)
        if not torch.compiler.is_compiling() and (features is not None or not continues):
            slots, expected = int(mask.sum()), 0 if features is None else features.shape[0] * features.shape[1]
            if slots != expected:
                per_image = self.config.vision_config.num_image_tokens
                raise ValueError(
                    f"input_ids hold {slots} image placeholders ({slots / per_image:g} pictures of {per_image}), but "
                    f"pixel_values give {expected // per_image} pictures. Build both in one call of the processor, "
                    "with one <image_placeholder> in the text for every picture."
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
        """Run the language model over a mixed sequence.

        Args:
            input_ids: `(B, T)` joint ids; or `inputs_embeds` `(B, T, D)`, exactly one of the two.
            attention_mask: `(B, T)`, 1 = real, 0 = padding (left). For packed sequences pass none, but `position_ids`
                that restart.
            position_ids: `(B, T)`; counted from the mask by `generate`, by position otherwise.
            pixel_values: `(M, 3, H, W)`, all pictures of the batch in reading order.
            mm_encoder_outputs: `{"image": get_image_features(...)}` instead of `pixel_values`, when already computed.

        Raises:
            ValueError: If placeholders and pictures do not match, or the sequence exceeds the context.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of input_ids and inputs_embeds.")
        if input_ids is not None:
            inputs_embeds = self.embed_ids(input_ids)
        assert inputs_embeds is not None
        if inputs_embeds.shape[1] > (limit := self.config.text_config.max_position_embeddings):
            raise ValueError(
                f"The sequence has {inputs_embeds.shape[1]} tokens, the model's context holds {limit}. Shorten the "
                "input."
            )

        encoded = (mm_encoder_outputs or {}).get("image")
        if encoded is not None and pixel_values is not None:
            raise ValueError("Pass pixel_values or mm_encoder_outputs, not both.")
        if pixel_values is not None:
            encoded = self.get_image_features(pixel_values)
        features = None if encoded is None else encoded.pooler_output
        inputs_embeds = self._splice(inputs_embeds, input_ids, features, past_key_values)
        if use_cache is None and position_ids is not None and past_key_values is None:
            use_cache = False  # transformers reads packing off the positions only where no cache is made

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


class JanusProForConditionalGeneration(JanusProPreTrainedModel, ImageGenerationMixin, GenerationMixin):
    """Janus-Pro with both heads: what every Auto class returns.

    `generate` (transformers' own) writes text; `generate_images` draws image codes; `decode_image_ids` turns codes
    into pixels and `encode_image_ids` pixels into codes; `forward(labels=...)` trains both heads.
    """

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # only if the config says so
    output_modalities = ("image", "text")
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
        """As in transformers, for reentrant checkpointing; but a tower that learns nothing stays out, or it would keep
        its activations and be back-propagated in vain.
        """
        tower = self.model.vision_model
        inputs = [self.get_input_embeddings()]
        if any(parameter.requires_grad for parameter in tower.parameters()):
            inputs.append(tower.get_input_embeddings())
        self._require_grads_hooks = [
            module.register_forward_hook(lambda module, args, output: output.requires_grad_(True)) for module in inputs
        ]

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """See `JanusProModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def encode_image_ids(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pictures `(B, 3, S, S)` in [-1, 1] -> codes `(B, P)`; see `JanusProVQModel.encode_image_ids`."""
        return self.model.vqmodel.encode_image_ids(pixel_values)

    def decode_image_ids(self, image_ids: torch.Tensor) -> torch.Tensor:
        """Codes `(B, P)` in `[0, K)` -> pictures `(B, 3, S, S)` in about [-1, 1]; see
        `JanusProVQModel.decode_image_ids`.
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
        """Text logits, or with `labels` the loss of both heads.

        Args:
            labels: `(B, T)` joint ids, position `t` predicted from `t - 1`; -100 where nothing is trained, always so
                on the first token of a document. Labels below `V` are scored by the text head, the others by the image
                head.
            num_items_in_batch: Divides the summed loss (all labels of an accumulated batch, over all ranks); by
                default this batch's own count.
            logits_to_keep: Compute text logits for the last so many positions only (0 = all), or for the given
                indices.
            Others: see `JanusProModel.forward`.

        Returns:
            `JanusProCausalLMOutput`. With `labels`, `logits` is None: they are computed in chunks and dropped.
        """
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
        losses: dict[str, Any] = {}
        logits = None
        if labels is None:
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(outputs.last_hidden_state[:, keep])
        else:
            losses = self._losses(outputs.last_hidden_state, labels, num_items_in_batch)
        return JanusProCausalLMOutput(
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
            **losses,
        )

    def _losses(
        self, hidden_BTD: torch.Tensor, labels_BT: torch.Tensor, num_items: torch.Tensor | int | None
    ) -> dict[str, torch.Tensor]:
        """Next-token losses, each label scored by the head its id belongs to."""
        num_text = self.config.text_config.vocab_size
        hidden_ND = hidden_BTD[:, :-1].flatten(0, 1)
        labels_N = labels_BT[:, 1:].flatten().to(hidden_ND.device)
        is_text, is_image = (labels_N >= 0) & (labels_N < num_text), labels_N >= num_text
        text_sum = chunked_cross_entropy(self.lm_head, hidden_ND[is_text], labels_N[is_text])
        image_sum = chunked_cross_entropy(
            self.model.generation_head, hidden_ND[is_image], labels_N[is_image] - num_text
        )
        text_count, image_count = is_text.sum(), is_image.sum()
        if num_items is None:
            num_items = (text_count + image_count).clamp(min=1)
        elif isinstance(num_items, torch.Tensor):
            num_items = num_items.to(text_sum.device)
        return {
            "loss": (text_sum + image_sum) / num_items,
            "text_loss": text_sum.detach() / text_count.clamp(min=1),
            "image_loss": image_sum.detach() / image_count.clamp(min=1),
            "num_text_labels": text_count,
            "num_image_labels": image_count,
        }


__all__ = ["JanusProForConditionalGeneration", "JanusProModel"]
