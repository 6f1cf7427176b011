"""The table `COMMANDS` of the benchmarks that `janus-hf eval` runs: arguments, evaluator options, printed text."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .model_arguments import batch_size


# These imports, and those inside functions, are not run for `--help`: importing `janus_hf` loads torch.
if TYPE_CHECKING:
    from contextlib import ExitStack

    from janus_hf.evaluation.report import Report

Options = dict[str, Any]

_IMAGES_AT_A_TIME = "images at a time; auto: as many as the memory holds"


def _report_text(report: "Report") -> str:
    return report.to_markdown()


class Command(NamedTuple):
    """How `janus-hf eval` runs one benchmark: a row of the table `COMMANDS`.

    Args:
        help: Help text of the benchmark's sub-command.
        add_arguments: Function that adds the benchmark's own arguments to the parser of its sub-command.
        options: Function that returns the keyword arguments of `evaluators.make_evaluator` for the parsed arguments.
            It enters an external judge, which must be closed after the run, into the `ExitStack`.
        to_text: Function that returns the text to print for a report.
        keeps: Whether images, answers and report are kept in a folder by default. If False, they are kept only in a
            folder that the user names.
    """

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    options: "Callable[[argparse.Namespace, ExitStack], Options]"
    to_text: "Callable[[Report], str]" = _report_text
    keeps: bool = True


def _add_common_arguments(parser: argparse.ArgumentParser, *, draws: bool = False) -> None:
    """Add to a parser the arguments of every benchmark that reads its prompts or questions from a file.

    Args:
        parser: The parser.
        draws: Whether the benchmark generates images, so that `--batch-size` may be "auto".
    """
    parser.add_argument("--data", type=Path, help="the benchmark's file (default: download it where that is allowed)")
    parser.add_argument("-o", "--output", type=Path, help="folder of this run (default: evaluations/MODEL/BENCHMARK)")
    parser.add_argument("--limit", type=int, help="use only this number of prompts or questions, the first ones")
    parser.add_argument("--sample-seed", type=int, help="with --limit: choose them at random, with this seed")
    if draws:
        parser.add_argument("--batch-size", type=batch_size, default=8, help=_IMAGES_AT_A_TIME)
    else:
        parser.add_argument("--batch-size", type=int, default=8, help="questions at a time")


def _add_drawing_arguments(parser: argparse.ArgumentParser) -> None:
    """Add to a parser the arguments of every benchmark that generates images from the prompts in a file."""
    _add_common_arguments(parser, draws=True)
    parser.add_argument("--guidance-scale", type=float, help="default: the model's own, 5 if it has none")
    parser.add_argument("--temperature", type=float, help="default: 1")
    parser.add_argument("--seed", type=int, default=0, help="seed of the run; every image has one of its own")


def _common_options(arguments: argparse.Namespace) -> Options:
    return {name: getattr(arguments, name) for name in ("batch_size", "limit", "sample_seed")}


def _drawing_options(arguments: argparse.Namespace, stack: "ExitStack") -> Options:
    drawing = {"guidance_scale": arguments.guidance_scale, "temperature": arguments.temperature}
    return _common_options(arguments) | {"seed": arguments.seed, "drawing": drawing}


def _add_shapes_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompts-per-tag", type=int, default=100, help="fresh prompts for each of the six tags")
    parser.add_argument("--images-per-prompt", type=int, default=4)
    parser.add_argument("--questions", type=int, default=600, help="number of fresh questions")
    parser.add_argument("--guidance-scale", type=float, help="default: the model's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=batch_size, default=64, help=_IMAGES_AT_A_TIME)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        help="folder for images, answers, report and sheet; a run that was stopped continues there (default: keep "
        "nothing)",
    )
    parser.set_defaults(data=None)


def _shapes_options(arguments: argparse.Namespace, stack: "ExitStack") -> Options:
    names = ("prompts_per_tag", "images_per_prompt", "questions", "seed", "batch_size")
    return {name: getattr(arguments, name) for name in names} | {
        "drawing": {"guidance_scale": arguments.guidance_scale}
    }


def _shapes_text(report: "Report") -> str:
    from janus_hf.evaluation.benchmarks.shapes_world import tables

    return tables(report)


def _add_geneval_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--detector",
        help="name or folder of a Mask2Former (default: one of the official detector's size), or 'shapes': the shapes "
        "world's prompts and its exact detector",
    )
    parser.add_argument(
        "--prompts-per-tag", type=int, help="with --detector shapes: prompts of each kind (default: 100)"
    )
    parser.add_argument("-n", "--images-per-prompt", type=int, default=4)
    _add_drawing_arguments(parser)


def _geneval_options(arguments: argparse.Namespace, stack: "ExitStack") -> Options:
    options = _drawing_options(arguments, stack)
    options |= {"detector": arguments.detector, "images_per_prompt": arguments.images_per_prompt}
    if arguments.detector == "shapes" and arguments.data is None:
        options["prompts_per_tag"] = 100 if arguments.prompts_per_tag is None else arguments.prompts_per_tag
    elif arguments.prompts_per_tag is not None:
        raise ValueError(
            "`--prompts-per-tag` must come together with --detector shapes and without --data, got "
            f"{arguments.prompts_per_tag} for prompts from a file: leave it out, or use --limit."
        )
    return options


def _add_dpg_arguments(parser: argparse.ArgumentParser) -> None:
    judge = parser.add_mutually_exclusive_group()
    judge.add_argument(
        "--judge",
        default="Salesforce/blip-vqa-base",
        help="a transformers model that answers questions about images; not comparable with the paper",
    )
    judge.add_argument(
        "--mplug-python", help="the official judge: Python interpreter of an environment with modelscope"
    )
    parser.add_argument("--without-quirks", action="store_true", help="correct what the official script gets wrong")
    _add_drawing_arguments(parser)


def _dpg_options(arguments: argparse.Namespace, stack: "ExitStack") -> Options:
    import torch
    from accelerate import PartialState

    from janus_hf.evaluation.benchmarks.dpg import Judge
    from janus_hf.evaluation.benchmarks.propositions import Quirks
    from janus_hf.rewards.mplug import MplugJudge
    from janus_hf.rewards.vqa import TransformersVqaJudge

    judge: Judge
    if arguments.mplug_python:
        device = f"gpu:{torch.cuda.current_device()}" if PartialState().device.type == "cuda" else "cpu"
        judge = stack.enter_context(MplugJudge(arguments.mplug_python, device=device))
    else:
        judge = TransformersVqaJudge(arguments.judge, device=PartialState().device)
    quirks = Quirks(False, False, False) if arguments.without_quirks else Quirks()
    return _drawing_options(arguments, stack) | {"judge": judge, "quirks": quirks}


def _add_question_arguments(parser: argparse.ArgumentParser) -> None:
    _add_common_arguments(parser)
    parser.add_argument("--images", type=Path, help="folder of the images that the file names")
    parser.add_argument("--max-new-tokens", type=int, help="longest answer, in tokens (default: the authors' 2048)")


def _question_options(arguments: argparse.Namespace, stack: "ExitStack") -> Options:
    return _common_options(arguments) | {"images": arguments.images, "max_new_tokens": arguments.max_new_tokens}


# Name of a benchmark -> its sub-command. The names are those of `janus_hf.evaluation.evaluators.TABLE`; a test
# compares the two tables. They are separate because `--help` needs this one, and importing the other one, which holds
# the evaluators' classes, loads torch.
COMMANDS: dict[str, Command] = {
    "shapes": Command(
        "the shapes world: exact, offline", _add_shapes_arguments, _shapes_options, _shapes_text, keeps=False
    ),
    "geneval": Command(
        "objects, counts, colours and positions in generated images", _add_geneval_arguments, _geneval_options
    ),
    "dpg": Command("dense prompts, proposition by proposition", _add_dpg_arguments, _dpg_options),
    **{
        name: Command(
            f"generate the images of {title}'s prompts, for an external judge",
            _add_drawing_arguments,
            _drawing_options,
        )
        for name, title in {"geneval2": "GenEval 2", "wise": "WISE"}.items()
    },
    **{
        name: Command(title, _add_question_arguments, _question_options)
        for name, title in {
            "pope": "is there ...? (hallucination)",
            "mme": "yes or no, 14 tasks",
            "mmbench": "multiple choice, 20 abilities",
            "seed": "multiple choice, single images",
            "gqa": "one-word answers",
            "mmmu": "college-level multiple choice",
            "mmvet": "free answers, written for the official judge",
        }.items()
    },
}


__all__ = ["COMMANDS", "Command", "Options"]
