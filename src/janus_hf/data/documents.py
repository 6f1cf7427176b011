"""Functions that turn raw rows into documents. A document is one tokenized training example: ids, labels and images.

All ids come from the methods of `JanusProProcessor` that inference calls, so training and inference cannot disagree.
The model is trained on the ids that it has to generate in inference: in a conversation everything that follows
"<|Assistant|>:", up to and including end-of-sentence; in a drawing row (a prompt and the image to generate) all image
codes, including the first one; in a plain text all ids except BOS.
"""

import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from ..processing import JanusProProcessor, load_picture
from ..processing.batching import encode, splice_images
from .reading.turns import Turn, read_turns
from .schema import IMAGE_MARK, RawRow, RowError, Task
from .streams.image_places import ImagePlaces


IGNORE = -100  # label of ids that are not trained; cross-entropy ignores it by default


@dataclass
class Document:
    """One tokenized training example: token ids, labels and images.

    A document for the task "drawing" (a prompt and the image to generate) first ends at begin-of-image (BOI). Then
    `add_codes` appends the codes of its image.

    Args:
        task: "text", "understanding" or "drawing".
        input_ids: Joint ids: text ids are below the vocabulary size V, and image code c is V + c.
        labels: The same ids, or -100 where nothing is trained; as long as `input_ids`.
        images: Encoded image files that an "understanding" document refers to, in reading order.
        prompt_end: Index of BOI in `input_ids` for the task "drawing", -1 for the others.
        target: Image that a "drawing" document trains the model to generate. None for other tasks, and once its codes
            are added.
    """

    task: Task
    input_ids: list[int]
    labels: list[int]
    images: list[bytes] = field(default_factory=list)
    prompt_end: int = -1
    target: Image.Image | None = None

    def add_codes(self, code_ids: list[int]) -> None:
        """Append the codes of the target image to ids and labels, and set `target` to None.

        Args:
            code_ids: The codes as joint ids: code c is V + c, V being the size of the text vocabulary.
        """
        self.input_ids, self.labels = self.input_ids + code_ids, self.labels + code_ids
        self.target = None

    def to_row(self) -> dict[str, Any]:
        """Return the document as a prepared row, which is a dict with the columns of `store.SCHEMA`."""
        row = {name: getattr(self, name) for name in ("input_ids", "labels", "task", "images", "prompt_end")}
        return row | {"length": len(self.input_ids)}


@dataclass(frozen=True)
class RowImages:
    """The images of one raw row (see `schema`), as `open_images` reads them.

    Args:
        files: Encoded image files of a conversation, in reading order; empty for other rows.
        target: Decoded image that a drawing row (prompt and image) trains the model to generate; None for other rows.
    """

    files: list[bytes] = field(default_factory=list)
    target: Image.Image | None = None


def open_images(row: RawRow, *, folder: str | os.PathLike[str] | ImagePlaces = ".") -> RowImages:
    """Read all images of a raw row, check that they can be decoded, and return them.

    Several threads may call this at the same time.

    Args:
        row: Dict with `messages`, with `prompt` and `image`, or with `text` (see `schema`).
        folder: Folder that relative image paths start from, or the reader of the images that rows name.

    Raises:
        RowError: If an image does not exist or cannot be decoded.
        SourceError: If an image is at an address that the reader does not allow.
    """
    places = folder if isinstance(folder, ImagePlaces) else ImagePlaces(folder)
    if "prompt" in row:
        return RowImages(target=_open(row.get("image"), places)[0])
    return RowImages(files=[_file(image, places) for image in row.get("images") or []])


def make_document(row: RawRow, images: RowImages, processor: JanusProProcessor) -> Document:
    """Tokenize a raw row (see `schema`) and return the document: ids, labels and images of one training example.

    Only one thread at a time may call this with one processor, because tokenizers are not safe in several threads.

    Args:
        row: Dict with `messages`, with `prompt` and `image`, or with `text`.
        images: Images of the row, as returned by `open_images`.
        processor: Processor of the model that will be trained.

    Raises:
        RowError: If the row cannot be used for training.
    """
    if "prompt" in row:
        return _drawing(row["prompt"], images.target, processor)
    if "messages" in row:
        return _conversation(row["messages"], images.files, processor)
    return _plain_text(row["text"], processor)


