"""The command `janus-hf eval`, which runs benchmarks and prints their reports."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from . import model_arguments
from .benchmark_commands import COMMANDS, Options
from .model_arguments import Commands, add_model_arguments, load_pipeline


# This import, and those inside functions, are not run for `--help`: importing `janus_hf` loads torch.
if TYPE_CHECKING:
    from janus_hf.evaluation.report import Report


def add_eval_parser(commands: Commands) -> None:
    """Add the command `eval` to the parser of `janus-hf`.

    It has one sub-command per benchmark, and `report`, which prints a table of finished runs.
    """
    evaluate = commands.add_parser(
        "eval",
        help="run a benchmark, or print reports beside the paper",
        description="A benchmark that was stopped continues in its folder. On several GPUs: "
        "accelerate launch -m janus_hf_cli eval ...",
    )
    benchmarks = evaluate.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    for name, command in COMMANDS.items():
        parser = benchmarks.add_parser(name, help=command.help)
        command.add_arguments(parser)
        add_model_arguments(parser)
        parser.set_defaults(handler=_run_benchmark)
    _add_image_metrics(benchmarks)

    report = benchmarks.add_parser("report", help="print one table of finished runs, beside the paper's numbers")
    report.add_argument("folder", nargs="+", type=Path, help="folders of the runs")
    report.set_defaults(handler=_print_comparison)


def _run_benchmark(arguments: argparse.Namespace) -> int:
    """Run `janus-hf eval BENCHMARK`: run the benchmark and print its report.

    Returns:
        The exit status: 1 if an image or answer could not be judged, otherwise 0.
    """
    from contextlib import ExitStack

    from janus_hf.evaluation.evaluators import make_evaluator

    use_device(arguments.device)
    command, folder = COMMANDS[arguments.benchmark], arguments.output
    if folder is None and command.keeps:
        folder = Path("evaluations") / _model_name(arguments.model) / arguments.benchmark
    with ExitStack() as stack:
        evaluator = make_evaluator(arguments.benchmark, arguments.data, **command.options(arguments, stack))
        pipe = load_pipeline(arguments)
        report = evaluator(pipe, folder)
    return _print_report(report, command.to_text(report), folder)


def _print_report(report: "Report", text: str, folder: Path | None) -> int:
    """Print a report's text, then the files of the run and the share of items that could not be judged.

    In a launch of several processes only the main process prints, and all processes wait for each other.

    Args:
        report: The report.
        text: The report as text.
        folder: Folder of the run; None if nothing was kept.

    Returns:
        The exit status: 1 if an item could not be judged, otherwise 0.
    """
    from accelerate import PartialState

    if PartialState().is_main_process:
        print(text)
        if folder is not None:
            files = ("report.json", "report.md", "results.jsonl", "sheet.png")
            print(f"{folder}: {', '.join(name for name in files if (folder / name).is_file())}", file=sys.stderr)
        if report.failures:
            print(
                f"{len(report.failures)} could not be judged ({100 * report.failed_share:.2f} % of all).",
                file=sys.stderr,
            )
    PartialState().wait_for_everyone()  # a launcher ends all processes as soon as one exits with a failure
    return 1 if report.failures else 0


def use_device(chosen: str | None) -> str:
    """Make accelerate and PyTorch use a device in this process, and return the name of the device.

    Args:
        chosen: Value of `--device`; None chooses the best device (see `best_device`).

    Raises:
        ValueError: If the device cannot be used, or the launcher gave this process another device.
    """
    import torch
    from accelerate import PartialState

    chosen = chosen or model_arguments.best_device()
    # This must come first, because in a launched process it determines which GPU "cuda" means.
    given = PartialState(cpu=chosen == "cpu").device
    device = torch.device(model_arguments.check_device(chosen))
    if None not in (device.index, given.index) and device.index != given.index:
        raise ValueError(
            f"--device must be the device that the launcher gave this process, {given}, got {device}: leave it out."
        )
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # accelerate and the judges use "cuda" without an index, which is then this one
    return str(device)


def _model_name(name: str | None) -> str:
    """Return the name of the folder below `evaluations` that holds the runs of a model.

    Args:
        name: Value of `--model`: a folder or a repository id; None is the small model inside the package.
    """
    if name is None:
        return "janus-shapes"
    return Path(name).resolve().name if Path(name).is_dir() else name.replace("/", "--")


# The sub-commands `clipscore` and `fid`, which measure images that exist already


def _add_image_metrics(benchmarks: Commands) -> None:
    """Add the sub-commands `clipscore` and `fid`, which measure existing images, to the parser of `janus-hf eval`."""
    clipscore = benchmarks.add_parser("clipscore", help="how well generated images fit their prompts, by CLIP")
    clipscore.add_argument("--clip", default="openai/clip-vit-large-patch14", help="name or folder of a CLIP")
    fid = benchmarks.add_parser("fid", help="how far generated images are from reference images")
    fid.add_argument("--reference", type=Path, required=True, help="folder of reference images, or of a run")
    fid.add_argument(
        "--size", type=int, help="first cut images to squares of this number of pixels a side (default: as they are)"
    )
    fid.add_argument(
        "--network", help="name or folder of a transformers vision model, instead of Inception; not comparable"
    )
    for parser in (clipscore, fid):
        images = parser.add_mutually_exclusive_group(required=True)
        images.add_argument("--results", type=Path, help="folder of a run that generated images")
        images.add_argument("--images", type=Path, help="folder of images; CLIPScore's prompts in metadata.jsonl")
        parser.add_argument("-o", "--output", type=Path, help="folder of the report (default: beside the images)")
        parser.add_argument("--batch-size", type=int, default=32, help="images at a time")
        parser.add_argument("--device", help="cpu, cuda, ... (default: the best there is)")
    clipscore.set_defaults(handler=_run_clip_score)
    fid.set_defaults(handler=_run_fid)


def _run_clip_score(arguments: argparse.Namespace) -> int:
    """Run `janus-hf eval clipscore`: measure the CLIPScore of existing images and print the report.

    Returns:
        The exit status: 1 if an image could not be read, otherwise 0.
    """
    from janus_hf.evaluation.benchmarks.image_metrics import evaluate_clip_score, prompted_pictures, run_pictures
    from janus_hf.rewards.clip import ClipScore

    images = run_pictures(arguments.results) if arguments.results else prompted_pictures(arguments.images)
    scorer = ClipScore(arguments.clip, device=use_device(arguments.device), batch_size=arguments.batch_size)
    return _measure(arguments, {"clip": arguments.clip}, lambda: evaluate_clip_score(images, scorer))


def _run_fid(arguments: argparse.Namespace) -> int:
    """Run `janus-hf eval fid`: measure the FID of existing images and print the report.

    Returns:
        The exit status: 1 if an image could not be read, otherwise 0.
    """
    from janus_hf.evaluation.benchmarks.image_metrics import (
        VisionFeatures,
        evaluate_fid,
        folder_pictures,
        reference_pictures,
        run_pictures,
    )

    device = use_device(arguments.device)
    images = list(run_pictures(arguments.results)) if arguments.results else folder_pictures(arguments.images)
    reference = reference_pictures(arguments.reference)
    network = VisionFeatures(arguments.network, device=device) if arguments.network else None
    options = {"size": arguments.size, "batch_size": arguments.batch_size}
    chosen = {"reference": str(arguments.reference.resolve()), "network": arguments.network, "size": arguments.size}
    return _measure(arguments, chosen, lambda: evaluate_fid(images, reference, network, **options))


def _measure(arguments: argparse.Namespace, chosen: Options, measure: "Callable[[], Report]") -> int:
    """Measure existing images for `clipscore` or `fid`, save the report in a folder and print it.

    The folder and the settings are checked before measuring: a folder belongs to one set of settings.

    Args:
        arguments: The parsed arguments of the command line.
        chosen: Settings that the result depends on, by name; JSON values.
        measure: Function that measures the images and returns the report.

    Returns:
        The exit status: 1 if an image could not be read, otherwise 0.
    """
    from accelerate import PartialState

    from janus_hf.evaluation.benchmarks.image_metrics import drawn_with, save_report
    from janus_hf.evaluation.run_folder import open_run

    source = (arguments.results or arguments.images).resolve()
    folder = arguments.output or source.with_name(f"{source.name}-{arguments.benchmark}")
    chosen = {"benchmark": arguments.benchmark, "pictures": str(source)} | chosen
    run = {"run": drawn_with(source)} if arguments.results else {}
    open_run(folder, chosen)
    report = measure()
    report.settings = chosen | report.settings | run
    if PartialState().is_main_process:
        save_report(report, folder)
    return _print_report(report, report.to_markdown(), folder)


def _print_comparison(arguments: argparse.Namespace) -> None:
    """Run `janus-hf eval report`: print one table that compares the reports of finished runs."""
    from janus_hf.evaluation.report import Report, compare

    print(compare({str(folder): Report.load(folder) for folder in arguments.folder}))
