"""`JanusProCollator`, which makes a batch for `JanusProForConditionalGeneration.forward` from a list of packs.

A pack is a list of documents (tokenized rows) that share one row of the batch. The documents of a row are isolated by
position ids that restart at 0, WITHOUT an attention mask: transformers builds the block-diagonal mask from the
positions only if there is no mask. The model leaves out a mask without padding, and refuses any other.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from ..arguments import checked, integer
from ..processing import JanusProProcessor
from .documents import IGNORE
from .grey_image import grey_document
from .integrity.bad_rows import MAX_BAD_SHARE, BadRows
from .schema import TASKS


logger = logging.get_logger(__name__)


# Columns of prepared rows without which a batch cannot be made.
_NEEDED = frozenset({"input_ids", "labels", "task", "images", "prompt_end"})


class JanusProCollator:
    """Collate function for a trainer or DataLoader, which makes a batch of B rows from a list of B packs.

    A pack is a list of documents (tokenized rows) that share one row of the batch. Joint ids are token ids in which
    image code c is `V + c`, V being the size of the text vocabulary.

    | key | shape, dtype | meaning |
    |---|---|---|
    | `input_ids` | `(B, T)` int64 | joint ids; padding on the right is one more document |
    | `labels` | `(B, T)` int64 | joint ids, -100 where nothing is trained |
    | `position_ids` | `(B, T)` int64 | positions, from 0 in every document |
    | `pixel_values` | `(M, 3, S, S)` float32 | the M images to understand, in reading order |
    | `cu_seq_lens_q`, `_k` | `(documents + 1,)` int32 | with `varlen`: starts in the flattened batch, then `B * T` |
    | `max_length_q`, `_k` | int | with `varlen`: length of the longest document |
    | `task_ids` | `(B, T)` int64 | with `return_task_ids`: index in `TASKS` of each trained label, else -1 |

    If a batch has no image, an untrained document with a grey image is appended to the shortest row, or becomes a row
    of its own if it does not fit there. So all ranks of a distributed run go through the vision tower.

    A row with an image that cannot be decoded here, although preparation could, stays in its place and is not trained:
    all its labels are -100, and its images are grey. A warning names it. So all other rows stay where they are, and a
    resumed run has the same batches. If more than half of the rows with images (of at least 100) of a process are
    such, a ValueError ends the run.

    Args:
        processor: The processor that is used in inference; its image processor makes the pixels.
        caption_drop: Probability that a drawing document (a prompt and the image to generate) is learned without its
            prompt: all ids between BOS and BOI (begin-of-image) become padding ids that are attended to, as in the
            unconditional row of classifier-free guidance. The length stays the same. `seed` and the document's
            `source`, `row` and `visit` alone decide, so that a resumed run and any rank decide the same.
        seed: Seed of the caption drop.
        max_length: Largest length to which the grey image may extend a row: the model's context, not the length of
            packs, which are full. By default the tokenizer's `model_max_length`.
        pad_to: Pad all rows to this number of ids (static shapes); by default to the longest row of the batch.
        always_picture: Whether a batch without images gets a grey one. False leaves such batches without
            `pixel_values`, which is cheaper, and correct where the vision tower and its aligner are not trained.
        varlen: Add the arguments of flash-attention's variable-length kernels (see the table).
        return_task_ids: Add `task_ids`, from which losses per task are computed. The model does not accept them:
            remove them from the batch first.
    """

    @checked(max_length=integer(1, 4096))
    def __init__(
        self,
        processor: JanusProProcessor,
        *,
        caption_drop: float = 0.1,
        seed: int = 0,
        max_length: int | None = None,
        pad_to: int | None = None,
        always_picture: bool = True,
        varlen: bool = False,
        return_task_ids: bool = False,
    ) -> None:
        self.processor, self.caption_drop, self.seed = processor, caption_drop, seed
        self.max_length = processor.tokenizer.model_max_length if max_length is None else max_length
        self.pad_to, self.always_picture = pad_to, always_picture
        self.varlen, self.return_task_ids = varlen, return_task_ids
        self.bad_rows = BadRows(MAX_BAD_SHARE, "the prepared data")

    def __call__(self, packs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make a batch of tensors from packs.

        Args:
            packs: `{"documents": [prepared rows]}` dicts, one per row of the batch. A prepared row (dict with
                `input_ids`, `labels`, ...) may be given instead and is then the only document of its pack.

        Returns:
            A dict of tensors with the keys of the table in the class docstring.

        Raises:
            ValueError: If `packs` is empty, a row lacks a column of prepared rows or is longer than `pad_to`, or the
                images of too many rows cannot be decoded.
        """
        if not packs:
            raise ValueError("`packs` must hold at least one pack, got none: leave out empty batches.")
        rows: list[list[Mapping[str, Any]]] = [
            list(pack["documents"]) if "documents" in pack else [pack] for pack in packs
        ]
        if missing := next((lacks for row in rows for document in row if (lacks := _NEEDED - document.keys())), None):
            raise ValueError(
                f"`packs` must hold prepared rows with {', '.join(sorted(_NEEDED))}, got one without "
                f"{', '.join(sorted(missing))}: make rows with janus_hf.data.prepare, and write "
                "remove_unused_columns=False in the arguments of a transformers Trainer, which drops columns else."
            )
        if self.always_picture and not any(document["images"] for row in rows for document in row):
            self._add_dummy(rows)
        pixel_values = self._pixels(rows)
        lengths = [sum(len(document["input_ids"]) for document in row) for row in rows]
        width = self.pad_to or max(lengths)
        if max(lengths) > width:
            raise ValueError(
                f"Every row must have at most pad_to={width} ids, got one of {max(lengths)}: raise pad_to, or plan "
                "shorter packs."
            )

        shape = (len(rows), width)
        input_ids, labels = np.full(shape, self.processor.pad_token_id), np.full(shape, IGNORE)
        position_ids, task_ids = np.zeros(shape, dtype=np.int64), np.full(shape, -1)
        starts = []  # first positions of all documents, in the flattened batch
        for index, row in enumerate(rows):
            start = 0
            for document in row:
                end = start + len(document["input_ids"])
                input_ids[index, start:end] = self._input_ids(document)
                labels[index, start:end] = document["labels"]
                position_ids[index, start:end] = np.arange(end - start)
                trained = labels[index, start:end] != IGNORE
                task_ids[index, start:end][trained] = TASKS.index(document["task"])
                starts.append(index * width + start)
                start = end
            # Without a mask, padding must be a document too; otherwise it would continue the last one.
            if start < width:
                position_ids[index, start:] = np.arange(width - start)
                starts.append(index * width + start)

        arrays = {"input_ids": input_ids, "labels": labels, "position_ids": position_ids}
        if self.return_task_ids:
            arrays["task_ids"] = task_ids
        batch: dict[str, Any] = {name: torch.from_numpy(array.astype(np.int64)) for name, array in arrays.items()}
        if pixel_values is not None:
            batch["pixel_values"] = pixel_values
        return batch | (_varlen(starts, len(rows) * width) if self.varlen else {})

    def drops_caption(self, document: Mapping[str, Any]) -> bool:
        """Return whether a document is trained without its prompt: True with the probability `caption_drop`.

        A hash of `seed` and of the document's `source`, `row` and `visit` decides.

        Args:
            document: A prepared row with the keys `source` (name of its data set), `row` (which row of it) and `visit`
                (number of times that the row came before).

        Raises:
            ValueError: If one of these keys is missing, unless `caption_drop` is 0 or 1. The decision would be the
                same for all such documents.
        """
        # If nothing is decided by chance, a document need not have the keys that identify its row.
        if self.caption_drop in (0, 1):
            return bool(self.caption_drop)
        if missing := {"source", "row", "visit"} - set(document):
            raise ValueError(
                "A drawing row must say which row it is for its caption to be dropped, got one without "
                f"{sorted(missing)}: take it from a PackedDataset or stream_packs, or set caption_drop=0."
            )
        # A hash decides, because a random generator would make the decision depend on the documents before this one.
        identity = f"{self.seed}/{document['source']}/{document['row']}/{document['visit']}"
        number = int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "big")
        return number < self.caption_drop * 2**64

    def _pixels(self, rows: list[list[Mapping[str, Any]]]) -> torch.Tensor | None:
        """Return the pixels `(M, 3, S, S)` of all images of a batch, or None if it has none.

        Documents with images that cannot be decoded are replaced in place by untrained ones with grey images.

        Args:
            rows: The documents of every row of the batch.
        """
        with_images = [document for row in rows for document in row if document["images"]]
        if not with_images:
            return None
        try:
            pixel_values, bad = self._decoded(with_images), []
        except ValueError:
            bad = self._replace_bad(rows)
            pixel_values = self._decoded([document for row in rows for document in row if document["images"]])
        self.bad_rows.add(len(with_images), bad)
        return pixel_values

    def _replace_bad(self, rows: list[list[Mapping[str, Any]]]) -> list[tuple[Any, str, str]]:
        """Replace documents with images that cannot be decoded, in place, and return what `BadRows.add` counts."""
        bad: list[tuple[Any, str, str]] = []
        for row in rows:
            for place, document in enumerate(row):
                try:
                    self._decoded([document] if document["images"] else [])
                except ValueError as error:
                    row[place] = self._untrained(document)
                    name = f"{document.get('row')} of the source {document.get('source')!r}"
                    bad.append((name, "bad_picture", str(error)))
                    logger.warning(f"Row {name} is not trained, because its image cannot be decoded here: {error}")
        return bad

    def _decoded(self, documents: Sequence[Mapping[str, Any]]) -> torch.Tensor | None:
        """Return the pixels `(M, 3, S, S)` of the images of some documents; None without images."""
        images = [image for document in documents for image in document["images"]]
        if not images:
            return None
        pixel_values: torch.Tensor = self.processor.image_processor(images)["pixel_values"]
        return pixel_values

    def _untrained(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy of a document that has no labels, and grey images."""
        grey = grey_document(self.processor.image_token_id, self.processor.num_image_tokens)["images"]
        changed = {"labels": [IGNORE] * len(document["input_ids"]), "images": grey * len(document["images"])}
        return {**document, **changed}

    def _input_ids(self, document: Mapping[str, Any]) -> np.ndarray:
        """Return the token ids `(T,)` of a document, with padding ids for the prompt if `drops_caption` drops it."""
        ids = np.asarray(document["input_ids"])
        if document["prompt_end"] < 0 or not self.drops_caption(document):
            return ids
        ids = ids.copy()  # because the caller's document must not change
        # BOS and BOI stay, as in the unconditional row that `generate_images` makes.
        ids[1 : document["prompt_end"]] = self.processor.pad_token_id
        return ids

    def _add_dummy(self, rows: list[list[Mapping[str, Any]]]) -> None:
        """Add an untrained document with a grey image to a batch without images, in place.

        Args:
            rows: The documents of every row of the batch. The shortest row gets the document; if it does not fit
                there, it becomes a row of its own.
        """
        processor = self.processor
        dummy = grey_document(
            processor.image_token_id,
            processor.num_image_tokens,
            before=[processor.boi_token_id],
            after=[processor.eoi_token_id],
        )
        lengths = [sum(len(document["input_ids"]) for document in row) for row in rows]
        shortest = int(np.argmin(lengths))
        if lengths[shortest] + len(dummy["input_ids"]) <= (self.pad_to or self.max_length):
            rows[shortest].append(dummy)
        else:
            rows.append([dummy])


def _varlen(starts: list[int], total: int) -> dict[str, Any]:
    """Return the arguments of flash-attention's variable-length kernels as a dict.

    Args:
        starts: First positions of all documents (tokenized rows) in the flattened batch.
        total: Number of positions of the flattened batch.

    Returns:
        `cu_seq_lens_q` and `cu_seq_lens_k`, `starts` followed by `total`, `(documents + 1,)` int32; `max_length_q` and
        `max_length_k`, the length of the longest document.
    """
    bounds = torch.tensor([*starts, total], dtype=torch.int32)
    longest = int(bounds.diff().max())
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


__all__ = ["JanusProCollator"]