def _open(image: Any, places: ImagePlaces) -> tuple[Image.Image, bytes | None]:
    """Return `(image, content)`: a decoded image, and the bytes of its encoded file.

    The content is None unless the image was given as bytes or as the path of a file.

    Args:
        image: Anything that `load_picture` reads, or a `{"bytes", "path"}` dict of `datasets`.
        places: Reader of the images that rows name.

    Raises:
        RowError: If there is no image or no such file, or the file cannot be decoded.
    """
    is_own = isinstance(image, Mapping)
    if isinstance(image, Mapping):  # the form in which `datasets` hands out undecoded images
        if not {"bytes", "path"} & set(image):
            raise RowError("bad_picture", f"The dict of an image must have bytes or a path, got {sorted(image)}.")
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
    if isinstance(image, (str, os.PathLike)):
        image = places.read(image, is_own=is_own)
    if image is None:
        raise RowError("missing_picture", "The row must have an image, got None.")
    try:
        decoded = load_picture(image)
    except FileNotFoundError as error:
        raise RowError("missing_picture", f"{error} Relative paths start in {places.folder!r}.") from error
    except ValueError as error:
        # Memory addresses are removed, so that every run writes the same message to disk.
        raise RowError("bad_picture", re.sub(r" object at 0x[0-9a-f]+", "", str(error))) from error
    return decoded, image if isinstance(image, bytes) else None


def _file(image: Any, places: ImagePlaces) -> bytes:
    """Return an image as the bytes of an encoded file.

    Args:
        image: Bytes or a path, whose file is returned as it is, or another form that `load_picture` reads, which is
            encoded as PNG, without loss.
        places: Reader of the images that rows name.

    Raises:
        RowError: If there is no image or no such file, or the file cannot be decoded.
    """
    decoded, content = _open(image, places)
    if content is None:
        buffer = io.BytesIO()
        decoded.save(buffer, format="PNG")
        content = buffer.getvalue()
    return content


