"""Readers of the understanding benchmarks: functions that read questions about images from the published files.

Two file layouts are known. One is VLMEvalKit's TSV tables, with one row per question and the image inside the row, as
base64 or as the index of another row that has the image. The other is the benchmarks' own JSON files beside a folder
of images: POPE's `coco_pope_{random,popular,adversarial}.json` (one object per line) and GQA's
`testdev_balanced_questions.json`.
"""

import ast
import json
import os
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...arguments import PATH, checked
from ..data_files import check_keys, read_json_lines, read_table, where_to_get
from .protocol import BENCHMARKS, MULTIPLE_CHOICE, YES_NO, is_missing


POPE_SPLITS = ("random", "popular", "adversarial")

# By benchmark, columns that its TSV table must have besides `index` and the image.
_COLUMNS = {
    "pope": ("question", "answer", "category"),
    "mme": ("question", "answer", "category", "image_path"),
    "mmbench": ("question", "answer", "A", "B"),
    "seed": ("question", "answer", "A", "B"),
    "mmmu": ("question", "answer", "A", "B", "split"),
    "gqa": ("question", "answer"),
    "mmvet": ("question",),
}
_CIRCULAR = 1_000_000  # copy n of a question of MMBench, with rotated options, has index + n * 1e6
_LONGEST_INDEX = 64  # characters; a shorter image cell is the index of the row that has the image


@dataclass(frozen=True)
class Question:
    """One question of a benchmark about one or several images.

    Args:
        index: Identifier of the question, unique within the benchmark.
        question: Text as published, without the prompt around it.
        pictures: Images as base64 strings or paths, in the order in which the model sees them. Empty if the
            benchmark's row has none.
        answer: Correct answer: "yes" or "no", an option's letter, or words. Empty for MM-Vet, which an external model
            judges.
        options: Texts of a multiple-choice question's options by letter.
        hint: Context of a multiple-choice question, or "".
        categories: Categories whose metrics the answer counts for: POPE's splits, MME's task, the other benchmarks'
            categories.
        picture_name: Name of the image. MME has two questions about each image, which are paired by this name.
    """

    index: str
    question: str
    pictures: tuple[str, ...]
    answer: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    hint: str = ""
    categories: tuple[str, ...] = ()
    picture_name: str = ""


@checked(images=PATH)
def read_questions(
    benchmark: str, data: str | os.PathLike[str], *, images: str | os.PathLike[str] | None = None
) -> list[Question]:
    """Read the questions of a benchmark in the order of the file.

    Rows that the Janus authors did not use are skipped: MMBench's copies of questions with rotated options (index >=
    1e6), and the rows of MMMU outside its validation part.

    Args:
        benchmark: Name of the benchmark, one of `protocol.BENCHMARKS`.
        data: Path of a data file: a `.tsv` file in VLMEvalKit's layout, one of POPE's `.json` or `.jsonl` files with
            its split in the name, or GQA's `.json` file. For POPE it may also be the folder that has the files of all
            three splits.
        images: Folder that image paths in the file are relative to. None is the folder of the data file.

    Raises:
        FileNotFoundError: If there is no such file. The message says where to get it and under which licence.
        ValueError: If the benchmark is unknown, or the file is not in the expected layout.
    """
    if benchmark not in BENCHMARKS:
        raise ValueError(f"{benchmark!r} is not a benchmark of understanding. Known: {', '.join(BENCHMARKS)}.")
    questions: list[Question] = []
    for path in data_files(benchmark, data):
        folder = Path(images) if images is not None else path.parent
        if path.suffix == ".tsv":
            questions += _read_tsv(benchmark, path, folder)
        elif benchmark in ("pope", "gqa"):
            questions += (_read_pope if benchmark == "pope" else _read_gqa)(path, folder)
        else:
            raise ValueError(
                f"The data of {benchmark} must be a .tsv file, got {path.name}. {where_to_get(benchmark)}"
            )
    _check(benchmark, questions, data)
    return questions


@checked(images=PATH)
def data_files(benchmark: str, data: str | os.PathLike[str]) -> list[Path]:
    """Return the paths of a benchmark's data files: `data` if it is a file, POPE's files if it is their folder.

    Raises:
        FileNotFoundError: If there is no file. The message says where to get it.
    """
    path = Path(data)
    files = [path] if path.is_file() else []
    if benchmark == "pope" and path.is_dir():
        files = [file for split in POPE_SPLITS for file in sorted(path.glob(f"*{split}*.json*"))]
    if not files:
        raise FileNotFoundError(
            f"There must be data of {benchmark} at {path}, and there is no file. {where_to_get(benchmark)}"
        )
    return files


def _check(benchmark: str, questions: Sequence[Question], data: str | os.PathLike[str]) -> None:
    """Raise ValueError unless a benchmark's questions are complete, have unique indices and have valid answers.

    Args:
        benchmark: Name of the benchmark.
        questions: Questions that were read.
        data: Path that they were read from, for the error message.
    """
    if not questions:
        part = " of the validation part" if benchmark == "mmmu" else ""
        raise ValueError(f"{data} must hold questions{part}, got none. {where_to_get(benchmark)}")
    if repeated := [index for index, count in Counter(q.index for q in questions).items() if count > 1]:
        raise ValueError(f"{data} must hold every index once, but repeats {repeated[:5]}: remove the copies.")
    if benchmark == "mme":
        # An image with only one of its two questions would silently lower accuracy+.
        counts = Counter((q.categories, q.picture_name) for q in questions)
        if wrong := [f"{name} ({count})" for (_, name), count in counts.items() if count != 2]:
            raise ValueError(
                f"{data} must hold two questions about each of MME's images, got another number for {wrong[:5]}: use "
                "the complete file, and `limit` to ask fewer questions."
            )
    if benchmark in YES_NO and (odd := [q for q in questions if q.answer not in ("yes", "no")]):
        raise ValueError(
            f"{data} must hold the answers yes and no, got {odd[0].answer!r} for index {odd[0].index}. "
            f"{where_to_get(benchmark)}"
        )
    if odd := [q for q in questions if q.options and q.answer not in q.options]:
        raise ValueError(
            f"{data} must hold an option's letter as every answer, got {odd[0].answer!r} for index {odd[0].index}, "
            f"whose options are {list(odd[0].options)}: use a part with answers, since test parts come without."
        )


