"""The special tokens of Janus checkpoints, and the class `Tags` with those that processor_config.json may state.

deepseek-ai/Janus calls the text of a special token a tag. The ids of these tokens differ between checkpoints, so a
tokenizer always looks them up by their text.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self


BOS_TOKEN = "<｜begin▁of▁sentence｜>"
EOS_TOKEN = "<｜end▁of▁sentence｜>"
PAD_TOKEN = "<｜▁pad▁｜>"
BOI_TOKEN = "<begin_of_image>"
EOI_TOKEN = "<end_of_image>"
IMAGE_TOKEN = "<image_placeholder>"

# Tag in the files of deepseek-ai/Janus -> name of the same token in the tokenizer files of transformers' own Janus.
_NAMES_IN_TOKENIZER = {"image_tag": "image_token", "image_start_tag": "boi_token", "image_end_tag": "eoi_token"}


@dataclass(frozen=True)
class Tags:
    """The tags (texts of special tokens) of a checkpoint, by their keys in processor_config.json.

    The defaults are those of deepseek-ai/Janus, whose files leave out a tag that has its default.

    Args:
        image_tag: Placeholder token for one position of an image that the model understands.
        image_start_tag: Begin-of-image token.
        image_end_tag: End-of-image token.
        pad_tag: Padding token.
        image_gen_tag: Token that asks JanusFlow to generate an image; None in checkpoints that have none.

    Raises:
        ValueError: If a tag is empty or not a string, or two of the first four are equal.
    """

    image_tag: str = IMAGE_TOKEN
    image_start_tag: str = BOI_TOKEN
    image_end_tag: str = EOI_TOKEN
    pad_tag: str = PAD_TOKEN
    image_gen_tag: str | None = None

    def __post_init__(self) -> None:
        tags = {field.name: getattr(self, field.name) for field in fields(self)}
        if tags["image_gen_tag"] is None:
            del tags["image_gen_tag"]
        for name, tag in tags.items():
            if not isinstance(tag, str) or not tag:
                raise ValueError(
                    f"`{name}` must be the text of a token, got {tag!r}: correct it in processor_config.json."
                )
        distinct = {self.image_tag, self.image_start_tag, self.image_end_tag, self.pad_tag}
        if len(distinct) < 4:
            raise ValueError(
                "`image_tag`, `image_start_tag`, `image_end_tag` and `pad_tag` must be different tokens, got "
                f"{tags}: correct the repeated one in processor_config.json."
            )

    @classmethod
    def from_files(cls, processor_config: Mapping[str, Any], tokenizer: object) -> Self:
        """Return the tags that the files of a checkpoint state, with the defaults for those that no file states.

        Args:
            processor_config: Content of processor_config.json.
            tokenizer: The checkpoint's tokenizer. transformers' own Janus states three tags in the tokenizer's files,
                which become the attributes `image_token`, `boi_token` and `eoi_token` of the tokenizer.
                processor_config.json has precedence over them.

        Raises:
            ValueError: If the stated tags are not valid.
        """
        named = {tag: getattr(tokenizer, name, None) for tag, name in _NAMES_IN_TOKENIZER.items()}
        stated = {tag: token for tag, token in named.items() if token is not None}
        stated |= {field.name: processor_config[field.name] for field in fields(cls) if field.name in processor_config}
        return cls(**stated)

    def added_in_order(self) -> tuple[str, ...]:
        """Return the tags that are added to a tokenizer that lacks them, in the order in which they get their ids.

        The order is that of JanusFlow's code in deepseek-ai/Janus. If a checkpoint's tokenizer lacks several of these
        tokens, its weights were trained with the ids that follow from this order. The code for Janus-Pro adds only
        `image_tag`, which comes first.
        """
        order = (self.image_tag, self.image_gen_tag, self.image_start_tag, self.image_end_tag)
        return tuple(tag for tag in order if tag is not None)
