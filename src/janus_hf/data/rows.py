"""Rows of one source -> prepared rows: what happens to a batch of them, wherever they come from and go to."""

import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeAlias

import torch

from ..processing import JanusProProcessor
from .documents import Document, make_document, open_pictures
from .schema import Adapter, RowError


Skipped: TypeAlias = list[tuple[int, str, str]]
"""Number of the row in its source, reason, message."""


class RowPreparer:
    """Rows of one source -> prepared rows. Reads and resizes pictures in threads, encodes them in batches.

    Args:
        model: `JanusProForConditionalGeneration`; its codec runs where it is, in its precision.
        max_length: Longer documents are skipped, never cut. By default the model's context.
        folder: Where relative picture paths start.
    """

    def __init__(
        self,
        model: Any,
        processor: JanusProProcessor,
        adapter: Adapter,
        *,
        task: str | None = None,
        names: Sequence[str] | None = None,
        max_length: int | None = None,
        batch_size: int = 32,
        num_threads: int = 4,
        folder: str = ".",
    ) -> None:
        if batch_size < 1 or num_threads < 1:
            raise ValueError(f"Expected batch_size and num_threads of at least 1; got {batch_size} and {num_threads}.")
        context = model.config.text_config.max_position_embeddings
        if not 1 <= (max_length or context) <= context:
            raise ValueError(f"Expected max_length in [1, {context}], the model's context; got {max_length}.")
        self.model, self.processor, self.adapter, self.names = model, processor, adapter, names
        self.task, self.folder, self.batch_size, self.num_threads = task, folder, batch_size, num_threads
        self.max_length = max_length or context
        self.lock = threading.Lock()

    def __call__(self, rows: Iterable[Mapping[str, Any]], start: int = 0) -> tuple[list[dict[str, Any]], Skipped]:
        """Returns prepared rows, in order, and `(number, reason, message)` of the others; numbers from `start`."""
        done: list[dict[str, Any]] = []
        skipped: Skipped = []
        numbered = enumerate(rows, start)
        with ThreadPoolExecutor(self.num_threads) as pool:
            while batch := list(islice(numbered, self.batch_size)):
                results = list(pool.map(self._document, (row for _, row in batch)))
                kept = [(document, pixels) for document, pixels in results if isinstance(document, Document)]
                self._add_codes(kept)
                done += [document.to_row() for document, _ in kept]
                for (number, _), (failure, _) in zip(batch, results, strict=True):
                    if isinstance(failure, RowError):
                        skipped.append((number, failure.reason, str(failure)))
        return done, skipped

    def _document(self, row: Mapping[str, Any]) -> tuple[Document | RowError, torch.Tensor | None]:
        """With the pixels `(1, 3, S, S)` of its target, if it has one."""
        try:
            try:
                raw = self.adapter.convert(row, self.names)
            except KeyError as error:  # rows of a list need not all have the first one's columns
                raise RowError("missing_column", f"Expected a column {error}; got {sorted(row)}.") from error
            pictures = open_pictures(raw, folder=self.folder)
            with self.lock:
                document = make_document(raw, pictures, self.processor)
            if self.task is not None and document.task != self.task:
                raise RowError("other_task", f"Expected a row for {self.task}; got one for {document.task}.")
            codes = self.model.config.vq_config.num_image_tokens if document.target is not None else 0
            if (length := len(document.input_ids) + codes) > self.max_length:
                raise RowError("too_long", f"Expected at most {self.max_length} ids; got {length}.")
            if document.target is None:
                return document, None
            pixels = self.processor.image_processor(document.target, mode="generation")["pixel_values"]
        except RowError as error:
            return error, None
        except ValueError as error:  # a picture that cannot be cropped to a square
            return RowError("bad_picture", str(error)), None
        return document, pixels

    def _add_codes(self, documents: Sequence[tuple[Document, torch.Tensor | None]]) -> None:
        drawings = [(document, pixels) for document, pixels in documents if pixels is not None]
        if drawings:
            codes = self.model.encode_image_ids(torch.cat([pixels for _, pixels in drawings]))
            joint_ids = (codes + self.model.config.text_config.vocab_size).tolist()
            for (document, _), ids in zip(drawings, joint_ids, strict=True):
                document.add_codes(ids)
