"""What a benchmark found: metrics, the row behind every number, and the settings it was found with."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .paper import look_up, published
from .run_folder import write_atomically


@dataclass
class Report:
    """The result of one evaluator.

    Args:
        benchmark: Its name, a key of `paper.BENCHMARKS`.
        metrics: In the order in which they are printed, in the units in which the benchmark publishes them.
        primary: The metric that stands for the benchmark.
        protocol: In a sentence, how the numbers came about.
        settings: Everything needed to run it again (`run_settings`).
        rows: One per judged item: what was asked, what was given, the verdict.
        failures: One line per item that could not be judged. They are not in `rows`.
        failures_counted: How many of them are in `metrics` nevertheless, as wrong.
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
            raise ValueError(f"The primary metric {self.primary!r} is not among {list(self.metrics)}.")

    @property
    def value(self) -> float | None:
        """The primary metric; None where a judge elsewhere has the last word, or nothing could be judged."""
        return self.metrics.get(self.primary)

    @property
    def failed_share(self) -> float:
        """Items that could not be judged, of all; in [0, 1]."""
        return len(self.failures) / max(1, len(self.failures) + len(self.rows))

    def to_markdown(self) -> str:
        """A table "metric / paper / this run", the protocol, what failed, and the settings."""
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
        lines += [f"* {line}" for line in self.failures[:20]]
        if len(self.failures) > 20:
            lines.append(f"* ... and {len(self.failures) - 20} more, in report.json")
        if self.settings:
            lines += ["", "```json", json.dumps(self.settings, indent=2, sort_keys=True), "```"]
        return "\n".join(lines) + "\n"

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `report.json`, `report.md` and, one line per item, `results.jsonl`."""
        folder = Path(folder)
        summary = {key.name: getattr(self, key.name) for key in fields(self) if key.name != "rows"}
        rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)
        write_atomically(folder / "results.jsonl", rows.encode())
        write_atomically(folder / "report.md", self.to_markdown().encode())
        write_atomically(folder / "report.json", (json.dumps(summary, indent=2) + "\n").encode())

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Report":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: If there is no report in the folder.
        """
        path = Path(folder) / "report.json"
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no report.json: no benchmark has finished there.")
        rows = (path.parent / "results.jsonl").read_text(encoding="utf-8").splitlines()
        return cls(**json.loads(path.read_text(encoding="utf-8")), rows=[json.loads(row) for row in rows])


def compare(reports: Mapping[str, Report]) -> str:
    """One table of several runs: their primary metrics beside the papers', and how they came about.

    Args:
        reports: By the name of the run.
    """
    models = list(dict.fromkeys(name for report in reports.values() for name in published(report.benchmark)))
    lines = [
        f"| run | benchmark | metric | {''.join(f'{name} | ' for name in models)}this run | failed | protocol |",
        f"|---|---|---|{'---:|' * len(models)}---:|---:|---|",
    ]
    for run, report in reports.items():
        columns, digits = published(report.benchmark), look_up(report.benchmark).digits
        paper = "".join(f" {_number(columns.get(name, {}).get(report.primary), digits)} |" for name in models)
        protocol = " ".join(report.protocol.replace("|", r"\|").split())
        lines.append(
            f"| {run} | {report.benchmark} | {report.primary} |{paper} {_number(report.value, digits)} | "
            f"{len(report.failures)} | {protocol} |"
        )
    return "\n".join(lines) + "\n"


def _number(value: float | None, digits: int) -> str:
    """A dash for what was not published."""
    return "-" if value is None else f"{value:.{digits}f}"


__all__ = ["Report", "compare"]
