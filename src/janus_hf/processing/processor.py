"""`JanusProProcessor`, which prepares conversations and prompts for Janus-Pro and decodes its text and images.

The batch that it returns has the same form for inference, training and evaluation:

| key | shape, dtype | meaning |
|---|---|---|
| `input_ids` | `(B, T)` int64 | text ids; each image occupies begin-of-image, P placeholder ids, end-of-image |
| `attention_mask` | `(B, T)` int64 | 1 = real, 0 = padding; padding is on the left |
| `pixel_values` | `(M, 3, S, S)` float32 | all images of the batch in reading order; absent when M is 0 |

`B` texts, `T` length of the longest, `M` images in the batch, `S` side of the model's image input in pixels, `P`
placeholders per image (`num_image_tokens`). The placeholder ids in `input_ids` are the only image mask that a model
needs: there are exactly M * P of them.
"""

from collections.abc import Sequence
from typing import Any, Literal

from transformers import BatchFeature
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from ..arguments import check_choice
from ..layouts.special_tokens import BOI_TOKEN, EOI_TOKEN, IMAGE_TOKEN, PAD_TOKEN, Tags
from ..tokenizer import fit_tokenizer
from .batching import (
    check_batch_options,
    check_counts,
    check_texts,
    collate,
    encode,
    splice_images,
    truncate,
)
from .conversations import ConversationRendering
from .decoding import OutputDecoding
from .image_processor import JanusProImageProcessor
from .pictures import flatten_images
from .prompts import (
    ROLES_BY_FORMAT,
    SYSTEM_PROMPT,
    build_chat_template,
    render_generation_prompt,
)
from .saving import ProcessorFiles


