"""`Adapter`, the conversion of one form of rows (a set of columns) to raw rows, and the classes that it consists of.

An adapter lists the columns that it uses in slots, and its function receives the values of these slots only. So it
cannot read a column that is not listed, and `Adapter.convert` refuses a row that holds content in any other column.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from .content import ADDRESS, find_content, is_covered, is_empty
from .refusals import RowError, all_unused, unused
from .turns import read_turns


Task: TypeAlias = Literal["text", "understanding", "drawing"]
TASKS: tuple[str, ...] = get_args(Task)

RawRow: TypeAlias = dict[str, Any]

IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp")  # the last four are file suffixes in WebDataset archives


Layout: TypeAlias = tuple[dict[str, str], list[str], dict[str, list[str]]]
"""Column of every slot, names of columns for no slot, and all columns of those slots for which there are several."""


@dataclass(frozen=True)
class Slot:
    """One thing that an adapter reads, and the names that its column may have.

    Of several columns that a row has, the first that is not empty is read.

    Args:
        name: Name by which the adapter's function gets the value.
        columns: Names of columns, by preference.
        required: Whether a source must have one of the columns.
    """

    name: str
    columns: tuple[str, ...]
    required: bool = False


class Cells:
    """The values of one row that an adapter uses.

    Args:
        row: The row.
        columns: Slot name -> name of the column that fills it.
        class_names: Names of the classes in the column `label`, or None if they are unknown.
        ignore: Names of keys, part types and roles inside conversations that may be left out.
    """

    def __init__(
        self,
        row: Mapping[str, Any],
        columns: Mapping[str, str],
        class_names: Sequence[str] | None,
        ignore: Collection[str],
    ) -> None:
        self.row, self.columns, self.class_names, self.ignore = row, columns, class_names, ignore

    def get(self, slot: str) -> Any:
        """Return the value of a slot, or None if the row has no column for it."""
        return self.row[self.columns[slot]] if slot in self.columns else None

    def text(self, slot: str) -> str:
        """Return the text of a slot; raise `RowError` unless it is a non-empty string."""
        value = self.get(slot)
        if not isinstance(value, str) and (what := find_content("", value)) is not None:
            raise unused(self.columns[slot], what, "this form, which reads a text there")
        if not isinstance(value, str) or not value.strip():
            raise RowError(
                "empty_text", f"The column {self.columns[slot]!r} must hold a non-empty string, got {value!r}."
            )
        return value

    def image(self) -> Any:
        """Return the image of the row; raise `RowError` if it has none."""
        if (image := self.get("image")) is None:
            raise RowError(
                "missing_picture", f"The row must have an image in one of the columns {IMAGE_COLUMNS}, got none."
            )
        return image

    def images(self) -> list[Any]:
        """Return the images that belong to a conversation, as a list, which is empty if the row has none."""
        found = self.get("images")
        if found is None:
            return []
        return list(found) if isinstance(found, (list, tuple)) else [found]

    def conversation(self, turns: Any) -> RawRow:
        """Return turns as a raw row, with the row's images and after its system prompt and its history."""
        outside = {"system": self.get("system"), "history": self.get("history")}
        return read_turns(turns, self.images(), ignore=self.ignore, **outside)


