"""`janus-hf eval`: the benchmarks."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import model_arguments
from .model_arguments import add_model_arguments, load_pipeline


def add_eval_parser(commands: Any) -> None:
    """One sub-command per benchmark, and `report`."""
    evaluate = commands.add_parser(
        "eval",
        help="run a benchmark, or print reports beside the paper",
        description="Every benchmark goes on where it was stopped, in its folder. On several GPUs: "
        "accelerate launch -m janus_hf_cli eval ...",
    )
    benchmarks = evaluate.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")

    shapes = benchmarks.add_parser("shapes", help="the small world: exact, offline")
    shapes.add_argument("--prompts-per-tag", type=int, default=100, help="fresh prompts for each of the six tags")
    shapes.add_argument("--images-per-prompt", type=int, default=4)
    shapes.add_argument("--questions", type=int, default=600, help="fresh questions in all")
    shapes.add_argument("--guidance-scale", type=float, help="default: the model's own")
    shapes.add_argument("--seed", type=int, default=0)
    shapes.add_argument("--batch-size", type=int, default=64)
    shapes.add_argument(
        "-o",
        "--output",
        type=Path,
        help="folder for pictures, answers, report and sheet; a run that was stopped goes on there (default: keep "
        "nothing)",
    )
    add_model_arguments(shapes)
    shapes.set_defaults(handler=_eval_shapes)

    geneval = _add_benchmark(benchmarks, "geneval", "objects, counts, colours and positions in drawn pictures")
    geneval.add_argument(
        "--detector",
        help="Mask2Former by name or folder (default: the official one's size), or "
        "'shapes': the small world's prompts and exact detector",
    )
    geneval.add_argument("--prompts-per-tag", type=int, default=100, help="of the small world")
    geneval.add_argument("-n", "--images-per-prompt", type=int, default=4)
    _add_drawing_arguments(geneval)

    dpg = _add_benchmark(benchmarks, "dpg", "dense prompts, proposition by proposition")
    judge = dpg.add_mutually_exclusive_group()
    judge.add_argument(
        "--judge",
        default="Salesforce/blip-vqa-base",
        help="a model of transformers that answers questions; not comparable with the paper",
    )
    judge.add_argument("--mplug-python", help="interpreter of an environment with modelscope: the official judge")
    dpg.add_argument("--without-quirks", action="store_true", help="correct what the official script gets wrong")
    _add_drawing_arguments(dpg)

    for name, title in (("geneval2", "draw GenEval 2's prompts"), ("wise", "draw WISE's prompts")):
        _add_drawing_arguments(_add_benchmark(benchmarks, name, f"{title}, for a judge elsewhere"))

    for name, title in {
        "pope": "is there ...? (hallucination)",
        "mme": "yes or no, 14 tasks",
        "mmbench": "multiple choice, 20 abilities",
        "seed": "multiple choice, single pictures",
        "gqa": "one-word answers",
        "mmmu": "college-level multiple choice",
        "mmvet": "free answers, written for the official judge",
    }.items():
        parser = _add_benchmark(benchmarks, name, title)
        parser.add_argument("--images", type=Path, help="folder of the pictures that the file names")
        parser.add_argument("--max-new-tokens", type=int, help="of an answer (default: the authors' 2048)")

    _add_picture_metrics(benchmarks)

    report = benchmarks.add_parser("report", help="one table of finished runs, beside the paper's numbers")
    report.add_argument("folder", nargs="+", type=Path, help="of runs")
    report.set_defaults(handler=_report)


def _add_benchmark(benchmarks: Any, name: str, title: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = benchmarks.add_parser(name, help=title)
    parser.add_argument("--data", type=Path, help="the benchmark's file (default: download it where that is allowed)")
    parser.add_argument("-o", "--output", type=Path, help="folder of this run (default: evaluations/MODEL/BENCHMARK)")
    parser.add_argument("--limit", type=int, help="only so many prompts or questions")
    parser.add_argument("--batch-size", type=int, default=8, help="pictures or questions at a time")
    add_model_arguments(parser)
    parser.set_defaults(handler=_eval)
    return parser


def _add_picture_metrics(benchmarks: Any) -> None:
    """`clipscore` and `fid`, of pictures that are there already."""
    clipscore = benchmarks.add_parser("clipscore", help="how well drawn pictures fit their prompts, by CLIP")
    clipscore.add_argument("--clip", default="openai/clip-vit-large-patch14", help="name or folder")
    fid = benchmarks.add_parser("fid", help="how far drawn pictures are from pictures of reference")
    fid.add_argument("--reference", type=Path, required=True, help="folder of pictures of reference, or of a run")
    fid.add_argument("--size", type=int, help="cut to squares of so many pixels a side first (default: as they are)")
    fid.add_argument(
        "--network", help="vision model of transformers instead of Inception, by name or folder; not comparable"
    )
    for parser in (clipscore, fid):
        pictures = parser.add_mutually_exclusive_group(required=True)
        pictures.add_argument("--results", type=Path, help="folder of a run that drew")
        pictures.add_argument("--images", type=Path, help="folder of pictures; CLIPScore's prompts in metadata.jsonl")
        parser.add_argument("-o", "--output", type=Path, help="folder of the report (default: beside the pictures)")
        parser.add_argument("--batch-size", type=int, default=32, help="pictures at a time")
        parser.add_argument("--device", help="cpu, cuda, ... (default: the best there is)")
    clipscore.set_defaults(handler=_eval_clip_score)
    fid.set_defaults(handler=_eval_fid)


def _add_drawing_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--guidance-scale", type=float, help="default: the model's own, 5 if it has none")
    parser.add_argument("--temperature", type=float, help="default: 1")
    parser.add_argument("--seed", type=int, default=0, help="of the run; every picture has one of its own")


def _eval(arguments: argparse.Namespace) -> int:
    """Run a benchmark; 1 if anything could not be judged."""
    from contextlib import ExitStack

    from janus_hf.evaluation.evaluators import make_evaluator

    _begin(arguments)
    folder = arguments.output or Path("evaluations") / _model_name(arguments.model) / arguments.benchmark
    with ExitStack() as stack:
        evaluator = make_evaluator(arguments.benchmark, arguments.data, **_options(arguments, stack))
        pipe = load_pipeline(arguments)
        pipe.set_progress_bar_config(disable=True)  # the benchmark shows one of its own
        report = evaluator(pipe, folder)
    return _printed(report, folder)


def _printed(report: Any, folder: Path) -> int:
    """Print a report that lies in the folder; 1 if anything could not be judged."""
    from accelerate import PartialState

    if PartialState().is_main_process:
        print(report.to_markdown())
        print(f"{folder}: report.json, report.md, results.jsonl", file=sys.stderr)
        if report.failures:
            print(
                f"{len(report.failures)} could not be judged ({100 * report.failed_share:.2f} % of all).",
                file=sys.stderr,
            )
    PartialState().wait_for_everyone()  # a launcher ends all processes as soon as one exits with a failure
    return 1 if report.failures else 0


def _begin(arguments: argparse.Namespace) -> str:
    """Tell accelerate where this process works: on `--device`, or the best there is. Returns it.

    Raises:
        ValueError: If it cannot be used, or a launcher gave this process another.
    """
    import torch
    from accelerate import PartialState

    chosen = arguments.device or model_arguments.best_device()
    given = PartialState(cpu=chosen == "cpu").device  # first: in a launched process it sets which GPU "cuda" means
    device = torch.device(model_arguments.check_device(chosen))
    if None not in (device.index, given.index) and device.index != given.index:
        raise ValueError(f"--device {device} asked for, but the launcher gave this process {given}: leave it out.")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # what says "cuda", accelerate and judges among them, means this one
    return str(device)


def _model_name(name: str | None) -> str:
    """Of the model, as a folder's."""
    if name is None:
        return "janus-shapes"
    return Path(name).resolve().name if Path(name).is_dir() else name.replace("/", "--")