# VLMEvalKit's tables


def _read_tsv(benchmark: str, path: Path, folder: Path) -> list[Question]:
    """Read the questions from a TSV table of VLMEvalKit. Image paths in the table are relative to `folder`."""
    rows, cells = [], {}
    for row in read_table(path, ("index", *_COLUMNS[benchmark]), delimiter="\t"):
        if "image" not in row and "image_path" not in row:
            raise ValueError(f"{path} must have a column image (base64) or image_path, got {list(row)}.")
        # Also keep the images of skipped rows, because other rows may refer to them.
        if cell := row.get("image", ""):
            cells[row["index"]] = cell
        if benchmark == "mmbench" and int(row["index"]) >= _CIRCULAR:
            continue
        if benchmark == "mmmu" and row["split"] != "validation":
            continue
        rows.append(row)
    return [_question(benchmark, row, _images(row, cells, folder, path)) for row in rows]


def _images(row: Mapping[str, str], cells: Mapping[str, str], folder: Path, path: Path) -> tuple[str, ...]:
    """Return the images of a table's row as base64 strings or paths.

    Args:
        row: Row of the table, by column.
        cells: By index of the row, the cells of the column `image` that are not empty.
        folder: Folder that image paths in the table are relative to.
        path: Path of the table, for error messages.

    Raises:
        ValueError: If the row refers to another row for its image, and that row has none.
    """
    cell = row.get("image", "")
    if not cell:
        return tuple(str(folder / name) for name in _listed(row.get("image_path", "")))
    if len(cell) <= _LONGEST_INDEX:
        if len(cells.get(cell, "")) <= _LONGEST_INDEX:
            raise ValueError(
                f"{path}, index {row['index']} must name a row that has an image, got {cell!r}: use the complete file."
            )
        cell = cells[cell]
    return tuple(_listed(cell))


def _listed(cell: str) -> list[str]:
    """Return the items of a cell that spells a list in JSON or in Python syntax.

    Any other cell is returned as the only item. An empty cell has no items.
    """
    if not cell.startswith("["):
        return [cell] if cell else []
    # VLMEvalKit writes Python lists, which are not JSON if their strings are in single quotes.
    try:
        values = json.loads(cell)
    except json.JSONDecodeError:
        values = ast.literal_eval(cell)
    return [str(value) for value in values]


def _question(benchmark: str, row: Mapping[str, str], images: tuple[str, ...]) -> Question:
    """Convert a row of a TSV table and the row's images to a `Question`."""
    cells = [row.get(name, "") for name in ("category", "l2-category")]
    options = {letter: row[letter] for letter in string.ascii_uppercase if not is_missing(row.get(letter))}
    answer = row.get("answer", "").strip()
    categories = [name.strip() for name in cells[0].split(",")] if benchmark == "pope" else cells
    return Question(
        index=row["index"],
        question=row["question"],
        pictures=images,
        answer=answer.lower() if benchmark in YES_NO else "" if benchmark == "mmvet" else answer,
        options=options if benchmark in MULTIPLE_CHOICE else {},
        hint="" if is_missing(row.get("hint")) else row["hint"],
        categories=tuple(dict.fromkeys(name for name in categories if name)),
        picture_name=row.get("image_path", ""),
    )


# The benchmarks' own files


def _read_pope(path: Path, folder: Path) -> list[Question]:
    """Read the questions from one of POPE's own JSON Lines files. The images that it names are in `folder`."""
    splits = [split for split in POPE_SPLITS if split in path.name]
    if len(splits) != 1:
        raise ValueError(f"POPE's file must have one of {POPE_SPLITS} in its name, got {path.name}: rename it.")
    questions = []
    for number, line in read_json_lines(path):
        row = check_keys(line, ("question_id", "image", "text", "label"), f"{path}, line {number}")
        questions.append(
            Question(
                index=f"{splits[0]}-{row['question_id']}",
                question=row["text"],
                pictures=(str(folder / row["image"]),),
                answer=row["label"].strip().lower(),
                categories=(splits[0],),
                picture_name=row["image"],
            )
        )
    return questions


def _read_gqa(path: Path, folder: Path) -> list[Question]:
    """Read the questions from GQA's own JSON file. The images that it names are in `folder`."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path} must be a JSON object of GQA's questions by their id, got a list.")
    questions = []
    for index, value in content.items():
        row = check_keys(value, ("imageId", "question", "answer"), f"{path}, question {index}")
        kind = row.get("types", {}).get("structural")
        questions.append(
            Question(
                index=index,
                question=row["question"],
                pictures=(str(folder / f"{row['imageId']}.jpg"),),
                answer=row["answer"],
                categories=(kind,) if kind else (),
                picture_name=row["imageId"],
            )
        )
    return questions


__all__ = ["POPE_SPLITS", "Question", "data_files", "read_questions"]
