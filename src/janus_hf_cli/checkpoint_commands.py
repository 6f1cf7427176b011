"""The commands `janus-hf assemble`, `convert`, `info` and `merge`, which work on whole checkpoints."""

import argparse
from pathlib import Path

from .model_arguments import Commands, add_dtype_argument, add_revision_argument, revision_kwargs


LAYOUTS = ("original", "transformers")


def add_assemble_parser(commands: Commands) -> None:
    """Add the sub-command `assemble` to the parser of `janus-hf`."""
    assemble = commands.add_parser(
        "assemble",
        help="assemble the start of stage 1 from a language model, a vision tower and a codec, verified by reloading",
    )
    where = "folder, file, or repository with optional revision and file: organisation/name[@revision][/file]"
    for option, what in (
        ("--language-model", "Llama, such as deepseek-ai/deepseek-llm-7b-base, or a checkpoint of DeepSeek-VL"),
        ("--vision-tower", "SigLIP of transformers, timm or open_clip, such as google/siglip-large-patch16-384"),
        ("--codec", "image tokenizer of LlamaGen, such as FoundationVision/LlamaGen/vq_ds16_c2i.pt"),
    ):
        assemble.add_argument(option, required=True, metavar="SOURCE", help=f"{what}; {where}")
    assemble.add_argument("-o", "--output", type=Path, required=True, help="new folder")
    assemble.add_argument(
        "--tokenizer",
        metavar="SOURCE",
        help="tokenizer that extends that of the language model, such as that of deepseek-ai/Janus-Pro-7B (default: "
        "the language model's, with the special tokens that it lacks)",
    )
    assemble.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="dtype of the weights (default: float32)"
    )
    assemble.add_argument("--layout", choices=LAYOUTS, default="original")
    assemble.add_argument("--seed", type=int, default=0, help="seed of the new weights (default: 0)")
    assemble.add_argument("--max-shard-size", default="5GB", help="largest size of a weight file (default: 5GB)")
    assemble.set_defaults(handler=_assemble)


def add_convert_parser(commands: Commands) -> None:
    """Add the sub-command `convert` to the parser of `janus-hf`."""
    convert = commands.add_parser("convert", help="rewrite a checkpoint in the other layout, verified by reloading")
    convert.add_argument("source", help="repository id or folder")
    convert.add_argument("destination", type=Path, help="new folder")
    convert.add_argument(
        "--layout",
        choices=LAYOUTS,
        required=True,
        help="original: for DeepSeek's code and this package; transformers: for transformers' Janus and this package",
    )
    add_dtype_argument(convert)
    convert.add_argument("--max-shard-size", default="5GB", help="largest size of a weight file (default: 5GB)")
    add_revision_argument(convert)
    convert.set_defaults(handler=_convert)


def add_info_parser(commands: Commands) -> None:
    """Add the sub-command `info` to the parser of `janus-hf`."""
    info = commands.add_parser("info", help="describe a checkpoint (family, sizes, dtype, memory) or this environment")
    info.add_argument("source", nargs="?", help="repository id or folder (default: the model inside the package)")
    add_revision_argument(info)
    info.add_argument(
        "--environment",
        action="store_true",
        help="print versions, devices and kernels as Markdown, for a bug report; a source is then optional",
    )
    info.set_defaults(handler=_info)


def add_merge_parser(commands: Commands) -> None:
    """Add the sub-command `merge` to the parser of `janus-hf`."""
    merge = commands.add_parser("merge", help="merge an adapter into its base, verified by reloading")
    merge.add_argument("adapter", help="folder or repository")
    merge.add_argument("destination", type=Path, help="new folder")
    merge.add_argument("--base", help="folder or repository of the base (default: the one the adapter names)")
    merge.add_argument("--layout", choices=LAYOUTS, default="original")
    add_revision_argument(merge, "branch, tag or commit of the adapter (the adapter names that of its base)")
    merge.set_defaults(handler=_merge)


def _assemble(arguments: argparse.Namespace) -> None:
    """Run `janus-hf assemble`: write the assembled checkpoint and print the path of its folder."""
    from janus_hf.checkpoints.assemble import assemble_checkpoint

    folder = assemble_checkpoint(
        arguments.language_model,
        arguments.vision_tower,
        arguments.codec,
        arguments.output,
        tokenizer=arguments.tokenizer,
        dtype=arguments.dtype,
        layout=arguments.layout,
        seed=arguments.seed,
        max_shard_size=arguments.max_shard_size,
    )
    _print_verified(folder, arguments.layout)


def _convert(arguments: argparse.Namespace) -> None:
    """Run `janus-hf convert`: write the checkpoint in the other file layout and print the path of its folder."""
    from janus_hf.checkpoints.convert import convert_checkpoint

    convert_checkpoint(
        arguments.source,
        arguments.destination,
        arguments.layout,
        dtype=arguments.dtype,
        max_shard_size=arguments.max_shard_size,
        **revision_kwargs(arguments, arguments.source),
    )
    _print_verified(arguments.destination, arguments.layout)


def _info(arguments: argparse.Namespace) -> None:
    """Run `janus-hf info`: print a description of a checkpoint, of this environment, or of both."""
    revision = revision_kwargs(arguments, arguments.source)
    if arguments.environment:
        from .environment import describe_environment

        print(describe_environment())
        if arguments.source is None:
            return

    from janus_hf.assets import DEFAULT_MODEL
    from janus_hf.checkpoints.inspect import inspect_checkpoint

    print(inspect_checkpoint(arguments.source or DEFAULT_MODEL, **revision))


def _merge(arguments: argparse.Namespace) -> None:
    """Run `janus-hf merge`: merge an adapter into its base model and print the path of the new checkpoint's folder."""
    from janus_hf.checkpoints.merge import merge_adapter

    folder = merge_adapter(
        arguments.adapter,
        arguments.destination,
        base=arguments.base,
        layout=arguments.layout,
        **revision_kwargs(arguments, arguments.adapter),
    )
    _print_verified(folder, arguments.layout)


def _print_verified(folder: Path, layout: str) -> None:
    print(f"{folder}: {layout} layout, reloaded and equal")
