"""DPG-Bench's files: prompts, propositions, and 2x2 grids of pictures. The layout is TencentQQGYLab/ELLA's."""

import csv
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..paper import look_up


_COLUMNS = ("item_id", "proposition_id", "dependency", "tuple", "question_natural_language")



def read_prompts(data: str | os.PathLike[str]) -> dict[str, str]:
    """The prompts to draw, by their `item_id`.

    Args:
        data: The folder `dpg_bench`, or its `prompts` of `.txt` files, or `dpg_bench.csv` with its column `text`.

    Raises:
        FileNotFoundError: There are none; says where to get them.
        ValueError: The table lacks a column.
    """
    path = Path(data)
    if path.is_file():
        return {row["item_id"]: row["text"].strip() for row in _table(path, ("item_id", "text"))}
    folder = path / "prompts" if (path / "prompts").is_dir() else path
    prompts = {file.stem: file.read_text(encoding="utf-8").strip() for file in sorted(folder.glob("*.txt"))}
    if not prompts:
        raise FileNotFoundError(f"Expected prompts/*.txt in {data}; there are none. Get {look_up('dpg').data}.")
    return prompts


def read_propositions(data: str | os.PathLike[str], *, skip_first_row: bool = True) -> dict[str, list[Proposition]]:
    """The propositions by `item_id`, both in the order of the file.

    As officially, a proposition's number given twice within a prompt keeps the later one.

    Args:
        data: The folder `dpg_bench`, or `dpg_bench.csv`.
        skip_first_row: Leave out the first proposition of the file, as the official script does.

    Raises:
        FileNotFoundError: There is no such file; says where to get it.
        ValueError: A column is missing, or a row has no number or dependency.
    """
    path = Path(data) / "dpg_bench.csv" if Path(data).is_dir() else Path(data)
    if not path.is_file():
        raise FileNotFoundError(f"Expected dpg_bench.csv at {path}; there is none. Get {look_up('dpg').data}.")
    items: dict[str, dict[int, Proposition]] = {}
    for number, row in list(enumerate(_table(path, _COLUMNS), start=1))[skip_first_row:]:
        try:
            identity, parents = int(row["proposition_id"]), tuple(map(int, row["dependency"].split(",")))
        except ValueError as error:
            raise ValueError(
                f"Expected numbers as proposition_id and dependency in row {number} of {path}; got "
                f"{row['proposition_id']!r} and {row['dependency']!r}."
            ) from error
        category = row["tuple"].split("(")[0].strip()
        items.setdefault(row["item_id"], {})[identity] = Proposition(
            identity, row["question_natural_language"], parents, category
        )
    return {item: list(propositions.values()) for item, propositions in items.items()}


def _table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file, restval="")
        found = list(table.fieldnames or ())
        if missing := [name for name in columns if name not in found]:
            raise ValueError(f"Expected the columns {', '.join(columns)} in {path}; {missing} are missing of {found}.")
        return list(table)


def collect_grids(folder: str | os.PathLike[str], item_ids: Sequence[str], target: str | os.PathLike[str]) -> None:
    """Copy the 2x2 grids of a drawing run (`FOLDER/00000/grid.png`, ...) to `TARGET/{item_id}.png`, where the official
    script and `evaluate_dpg` look for them.

    Args:
        folder: Written by `draw_prompts`, four pictures per prompt.
        item_ids: In the order in which the prompts were drawn.
        target: Made if need be.
    """
    Path(target).mkdir(parents=True, exist_ok=True)
    for number, item in enumerate(item_ids):
        shutil.copyfile(Path(folder) / f"{number:05d}" / "grid.png", Path(target) / f"{item}.png")


def split_grid(grid: Image.Image) -> list[Image.Image]:
    """A 2x2 grid -> its four pictures, row by row.

    Raises:
        ValueError: If its sides are not even.
    """
    width, height = grid.size
    if width % 2 or height % 2:
        raise ValueError(f"Expected a grid of 2x2 pictures, with even sides; got {width}x{height} (WxH).")
    w, h = width // 2, height // 2
    return [grid.crop((x, y, x + w, y + h)) for y in (0, h) for x in (0, w)]


__all__ = [
    "Proposition",
    "collect_grids",
    "read_prompts",
    "read_propositions",
    "split_grid",
]
