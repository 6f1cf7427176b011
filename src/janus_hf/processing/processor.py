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

from ..arguments import check_choice, check_flag
from ..layouts.special_tokens import BOI_TOKEN, EOI_TOKEN, IMAGE_TOKEN, PAD_TOKEN, Tags
from ..tokenizer import fit_tokenizer
from .batching import (
    check_texts,
    collate,
    encode,
    make_text_batch,
    sort_keywords,
)
from .conversations import ConversationRendering
from .decoding import OutputDecoding
from .image_processor import JanusProImageProcessor
from .pictures import flatten_images
from .prompts import (
    ROLES,
    ROLES_BY_FORMAT,
    SYSTEM_PROMPT,
    CloseTurns,
    build_chat_template,
    render_generation_prompt,
)
from .saving import ProcessorFiles
from .untrusted_text import MarkedText


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
        parse_special_tokens: Whether special tokens that stand in the text of a message become special tokens, as in
            deepseek-ai/Janus. A user can forge turns and images with them: pass `False` where texts are not trusted.
            Then only the special tokens of the chat template are special, and images are given as image parts. Where
            role names are ordinary words (Janus-1.3B, JanusFlow), a line of a message that begins with a role and a
            colon still looks like a turn.
        close_turns: "by_role" ends every turn of the assistant with end-of-sentence; "by_number" ends every second
            turn with it, whatever its role, as deepseek-ai/Janus does. The two differ only where two turns of one role
            follow each other.

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
        parse_special_tokens: bool = True,
        close_turns: CloseTurns = "by_role",
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
        check_flag(parse_special_tokens, "parse_special_tokens")
        check_choice(close_turns, "close_turns", ("by_role", "by_number"))
        tags = Tags(image_tag, image_start_tag, image_end_tag, pad_tag, image_gen_tag)
        self.num_image_tokens = num_image_tokens
        self.sft_format = sft_format
        self.roles = (roles[0], roles[1])
        self.system_prompt = system_prompt or ""
        self.image_token, self.boi_token, self.eoi_token = image_tag, image_start_tag, image_end_tag
        self.pad_tag, self.image_gen_tag = pad_tag, image_gen_tag
        self.mask_prompt, self.ignore_id = mask_prompt, ignore_id
        self.parse_special_tokens, self.close_turns = parse_special_tokens, close_turns
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
        """Return the chat template of deepseek-ai/Janus with the current `roles`, `system_prompt`, `close_turns`."""
        return build_chat_template(
            roles=self.roles,
            system_prompt=self.system_prompt,
            image_token=self.image_token,
            close_turns=self.close_turns,
        )

    @property
    def structure(self) -> tuple[str, ...]:
        """Texts that shape a prompt, and never come from a message with `parse_special_tokens=False`.

        They are the tokens of images and the names of roles. Those that are no single token of their own, as the role
        names of Janus-1.3B, are ordinary words nevertheless.
        """
        tags = (self.image_token, self.boi_token, self.eoi_token, self.pad_tag, self.image_gen_tag)
        return (*self.roles, *ROLES, *(tag for tag in tags if tag is not None))

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

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        images: Any = None,
        *,
        generation_mode: Literal["text", "image"] = "text",
        parse_special_tokens: bool | None = None,
        videos: None = None,
        audio: None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Tokenize rendered text, prepare its images, and return both as one batch for the model.

        Args:
            text: One string or B strings, already rendered, with one placeholder token per image. BOS is added; a text
                that begins with BOS does not get a second one.
            images: Images in reading order (see `load_picture`), as a flat list or as one list per text.
            generation_mode: "image" appends the begin-of-image token to every text.
            parse_special_tokens: Whether special tokens that stand in the texts of messages become special tokens;
                `None` uses the processor's own setting. With `False`, a text that `apply_chat_template` returned with
                the same setting keeps the special tokens of the template. All of any other text counts as the text of
                a message, also one that was changed.
            videos: Must be `None`; transformers passes it.
            audio: Must be `None`; transformers passes it.
            kwargs: Arguments on their own or in the groups `text_kwargs` and `images_kwargs`, as in transformers'
                `ProcessingKwargs`. Texts: `padding` (`True`), `padding_side` (left), `pad_to_multiple_of`,
                `truncation` (`False`; an error is raised if it would cut an image), `max_length`, `add_special_tokens`
                (`True`; `False` adds no BOS), `return_tensors` ("pt", "np", or `None` for lists), and for further keys
                of the result `return_offsets_mapping` (`offset_mapping` `(B, T, 2)`, the characters in `text`; the ids
                of an image have those of its placeholder), `return_length` (`length` `(B,)`, without padding),
                `return_special_tokens_mask` and `return_mm_token_type_ids` (`(B, T)`, 1 at special tokens or at
                placeholders). `return_attention_mask=False` leaves the mask out. `return_text_replacement_offsets` has
                no effect, because the offsets need no correction. Images: the settings of
                `JanusProImageProcessor.preprocess`, such as `do_rescale`.

        Returns:
            A `BatchFeature` with `input_ids` and `attention_mask` `(B, T)` if there is text, and `pixel_values`
            `(M, 3, S, S)` if there are images; see the module docstring.

        Raises:
            FileNotFoundError: If an image is given as a path that does not exist.
            TypeError: If `text` is neither a string nor a list of strings, or another argument is unknown or of the
                wrong type.
            ValueError: If the numbers of placeholders and images differ, an image cannot be decoded, or an argument is
                out of range, given twice, or cannot be followed.
        """
        if videos is not None or audio is not None:
            raise ValueError("`videos` and `audio` must be None, got videos or audio: pass text and images only.")
        check_choice(generation_mode, "generation_mode", ("text", "image"))
        parses = self._parses(parse_special_tokens)
        options, settings = sort_keywords(kwargs)
        if text is None and images is None:
            raise ValueError("`text` or `images` must be given, got neither: pass one or both.")
        data: dict[str, Any] = {}
        if text is not None:
            suffix = self.boi_token if generation_mode == "image" else ""
            texts = [self._marked(one, parses, suffix) for one in check_texts(text, "text")]
            data = make_text_batch(
                self.tokenizer,
                texts,
                images,
                options,
                structure=self.structure,
                image_token=self.image_token,
                image_ids=[self.boi_token_id, *[self.image_token_id] * self.num_image_tokens, self.eoi_token_id],
                parses=parses,
            )
        if sources := flatten_images(images):
            data.update(self.image_processor(sources, **{**settings, "return_tensors": options["return_tensors"]}))
        return BatchFeature(data, tensor_type=options["return_tensors"])

    def _parses(self, parse_special_tokens: bool | None) -> bool:
        """Return the caller's `parse_special_tokens`, or the processor's own if that is None."""
        if parse_special_tokens is None:
            return self.parse_special_tokens
        return check_flag(parse_special_tokens, "parse_special_tokens")

    def _marked(self, text: str, parses: bool, suffix: str) -> str:
        """Return a text followed by a special token, marked unless special tokens in messages are parsed."""
        if parses:
            return str(text) + suffix
        return (text if isinstance(text, MarkedText) else MarkedText(text)).with_own(suffix)

    def prepare_image_generation(
        self,
        prompts: str | Sequence[str],
        negative_prompts: str | Sequence[str] | None = None,
        *,
        parse_special_tokens: bool | None = None,
    ) -> BatchFeature:
        """Turn text-to-image prompts into the inputs of `model.generate_images`, padded on the left.

        No system prompt is added.

        Args:
            prompts: One image description or B descriptions.
            negative_prompts: Descriptions that guidance steers away from: one for all prompts, or one per prompt.
            parse_special_tokens: Whether special tokens that stand in a description become special tokens, as in
                deepseek-ai/Janus; `None` uses the processor's own setting.

        Returns:
            A `BatchFeature` with `input_ids` and `attention_mask` `(B, T)` int64, and with negative prompts also
            `negative_input_ids` and `negative_attention_mask` `(B, T')`.

        Raises:
            TypeError: If a prompt is no string.
            ValueError: If there is no prompt, or the number of negative prompts is neither one nor B.
        """
        positives = check_texts(prompts, "prompts")
        parses = self._parses(parse_special_tokens)
        batch = self._generation_batch(positives, parses)
        if negative_prompts is not None:
            negatives = check_texts(negative_prompts, "negative_prompts")
            if isinstance(negative_prompts, str):
                negatives = negatives * len(positives)
            if len(negatives) != len(positives):
                raise ValueError(
                    f"`negative_prompts` must be one prompt, or one for each of the {len(positives)} prompts, got "
                    f"{len(negatives)}: pass a single string for all."
                )
            batch |= {f"negative_{key}": value for key, value in self._generation_batch(negatives, parses).items()}
        return BatchFeature(batch, tensor_type="pt")

    def _generation_batch(self, prompts: list[str], parses: bool) -> dict[str, Any]:
        """Render, tokenize and pad text-to-image prompts; return `input_ids` and `attention_mask` as nested lists.

        Without `parses` no special token comes from a prompt.
        """
        texts = [render_generation_prompt(prompt, roles=self.roles, boi_token=self.boi_token) for prompt in prompts]
        if not parses:
            start = len(f"{self.roles[0]}: ")
            ends = [start + len(prompt.strip()) for prompt in prompts]
            texts = [
                MarkedText(text, (start <= place < end for place in range(len(text))))
                for text, end in zip(texts, ends, strict=True)
            ]
        batch = collate(self.tokenizer, encode(self.tokenizer, texts, structure=self.structure))
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
