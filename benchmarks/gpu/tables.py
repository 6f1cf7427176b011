"""Classes that declare the topics of `benchmarks.gpu`: their parts, the rows of each part, and their tables."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .bench import Bench


Labels = tuple[str, ...]
"""The first cells of a row, which name it within its table."""


@dataclass(frozen=True)
class Column:
    """A column of numbers or words in a table.

    Args:
        key: Key of the cell in the values of a row.
        heading: Heading of the column.
        spec: Format specification of the cell, such as ".1f"; "" for words.
    """

    key: str
    heading: str
    spec: str = ""

    def cell(self, values: Mapping[str, Any]) -> str:
        """Return the text of this column's cell; it is empty if the row has no value for it."""
        value = values.get(self.key)
        return "" if value is None else format(value, self.spec)


@dataclass(frozen=True)
class Part:
    """One measurement of a topic, which runs in a process of its own.

    Args:
        name: Name of the part within its topic.
        seconds: Seconds that the part may take; a short budget scales them.
        rows: Labels of all rows that the part promises. The table has every one of them, even if the part fails.
        run: Function that measures the rows.
        later: Whether the part runs after the other parts of all topics, if there is time left.
    """

    name: str
    seconds: float
    rows: tuple[Labels, ...]
    run: "Callable[[Bench], None]"
    later: bool = False


@dataclass
class Row:
    """A row of a table: what a part measured, and a note if it could not measure everything."""

    labels: Labels
    values: dict[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Topic:
    """A table and the parts that measure its rows.

    Args:
        title: Heading of the table.
        explanation: Sentences below the heading, which say what the columns mean.
        labels: Headings of the labels of a row.
        columns: The columns after the labels. Every table has one more at its end, "note".
        parts: The parts in order of importance.
        derive: Function that is called with all rows of the table before it is printed, and may add values.
    """

    title: str
    explanation: str
    labels: tuple[str, ...]
    columns: tuple[Column, ...]
    parts: tuple[Part, ...]
    derive: Callable[[Sequence[Row]], None] = lambda rows: None


def render(topic: Topic, rows: Mapping[Labels, Row], machine: str, parts: Sequence[Part] | None = None) -> str:
    """Return the Markdown section of a topic: title, explanation, machine, and a table with every promised row.

    Args:
        topic: The topic.
        rows: The rows that are known so far, by their labels.
        machine: Description of hardware and versions, printed above the table; "" if nothing was measured.
        parts: The parts whose rows are shown; None shows those of all parts.
    """
    promised = [labels for part in topic.parts for labels in part.rows]
    table_rows = {labels: rows.get(labels) or Row(labels, note="not measured") for labels in promised}
    topic.derive(list(table_rows.values()))
    shown = [table_rows[labels] for part in (topic.parts if parts is None else parts) for labels in part.rows]
    headings = [*topic.labels, *(column.heading for column in topic.columns), "note"]
    aligned = ["---"] * len(topic.labels) + ["---:" if column.spec else "---" for column in topic.columns] + ["---"]
    lines = [headings, aligned]
    for row in shown:
        lines.append([*row.labels, *(column.cell(row.values) for column in topic.columns), row.note])
    table = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
    return "\n\n".join(text for text in (f"## {topic.title}", topic.explanation, machine, table) if text)


def ratios_to(base: Callable[[Row], Labels], source: str, target: str) -> Callable[[Sequence[Row]], None]:
    """Return a function for `Topic.derive` that adds the ratio of a base row's value to every row's own value.

    Args:
        base: Function from a row to the labels of the base row that it is compared with.
        source: Key of the value that is compared.
        target: Key under which the ratio is added.
    """

    def derive(rows: Sequence[Row]) -> None:
        known = {row.labels: row.values.get(source) for row in rows}
        for row in rows:
            ours, theirs = row.values.get(source), known.get(base(row))
            if ours and theirs and math.isfinite(ours):
                row.values[target] = theirs / ours

    return derive


__all__ = ["Column", "Labels", "Part", "Row", "Topic", "ratios_to", "render"]
