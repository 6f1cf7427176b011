"""Run understanding benchmarks (POPE, MME, MMBench, ...): ask a model their questions, and score the answers.

No evaluation harness is needed. Prompts, roles and system prompt are those of the Janus authors (module `protocol`).
Two details differ from VLMEvalKit, which measured the paper's numbers: an answer must have the requested form (module
`answers`), and images are given to the model as they are, where VLMEvalKit first saves each one again as a JPEG file.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...answering import answer
from ...arguments import COMMON, PATH, check_values, checked
from ...files import hash_file, write_atomically
from ...protocols import ImagePipeline
from ..downloads import find_data
from ..journal import Journal
from ..paper import look_up
from ..report import Report, save_once
from ..run_folder import environments, open_run, processes, run_settings
from ..sharing import progress_bar_of, share_answers
from .answers import judge_answers, missing_tasks, primary_metric
from .protocol import MAX_NEW_TOKENS, ROLES, paper_conversation, paper_prompt, system_prompt
from .questions import Question, data_files, read_questions


MM_VET_PREDICTIONS = "mmvet.json"


@dataclass
class Understanding:
    """Evaluator of POPE, MME, MMBench, SEED-Bench, GQA, MMMU or MM-Vet, with the Janus authors' prompts.

    Args:
        name: Name of the benchmark, one of `protocol.BENCHMARKS`.
        data: Path of the benchmark's data, as for `read_questions`.
        images: Folder that image paths in the data are relative to. None is the folder of the data file.
        batch_size: Number of questions that each process asks at a time.
        limit: Ask only this number of questions, the first ones of the file. None asks all.
        max_new_tokens: Upper bound on the number of tokens of an answer. None stands for the authors' value, 2048.
    """

    name: str
    data: str | os.PathLike[str]
    images: str | os.PathLike[str] | None = None
    batch_size: int = 8
    limit: int | None = None
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        check_values({name: value for name, value in vars(self).items() if value is not None}, COMMON)

    @property
    def primary_metric(self) -> str:
        """Name of the metric that the papers report for the benchmark."""
        return primary_metric(self.name)

    def __call__(self, pipe: ImagePipeline, folder: str | os.PathLike[str] | None) -> Report:
        """Ask the questions, score the answers and save the report; see `Evaluator` and `run_understanding`."""
        report = run_understanding(
            pipe,
            self.name,
            self.data,
            images=self.images,
            folder=folder,
            batch_size=self.batch_size,
            limit=self.limit,
            max_new_tokens=MAX_NEW_TOKENS if self.max_new_tokens is None else self.max_new_tokens,
        )
        return report if folder is None else save_once(report, folder)


def make_understanding(name: str, data: str | os.PathLike[str] | None, **options: Any) -> Understanding:
    """Return the evaluator of an understanding benchmark, which asks questions about images.

    Args:
        name: Name of the benchmark, one of `protocol.BENCHMARKS`.
        data: Path of the benchmark's data. None downloads the published file.
        options: Further arguments of `Understanding`.
    """
    return Understanding(name, find_data(name, data), **options)


@checked(images=PATH)
def run_understanding(
    pipe: ImagePipeline,
    benchmark: str,
    data: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
    batch_size: int = 8,
    limit: int | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Report:
    """Ask a model the questions of a benchmark, score its answers and return the report.

    In a launch of several processes, each process asks its share of the questions, and all return the same report.

    Args:
        pipe: Pipeline of the model that answers.
        benchmark: "pope", "mme", "mmbench", "seed", "gqa", "mmmu" or "mmvet".
        data: Path of the benchmark's data, as for `read_questions`.
        images: Folder that image paths in the data are relative to. None is the folder of the data file.
        folder: Folder in which answers are kept as they come, and in which a run that was stopped continues. None
            keeps nothing on disk. MM-Vet needs a folder, because its official evaluator reads `mmvet.json` there.
        batch_size: Number of questions that each process asks at a time. The answers do not depend on it.
        limit: Ask only this number of questions, the first ones of the file. None asks all.
        max_new_tokens: Upper bound on the number of tokens of an answer; the default is the authors'. A smaller value
            makes runaway answers cheaper, which strict scoring counts as wrong in any case.

    Returns:
        The report with the metrics of `judge_answers`, which are none for MM-Vet. Questions whose image cannot be
        read, that do not fit into the model's context, or that get an empty answer are in `failures` and not in the
        metrics.

    Raises:
        FileNotFoundError: If the data are missing. The message says where to get them.
        ValueError: If an argument is out of range, the data are not in the expected layout, or `folder` was made with
            other settings.
    """
    if batch_size < 1 or (limit is not None and limit < 1):
        raise ValueError(
            f"`batch_size` and `limit` must be at least 1, got {batch_size} and {limit}: choose larger ones."
        )
    if benchmark == "mmvet" and folder is None:
        raise ValueError(
            "`folder` must be a path for MM-Vet, got None: its official evaluator reads the answers from there."
        )
    questions = read_questions(benchmark, data, images=images)[:limit]
    files = data_files(benchmark, data)
    # Record hashes of the content, because another release of a benchmark may have the same file name.
    settings = run_settings(
        pipe,
        benchmark=benchmark,
        data=[path.name for path in files],
        data_sha256=[hash_file(path) for path in files],
        images=None if images is None else os.fspath(images),
        limit=limit,
        max_new_tokens=max_new_tokens,
        prompts="authors",
    )
    opened = open_run(folder, settings) if folder is not None else None
    with progress_bar_of(pipe) as shown:
        answers, problems = share_answers(
            {question.index: question for question in questions},
            lambda batch: _ask(pipe, benchmark, batch, max_new_tokens),
            Journal(opened),
            batch_size=batch_size,
            title=benchmark,
            unit="question",
            shows_progress=shown,
        )

    # An empty answer cannot be judged, so it is a failure and not a wrong answer.
    problems |= {index: "empty answer" for index, text in answers.items() if not text}
    given = {index: text for index, text in answers.items() if text}
    metrics, rows = judge_answers(benchmark, questions, given)
    if benchmark == "mmvet" and opened is not None and processes().is_main_process:
        write_atomically(opened / MM_VET_PREDICTIONS, mmvet_predictions(given))
    return Report(
        benchmark,
        metrics,
        primary_metric(benchmark, metrics),
        _protocol(benchmark, rows, limit),
        settings | {"environments": environments(opened)},
        rows,
        [f"{question.index}: {problems[question.index]}" for question in questions if question.index in problems],
    )


def mmvet_predictions(answers: Mapping[str, str]) -> str:
    """Return answers to MM-Vet as the JSON text that its official evaluator reads, `{"v1_0": "...", ...}`.

    Args:
        answers: The model's answers by index of the question.
    """
    named = {index if index.startswith("v1_") else f"v1_{index}": text for index, text in answers.items()}
    return json.dumps(named, indent=2, ensure_ascii=False) + "\n"


def _ask(
    pipe: ImagePipeline, benchmark: str, batch: Sequence[Question], max_new_tokens: int
) -> list[str | ValueError | OSError]:
    """Have the model answer a batch of questions.

    If the batch fails, each of its questions is asked again alone, so that one bad question does not fail the others.

    Returns:
        For each question, the model's answer, or the exception that prevented one.
    """
    try:
        for question in batch:
            if not question.pictures:
                raise ValueError("no image")
        conversations = [
            paper_conversation(
                paper_prompt(benchmark, question.question, options=question.options, hint=question.hint),
                question.pictures,
                image_token=pipe.processor.image_token,
            )
            for question in batch
        ]
        return list(
            answer(
                pipe.model,
                pipe.processor,
                conversations,
                max_new_tokens=max_new_tokens,
                system_prompt=system_prompt(benchmark),
                roles=ROLES,
            )
        )
    except (ValueError, OSError) as error:
        # The exception does not tell which question caused it.
        if len(batch) == 1:
            return [error]
        return [one for question in batch for one in _ask(pipe, benchmark, [question], max_new_tokens)]


def _protocol(benchmark: str, rows: Sequence[Mapping[str, Any]], limit: int | None) -> str:
    """Return the sentences of the report that say how the scores were measured.

    Args:
        benchmark: Name of the benchmark.
        rows: Rows of the report; MME's tasks without a row are named.
        limit: Number of questions that the run was limited to; None if it asked all.
    """
    text = f"{look_up(benchmark).protocol} This run: the authors' prompts, greedy"
    text += "." if benchmark == "mmvet" else ", answers parsed strictly."
    if limit is not None:
        text += f" Only the first {limit} questions."
    if benchmark == "mme" and (missing := missing_tasks(rows)):
        text += f" The sums lack {', '.join(missing)}."
    return text


__all__ = ["MM_VET_PREDICTIONS", "Understanding", "make_understanding", "mmvet_predictions", "run_understanding"]