def _drawing(prompt: Any, target: Image.Image | None, processor: JanusProProcessor) -> Document:
    """Tokenize the prompt of an image to be generated, and return a document that ends at begin-of-image.

    The document keeps the image as its `target`, so that the caller can encode it and append the codes.

    Raises:
        RowError: If the prompt is empty, or holds the placeholder of an image to understand.
    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise RowError("empty_text", f"A prompt must be a non-empty string, got {prompt!r}.")
    ids = processor.prepare_image_generation(prompt)["input_ids"][0].tolist()
    # The model would replace a placeholder by the features of an image to understand, and this row has none.
    if processor.image_token_id in ids:
        raise RowError("picture_mismatch", f"A prompt must not hold {processor.image_token}, got {prompt[:200]!r}.")
    return Document("drawing", ids, [IGNORE] * len(ids), prompt_end=len(ids) - 1, target=target)


def _plain_text(text: Any, processor: JanusProProcessor) -> Document:
    """Tokenize a plain text and return its document: BOS, the text and end-of-sentence; all but BOS are trained."""
    if not isinstance(text, str) or not text.strip():
        raise RowError("empty_text", f"A text must be a non-empty string, got {text!r}.")
    ids = [*(token for token, _ in encode(processor.tokenizer, [text])[0]), processor.eos_token_id]
    if processor.image_token_id in ids:
        raise RowError("picture_mismatch", f"A plain text must not hold {processor.image_token}, got {text[:200]!r}.")
    return Document("text", ids, [IGNORE, *ids[1:]])


def _conversation(messages: Any, files: list[bytes], processor: JanusProProcessor) -> Document:
    """Tokenize a conversation and return its document, in which only the assistant's answers are trained.

    Args:
        messages: List of `{"role", "content"}` dicts, not yet checked. Answers with `"weight": 0` are not trained.
        files: Encoded image files that the conversation refers to, in reading order.
        processor: Processor of the model that will be trained.
    """
    checked = _check_messages(messages)
    is_trained = [turn.get("weight") != 0 for turn in checked if turn["role"] == "assistant"]
    turns = _mark_images(checked, len(files), processor.image_token)
    text = processor.apply_chat_template(turns)
    spans = _written_spans(turns, text, processor)
    trained = [span for span, weight in zip(spans, is_trained, strict=True) if weight]
    # These are the ids of `processor(text, images)`. The pixels are made later, by the collator.
    image_id = processor.image_token_id
    image_ids = [processor.boi_token_id, *[image_id] * processor.num_image_tokens, processor.eoi_token_id]
    pieces = splice_images(encode(processor.tokenizer, [text])[0], image_id=image_id, spliced_ids=image_ids)
    # A token is trained if any of its characters is, because one token may join the end of a prompt and an answer.
    labels = [
        token if any(start < last and end > first for first, last in trained) else IGNORE
        for token, (start, end) in pieces
    ]
    return Document("understanding" if files else "text", [token for token, _ in pieces], labels, files)


def _check_messages(messages: Any) -> list[Turn]:
    """Check the messages of a raw row, and return them as `{"role", "content"}` dicts whose contents are strings.

    Turns must alternate from the user (after an optional system message) to the assistant, because the prompt format
    puts end-of-sentence after every second turn, whatever its role.

    Raises:
        RowError: If the messages have another form, an answer is empty, or no answer is to be trained.
    """
    turns: list[Turn] = read_turns(messages)["messages"]
    roles = [turn["role"] for turn in turns]
    alternating = roles[1:] if roles[:1] == ["system"] else roles
    if not alternating or len(alternating) % 2 or alternating != ["user", "assistant"] * (len(alternating) // 2):
        raise RowError(
            "bad_conversation", f"`messages` must be turns of user and assistant, in this order, got {roles}."
        )
    answers = [turn for turn in turns if turn["role"] == "assistant"]
    if any(not turn["content"].strip() for turn in answers):
        raise RowError("empty_text", "Every answer must say something, got an empty one.")
    if all(turn.get("weight") == 0 for turn in answers):
        raise RowError("untrained", "The row must have an answer to train, got only answers of weight 0.")
    return turns


def _mark_images(turns: list[dict[str, str]], count: int, image_token: str) -> list[dict[str, str]]:
    """Return the turns of a conversation with the processor's image placeholder at the position of every image.

    A placeholder replaces each `<image>`. If there is no such mark, placeholders for all images are inserted before
    the text of the first user turn.

    Args:
        turns: Messages that `_check_messages` returned.
        count: Number of images of the conversation.
        image_token: The processor's placeholder for one image.

    Raises:
        RowError: If marks and images differ in number, or a mark is outside the user's turns.
    """
    turns = [{"role": turn["role"], "content": turn["content"].replace(IMAGE_MARK, image_token)} for turn in turns]
    marks = sum(turn["content"].count(image_token) for turn in turns)
    if marks == 0 and count:
        first = next(index for index, turn in enumerate(turns) if turn["role"] == "user")
        turns[first]["content"] = f"{image_token}\n" * count + turns[first]["content"]
    elif marks != count:
        raise RowError(
            "picture_mismatch", f"The row must have one image per {IMAGE_MARK}, got {marks} marks and {count} images."
        )
    if any(image_token in turn["content"] for turn in turns if turn["role"] != "user"):
        raise RowError("picture_mismatch", "Images must stand in the user's turns only, because answers are text.")
    return turns


def _written_spans(turns: list[dict[str, str]], text: str, processor: JanusProProcessor) -> list[tuple[int, int]]:
    """Return the spans `(start, end)` of characters in `text` that the model generates in inference, one per answer.

    A span begins where the rendered prompt of the answer ends, and ends where the conversation rendered up to this
    answer ends.

    Args:
        turns: Messages of the conversation.
        text: The whole conversation, rendered by the chat template of `processor`.
        processor: Processor whose chat template rendered `text`.
    """
    spans = []
    for index, turn in enumerate(turns):
        if turn["role"] == "assistant":
            prompt = processor.apply_chat_template(turns[:index], add_generation_prompt=True)
            answered = processor.apply_chat_template(turns[: index + 1])
            # A custom chat template may break either rule, and the labels would then be wrong without an error.
            assert text.startswith(answered), "the chat template is not incremental"
            assert answered.startswith(prompt), "the chat template does not go on from its own prompt"
            spans.append((len(prompt), len(answered)))
    return spans


__all__ = ["IGNORE", "Document", "RowImages", "make_document", "open_images"]
