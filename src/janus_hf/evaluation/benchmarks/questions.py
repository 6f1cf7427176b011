"""Questions of the understanding benchmarks, read from the files they are published in.

Two layouts are known. VLMEvalKit's TSV tables: one row per question, the picture inside as base64 or as the index of
the row that has it. And the benchmarks' own JSON files beside a folder of pictures: POPE's
`coco_pope_{random,popular,adversarial}.json` (one object per line) and GQA's `testdev_balanced_questions.json`.
"""

import ast
import csv
import json
import os
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..paper import look_up
from .protocol import BENCHMARKS, MULTIPLE_CHOICE, YES_NO, is_missing


POPE_SPLITS = ("random", "popular", "adversarial")

_COLUMNS = {
    "pope": ("question", "answer", "category"),
    "mme": ("question", "answer", "category", "image_path"),
    "mmbench": ("question", "answer", "A", "B"),
    "seed": ("question", "answer", "A", "B"),
    "mmmu": ("question", "answer", "A", "B", "split"),
    "gqa": ("question", "answer"),
    "mmvet": ("question",),
}
_CIRCULAR = 1_000_000  # MMBench numbers the copies with rotated options index + n * 1e6
_LONGEST_INDEX = 64  # a shorter image cell is no picture but the index of the row that has it


@dataclass(frozen=True)
class Question:
    """One question about one or several pictures.

    Args:
        index: Unique within the benchmark.
        question: As published, without the prompt around it.
        pictures: Base64 strings or paths, in the order in which they are shown; empty if the row has none.
        answer: The right one: "yes" or "no", an option's letter, or words. Empty for MM-Vet, which a model judges.
        options: Letter -> text, of multiple choice.
        hint: Context of multiple choice, or "".
        categories: What the answer counts for: POPE's splits, MME's task, categories of the others.
        picture_name: Tells MME which questions are about the same picture.
    """

    index: str
    question: str
    pictures: tuple[str, ...]
    answer: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    hint: str = ""
    categories: tuple[str, ...] = ()
    picture_name: str = ""


def read_questions(
    benchmark: str, data: str | os.PathLike[str], *, images: str | os.PathLike[str] | None = None
) -> list[Question]:
    """Read a benchmark's questions in the order of the file.

    Not read are what the authors' protocol leaves out: MMBench's circular copies (index >= 1e6) and rows of MMMU that
    are not of the validation part.

    Args:
        benchmark: One of `protocol.BENCHMARKS`.
        data: A `.tsv` in VLMEvalKit's layout; POPE's `.json`/`.jsonl` with its split in the name, or the folder that
            has all three; GQA's questions `.json`.
        images: Folder that picture paths start from. Default: the folder of the data file.

    Raises:
        FileNotFoundError: There is no such file; says where to get it and under which licence.
        ValueError: The benchmark is unknown, or the file has not the layout expected; says what was found.
    """
    if benchmark not in BENCHMARKS:
        raise ValueError(f"{benchmark!r} is not a benchmark of understanding. Known: {', '.join(BENCHMARKS)}.")
    questions: list[Question] = []
    for path in data_files(benchmark, data):
        folder = Path(images) if images is not None else path.parent
        reader = _read_tsv if path.suffix == ".tsv" else {"pope": _read_pope, "gqa": _read_gqa}.get(benchmark)
        if reader is None:
            raise ValueError(f"Expected {benchmark} as a .tsv file; got {path.name}. {_where(benchmark)}")
        questions += reader(benchmark, path, folder)
    _check(benchmark, questions, data)
    return questions


def data_files(benchmark: str, data: str | os.PathLike[str]) -> list[Path]:
    """The file, or POPE's files in a folder.

    Raises:
        FileNotFoundError: There is none; says where to get it.
    """
    path = Path(data)
    files = [path] if path.is_file() else []
    if benchmark == "pope" and path.is_dir():
        files = [file for split in POPE_SPLITS for file in sorted(path.glob(f"*{split}*.json*"))]
    if not files:
        raise FileNotFoundError(f"Expected the data of {benchmark} at {path}; there is none. {_where(benchmark)}")
    return files


def _where(benchmark: str) -> str:
    return f"Get {look_up(benchmark).data}."


