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

from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..arguments import check_flag
from ..configuration import JanusProConfig
from ..generation.text.answer_steps import AnswerMixin, next_logits
from ..generation.text.text_generation import TextGenerationMixin
from .bare_model import JanusProModel, can_return_tuple
from .loss import joint_loss
from .outputs import JanusProCausalLMOutput
from .pretrained import JanusProPreTrainedModel


if TYPE_CHECKING:
    from transformers import GenerationConfig
    from transformers.generation.utils import GenerateOutput


class JanusProForConditionalGeneration(JanusProPreTrainedModel, AnswerMixin, TextGenerationMixin):
    """The complete Janus-Pro, with text head and image head. transformers' Auto classes load this class.

    `generate`, which is transformers' own method with a few checks, generates text tokens. `generate_images` generates
    images as codes of the image codec. `decode_image_ids` turns codes into pixels, and `encode_image_ids` turns pixels
    into codes. `forward(labels=...)` returns the training loss of both heads.
    """

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # if tie_word_embeddings
    # Under tensor parallelism the table of text embeddings is split, so a head that is tied to it must be split too.
    _tp_plan = {"lm_head": "colwise_gather_output"}
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

    @can_return_tuple
    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Encode images `(M, 3, H, W)` as features for the language model; see `JanusProModel.get_image_features`."""
        kwargs["return_dict"] = True
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

        Ids from the size of the text vocabulary on are image tokens here, and nothing tells them apart from those of
        text tokens that were added to the tokenizer alone. So call `resize_token_embeddings` after adding tokens,
        before another trainer than this package's feeds texts. `generate` and this package's data refuse such ids.

        Args:
            labels: `(B, T)` ids as in `input_ids`. The label at position `t` is predicted from position `t - 1`.
                Labels of -100 are ignored; the first label of every training sequence must be -100. Labels below the
                size of the text vocabulary are scored by the text head, the others by the image head.
            logits_to_keep: Number of positions at the end for which text logits are computed (0 means all), or a
                tensor with the indices of these positions.
            shift_labels: Labels that are shifted already, `(B, T)`: the label at position `t` is predicted from
                position `t` itself. They are used in place of `labels`. transformers' `Trainer` passes both under
                context parallelism.
            skip_logits: True returns no `logits`. By default they are left out in training mode with labels, because
                those of a whole sequence are large, and computed in evaluation mode.
            num_items_in_batch: Number by which the summed loss is divided. With gradient accumulation or several ranks
                it is the number of labels in all accumulated batches on all ranks. By default it is this batch's own
                number of labels.

        Returns:
            A `JanusProCausalLMOutput`. The losses are computed in chunks of logits that are freed again.

        Raises:
            TypeError, ValueError, IndexError: As `JanusProModel.forward`, and if labels have another shape than the
                sequence.
        """
        # These two are no parameters: transformers' `Trainer` takes every parameter with "label" in its name for one
        # that a batch must have to be evaluated, and `skip_logits` has this name in other libraries too.
        shift_labels, skip_logits = kwargs.pop("shift_labels", None), kwargs.pop("skip_logits", None)
        targets = labels if shift_labels is None else shift_labels
        if skip_logits is None:
            skip_logits = self.training and targets is not None
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
            return_dict=True,
            **kwargs,
        )
        losses: dict[str, torch.Tensor] = {}
        if not check_flag(skip_logits, "skip_logits"):
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(outputs.last_hidden_state[:, keep])
        if targets is not None:
            losses = joint_loss(
                self.lm_head,
                self.model.generation_head,
                outputs.last_hidden_state,
                targets,
                num_text=self.config.text_config.vocab_size,
                num_items=num_items_in_batch,
                are_shifted=shift_labels is not None,
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
            self,
            inputs: torch.Tensor | None = None,
            generation_config: "GenerationConfig | None" = None,
            *args: Any,
            return_dict_in_generate: Literal[True],
            **kwargs: Any,
        ) -> GenerateOutput: ...

        @overload
        def generate(
            self,
            inputs: torch.Tensor | None = None,
            generation_config: "GenerationConfig | None" = None,
            *args: Any,
            return_dict_in_generate: Literal[False] = False,
            **kwargs: Any,
        ) -> torch.Tensor: ...

        def generate(
            self,
            inputs: torch.Tensor | None = None,
            generation_config: "GenerationConfig | None" = None,
            *args: Any,
            **kwargs: Any,
        ) -> Any:
            """Generate text tokens with transformers' `GenerationMixin.generate`.

            Returns:
                Prompts and answers `(B, T)` int64, or with `return_dict_in_generate=True` transformers' output object.
            """
            ...


__all__ = ["JanusProForConditionalGeneration", "JanusProModel"]
