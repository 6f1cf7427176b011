"""The class `Bench`, which gives a part of `benchmarks.gpu` its device, model sizes and time, and writes its rows."""

import gc
import json
import logging
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..reporting import NotAvailable


class Bench:
    """Device, model sizes and remaining time of a part, with methods that write its results.

    Args:
        device: "cuda" or "cpu".
        dry: Whether this is a dry run, which takes tiny models in place of those of released size.
        seconds: Seconds after which the part should stop by itself, because its process will be ended soon.
        results: File to which every row is appended as a line of JSON as soon as it is measured.
        topic: Name of the topic.
        part: Name of the part.
    """

    def __init__(self, device: str, dry: bool, seconds: float, results: Path, topic: str, part: str) -> None:
        self.device, self.dry, self.results = device, dry, results
        self.names = {"topic": topic, "part": part}
        self.deadline = time.monotonic() + seconds

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.startswith("cuda")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of full-size models: bfloat16 on a GPU; float32 on a CPU, most of which are slow in bfloat16."""
        return torch.bfloat16 if self.cuda else torch.float32

    def size(self, name: str) -> str:
        """Return the size of the model to make for rows about the size `name`: "dry" (tiny) in a dry run, else it."""
        return "dry" if self.dry else name

    def pick(self, full: Any, dry: Any) -> Any:
        """Return `dry` in a dry run, else `full`."""
        return dry if self.dry else full

    def left(self) -> float:
        """Return the number of seconds that are left for this part."""
        return self.deadline - time.monotonic()

    def emit(self, **record: Any) -> None:
        """Append a record to the file of results."""
        with self.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.names | record) + "\n")

    @contextmanager
    def row(self, *labels: str) -> Iterator[dict[str, Any]]:
        """Yield a dict for the values of the row with these labels, and write the row at the end of the context.

        An exception inside the context does not leave it: the row is written with the values measured before and with
        the exception as its note, and the part goes on with its other rows. If the package warns that it runs plain
        steps instead of captured ones, the warning becomes the note, because the row then measures plain steps.
        """
        values: dict[str, Any] = {}
        note = ""
        fallbacks = _Fallbacks()
        logging.getLogger("janus_hf").addHandler(fallbacks)
        try:
            yield values
            note = fallbacks.message
        except NotAvailable as error:
            note = _shorten(error)
        except Exception as error:
            note = describe(error)
            traceback.print_exc()
        logging.getLogger("janus_hf").removeHandler(fallbacks)
        self.emit(row=labels, values=values, note=note)
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()


class _Fallbacks(logging.Handler):
    """Log handler that keeps the first warning about plain steps, shortened to fit into a cell of a table."""

    message = ""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING and "plain steps" in text:
            self.message = self.message or text[:160]


def describe(error: BaseException) -> str:
    """Return the type and the first line of an exception, shortened to fit into a cell of a table."""
    return f"failed: {type(error).__name__}: {_shorten(error)}"


def _shorten(error: BaseException) -> str:
    """Return the first line of an exception's message, at most 160 characters."""
    return next(iter(str(error).strip().splitlines()), "")[:160]


__all__ = ["Bench", "describe"]
