"""Readers of DPG-Bench's files: prompts, propositions about their images, and 2x2 grids of images.

A proposition is one statement of a prompt, as a yes-or-no question. The file layout is that of TencentQQGYLab/ELLA.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ...arguments import checked
from ..data_files import existing_path, read_table, where_to_get
from .propositions import Proposition


_COLUMNS = ("item_id", "proposition_id", "dependency", "tuple", "question_natural_language")


@checked()
def read_prompts(data: str | os.PathLike[str]) -> dict[str, str]:
    """Read the prompts of DPG-Bench, and return their texts by `item_id`.

    Args:
        data: Path of the folder `dpg_bench`, of its folder `prompts` of `.txt` files, or of `dpg_bench.csv`, whose
            column `text` holds the prompts.

    Raises:
        FileNotFoundError: If there are no prompts. The message says where to get them.
        ValueError: If the CSV file lacks a column.
    """
    path = Path(data)
    if path.is_file():
        return {row["item_id"]: row["text"].strip() for row in read_table(path, ("item_id", "text"))}
    folder = path / "prompts" if (path / "prompts").is_dir() else path
    prompts = {file.stem: file.read_text(encoding="utf-8").strip() for file in sorted(folder.glob("*.txt"))}
    if not prompts:
        raise FileNotFoundError(f"{data} must hold prompts/*.txt, and there are none. {where_to_get('dpg')}")
    return prompts


@checked()
def read_propositions(data: str | os.PathLike[str], *, skip_first_row: bool = True) -> dict[str, list[Proposition]]:
    """Read the propositions of DPG-Bench, which are the yes-or-no questions about the images of each prompt.

    If two rows of a prompt have the same number (`proposition_id`), the later row replaces the earlier one, as in the
    official script.

    Args:
        data: Path of the folder `dpg_bench`, or of `dpg_bench.csv`.
        skip_first_row: Leave out the first proposition of the file, as the official script does.

    Returns:
        The propositions of every prompt by `item_id`, in the order of the file.

    Raises:
        FileNotFoundError: If there is no such file. The message says where to get it.
        ValueError: If a column is missing, or the number or dependency of a row is not an integer.
    """
    path = existing_path(Path(data) / "dpg_bench.csv" if Path(data).is_dir() else Path(data), "dpg")
    items: dict[str, dict[int, Proposition]] = {}
    # Number the rows before the first one is skipped, so that error messages agree with the file.
    for number, row in list(enumerate(read_table(path, _COLUMNS), start=1))[skip_first_row:]:
        try:
            identity, parents = int(row["proposition_id"]), tuple(map(int, row["dependency"].split(",")))
        except ValueError as error:
            raise ValueError(
                f"{path}, row {number} must have integers as proposition_id and dependency, got "
                f"{row['proposition_id']!r} and {row['dependency']!r}."
            ) from error
        # The column holds, for instance, "entity - whole (sky)".
        category = row["tuple"].split("(")[0].strip()
        items.setdefault(row["item_id"], {})[identity] = Proposition(
            identity, row["question_natural_language"], parents, category
        )
    return {item: list(propositions.values()) for item, propositions in items.items()}


@checked()
def collect_grids(folder: str | os.PathLike[str], item_ids: Sequence[str], target: str | os.PathLike[str]) -> None:
    """Copy the 2x2 grids of a run to `TARGET/{item_id}.png`, where the official script and `evaluate_dpg` read them.

    Args:
        folder: Folder of the run, which `draw_prompts` filled with four images per prompt. The grid of the first
            prompt is `00000/grid.png` there, and so on.
        item_ids: Identifiers of the prompts, in the order in which the run numbered them.
        target: Folder to copy to; it is created if necessary.
    """
    Path(target).mkdir(parents=True, exist_ok=True)
    for number, item in enumerate(item_ids):
        shutil.copyfile(Path(folder) / f"{number:05d}" / "grid.png", Path(target) / f"{item}.png")


def split_grid(grid: Image.Image) -> list[Image.Image]:
    """Cut a 2x2 grid into its four images, and return them row by row.

    Raises:
        ValueError: If its width or height is odd.
    """
    width, height = grid.size
    if width % 2 or height % 2:
        raise ValueError(f"`grid` must be of 2x2 images, with even sides, got {width}x{height} (WxH)")
    w, h = width // 2, height // 2
    return [grid.crop((x, y, x + w, y + h)) for y in (0, h) for x in (0, w)]


__all__ = ["collect_grids", "read_prompts", "read_propositions", "split_grid"]
