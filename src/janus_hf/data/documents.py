"""Raw row -> document: the ids a model is trained on, which of them are trained, and the picture files it needs.

Every id comes from the calls that inference makes (`JanusProProcessor`), so training and inference cannot disagree.
What is trained is what inference would have to write: of a conversation all that follows "<|Assistant|>:" up to and
including end-of-sentence, of a drawing all codes (the first one too), of a plain text all but BOS.
"""

import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ..processing import JanusProProcessor, load_picture
from ..processing.batching import encode, splice_pictures
from .schema import IMAGE_MARK, RawRow, RowError, Task


IGNORE = -100


@dataclass
class Document:
    """One training example. For a drawing, `input_ids` and `labels` end at BOI until `add_codes` appends its codes.

    `input_ids` joint ids, `labels` the same or -100, equally long. `images` encoded files in reading order.
    `prompt_end` is the index of BOI in a drawing, -1 otherwise. `target` is the picture to be drawn.
    """

    task: Task
    input_ids: list[int]
    labels: list[int]
    images: list[bytes] = field(default_factory=list)
    prompt_end: int = -1
    target: Image.Image | None = None

    def add_codes(self, code_ids: list[int]) -> None:
        """Appends the target's codes, as joint ids."""
        self.input_ids, self.labels = self.input_ids + code_ids, self.labels + code_ids
        self.target = None

    def to_row(self) -> dict[str, Any]:
        """A prepared row, see `store.SCHEMA`."""
        row = {name: getattr(self, name) for name in ("input_ids", "labels", "task", "images", "prompt_end")}
        return row | {"length": len(self.input_ids)}


@dataclass(frozen=True)
class RowPictures:
    """The pictures of a raw row: `files` of a conversation, in reading order, or the decoded `target` of a drawing."""

    files: list[bytes] = field(default_factory=list)
    target: Image.Image | None = None


def open_pictures(row: RawRow, *, folder: str | os.PathLike[str] = ".") -> RowPictures:
    """Reads and decodes all pictures of a raw row; safe in threads. Relative paths start in `folder`.

    Raises:
        RowError: There is no such picture, or it does not decode.
    """
    if "prompt" in row:
        return RowPictures(target=_open(row.get("image"), Path(folder))[0])
    return RowPictures(files=[_file(picture, Path(folder)) for picture in row.get("images") or []])


def make_document(row: RawRow, pictures: RowPictures, processor: JanusProProcessor) -> Document:
    """Raw row (see `schema`) and its opened pictures -> document. NOT safe in threads: tokenizers are not.

    Raises:
        RowError: The row cannot be trained on.
    """
    if "prompt" in row:
        return _drawing(row["prompt"], pictures.target, processor)
    if "messages" in row:
        return _conversation(row["messages"], pictures.files, processor)
    return _plain_text(row["text"], processor)


def _open(picture: Any, folder: Path) -> tuple[Image.Image, bytes | None]:
    """Any picture -> decoded, and the bytes of its file if there is one.

    Raises:
        RowError: There is no such file, or it does not decode.
    """
    if isinstance(picture, Mapping):  # how `datasets` hands out undecoded pictures
        picture = picture["path"] if picture.get("bytes") is None else picture["bytes"]
    if isinstance(picture, (str, os.PathLike)) and (folder / picture).is_file():
        picture = (folder / picture).read_bytes()
    if picture is None:
        raise RowError("missing_picture", "Expected a picture; got None.")
    try:
        decoded = load_picture(picture)
    except FileNotFoundError as error:
        raise RowError("missing_picture", f"{error} Relative paths start in {str(folder)!r}.") from error
    except ValueError as error:
        # Without memory addresses: what is written to disk is the same in every run.
        raise RowError("bad_picture", re.sub(r" object at 0x[0-9a-f]+", "", str(error))) from error
    return decoded, picture if isinstance(picture, bytes) else None


def _file(picture: Any, folder: Path) -> bytes:
    """Any picture -> an encoded file: its own, else a PNG."""
    decoded, content = _open(picture, folder)
    if content is None:
        buffer = io.BytesIO()
        decoded.save(buffer, format="PNG")
        content = buffer.getvalue()
    return content


def _drawing(prompt: Any, target: Image.Image | None, processor: JanusProProcessor) -> Document:
    if not isinstance(prompt, str) or not prompt.strip():
        raise RowError("empty_text", f"Expected a prompt, a non-empty string; got {prompt!r}.")
    ids = processor.prepare_image_generation(prompt)["input_ids"][0].tolist()
    if processor.image_token_id in ids:
        raise RowError("picture_mismatch", f"A prompt cannot hold {processor.image_token}; got {prompt[:200]!r}.")
    return Document("drawing", ids, [IGNORE] * len(ids), prompt_end=len(ids) - 1, target=target)


