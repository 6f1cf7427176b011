"""From packs of documents to the batch that `JanusProForConditionalGeneration.forward` trains on.

Documents of a row are isolated by position ids that restart at 0, WITHOUT an attention mask: transformers builds the
block-diagonal mask from positions only if there is no mask, and leaks silently between documents if there is one.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..processing import JanusProProcessor
from .documents import IGNORE
from .grey_image import grey_document
from .schema import TASKS


class JanusProCollator:
    """Function of a trainer that makes a batch of B rows from a list of B packs.

    A pack is a list of documents that share one row of the batch. Joint ids are token ids in which image code c is
    `V + c`, V being the size of the text vocabulary.

    | key | shape, dtype | meaning |
    |---|---|---|
    | `input_ids` | `(B, T)` int64 | joint ids; padding on the right is one more document |
    | `labels` | `(B, T)` int64 | joint ids, -100 where nothing is trained |
    | `position_ids` | `(B, T)` int64 | positions, from 0 in every document |
    | `pixel_values` | `(M, 3, S, S)` float32 | images to understand, in reading order |
    | `cu_seq_lens_q`, `_k` | `(documents + 1,)` int32 | with `varlen`: where documents start in `B * T` |
    | `max_length_q`, `_k` | int | with `varlen`: length of the longest document |
    | `task_ids` | `(B, T)` int64 | with `return_task_ids`: index in `TASKS` of each trained label, else -1 |

    If a batch has no image, an untrained document with a grey one is appended to the shortest row, or forms a row of
    its own if it does not fit there. So all ranks of a distributed run go through the vision tower.

    Args:
        processor: The processor of inference; it makes the pixels.
        caption_drop: Probability that a drawing row (a prompt and the image to generate) is learned without its
            prompt: all ids between BOS and BOI (begin-of-image) become padding that is attended to, as in the
            sampler's unconditional row. The length stays. `seed` and the document's `source`, `row` and `visit` alone
            decide, so that a resumed run and any rank decide the same.
        seed: Seed of the caption drop.
        max_length: Length of the longest row that the grey image may make: the model's context, not the length of
            packs, which are full. By default the tokenizer's `model_max_length`.
        pad_to: Pad all rows to this number of ids (static shapes); by default to the longest row of the batch.
        always_picture: False leaves batches without images without `pixel_values`. That is cheaper, and right where
            the vision tower and its aligner are not trained.
        varlen: Add the arguments of flash-attention's variable-length kernels.
        return_task_ids: Add `task_ids`, for losses per task. The model does not take them: pop them first.
    """

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
        if not 0 <= caption_drop <= 1:
            raise ValueError(f"`caption_drop` must be a probability in [0, 1], got {caption_drop}: 0 drops none.")
        self.processor, self.caption_drop, self.seed = processor, caption_drop, seed
        self.max_length = processor.tokenizer.model_max_length if max_length is None else max_length
        self.pad_to, self.always_picture = pad_to, always_picture
        self.varlen, self.return_task_ids = varlen, return_task_ids

    def __call__(self, packs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make a batch of tensors from packs.

        Args:
            packs: `{"documents": [prepared rows]}` dicts, or bare prepared rows, which are packs of one.

        Returns:
            The tensors of the class's table.

        Raises:
            ValueError: If there is nothing to collate, or a row is longer than `pad_to`.
        """
        if not packs:
            raise ValueError("`packs` must hold at least one pack, got none: leave out empty batches.")
        rows: list[list[Mapping[str, Any]]] = [
            list(pack["documents"]) if "documents" in pack else [pack] for pack in packs
        ]
        if self.always_picture and not any(document["images"] for row in rows for document in row):
            self._add_dummy(rows)
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
        images: list[Any] = []  # encoded files, or the grey image
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
                images += document["images"]
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
        if images:
            batch["pixel_values"] = self.processor.image_processor(images)["pixel_values"]
        return batch | (_varlen(starts, len(rows) * width) if self.varlen else {})

    def drops_caption(self, document: Mapping[str, Any]) -> bool:
        """Return whether a document is learned without its prompt at this visit of its row.

        Args:
            document: A prepared row with `source`, `row` and `visit`.

        Raises:
            ValueError: If the document does not say which row it is: all such documents would have the same fate.
        """
        # Where nothing is decided by chance, rows that do not say which they are can be collated too.
        if self.caption_drop in (0, 1):
            return bool(self.caption_drop)
        if missing := {"source", "row", "visit"} - set(document):
            raise ValueError(
                "A drawing row must say which row it is for its caption to be dropped, got one without "
                f"{sorted(missing)}: take it from a PackedDataset or stream_packs, or set caption_drop=0."
            )
        # A hash instead of a generator: the decision must not depend on which documents came before.
        identity = f"{self.seed}/{document['source']}/{document['row']}/{document['visit']}"
        number = int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "big")
        return number < self.caption_drop * 2**64

    def _input_ids(self, document: Mapping[str, Any]) -> np.ndarray:
        """Return the document's joint ids `(T,)`, with the prompt replaced by padding if it is dropped."""
        ids = np.asarray(document["input_ids"])
        if document["prompt_end"] < 0 or not self.drops_caption(document):
            return ids
        ids = ids.copy()  # because the caller's document must not change
        # BOS and BOI stay, as in the unconditional row that `generate_images` makes.
        ids[1 : document["prompt_end"]] = self.processor.pad_token_id
        return ids

    def _add_dummy(self, rows: list[list[Mapping[str, Any]]]) -> None:
        """Append an untrained document with a grey image to the shortest row, or as a row of its own, in place."""
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
    """Return the arguments of flash-attention's variable-length kernels.

    Args:
        starts: First positions of all documents in the flattened batch.
        total: Number of positions of the flattened batch.
    """
    bounds = torch.tensor([*starts, total], dtype=torch.int32)
    longest = int(bounds.diff().max())
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


__all__ = ["JanusProCollator"]