def _options(arguments: argparse.Namespace, stack: Any) -> dict[str, Any]:
    """The evaluator's options. What must be ended after the run is entered into the `ExitStack`."""
    from janus_hf.evaluation.evaluators import UNDERSTANDING

    options: dict[str, Any] = {"batch_size": arguments.batch_size, "limit": arguments.limit}
    if arguments.benchmark in UNDERSTANDING:
        return options | {"images": arguments.images, "max_new_tokens": arguments.max_new_tokens}
    options |= {"seed": arguments.seed}
    options["drawing"] = {"guidance_scale": arguments.guidance_scale, "temperature": arguments.temperature}
    if arguments.benchmark == "geneval":
        options |= {"detector": arguments.detector, "images_per_prompt": arguments.images_per_prompt}
        if arguments.detector == "shapes":
            options["prompts_per_tag"] = arguments.prompts_per_tag
    if arguments.benchmark == "dpg":
        options |= _dpg_options(arguments, stack)
    return options


def _dpg_options(arguments: argparse.Namespace, stack: Any) -> dict[str, Any]:
    import torch
    from accelerate import PartialState

    from janus_hf.evaluation.benchmarks.dpg import Quirks
    from janus_hf.rewards.mplug import MplugJudge
    from janus_hf.rewards.vqa import TransformersVqaJudge

    if arguments.mplug_python:
        device = f"gpu:{torch.cuda.current_device()}" if PartialState().device.type == "cuda" else "cpu"
        judge: Any = stack.enter_context(MplugJudge(arguments.mplug_python, device=device))
    else:
        judge = TransformersVqaJudge(arguments.judge, device=PartialState().device)
    return {"judge": judge, "quirks": Quirks(False, False, False) if arguments.without_quirks else Quirks()}


