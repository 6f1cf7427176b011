"""`Report`, the result of a benchmark, and functions that save and compare reports.

A report holds the metrics, a row for every judged image or answer, and the settings of the run.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..arguments import checked
from ..files import write_atomically
from .data_files import read_json_lines
from .paper import look_up, published
from .run_folder import processes


_NAMED_FAILURES = 20  # largest number of failures that `Report.to_markdown` lists


@dataclass(repr=False)
class Report:
    """The result of running one benchmark on one pipeline.

    Args:
        benchmark: Name of the benchmark, a key of `paper.BENCHMARKS`.
        metrics: Values by name of the metric, in the order in which they are printed, and in the units of the
            benchmark's published scores.
        primary: Name of the benchmark's main metric.
        protocol: How the metrics were measured, in one or a few sentences.
        settings: Everything needed to repeat the run, such as the result of `run_settings`; JSON values.
        rows: One dictionary per judged item, with the prompt or question, the image or answer, and the verdict.
        failures: One line of text per item that could not be judged. These items are not in `rows`.
        failures_counted: Number of failures that `metrics` count as wrong. The other failures are left out of the
            metrics.

    Raises:
        ValueError: If there are metrics, and `primary` is not the name of one of them.
    """

    benchmark: str
    metrics: dict[str, float]
    primary: str
    protocol: str
    settings: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    failures_counted: int = 0

    def __post_init__(self) -> None:
        if self.metrics and self.primary not in self.metrics:
            raise ValueError(
                f"`primary` must be the name of a metric, got {self.primary!r}: choose one of {list(self.metrics)}."
            )

    def __repr__(self) -> str:
        value = "no metrics" if self.value is None else f"{self.primary}={self.value:g}"
        return f"Report({self.benchmark}: {value}, {len(self.rows)} rows, {len(self.failures)} failures)"

    def _repr_markdown_(self) -> str:
        """Return what a notebook shows for a report in the last line of a cell."""
        return self.to_markdown()

    @property
    def value(self) -> float | None:
        """Value of the primary metric; None if the benchmark needs an external judge or no item could be judged."""
        return self.metrics.get(self.primary)

    @property
    def failed_share(self) -> float:
        """Share of the benchmark's items (images or questions) that could not be judged, in [0, 1]."""
        return len(self.failures) / max(1, len(self.failures) + len(self.rows))

    def to_markdown(self) -> str:
        """Return the report as Markdown: metrics beside the papers' numbers, then protocol, failures and settings."""
        columns, digits = published(self.benchmark), look_up(self.benchmark).digits
        lines = [
            f"# {self.benchmark}",
            "",
            f"| {self.benchmark} | this run | {''.join(f'{name} | ' for name in columns)}".rstrip(),
            f"|---|---:|{'---:|' * len(columns)}",
        ]
        for name, value in self.metrics.items():
            title = f"**{name}**" if name == self.primary else name
            paper = "".join(f" {_number(values.get(name), digits)} |" for values in columns.values())
            lines.append(f"| {title} | {_number(value, digits)} |{paper}")
        verb = "Judged" if self.metrics else "Not judged here"
        lines += ["", self.protocol, "", f"{verb}: {len(self.rows)}. Failed: {len(self.failures)}"]
        counted = f"{self.failures_counted} of them, as wrong," if self.failures_counted else "not"
        share = f" ({100 * self.failed_share:.2f} % of all), {counted} in the numbers above."
        lines[-1] += share if self.failures else "."
        lines += [f"* {line}" for line in self.failures[:_NAMED_FAILURES]]
        if len(self.failures) > _NAMED_FAILURES:
            lines.append(f"* ... and {len(self.failures) - _NAMED_FAILURES} more, in report.json")
        if self.settings:
            lines += ["", "```json", json.dumps(self.settings, indent=2, sort_keys=True), "```"]
        return "\n".join(lines) + "\n"

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the report into a folder.

        The files are `results.jsonl` with one line per row, `report.json` with all other fields, and `report.md` for
        readers.
        """
        folder = Path(folder)
        summary = {key.name: getattr(self, key.name) for key in fields(self) if key.name != "rows"}
        rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)
        # Write report.json last, because `load` takes its presence as the sign that the report is complete.
        write_atomically(folder / "results.jsonl", rows)
        write_atomically(folder / "report.md", self.to_markdown())
        write_atomically(folder / "report.json", json.dumps(summary, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Report":
        """Read the report that `save` wrote into a folder.

        Raises:
            FileNotFoundError: If the folder has no `report.json`.
        """
        path = Path(folder) / "report.json"
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no report.json: no benchmark has finished there.")
        rows = [row for _, row in read_json_lines(path.parent / "results.jsonl")]
        return cls(**json.loads(path.read_text(encoding="utf-8")), rows=rows)


def save_once(report: Report, folder: str | os.PathLike[str]) -> Report:
    """Save a report into a folder from the main process only, so that no two processes write the same files.

    Returns:
        The same report, in every process.
    """
    if processes().is_main_process:
        report.save(folder)
    return report


@checked()
def compare(reports: Mapping[str, Report]) -> str:
    """Return a Markdown table with a line per run: its primary metric, the papers' numbers for it, and the protocol.

    Args:
        reports: One report per run, by the name of the run.
    """
    models = list(dict.fromkeys(name for report in reports.values() for name in published(report.benchmark)))
    lines = [
        f"| run | benchmark | metric | {''.join(f'{name} | ' for name in models)}this run | failed | protocol |",
        f"|---|---|---|{'---:|' * len(models)}---:|---:|---|",
    ]
    for run, report in reports.items():
        columns, digits = published(report.benchmark), look_up(report.benchmark).digits
        paper = "".join(f" {_number(columns.get(name, {}).get(report.primary), digits)} |" for name in models)
        # A cell of a Markdown table must not contain a bar or a new line.
        protocol = " ".join(report.protocol.replace("|", r"\|").split())
        lines.append(
            f"| {run} | {report.benchmark} | {report.primary} |{paper} {_number(report.value, digits)} | "
            f"{len(report.failures)} | {protocol} |"
        )
    return "\n".join(lines) + "\n"


def _number(value: float | None, digits: int) -> str:
    """Format a number with `digits` digits after the decimal point, and None as a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


__all__ = ["Report", "compare", "save_once"]
