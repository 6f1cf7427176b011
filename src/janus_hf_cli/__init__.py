"""The `janus-hf` command.

A package beside `janus_hf`, not in it: importing `janus_hf` registers the model with transformers and so loads torch,
for which nobody wants to wait to read `--help`. For the same reason every heavy import stands inside a handler.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .evaluate import add_eval_parser
from .model_arguments import add_dtype_argument, add_model_arguments, load_pipeline


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns the exit status: 0, 1 for an error of the input (said on stderr), 130 when
    interrupted.
    """
    arguments = make_parser().parse_args(argv)
    try:
        status = arguments.handler(arguments)
    except (ValueError, TypeError, OSError, FloatingPointError, ImportError) as error:  # ImportError: an extra lacks
        print(f"janus-hf {arguments.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    return status or 0


def make_parser() -> argparse.ArgumentParser:
    """The parser of all sub-commands."""
    parser = argparse.ArgumentParser(prog="janus-hf", description="Janus-Pro: draw pictures, ask about pictures.")
    parser.add_argument("--version", action="version", version=f"janus_hf {version('janus_hf')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    draw = commands.add_parser("draw", help="draw pictures from prompts")
    draw.add_argument("prompt", nargs="+", help="what to draw; several prompts draw several pictures")
    draw.add_argument(
        "-o", "--output", type=Path, default=Path("."), help="folder, or a .png file for a single picture"
    )
    draw.add_argument("-n", "--num-images", type=int, default=1, help="pictures per prompt")
    draw.add_argument("--negative-prompt", help="what to be guided away from")
    draw.add_argument("--seed", type=int, default=0, help="seed of the first picture; the next ones count up")
    draw.add_argument(
        "--guidance-scale", type=float, help="1 draws without guidance (default: the model's own, 5 if it has none)"
    )
    draw.add_argument("--temperature", type=float, default=1.0)
    draw.add_argument("--top-k", type=int, help="draw among so many codes only (default: all)")
    draw.add_argument(
        "--top-p", type=float, help="draw among the likeliest codes of this much probability (default: all)"
    )
    draw.add_argument("--batch-size", type=int, default=8, help="pictures drawn at the same time")
    draw.add_argument("--lora", help="adapter to draw with: folder or repository")
    draw.add_argument("--compile", action="store_true", help="compile the drawing step first: pays for many pictures")
    draw.add_argument(
        "--speculative-window", type=int, default=1, help="guess so many codes ahead: same pictures, fewer steps"
    )
    add_model_arguments(draw)
    draw.set_defaults(handler=_draw)

    ask = commands.add_parser("ask", help="ask a question about pictures")
    ask.add_argument("image", nargs="+", help="paths or URLs, then the question")
    ask.add_argument("question", help="the question")
    _add_answer_arguments(ask)
    ask.set_defaults(handler=_ask)

    chat = commands.add_parser("chat", help="talk with the model; pictures by path")
    chat.add_argument("--image", action="append", default=[], help="a picture to begin with (repeatable)")
    _add_answer_arguments(chat)
    chat.set_defaults(handler=_chat)

    convert = commands.add_parser("convert", help="rewrite a checkpoint in the other layout, verified by reloading")
    convert.add_argument("source", help="repository id or folder")
    convert.add_argument("destination", type=Path, help="new folder")
    convert.add_argument(
        "--layout",
        choices=("original", "transformers"),
        required=True,
        help="original: for DeepSeek's code and this package; transformers: for transformers' Janus and this package",
    )
    add_dtype_argument(convert)
    convert.add_argument("--max-shard-size", default="5GB")
    convert.add_argument("--revision")
    convert.set_defaults(handler=_convert)

    info = commands.add_parser("info", help="what a checkpoint is: family, sizes, dtype, memory needed")
    info.add_argument("source", nargs="?", help="repository id or folder (default: the embedded model)")
    info.add_argument("--revision")
    info.set_defaults(handler=_info)

    prepare = commands.add_parser("prepare", help="turn pictures and conversations into training shards")
    prepare.add_argument("source", nargs="+", help="folder, file or dataset id; name=SOURCE to name its output folder")
    prepare.add_argument("-o", "--output", type=Path, required=True, help="folder for one sub-folder per source")
    prepare.add_argument("--task", choices=("text", "understanding", "drawing"), help="(default: by the columns)")
    prepare.add_argument("--adapter", help="how to read the columns (default: by their names)")
    prepare.add_argument("--split", default="train", help="split of the dataset (default: train)")
    prepare.add_argument("--max-length", type=int, help="longer rows are skipped and counted")
    prepare.add_argument("--batch-size", type=int, default=32, help="pictures encoded at the same time")
    prepare.add_argument("--num-shards", type=int, help="files per source")
    add_model_arguments(prepare)
    prepare.set_defaults(handler=_prepare)

    train = commands.add_parser("train", help="train a recipe; under accelerate launch: -m janus_hf.train")
    train.add_argument("recipe", help="YAML file")
    train.add_argument("overrides", nargs="*", metavar="section.key=value", help="change single values of the recipe")
    train.set_defaults(handler=_train)

    merge = commands.add_parser("merge", help="merge an adapter into its base, verified by reloading")
    merge.add_argument("adapter", help="folder or repository")
    merge.add_argument("destination", type=Path, help="new folder")
    merge.add_argument("--base", help="folder or repository of the base (default: the one the adapter names)")
    merge.add_argument("--layout", choices=("original", "transformers"), default="original")
    merge.set_defaults(handler=_merge)

    add_eval_parser(commands)
    return parser


def _add_answer_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument(
        "--sample", action="store_true", help="sample the answer instead of taking the likeliest words"
    )
    parser.add_argument("--temperature", type=float, help="with --sample")
    parser.add_argument("--system-prompt", default="default", help="'' leaves it out (default: the model's own)")
    add_model_arguments(parser)


def _draw(arguments: argparse.Namespace) -> None:
    import torch

    total = len(arguments.prompt) * arguments.num_images
    to_file = arguments.output.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp")
    if to_file and total != 1:
        raise ValueError(f"--output {arguments.output} is one file but {total} pictures are asked for; name a folder.")
    folder = arguments.output.parent if to_file else arguments.output
    folder.mkdir(parents=True, exist_ok=True)

    pipe = load_pipeline(arguments)
    if arguments.lora:
        pipe.load_lora_weights(arguments.lora)
    if arguments.compile:
        pipe.enable_fast_decoding(())
    seeds = [arguments.seed + i for i in range(total)]
    images = pipe(
        arguments.prompt,
        negative_prompt=arguments.negative_prompt,
        num_images_per_prompt=arguments.num_images,
        guidance_scale=arguments.guidance_scale,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        batch_size=arguments.batch_size,
        speculative_window=arguments.speculative_window,
    ).images
    for i, (image, seed) in enumerate(zip(images, seeds, strict=True)):
        name = f"{_slug(arguments.prompt[i // arguments.num_images])}-{seed}.png"
        path = arguments.output if to_file else folder / name
        image.save(path)
        print(path)


def _slug(prompt: str) -> str:
    return re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:48] or "picture"


def _answer_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    settings: dict[str, Any] = {"max_new_tokens": arguments.max_new_tokens, "do_sample": arguments.sample}
    if arguments.temperature is not None:
        if not arguments.sample:
            raise ValueError("--temperature has an effect together with --sample only.")
        settings["temperature"] = arguments.temperature
    return settings | {"system_prompt": arguments.system_prompt}


def _ask(arguments: argparse.Namespace) -> None:
    from transformers import TextStreamer

    from janus_hf.processing import load_picture

    settings = _answer_settings(arguments)
    pictures = [load_picture(path) for path in arguments.image]
    pipe = load_pipeline(arguments)
    streamer = TextStreamer(pipe.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    pipe.ask(pictures, arguments.question, streamer=streamer, **settings)


_CHAT_HELP = "/image PATH adds a picture to your next message, /reset starts over, /quit (or end of input) leaves."


def _chat(arguments: argparse.Namespace) -> None:
    from transformers import TextStreamer

    from janus_hf.processing import load_picture

    settings = _answer_settings(arguments)
    pictures = [load_picture(path) for path in arguments.image]
    pipe = load_pipeline(arguments)
    streamer = TextStreamer(pipe.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    print(_CHAT_HELP, file=sys.stderr)
    messages: list[dict[str, Any]] = []
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        if line in ("/quit", "/exit"):
            return
        if line == "/reset":
            messages, pictures = [], []
        elif line.startswith("/image "):
            try:
                pictures.append(load_picture(line.removeprefix("/image ").strip()))
            except (ValueError, OSError) as error:
                print(error, file=sys.stderr)
        elif line.startswith("/"):
            print(_CHAT_HELP, file=sys.stderr)
        elif line:
            content = [{"type": "image", "image": picture} for picture in pictures] + [{"type": "text", "text": line}]
            messages.append({"role": "user", "content": content})
            answer = pipe.chat(messages, streamer=streamer, **settings)
            messages.append({"role": "assistant", "content": answer})
            pictures = []


def _convert(arguments: argparse.Namespace) -> None:
    from janus_hf.checkpoints.convert import convert_checkpoint

    kwargs = {"revision": arguments.revision} if arguments.revision else {}
    convert_checkpoint(
        arguments.source,
        arguments.destination,
        arguments.layout,
        dtype=arguments.dtype,
        max_shard_size=arguments.max_shard_size,
        **kwargs,
    )
    print(f"{arguments.destination}: {arguments.layout} layout, reloaded and equal")


def _info(arguments: argparse.Namespace) -> None:
    from janus_hf.assets import DEFAULT_MODEL
    from janus_hf.checkpoints.inspect import inspect_checkpoint

    kwargs = {"revision": arguments.revision} if arguments.revision else {}
    print(inspect_checkpoint(arguments.source or DEFAULT_MODEL, **kwargs))


def _prepare(arguments: argparse.Namespace) -> None:
    from janus_hf.data import prepare_mixture

    sources = {}
    for source in arguments.source:
        name, equals, path = source.partition("=")
        sources[name if equals else Path(source).stem] = path if equals else source
    if len(sources) != len(arguments.source):
        raise ValueError("Two sources would share an output folder: name them, name=SOURCE.")
    pipe = load_pipeline(arguments)
    options = {
        key: getattr(arguments, key) for key in ("task", "adapter", "split", "max_length", "batch_size", "num_shards")
    }
    given = {key: value for key, value in options.items() if value is not None}
    prepared = prepare_mixture(sources, arguments.output, pipe.model, pipe.processor, **given)
    for name, dataset in prepared.items():
        if dataset is None:
            print(f"{arguments.output / name}: this process is done, others still have shards to write")
        else:
            skipped = dataset.meta["skipped"] or "none"
            print(f"{arguments.output / name}: {dataset.meta['num_rows']} rows, skipped: {skipped}")


def _train(arguments: argparse.Namespace) -> None:
    from janus_hf.training.run import train

    train(arguments.recipe, arguments.overrides, report=lambda line: print(line, file=sys.stderr))


def _merge(arguments: argparse.Namespace) -> None:
    from janus_hf.checkpoints.merge import merge_adapter

    folder = merge_adapter(arguments.adapter, arguments.destination, base=arguments.base, layout=arguments.layout)
    print(f"{folder}: {arguments.layout} layout, reloaded and equal")