class JanusProProcessor(ConversationRendering, OutputDecoding, ProcessorFiles):
    """Tokenizer, image processor and prompt format of a Janus-Pro checkpoint.

    `from_pretrained` reads original repositories (deepseek-ai/Janus-*), folders of transformers' own `JanusProcessor`,
    and the files that `save_pretrained` writes. Conversations are rendered in the format of deepseek-ai/Janus, even if
    the folder of a `JanusProcessor` contains another chat template; pass `chat_template=` to use another one.

    Args:
        image_processor: Converts images to pixel tensors and back.
        tokenizer: Any `tokenizers`-backed tokenizer with Janus's special tokens. If it does not meet Janus's
            requirements (for example, it adds no BOS or pads on the right), a corrected copy is used; see
            `tokenizer.py`.
        chat_template: Jinja template; by default the format of deepseek-ai/Janus with `roles` and `system_prompt`.
        num_image_tokens: Number of placeholder ids per image (P).
        roles: Names of user and assistant in rendered text. `None` takes those of `sft_format`: "<|User|>" and
            "<|Assistant|>" for "deepseek", "User" and "Assistant" for "deepseek_old".
        system_prompt: System prompt of conversations without a system message; `None` or "" for none. Prompts for
            image generation never contain it.
        image_tag: Placeholder token. The ids of this and the following tokens are always looked up, because they
            differ between checkpoints. Image tokens that the tokenizer lacks are added to it, with the ids that they
            have in deepseek-ai/Janus; see `tokenizer.py`.
        image_start_tag: Begin-of-image token; "<image_beg>" in JanusFlow.
        image_end_tag: End-of-image token.
        pad_tag: Padding token. If the tokenizer lacks the default one, texts are padded with end-of-sentence, as in
            JanusFlow.
        add_special_token: A key of deepseek-ai/Janus's files; must be `False`, as in all Janus checkpoints.
        sft_format: A key of deepseek-ai/Janus's files: the name of its conversation format. "deepseek" (Janus-Pro) and
            "deepseek_old" (Janus-1.3B and JanusFlow) render the same text and differ in the default of `roles` only.
            deepseek-ai/Janus takes the role names from the messages, and its examples write these names for these
            models, so with the default the same conversation gives the text of the examples. Copies of Janus-1.3B from
            before January 2025 say "deepseek": load them with `roles=("User", "Assistant")`.
        mask_prompt: A key of deepseek-ai/Janus's files. As there, it is stored and saved again and has no other
            effect; what is trained is decided by the collator.
        ignore_id: A key of deepseek-ai/Janus's files. As there, it is stored and saved again and has no other effect;
            labels that are not trained are always -100.
        use_default_system_prompt: A key of the files of transformers' own Janus; ignored, because `system_prompt`
            decides.
        image_gen_tag: Token that asks JanusFlow to generate an image; `None` in checkpoints of Janus and Janus-Pro.

    Keys of a processor_config.json that are not arguments of this class are kept in `unknown_settings`, saved again,
    and have no other effect; loading warns of them.

    Raises:
        TypeError: If the tokenizer is not backed by the `tokenizers` library.
        ValueError: If a setting has a value that no Janus checkpoint has, or the tokenizer is no Janus tokenizer.
    """

    # The settings are not keyword-only, because ProcessorMixin.from_args_and_dict ignores keyword-only ones.
    def __init__(
        self,
        image_processor: JanusProImageProcessor,
        tokenizer: TokenizersBackend,
        chat_template: str | dict[str, str] | None = None,
        num_image_tokens: int = 576,
        roles: Sequence[str] | None = None,
        system_prompt: str | None = SYSTEM_PROMPT,
        image_tag: str = IMAGE_TOKEN,
        image_start_tag: str = BOI_TOKEN,
        image_end_tag: str = EOI_TOKEN,
        pad_tag: str = PAD_TOKEN,
        add_special_token: bool = False,
        sft_format: str = "deepseek",
        mask_prompt: bool = True,
        ignore_id: int = -100,
        use_default_system_prompt: bool = False,
        image_gen_tag: str | None = None,
    ) -> None:
        if add_special_token is not False or sft_format not in tuple(ROLES_BY_FORMAT):
            raise ValueError(
                f"`add_special_token` must be False and `sft_format` one of {sorted(ROLES_BY_FORMAT)}, as in all "
                f"Janus checkpoints, got {add_special_token} and {sft_format!r}: correct processor_config.json."
            )
        roles = ROLES_BY_FORMAT[sft_format] if roles is None else roles
        if not _are_roles(roles) or not _is_integer(num_image_tokens) or num_image_tokens < 1:
            raise ValueError(
                "`roles` must be the names of user and assistant, and `num_image_tokens` at least 1, got "
                f"{roles!r} and {num_image_tokens!r}: correct the one that is wrong."
            )
        if not isinstance(mask_prompt, bool) or not _is_integer(ignore_id):
            raise ValueError(
                "`mask_prompt` must be true or false and `ignore_id` an integer, got "
                f"{mask_prompt!r} and {ignore_id!r}: correct processor_config.json."
            )
        tags = Tags(image_tag, image_start_tag, image_end_tag, pad_tag, image_gen_tag)
        self.num_image_tokens = num_image_tokens
        self.sft_format = sft_format
        self.roles = (roles[0], roles[1])
        self.system_prompt = system_prompt or ""
        self.image_token, self.boi_token, self.eoi_token = image_tag, image_start_tag, image_end_tag
        self.pad_tag, self.image_gen_tag = pad_tag, image_gen_tag
        self.mask_prompt, self.ignore_id = mask_prompt, ignore_id
        self.unknown_settings: dict[str, Any] = {}  # Any: whatever the keys of a file hold
        super().__init__(image_processor, fit_tokenizer(tokenizer, tags), chat_template=chat_template)

    @property
    def chat_template(self) -> str | dict[str, str]:
        """The Jinja chat template in use. Assign `None` to restore the default.

        The default contains the processor's `roles` and `system_prompt`. A dictionary holds several templates by name.
        """
        return self._chat_template or self._default_template()

    @chat_template.setter
    def chat_template(self, template: str | dict[str, str] | None) -> None:
        self._chat_template = None if template == self._default_template() else template

    def _default_template(self) -> str:
        """Return the chat template of deepseek-ai/Janus with the current `roles` and `system_prompt`."""
        return build_chat_template(roles=self.roles, system_prompt=self.system_prompt, image_token=self.image_token)

    @property
    def bos_token_id(self) -> int:
        """Id of the beginning-of-sentence token."""
        return self._token_id(self.tokenizer.bos_token)

    @property
    def eos_token_id(self) -> int:
        """Id of the end-of-sentence token, which ends an answer."""
        return self._token_id(self.tokenizer.eos_token)

    @property
    def pad_token_id(self) -> int:
        """Id of the padding token."""
        return self._token_id(self.tokenizer.pad_token)

    @property
    def boi_token_id(self) -> int:
        """Id of the begin-of-image token."""
        return self._token_id(self.boi_token)

    @property
    def eoi_token_id(self) -> int:
        """Id of the end-of-image token."""
        return self._token_id(self.eoi_token)

    @property
    def image_token_id(self) -> int:
        """Id of the image placeholder token, which occupies `num_image_tokens` positions for each input image."""
        return self._token_id(self.image_token)

    def _token_id(self, token: str) -> int:
        """Return the id of `token` in the tokenizer's vocabulary."""
        return int(self.tokenizer.convert_tokens_to_ids(token))

    def __call__(  # without **kwargs, so that a misspelled argument raises
        self,
        text: str | Sequence[str] | None = None,
        images: Any = None,
        *,
        padding: bool | str = True,
        padding_side: Literal["left", "right"] | None = None,
        pad_to_multiple_of: int | None = None,
        truncation: bool = False,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        generation_mode: Literal["text", "image"] = "text",
        return_tensors: str | None = "pt",
        return_offsets_mapping: bool = False,
        return_text_replacement_offsets: bool = False,
        videos: None = None,
        audio: None = None,
    ) -> BatchFeature:
        """Tokenize rendered text, prepare its images, and return both as one batch for the model.

        Args:
            text: One string or B strings, already rendered, with one placeholder token per image. BOS is added; a text
                that begins with BOS does not get a second one.
            images: Images in reading order (see `load_picture`), as a flat list or as one list per text.
            padding: As in transformers' tokenizers.
            padding_side: Side of the padding; the left by default.
            pad_to_multiple_of: As in transformers' tokenizers.
            truncation: Whether to cut encoded texts to `max_length`. An error is raised if that would cut an image.
            max_length: Length for `truncation` and for `padding="max_length"`.
            add_special_tokens: `False` adds no BOS, for texts that contain it already.
            generation_mode: "image" appends the begin-of-image token to every text.
            return_tensors: "pt", "np" or `None` for lists.
            return_offsets_mapping: Also return `offset_mapping` `(B, T, 2)`, the character spans in `text`. The ids of
                an image have the span of its placeholder.
            return_text_replacement_offsets: Passed by transformers and ignored, because the offsets need no
                correction.
            videos: Must be `None`; transformers passes it.
            audio: Must be `None`; transformers passes it.

        Returns:
            A `BatchFeature` with `input_ids` and `attention_mask` `(B, T)` if there is text, and `pixel_values`
            `(M, 3, S, S)` if there are images; see the module docstring.

        Raises:
            FileNotFoundError: If an image is given as a path that does not exist.
            TypeError: If `text` is neither a string nor a list of strings, or another argument is of the wrong type.
            ValueError: If the numbers of placeholders and images differ, an image cannot be decoded, or an argument is
                out of range.
        """
        if videos is not None or audio is not None:
            raise ValueError("`videos` and `audio` must be None, got videos or audio: pass text and images only.")
        check_choice(generation_mode, "generation_mode", ("text", "image"))
        check_batch_options(
            padding=padding,
            padding_side=padding_side,
            pad_to_multiple_of=pad_to_multiple_of,
            truncation=truncation,
            max_length=max_length,
            return_tensors=return_tensors,
            add_special_tokens=add_special_tokens,
            return_offsets_mapping=return_offsets_mapping,
        )
        if text is None and images is None:
            raise ValueError("`text` or `images` must be given, got neither: pass one or both.")
        data: dict[str, Any] = {}
        if text is not None:
            suffix = self.boi_token if generation_mode == "image" else ""
            texts = [one + suffix for one in check_texts(text, "text")]
            rows = encode(self.tokenizer, texts, add_special_tokens=add_special_tokens)
            image_id = self.image_token_id
            counts = [sum(token == image_id for token, _ in row) for row in rows]
            check_counts(counts, images, image_token=self.image_token)
            spliced_ids = [self.boi_token_id, *[image_id] * self.num_image_tokens, self.eoi_token_id]
            rows = [splice_images(row, image_id=image_id, spliced_ids=spliced_ids) for row in rows]
            if truncation and max_length is not None:
                cut = {"max_length": max_length, "side": self.tokenizer.truncation_side, "image_id": image_id}
                rows = [truncate(row, **cut) for row in rows]
            options: dict[str, Any] = {
                "padding_side": padding_side,
                "padding": padding,
                "pad_to_multiple_of": pad_to_multiple_of,
            }
            if padding == "max_length":
                options["max_length"] = max_length
            data = collate(self.tokenizer, rows, **options)
            if not return_offsets_mapping:
                del data["offset_mapping"]
        if sources := flatten_images(images):
            data.update(self.image_processor(sources, return_tensors=return_tensors))
        return BatchFeature(data, tensor_type=return_tensors)

    def prepare_image_generation(
        self, prompts: str | Sequence[str], negative_prompts: str | Sequence[str] | None = None
    ) -> BatchFeature:
        """Turn text-to-image prompts into the inputs of `model.generate_images`, padded on the left.

        No system prompt is added. Special-token strings inside a prompt become special tokens, as in
        deepseek-ai/Janus.

        Args:
            prompts: One image description or B descriptions.
            negative_prompts: Descriptions that guidance steers away from: one for all prompts, or one per prompt.

        Returns:
            A `BatchFeature` with `input_ids` and `attention_mask` `(B, T)` int64, and with negative prompts also
            `negative_input_ids` and `negative_attention_mask` `(B, T')`.

        Raises:
            TypeError: If a prompt is no string.
            ValueError: If there is no prompt, or the number of negative prompts is neither one nor B.
        """
        positives = check_texts(prompts, "prompts")
        batch = self._generation_batch(positives)
        if negative_prompts is not None:
            negatives = check_texts(negative_prompts, "negative_prompts")
            if isinstance(negative_prompts, str):
                negatives = negatives * len(positives)
            if len(negatives) != len(positives):
                raise ValueError(
                    f"`negative_prompts` must be one prompt, or one for each of the {len(positives)} prompts, got "
                    f"{len(negatives)}: pass a single string for all."
                )
            batch |= {f"negative_{key}": value for key, value in self._generation_batch(negatives).items()}
        return BatchFeature(batch, tensor_type="pt")

    def _generation_batch(self, prompts: list[str]) -> dict[str, Any]:
        """Render, tokenize and pad text-to-image prompts; return `input_ids` and `attention_mask` as nested lists."""
        texts = [render_generation_prompt(prompt, roles=self.roles, boi_token=self.boi_token) for prompt in prompts]
        batch = collate(self.tokenizer, encode(self.tokenizer, texts))
        del batch["offset_mapping"]
        return batch


def _are_roles(roles: object) -> bool:
    """Return whether `roles` is a sequence of two names, one for the user and one for the assistant."""
    if isinstance(roles, str) or not isinstance(roles, Sequence) or len(roles) != 2:
        return False
    return all(isinstance(name, str) and name for name in roles)


def _is_integer(value: object) -> bool:
    """Return whether a setting of a file is a whole number, which `True` and `False` are not."""
    return isinstance(value, int) and not isinstance(value, bool)