@dataclass(frozen=True)
class Adapter:
    """Conversion of a data set's rows to raw rows, and the facts by which `choose_adapter` chooses it.

    A raw row is a dict with `messages` (and `images`), with `prompt` and `image`, or with `text`.

    Args:
        name: Value of the argument `adapter` of `prepare` that selects this adapter.
        columns: Description of the columns that the adapter reads, for error messages.
        task: Task of the raw rows it makes. None if each row decides: a conversation with images is for understanding,
            one without is text.
        slots: The columns that it uses. Any other column must hold no content.
        read: Function that makes a raw row from the values of the slots. It raises `RowError` if the row cannot be
            used for training.
        on_request: Choose it only by its name or its task, because another adapter uses the same columns.
        layouts: Column names of a row -> which of them fill the slots, found once.
    """

    name: str
    columns: str
    task: Task | None
    slots: tuple[Slot, ...]
    read: Callable[[Cells], RawRow]
    on_request: bool = False
    layouts: dict[tuple[str, ...], Layout] = field(default_factory=dict, repr=False, compare=False)

    @property
    def readable(self) -> set[str]:
        """Names of all columns that the adapter may read."""
        return {name for slot in self.slots for name in slot.columns}

    def matches(self, columns: Collection[str]) -> bool:
        """Return whether a data set with these columns has all those that the adapter requires."""
        return all(any(name in columns for name in slot.columns) for slot in self.slots if slot.required)

    def uses(self, columns: Collection[str]) -> set[str]:
        """Return those of the columns of a data set that the adapter uses, one for each slot."""
        found = (next((name for name in slot.columns if name in columns), None) for slot in self.slots)
        return {name for name in found if name is not None}

    def leaves(self, columns: Collection[str], content: Mapping[str, str]) -> list[str]:
        """Return those of the columns with content that the adapter does not use.

        Args:
            columns: Column names of a data set.
            content: Columns with content -> what they hold.
        """
        used = self.uses(columns)
        return [
            name for name in columns if name in content and name not in used and not _tolerates(content[name], used)
        ]

    def convert(
        self, row: Mapping[str, Any], class_names: Sequence[str] | None = None, ignore: Collection[str] = ()
    ) -> RawRow:
        """Convert a row to a raw row.

        Args:
            row: A row of the data set.
            class_names: Names of the classes in the column `label`, or None if they are unknown.
            ignore: Names of content (columns, keys of messages, types of parts, roles) that may be lost.

        Raises:
            RowError: If the row cannot be used for training.
            SourceError: If the row holds content that the adapter does not use.
        """
        row, filled = self.fill(row, ignore)
        if len(filled) < len(self.slots):
            self._check_required(row, filled)
        return self.read(Cells(row, filled, class_names, ignore))

    def fill(self, row: Mapping[str, Any], ignore: Collection[str] = ()) -> tuple[Mapping[str, Any], dict[str, str]]:
        """Find the columns of a row that fill the slots, and check that no other column holds content.

        Returns:
            `(row, columns)`: the row without ignored columns, and the names of the columns by slot.

        Raises:
            SourceError: If another column holds content.
        """
        row = open_members(row, ignore)
        # Most rows of a source have the same columns, so the columns of each slot are found only once.
        names = tuple(row)
        if names not in self.layouts:
            self.layouts[names] = self._lay_out(names)
        filled, unused, doubles = self.layouts[names]
        if doubles:
            filled = dict(filled)
            for slot, columns in doubles.items():
                filled[slot] = next((name for name in columns if not is_empty(row[name])), columns[0])
        lost = {name: what for name in unused if (what := find_content(name, row[name])) is not None}
        for slot, columns in doubles.items():
            for name in columns:
                # Two columns for one slot may hold the same text, as caption and txt in an img2dataset archive do.
                is_same = isinstance(row[name], str) and row[name] == row[filled[slot]]
                if name != filled[slot] and not is_same and (what := find_content(name, row[name])) is not None:
                    lost[name] = what
        if lost and (lost := {name: what for name, what in lost.items() if not _tolerates(what, filled.values())}):
            raise all_unused(lost, f"the form {self.name!r}")
        return row, filled

    def _lay_out(self, names: Sequence[str]) -> Layout:
        """Return which of a row's columns fill the slots, which are not used, and the slots with several columns."""
        columns = {slot.name: [name for name in slot.columns if name in names] for slot in self.slots}
        filled = {slot: found[0] for slot, found in columns.items() if found}
        used = {name for found in columns.values() for name in found}
        doubles = {slot: found for slot, found in columns.items() if len(found) > 1}
        return filled, [name for name in names if name not in used], doubles

    def _check_required(self, row: Mapping[str, Any], filled: Collection[str]) -> None:
        """Raise `RowError` if a row has no column for a required slot, except for an image, of which `Cells` tells."""
        for slot in self.slots:
            if slot.required and slot.name not in filled and slot.name != "image":
                wanted = " or ".join(map(repr, slot.columns))
                raise RowError("missing_column", f"The row must have a column {wanted}, got {sorted(row)}.")


def _tolerates(what: str, used: Collection[str]) -> bool:
    """Return whether a column with this content may stay unused: one with the address of an image that is used."""
    return what == ADDRESS and any(name == "images" or name in IMAGE_COLUMNS for name in used)


def open_members(row: Mapping[str, Any], ignore: Collection[str] = ()) -> Mapping[str, Any]:
    """Return a row without ignored columns, and with the keys of a WebDataset's `json` member as columns.

    A key that is the name of another member is called `json.KEY`.
    """
    if ignore:
        row = {name: value for name, value in row.items() if not is_covered(name, ignore)}
    if "__key__" not in row or not isinstance(member := row.get("json"), Mapping):
        return row
    others = {name: value for name, value in row.items() if name != "json"}
    keys = {f"json.{key}" if key in others else key: value for key, value in member.items()}
    return others | {name: value for name, value in keys.items() if not is_covered(name, ignore)}


__all__ = ["IMAGE_COLUMNS", "TASKS", "Adapter", "Cells", "RawRow", "Slot", "Task", "open_members"]