def _check(benchmark: str, questions: Sequence[Question], data: Any) -> None:
    if not questions:
        part = " of the validation part" if benchmark == "mmmu" else ""
        raise ValueError(f"Expected questions{part}; {data} has none. {_where(benchmark)}")
    if repeated := [index for index, count in Counter(q.index for q in questions).items() if count > 1]:
        raise ValueError(f"Expected every index once; {data} repeats {repeated[:5]}. Remove the copies.")
    if benchmark == "mme":
        counts = Counter((q.categories, q.picture_name) for q in questions)
        if wrong := [f"{name} ({count})" for (_, name), count in counts.items() if count != 2]:
            raise ValueError(
                f"Expected two questions about each of MME's pictures; {data} has another number for {wrong[:5]}. Use "
                "the complete file, and `limit` to ask fewer questions."
            )
    if benchmark in YES_NO and (odd := [q for q in questions if q.answer not in ("yes", "no")]):
        raise ValueError(f"Expected the answers yes and no; {data} has {odd[0].answer!r} for index {odd[0].index}.")
    if odd := [q for q in questions if q.options and q.answer not in q.options]:
        raise ValueError(
            f"Expected the answer to be one of the options' letters; {data} has {odd[0].answer!r} for index "
            f"{odd[0].index}, whose options are {list(odd[0].options)}. Test parts come without answers."
        )


# VLMEvalKit's tables


def _read_tsv(benchmark: str, path: Path, folder: Path) -> list[Question]:
    rows, shown = [], {}
    for row in _rows(benchmark, path):
        if cell := row.get("image", ""):
            shown[row["index"]] = cell
        if benchmark == "mmbench" and int(row["index"]) >= _CIRCULAR:
            continue
        if benchmark == "mmmu" and row["split"] != "validation":
            continue
        rows.append(row)
    return [_question(benchmark, row, _pictures(row, shown, folder, path)) for row in rows]


def _rows(benchmark: str, path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file, _long_cells():
        table = csv.DictReader(file, delimiter="\t", restval="")
        found = list(table.fieldnames or ())
        expected = ("index", *_COLUMNS[benchmark])
        if missing := [name for name in expected if name not in found]:
            raise ValueError(
                f"Expected the columns {', '.join(expected)} in {path}; {missing} are missing of {found}."
            )
        if "image" not in found and "image_path" not in found:
            raise ValueError(f"Expected a column image (base64) or image_path in {path}; found {found}.")
        yield from table


@contextmanager
def _long_cells() -> Iterator[None]:
    """The csv module refuses cells above 128 KiB, which pictures are; its limit is global, so it is put back."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _pictures(row: Mapping[str, str], shown: Mapping[str, str], folder: Path, path: Path) -> tuple[str, ...]:
    cell = row.get("image", "")
    if not cell:
        return tuple(str(folder / name) for name in _listed(row.get("image_path", "")))
    if len(cell) <= _LONGEST_INDEX:
        if len(shown.get(cell, "")) <= _LONGEST_INDEX:
            raise ValueError(
                f"Expected index {row['index']} of {path} to name a row that has a picture; it names {cell!r}."
            )
        cell = shown[cell]
    return tuple(_listed(cell))


def _listed(cell: str) -> list[str]:
    """A cell, or the list that it spells in JSON or in Python."""
    if not cell.startswith("["):
        return [cell] if cell else []
    try:
        values = json.loads(cell)
    except json.JSONDecodeError:
        values = ast.literal_eval(cell)
    return [str(value) for value in values]


def _question(benchmark: str, row: Mapping[str, str], pictures: tuple[str, ...]) -> Question:
    cells = [row.get(name, "") for name in ("category", "l2-category")]
    options = {letter: row[letter] for letter in string.ascii_uppercase if not is_missing(row.get(letter))}
    answer = row.get("answer", "").strip()
    categories = [name.strip() for name in cells[0].split(",")] if benchmark == "pope" else cells
    return Question(
        index=row["index"],
        question=row["question"],
        pictures=pictures,
        answer=answer.lower() if benchmark in YES_NO else "" if benchmark == "mmvet" else answer,
        options=options if benchmark in MULTIPLE_CHOICE else {},
        hint="" if is_missing(row.get("hint")) else row["hint"],
        categories=tuple(dict.fromkeys(name for name in categories if name)),
        picture_name=row.get("image_path", ""),
    )


# The benchmarks' own files


def _read_pope(benchmark: str, path: Path, folder: Path) -> list[Question]:
    splits = [split for split in POPE_SPLITS if split in path.name]
    if len(splits) != 1:
        raise ValueError(f"Expected one of {POPE_SPLITS} in the name of POPE's file; got {path.name}. Rename it.")
    questions = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        row = _object(json.loads(line), ("question_id", "image", "text", "label"), f"line {number} of {path}")
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


def _read_gqa(benchmark: str, path: Path, folder: Path) -> list[Question]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"Expected GQA's questions as one object by question id in {path}; got a list.")
    questions = []
    for index, value in content.items():
        row = _object(value, ("imageId", "question", "answer"), f"question {index} of {path}")
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


def _object(value: Any, expected: Sequence[str], place: str) -> dict[str, Any]:
    found = list(value) if isinstance(value, dict) else type(value).__name__
    if not isinstance(value, dict) or not set(expected) <= value.keys():
        raise ValueError(f"Expected an object with {', '.join(expected)} in {place}; found {found}.")
    return value


__all__ = ["POPE_SPLITS", "Question", "data_files", "read_questions"]
