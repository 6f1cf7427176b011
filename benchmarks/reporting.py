"""What the command lines of the benchmarks share: arguments, tables, and measuring in a fresh process."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is a module's docstring, line by line."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add `--device`: by default a GPU where there is one."""
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add `--output`, the file for `Report`."""
    parser.add_argument("--output", type=Path, help="write the table here as well")


class Report:
    """Lines that are printed as they come, and written to a file at the end."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, *lines: str) -> None:
        """Print lines at once, also where the output is buffered, and keep them."""
        self.lines += lines
        print("\n".join(lines), flush=True)

    def save(self, path: Path | None) -> None:
        """Write all lines to a file; None writes nothing."""
        if path is not None:
            path.write_text("\n".join(self.lines) + "\n", encoding="utf-8")


def measure_in_new_process(module: str, *arguments: str) -> dict[str, Any]:
    """Run `python -m module arguments` and return the JSON object that it prints as its last line."""
    command = [sys.executable, "-m", module, *arguments]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result