def _eval_clip_score(arguments: argparse.Namespace) -> int:
    """CLIPScore; 1 if a picture could not be read."""
    from janus_hf.evaluation.benchmarks.image_metrics import evaluate_clip_score, prompted_pictures, run_pictures
    from janus_hf.rewards.clip import ClipScore

    pictures = run_pictures(arguments.results) if arguments.results else prompted_pictures(arguments.images)
    scorer = ClipScore(arguments.clip, device=_begin(arguments), batch_size=arguments.batch_size)
    return _measured(arguments, {"clip": arguments.clip}, lambda: evaluate_clip_score(pictures, scorer))


def _eval_fid(arguments: argparse.Namespace) -> int:
    """FID; 1 if a picture could not be read."""
    from janus_hf.evaluation.benchmarks.image_metrics import (
        VisionFeatures,
        evaluate_fid,
        folder_pictures,
        reference_pictures,
        run_pictures,
    )

    device = _begin(arguments)
    pictures = list(run_pictures(arguments.results)) if arguments.results else folder_pictures(arguments.images)
    reference = reference_pictures(arguments.reference)
    network = VisionFeatures(arguments.network, device=device) if arguments.network else None
    options = {"size": arguments.size, "batch_size": arguments.batch_size}
    chosen = {"reference": str(arguments.reference.resolve()), "network": arguments.network, "size": arguments.size}
    return _measured(arguments, chosen, lambda: evaluate_fid(pictures, reference, network, **options))


def _measured(arguments: argparse.Namespace, chosen: dict[str, Any], measure: Callable[[], Any]) -> int:
    """Open the report's folder, and read what it is to repeat, before the work; save the report there, print it."""
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
    return _printed(report, folder)


def _report(arguments: argparse.Namespace) -> None:
    from janus_hf.evaluation.report import Report, compare

    print(compare({str(folder): Report.load(folder) for folder in arguments.folder}))


def _eval_shapes(arguments: argparse.Namespace) -> None:
    from accelerate import PartialState

    from janus_hf.evaluation.benchmarks.shapes_world import evaluate_shapes

    _begin(arguments)
    pipe = load_pipeline(arguments)
    pipe.set_progress_bar_config(disable=arguments.output is not None)  # then the benchmark shows one of its own
    report = evaluate_shapes(
        pipe,
        prompts_per_tag=arguments.prompts_per_tag,
        images_per_prompt=arguments.images_per_prompt,
        questions=arguments.questions,
        guidance_scale=arguments.guidance_scale,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        folder=arguments.output,
    )
    if PartialState().is_main_process:
        print(report.to_markdown())
        if arguments.output is not None:
            print(f"{arguments.output}: report.json, report.md, results.jsonl, sheet.png", file=sys.stderr)
