"""Functions and a class that the benchmarks share: options, printed tables, and measurements in a fresh process."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser of command lines whose help shows `doc`, the docstring of a module, with its line breaks."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the option `--device` to a parser; its default is "cuda" if a GPU is available, else "cpu"."""
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add the option `--output` to a parser: the path of the file that `Report.save` writes."""
    parser.add_argument("--output", type=Path, help="write the table here as well")


class NotAvailable(Exception):  # noqa: N818  the reason for an empty row of a table, not an error
    """Exception that says why something cannot be measured here."""


class Report:
    """Lines of text that are printed when they are added, and that `save` writes to a file."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, *lines: str) -> None:
        """Print lines immediately, even if standard output is buffered, and keep them for `save`."""
        self.lines += lines
        print("\n".join(lines), flush=True)

    def save(self, path: Path | None) -> None:
        """Write all lines to the file `path`; if it is None, write nothing."""
        if path is not None:
            path.write_text("\n".join(self.lines) + "\n", encoding="utf-8")


def measure_in_new_process(
    module: str, *arguments: str, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run `python -m module arguments` in a new process and return the JSON object that it prints as its last line.

    Args:
        module: Name of the module.
        arguments: Arguments of its command line.
        environment: Variables that the new process has besides those of this one.
    """
    command = [sys.executable, "-m", module, *arguments]
    variables = os.environ | dict(environment or {})
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=variables).stdout
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result
