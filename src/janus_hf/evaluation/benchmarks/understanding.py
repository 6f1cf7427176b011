"""The understanding benchmarks without a harness: ask the authors' prompts, score strictly, resume, share among ranks.

Prompts, roles and system prompt are the authors' (`protocol`). Two things differ from VLMEvalKit, through which the
paper's numbers came: answers must keep to the form asked for (`answers`), and pictures are shown as they are, where
VLMEvalKit saves each one again as a JPEG file first.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from tqdm.auto import tqdm

from ...answering import answer
from ..journal import Journal
from ..paper import look_up
from ..report import Report
from ..run_folder import environments, open_run, processes, run_settings, write_atomically
from .answers import judge_answers, missing_tasks, primary_metric
from .protocol import MAX_NEW_TOKENS, ROLES, paper_conversation, paper_prompt, system_prompt
from .questions import Question, data_files, read_questions


MM_VET_PREDICTIONS = "mmvet.json"


def run_understanding(
    pipe: Any,
    benchmark: str,
    data: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
    batch_size: int = 8,
    limit: int | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Report:
    """Ask a benchmark's questions and score the answers.

    Under several processes each answers its share; all get the same report.

    Args:
        pipe: A `JanusProPipeline`.
        benchmark: "pope", "mme", "mmbench", "seed", "gqa", "mmmu" or "mmvet".
        data: The benchmark's file (`questions.read_questions`).
        images: Folder that picture paths in the file start from. Default: the file's own.
        folder: Where answers are kept as they come; a run that was stopped goes on there. None keeps nothing. MM-Vet
            needs one: `mmvet.json` in it is what the official evaluator reads.
        batch_size: Questions answered at a time by each process. The answers do not depend on it.
        limit: Ask only so many questions, the first of the file.
        max_new_tokens: Upper bound on an answer's length; the default is the authors'. A lower one makes runaway
            answers cheaper, which strict scoring counts as wrong anyway.

    Returns:
        Metrics as `answers.judge_answers` defines them; none for MM-Vet. Questions whose picture could not be read,
        that do not fit into the context or that got an empty answer are in `failures`, not in the metrics.

    Raises:
        FileNotFoundError: The data are not there; says where to get them.
        ValueError: An argument or the data are not as expected, or `folder` was made with other settings.
    """
    if batch_size < 1 or (limit is not None and limit < 1):
        raise ValueError(f"Expected batch_size and limit to be at least 1; got {batch_size} and {limit}.")
    if benchmark == "mmvet" and folder is None:
        raise ValueError("Expected a folder: MM-Vet's answers are written there for the official evaluator to judge.")
    questions = read_questions(benchmark, data, images=images)[:limit]
    files = data_files(benchmark, data)
    settings = run_settings(
        pipe,
        benchmark=benchmark,
        data=[path.name for path in files],
        data_sha256=[_sha256(path) for path in files],
        images=None if images is None else os.fspath(images),
        limit=limit,
        max_new_tokens=max_new_tokens,
        prompts="authors",
    )
    opened = open_run(folder, settings) if folder is not None else None
    answers, problems = _ask_all(pipe, benchmark, questions, Journal(opened), batch_size, max_new_tokens)

    problems |= {index: "empty answer" for index, text in answers.items() if not text}
    given = {index: text for index, text in answers.items() if text}
    metrics, rows = judge_answers(benchmark, questions, given)
    if benchmark == "mmvet" and opened is not None and processes().is_main_process:
        write_atomically(opened / MM_VET_PREDICTIONS, mmvet_predictions(given).encode())
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
    """MM-Vet's answers, by index, as the JSON that the official evaluator reads: `{"v1_0": "...", ...}`."""
    named = {index if index.startswith("v1_") else f"v1_{index}": text for index, text in answers.items()}
    return json.dumps(named, indent=2, ensure_ascii=False) + "\n"


def _ask_all(
    pipe: Any,
    benchmark: str,
    questions: Sequence[Question],
    journal: Journal,
    batch_size: int,
    max_new_tokens: int,
) -> tuple[dict[str, str], dict[str, str]]:
    """Answers by index, and what hindered the others."""
    state = processes()
    wanted = {question.index for question in questions}
    answers = {index: entry["answer"] for index, entry in journal.read().items() if index in wanted}
    missing = [question for question in questions if question.index not in answers]
    own = missing[state.process_index :: state.num_processes]
    new: list[tuple[str, str]] = []
    problems: list[tuple[str, str]] = []
    with tqdm(total=len(own), desc=benchmark, unit="question", disable=not state.is_main_process) as progress:
        for start in range(0, len(own), batch_size):
            batch = own[start : start + batch_size]
            given = _ask(pipe, benchmark, batch, max_new_tokens)
            answered = [(q.index, text) for q, text in zip(batch, given, strict=True) if isinstance(text, str)]
            problems += [(q.index, str(e)) for q, e in zip(batch, given, strict=True) if isinstance(e, Exception)]
            journal.append(*({"index": index, "answer": text} for index, text in answered))
            new += answered
            progress.update(len(batch))
    answers |= dict(gather_object(new))
    return answers, dict(gather_object(problems))


def _ask(pipe: Any, benchmark: str, batch: Sequence[Question], max_new_tokens: int) -> list[str | Exception]:
    """An answer, or what is wrong with the question, for each of a batch. One that is wrong does not cost the others
    theirs: they are then asked singly.
    """
    try:
        for question in batch:
            if not question.pictures:
                raise ValueError("no picture")
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
        if len(batch) == 1:
            return [error]
        return [one for question in batch for one in _ask(pipe, benchmark, [question], max_new_tokens)]


def _protocol(benchmark: str, rows: Sequence[Mapping[str, Any]], limit: int | None) -> str:
    text = f"{look_up(benchmark).protocol} This run: the authors' prompts, greedy"
    text += "." if benchmark == "mmvet" else ", answers parsed strictly."
    if limit is not None:
        text += f" Only the first {limit} questions."
    if benchmark == "mme" and (missing := missing_tasks(rows)):
        text += f" The sums lack {', '.join(missing)}."
    return text


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = ["MM_VET_PREDICTIONS", "mmvet_predictions", "run_understanding"]


@dataclass
class Understanding:
    """POPE, MME, MMBench, SEED-Bench, GQA, MMMU or MM-Vet, with the authors' prompts.

    Args:
        name: The benchmark.
        data: Its file; see `questions.read_questions`.
        images, batch_size, limit: As for `run_understanding`.
        max_new_tokens: The same; None is its default.
    """

    name: str
    data: str | os.PathLike[str]
    images: str | os.PathLike[str] | None = None
    batch_size: int = 8
    limit: int | None = None
    max_new_tokens: int | None = None

    @property
    def primary_metric(self) -> str:
        """What the papers report."""
        return primary_metric(self.name)

    def __call__(self, pipe: Any, folder: str | os.PathLike[str]) -> Report:
        """See `run_understanding`."""
        options = {} if self.max_new_tokens is None else {"max_new_tokens": self.max_new_tokens}
        report = run_understanding(
            pipe,
            self.name,
            self.data,
            images=self.images,
            folder=folder,
            batch_size=self.batch_size,
            limit=self.limit,
            **options,
        )
        return _saved(report, folder)