def _plain_text(text: Any, processor: JanusProProcessor) -> Document:
    if not isinstance(text, str) or not text.strip():
        raise RowError("empty_text", f"Expected a non-empty string; got {text!r}.")
    ids = [*(token for token, _ in encode(processor.tokenizer, [text])[0]), processor.eos_token_id]
    if processor.image_token_id in ids:
        raise RowError("picture_mismatch", f"A plain text cannot hold {processor.image_token}; got {text[:200]!r}.")
    return Document("text", ids, [IGNORE, *ids[1:]])


def _conversation(messages: Any, files: list[bytes], processor: JanusProProcessor) -> Document:
    turns = _place_pictures(_check_messages(messages), len(files), processor.image_token)
    text = processor.apply_chat_template(turns)
    trained = _written_spans(turns, text, processor)
    # What `processor(text, pictures)` does, without making the pixels: those are the collator's.
    image_id = processor.image_token_id
    picture_ids = [processor.boi_token_id, *[image_id] * processor.num_image_tokens, processor.eoi_token_id]
    pieces = splice_pictures(encode(processor.tokenizer, [text])[0], image_id=image_id, picture_ids=picture_ids)
    labels = [
        token if any(start < last and end > first for first, last in trained) else IGNORE
        for token, (start, end) in pieces
    ]
    return Document("understanding" if files else "text", [token for token, _ in pieces], labels, files)


def _check_messages(messages: Any) -> list[dict[str, str]]:
    """Alternating turns of strings, from the user (after an optional system message) to the assistant.

    Roles must alternate because the prompt format puts end-of-sentence after every second turn, whoever speaks.
    """
    if not isinstance(messages, (list, tuple)) or not all(isinstance(turn, Mapping) for turn in messages):
        raise RowError("bad_conversation", f"Expected a list of messages; got {str(messages)[:200]}.")
    roles = [turn.get("role") for turn in messages]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if not spoken or len(spoken) % 2 or spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise RowError("bad_conversation", f"Expected turns of user and assistant, in this order; got {roles}.")
    turns = [{"role": turn["role"], "content": _content(turn.get("content"))} for turn in messages]
    if any(not turn["content"].strip() for turn in turns if turn["role"] == "assistant"):
        raise RowError("empty_text", "Expected answers that say something; got an empty one.")
    return turns


def _content(content: Any) -> str:
    """A string, or a list of parts `{"type": "text" | "image", ...}` -> a string with marks for pictures."""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)) or not all(isinstance(part, Mapping) for part in content):
        raise RowError("bad_conversation", f"Expected content to be a string or a list of parts; got {content!r}.")
    return "\n".join(IMAGE_MARK if part.get("type") == "image" else part.get("text") or "" for part in content)


def _place_pictures(turns: list[dict[str, str]], count: int, image_token: str) -> list[dict[str, str]]:
    turns = [turn | {"content": turn["content"].replace(IMAGE_MARK, image_token)} for turn in turns]
    marks = sum(turn["content"].count(image_token) for turn in turns)
    if marks == 0 and count:
        first = next(index for index, turn in enumerate(turns) if turn["role"] == "user")
        turns[first]["content"] = f"{image_token}\n" * count + turns[first]["content"]
    elif marks != count:
        raise RowError("picture_mismatch", f"Expected one picture per {IMAGE_MARK}; got {marks} and {count} pictures.")
    if any(image_token in turn["content"] for turn in turns if turn["role"] != "user"):
        raise RowError("picture_mismatch", "Expected pictures in the user's turns only: answers are text.")
    return turns


def _written_spans(turns: list[dict[str, str]], text: str, processor: JanusProProcessor) -> list[tuple[int, int]]:
    """The characters of `text` that inference would write: per answer, what its rendering adds to its prompt's."""
    spans = []
    for index, turn in enumerate(turns):
        if turn["role"] == "assistant":
            prompt = processor.apply_chat_template(turns[:index], add_generation_prompt=True)
            answered = processor.apply_chat_template(turns[: index + 1])
            assert text.startswith(answered), "the chat template is not incremental"
            assert answered.startswith(prompt), "the chat template does not go on from its own prompt"
            spans.append((len(prompt), len(answered)))
    return spans
