"""Divide the work of a benchmark among the processes of an `accelerate launch`, and collect the results.

Every process makes the same calls with the same arguments and receives the same results. With n processes, process k
works on the items k, k + n, k + 2n, ... Without a launcher there is one process, which does all the work.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from accelerate.utils import gather_object
from tqdm.auto import tqdm

from ..protocols import ImagePipeline
from .journal import Journal
from .run_folder import processes


Item = TypeVar("Item")
Result = TypeVar("Result")
Failure = TypeVar("Failure")


def own_share(items: Sequence[Item]) -> Sequence[Item]:
    """Return the items that this process works on: of n processes, process k works on items k, k + n, k + 2n, ..."""
    state = processes()
    return items[state.process_index :: state.num_processes]


def gather(values: list[Result]) -> list[Result]:
    """Return the values of all processes as one list, in the order of their ranks. Every process must call it."""
    gathered: list[Result] = values if processes().num_processes == 1 else gather_object(values)
    return gathered


def progress_bar_of(pipe: ImagePipeline) -> AbstractContextManager[bool]:
    """Hide the pipeline's own progress bar inside the `with` block, and yield whether `share` may show one.

    It may not if the user has turned off the pipeline's (`set_progress_bar_config(disable=True)`). Pipelines of other
    classes than `JanusProPipeline` need not have this setting.
    """
    hide: Callable[[], AbstractContextManager[bool]] = getattr(pipe, "hidden_progress_bar", lambda: nullcontext(True))
    return hide()


def share(
    items: Sequence[Item],
    work: Callable[[Sequence[Item]], tuple[Sequence[Result], Sequence[Failure]]],
    *,
    batch_size: int,
    title: str,
    unit: str,
    shows_progress: bool = True,
) -> tuple[list[Result], list[Failure]]:
    """Apply `work` to every item once: each process of the launch works on its share, and all return all results.

    The main process shows a progress bar for its share.

    Args:
        items: The items to work on; the same in every process.
        work: Function that takes a batch of items and returns its results and its failures, any number of each.
        batch_size: Largest number of items in a batch.
        title: Title of the progress bar.
        unit: Name of an item on the progress bar, such as "image".
        shows_progress: False shows no progress bar.

    Returns:
        The results and the failures of all processes: first those of rank 0, in the order of its items, and so on.

    Raises:
        ValueError: If `batch_size` is less than 1.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}: choose a larger one.")
    own = own_share(items)
    results: list[Result] = []
    failures: list[Failure] = []
    hidden = not (shows_progress and processes().is_main_process)
    with tqdm(total=len(own), desc=title, unit=f" {unit}s", disable=hidden) as progress:
        for start in range(0, len(own), batch_size):
            batch = own[start : start + batch_size]
            found, failed = work(batch)
            results += found
            failures += failed
            progress.update(len(batch))
    # Gathering is also a barrier: when this function returns, every process has finished its share.
    return gather(results), gather(failures)


def share_answers(
    questions: Mapping[str, Item],
    ask: Callable[[Sequence[Item]], Sequence[Any]],
    journal: Journal,
    *,
    batch_size: int,
    title: str,
    unit: str,
    shows_progress: bool = True,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Ask every question that has no answer in the journal yet, and record the new answers there.

    The processes of a launch divide the questions among themselves; see `share`. A question that failed is not
    recorded, so the next run in the same folder asks it again.

    Args:
        questions: Questions by index, which is their identifier; the same in every process.
        ask: Function that takes a batch of questions and returns, for each, its answer (a JSON value) or the exception
            that prevented one.
        journal: Record of the answers of earlier runs. Answers to questions that are not among `questions` are
            ignored.
        batch_size: Largest number of questions in a batch.
        title: Title of the progress bar.
        unit: Name of a question on the progress bar.
        shows_progress: False shows no progress bar.

    Returns:
        The answers by index, recorded and new ones, and the messages of the exceptions by index.
    """
    # Every process reads the whole journal before any process appends to it, so all find the same open questions.
    answers = {index: answer for index, answer in journal.read().items() if index in questions}

    def work(batch: Sequence[str]) -> tuple[list[tuple[str, Any]], list[tuple[str, str]]]:
        given = list(zip(batch, ask([questions[index] for index in batch]), strict=True))
        answered = [(index, answer) for index, answer in given if not isinstance(answer, Exception)]
        journal.append(dict(answered))
        return answered, [(index, str(error)) for index, error in given if isinstance(error, Exception)]

    missing = [index for index in questions if index not in answers]
    new, problems = share(missing, work, batch_size=batch_size, title=title, unit=unit, shows_progress=shows_progress)
    return answers | dict(new), dict(problems)


__all__ = ["gather", "own_share", "progress_bar_of", "share", "share_answers"]
