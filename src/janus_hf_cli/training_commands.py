"""The commands `janus-hf prepare`, which writes training data, and `janus-hf train`, which trains a recipe."""

import argparse
import sys
from pathlib import Path

from .model_arguments import Commands, add_model_arguments, load_pipeline


# Exit status of a run that is to be started again, because SIGTERM stopped it: EX_TEMPFAIL of sysexits.h.
UNFINISHED = 75

# Arguments of `prepare` that are passed to `prepare_mixture` under their own names.
PREPARE_OPTIONS = (
    "task",
    "adapter",
    "ignore",
    "split",
    "max_length",
    "batch_size",
    "num_threads",
    "num_shards",
    "rows_per_shard",
    "max_bad_share",
    "image_hosts",
    "streaming",
)


def add_prepare_parser(commands: Commands) -> None:
    """Add the sub-command `prepare` to the parser of `janus-hf`."""
    prepare = commands.add_parser("prepare", help="turn images and conversations into training shards")
    prepare.add_argument(
        "source",
        nargs="+",
        help="folder, file, address (s3://, https://, hf://) or dataset id; name=SOURCE to name its output folder",
    )
    prepare.add_argument("-o", "--output", type=Path, required=True, help="folder for one sub-folder per source")
    prepare.add_argument("--task", choices=("text", "understanding", "drawing"), help="(default: by the columns)")
    prepare.add_argument("--adapter", help="how to read the columns (default: by their names)")
    prepare.add_argument(
        "--ignore",
        action="append",
        metavar="NAME",
        help="column, file, or key of messages with content that may be lost (default: none, they are refused)",
    )
    prepare.add_argument("--split", default="train", help="split of the dataset (default: train)")
    prepare.add_argument("--max-length", type=int, help="longer rows are skipped and counted")
    prepare.add_argument("--batch-size", type=int, default=32, help="images encoded at the same time")
    prepare.add_argument(
        "--num-threads", type=int, help="threads that read and resize images (default: one per processor, 4 to 16)"
    )
    prepare.add_argument("--num-shards", type=int, help="files per source")
    prepare.add_argument(
        "--rows-per-shard", type=int, help="rows per file (default: 1024 to 8192, by the size of the source)"
    )
    prepare.add_argument(
        "--max-bad-share",
        type=float,
        help="largest share of rows that cannot be used; more end the preparation (default: 0.5)",
    )
    prepare.add_argument(
        "--image-host",
        action="append",
        dest="image_hosts",
        metavar="HOST",
        help="host or bucket at which rows of a source that is not on this machine may name images, '*' for all "
        "(default: only where the source is)",
    )
    prepare.add_argument(
        "--streaming",
        action="store_true",
        default=None,
        help="read the files without first converting all of them to the cache of `datasets`",
    )
    add_model_arguments(prepare)
    prepare.set_defaults(handler=_prepare)


def add_train_parser(commands: Commands) -> None:
    """Add the sub-command `train` to the parser of `janus-hf`."""
    train = commands.add_parser(
        "train", help="train a recipe; in several processes: accelerate launch -m janus_hf_cli train RECIPE ..."
    )
    train.add_argument("recipe", help="YAML file")
    train.add_argument("overrides", nargs="*", metavar="section.key=value", help="change single values of the recipe")
    train.set_defaults(handler=_train)


def _prepare(arguments: argparse.Namespace) -> None:
    """Run `janus-hf prepare`: write the training shards of every data source and print its number of rows."""
    from janus_hf.data import prepare_mixture
    from janus_hf.data.integrity.bad_rows import list_rows

    sources = {}
    for source in arguments.source:
        name, equals, path = source.partition("=")
        is_named = equals and "://" not in name  # addresses may hold "=" in their queries
        sources[name if is_named else _folder_name(source)] = path if is_named else source
    if len(sources) != len(arguments.source):
        raise ValueError(
            f"`source` must name an output folder of its own for every source, got {' '.join(arguments.source)}, of "
            "which two would share an output folder: name them, name=SOURCE."
        )
    pipe = load_pipeline(arguments)
    options = {key: value for key in PREPARE_OPTIONS if (value := getattr(arguments, key)) is not None}
    prepared = prepare_mixture(sources, arguments.output, pipe.model, pipe.processor, **options)
    for name, dataset in prepared.items():
        if dataset is None:
            print(f"{arguments.output / name}: this process is done, others still have shards to write")
        else:
            skipped = dataset.meta["skipped"] or "none"
            print(f"{arguments.output / name}: {dataset.meta['num_rows']} rows, skipped: {skipped}")
            if dataset.meta["skipped"]:
                listed = list_rows(dataset.meta["skipped_rows"], dataset.meta["skipped"])
                print(f"{arguments.output / name}: skipped rows of the source, by number: {listed}")
            for kind in ("columns", "files"):
                if unused := dataset.meta[f"unused_{kind}"]:
                    print(f"{arguments.output / name}: {kind} not used, without content: {', '.join(unused)}")


def _folder_name(source: str) -> str:
    """Return the name of the output folder of a source: that of its file or folder, without suffix and query."""
    return Path(source.partition("?")[0] if "://" in source else source).stem


def _train(arguments: argparse.Namespace) -> int:
    """Run `janus-hf train`: train the model of a recipe (YAML file) and print the progress on standard error.

    Returns:
        0 if the run is finished, and `UNFINISHED` if SIGTERM stopped it after a checkpoint was saved.
    """
    from janus_hf.training.resuming.stopping import RunInterruptedError
    from janus_hf.training.run import train

    from .benchmarks_in_training import make_benchmarks

    try:
        train(
            arguments.recipe,
            arguments.overrides,
            make_benchmarks=make_benchmarks,
            report=lambda line: print(line, file=sys.stderr),
        )
    except RunInterruptedError as interruption:
        print(f"janus-hf train: {interruption}", file=sys.stderr)
        return UNFINISHED
    return 0
