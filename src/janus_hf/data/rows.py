"""`RowPreparer`, which turns rows of a data set into prepared rows: token ids, labels and image files.

It works on one batch of rows at a time. Its callers decide where rows are read from and where results are stored.
"""

import os
import threading
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import torch

from ..generation.context import context_length
from ..processing import JanusProProcessor
from ..protocols import HasImageTokens
from ..tokenizer import check_text_ids
from .documents import Document, make_document, open_images
from .integrity.bad_rows import MAX_BAD_SHARE, BadRows
from .integrity.precision import float32_codec
from .opened import OpenedSource
from .reading.adapter import open_members
from .schema import RowError, SourceError
from .sources import describe, is_elsewhere, source_folder
from .streams.image_places import ImagePlaces


Skipped: TypeAlias = list[tuple[int, str, str]]
"""Skipped rows: number of the row in its source, reason, message."""

# What `RowPreparer._document` returns.
_Result: TypeAlias = "tuple[Document | RowError, torch.Tensor | None]"
# Rows whose images are read: number of the row, and what `_document` will return for it.
_Batch: TypeAlias = "list[tuple[int, Future[_Result]]]"

# Batches of which the threads read rows while the model encodes the images of the batch before.
_BATCHES_AHEAD = 1
_MOST_THREADS = 16  # by default


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments of `prepare` that say how rows of an opened source are prepared and written; see there.

    Those that say how a source is opened are in `OpenedSource`.
    """

    max_length: int | None = None
    batch_size: int = 32
    num_threads: int | None = None
    num_shards: int | None = None
    rows_per_shard: int | None = None
    rank: int | None = None
    world_size: int | None = None
    folder: str | os.PathLike[str] | None = None
    image_hosts: Collection[str] = ()
    max_bad_share: float = MAX_BAD_SHARE


class RowPreparer:
    """Callable that turns rows of one source (data set) into prepared rows, dicts with the columns of `store.SCHEMA`.

    Images are read and resized in several threads. Images to be generated are encoded as codes in batches; meanwhile
    the threads read the next batch.

    Args:
        model: `JanusProForConditionalGeneration`. Its codec (image tokenizer) runs on the model's device, and in
            float32 whatever its dtype is.
        processor: The model's processor.
        opened: The source, with the adapter that converts its columns to raw rows (see `schema`).
        settings: Arguments of `prepare`; those about shards and processes are not used here.
    """

    def __init__(
        self,
        model: HasImageTokens,
        processor: JanusProProcessor,
        opened: OpenedSource,
        settings: Settings,
    ) -> None:
        batch_size, num_threads, max_length = settings.batch_size, settings.num_threads, settings.max_length
        if num_threads is None:
            num_threads = max(4, min(os.cpu_count() or 1, _MOST_THREADS))
        if batch_size < 1 or num_threads < 1:
            raise ValueError(
                f"`batch_size` and `num_threads` must be at least 1, got {batch_size} and {num_threads}: raise them, "
                "or leave them out."
            )
        if not processor.parse_special_tokens:
            raise ValueError(
                "`processor.parse_special_tokens` must be True to prepare training data, got False: set it, because "
                "rows mark their images by placeholders in the text."
            )
        context = context_length(model.config.text_config)
        if not 1 <= (max_length or context) <= context:
            raise ValueError(
                f"`max_length` must be in [1, {context}], the model's context, got {max_length}: lower it, or leave "
                "it out."
            )
        self.model, self.processor, self.opened = model, processor, opened
        self.places = ImagePlaces(
            settings.folder or opened.root or source_folder(opened.source),
            source=describe(opened.source),
            is_remote=is_elsewhere(opened.source),
            hosts=settings.image_hosts,
            options=opened.options,
        )
        self.batch_size, self.num_threads = batch_size, num_threads
        self.bad_rows = BadRows(settings.max_bad_share, describe(opened.source))
        self.late_columns: set[str] = set()
        self.max_length = max_length or context
        self.lock = threading.Lock()

    def __call__(
        self, rows: Iterable[Mapping[str, Any]], start: int = 0, place: str = "the source"
    ) -> tuple[list[dict[str, Any]], Skipped]:
        """Turn rows of the source into prepared rows, and skip rows that cannot be used for training.

        Args:
            rows: Consecutive rows of the source.
            start: Number of the first of these rows in the source, or in a part of it, counted from 0.
            place: Words for the source, or for the part, in messages.

        Returns:
            The prepared rows, in the order of `rows`, and a list with the tuple `(number of the row in the source,
            reason, message)` of every skipped row.

        Raises:
            SourceError: If a row holds content that the adapter does not use.
            ValueError: If a text has a token that was added to the tokenizer and not to the model, or too many of the
                rows so far could not be used.
        """
        done: list[dict[str, Any]] = []
        skipped: Skipped = []
        for batch in self._batches(enumerate(rows, start), place):
            kept = [(document, pixels) for _, (document, pixels) in batch if isinstance(document, Document)]
            for document, _ in kept:
                self._check_ids(document)
            self._add_codes(kept)
            # Lists of ids take several times the memory of arrays, and a shard has thousands of rows.
            done += [
                row | {name: np.asarray(row[name], dtype=np.int32) for name in ("input_ids", "labels")}
                for row in (document.to_row() for document, _ in kept)
            ]
            bad = [
                (number, failure.reason, str(failure))
                for number, (failure, _) in batch
                if isinstance(failure, RowError)
            ]
            skipped += bad
            self.bad_rows.add(len(batch), bad, place)
            del batch, kept  # with their images, before more are read
        return done, skipped

    def _batches(
        self, numbered: Iterator[tuple[int, Mapping[str, Any]]], place: str
    ) -> Iterator[list[tuple[int, _Result]]]:
        """Iterate over batches of `(number of a row, result of _document)`; threads work on the next batch meanwhile.

        Args:
            numbered: Pairs of the number of a row and the row.
            place: Words for where the rows are, in messages.
        """
        # Rows are read in a thread too, because those of a stream may come from far away.
        reader, pool = ThreadPoolExecutor(1), ThreadPoolExecutor(self.num_threads)
        ahead: deque[Future[_Batch]] = deque()
        try:
            while True:
                while len(ahead) <= _BATCHES_AHEAD:
                    ahead.append(reader.submit(self._read_batch, numbered, pool))
                batch = ahead.popleft().result()
                if not batch:
                    return
                results = [(number, _result(number, future, place)) for number, future in batch]
                del batch  # the futures hold the images too
                yield results
                del results
        finally:
            reader.shutdown(cancel_futures=True)
            pool.shutdown(cancel_futures=True)

    def _read_batch(self, numbered: Iterator[tuple[int, Mapping[str, Any]]], pool: ThreadPoolExecutor) -> _Batch:
        """Read the next rows, and let the threads of a pool read and resize their images."""
        batch: _Batch = []
        for number, row in islice(numbered, self.batch_size):
            self._note_late_columns(row)
            batch.append((number, pool.submit(self._document, row)))
        return batch

    def take_late_columns(self) -> list[str]:
        """Return the names of the columns that only later rows of a stream had, and forget them."""
        late, self.late_columns = self.late_columns - self.opened.columns.adapter.readable, set()
        return sorted(late)

    def _note_late_columns(self, row: Mapping[str, Any]) -> None:
        """Note the columns of a row that the first row of a stream did not have."""
        known = self.opened.columns.names
        if any(name not in known for name in row):
            self.late_columns |= open_members(row, self.opened.ignore).keys() - set(known)

    def _check_ids(self, document: Document) -> None:
        """Raise a ValueError if the text of a document, which has no codes yet, has a token that the model lacks.

        That is no fault of the row: every row with such a token would be skipped.
        """
        limit = self.model.config.text_config.vocab_size
        ids = document.input_ids
        if not ids or (min(ids) >= 0 and max(ids) < limit):
            return  # nearly every text; tensors of single rows would take longer than their tokens
        check_text_ids(torch.tensor(ids), limit, placeholder=self.processor.image_token_id)

    def _document(self, row: Mapping[str, Any]) -> _Result:
        """Tokenize one row, and read the image to be generated if the row has one.

        Returns:
            `(document, pixels)`: the tokenized row, and the pixels `(1, 3, S, S)` of the image to be generated, or
            None if there is none. For a row that must be skipped, `(error, None)`: the `RowError` is returned and not
            raised, because one bad row must not stop the other rows of its batch.
        """
        try:
            raw = self.opened.columns.adapter.convert(row, self.opened.class_names, self.opened.ignore)
            images = open_images(raw, folder=self.places)
            # Only reading and resizing images is faster in threads, and tokenizers are not safe in several threads.
            with self.lock:
                document = make_document(raw, images, self.processor)
            task = self.opened.task
            if task is not None and document.task != task:
                raise RowError("other_task", f"The row must be one for {task}, got one for {document.task}.")
            # Codes are added later but counted now, because encoding the image of a skipped row would be wasted work.
            codes = self.model.config.vq_config.num_image_tokens if document.target is not None else 0
            if (length := len(document.input_ids) + codes) > self.max_length:
                raise RowError("too_long", f"The row must have at most {self.max_length} ids, got {length}.")
            if document.target is None:
                return document, None
            pixels = self.processor.image_processor(document.target, mode="generation")["pixel_values"]
        except RowError as error:
            return error, None
        except SourceError:  # it concerns all rows
            raise
        except TypeError as error:
            # JSON can hold half of a pair of surrogates ("\\ud83d"), which tokenizers do not take for a string.
            if not _has_surrogates(row):
                raise
            return RowError(
                "bad_text", f"Texts must be valid Unicode, got half of a pair of surrogates: {error}"
            ), None
        except ValueError as error:  # an image that cannot be cropped to a square
            return RowError("bad_picture", str(error)), None
        return document, pixels

    def _add_codes(self, documents: Sequence[tuple[Document, torch.Tensor | None]]) -> None:
        """Encode the images to be generated in one batch, and append their codes to the documents (tokenized rows).

        Args:
            documents: Pairs `(document, pixels)` as `_document` returns them. Documents whose pixels are None do not
                change.
        """
        drawings = [(document, pixels) for document, pixels in documents if pixels is not None]
        if drawings:
            with float32_codec(self.model.model.vqmodel):
                codes = self.model.encode_image_ids(torch.cat([pixels.float() for _, pixels in drawings]))
            joint_ids = (codes + self.model.config.text_config.vocab_size).tolist()
            for (document, _), ids in zip(drawings, joint_ids, strict=True):
                document.add_codes(ids)


def _result(number: int, future: Future[_Result], place: str) -> _Result:
    """Return what a thread made of a row. Any error names the row."""
    try:
        return future.result()
    except SourceError as error:
        raise SourceError(f"Row {number} of {place}: {error}") from error
    except Exception as error:  # an error that no row should cause keeps its type
        error.add_note(f"This happened in row {number} of {place}.")
        raise


def _has_surrogates(value: Any) -> bool:
    """Return whether a text in a row, or in a list or mapping in it, holds half of a pair of surrogates."""
    if isinstance(value, str):
        try:
            value.encode()  # much faster than looking at every character
        except UnicodeEncodeError:
            return True
        return False
    if isinstance(value, Mapping):
        return any(_has_surrogates(entry) for entry in value.values())
    return isinstance(value, list) and any(_has_surrogates(entry) for entry in value)


__all__ = ["RowPreparer", "Settings", "Skipped"]
