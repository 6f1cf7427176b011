"""The commands `janus-hf ask` and `janus-hf chat`, which answer questions about images."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from .model_arguments import Commands, add_model_arguments, load_pipeline


if TYPE_CHECKING:
    from PIL.Image import Image

    from janus_hf import JanusProPipeline


CHAT_HELP = "/image PATH adds an image to your next message, /reset starts over, /quit (or end of input) leaves."


def add_ask_parser(commands: Commands) -> None:
    """Add the sub-command `ask` to the parser of `janus-hf`."""
    ask = commands.add_parser("ask", help="ask a question about images")
    ask.add_argument("image", nargs="+", help="paths or URLs, then the question")
    ask.add_argument("question", help="the question")
    _add_answer_arguments(ask)
    ask.set_defaults(handler=_ask)


def add_chat_parser(commands: Commands) -> None:
    """Add the sub-command `chat` to the parser of `janus-hf`."""
    chat = commands.add_parser("chat", help="talk with the model; images by path")
    chat.add_argument("--image", action="append", default=[], help="an image of the first message (repeatable)")
    _add_answer_arguments(chat)
    chat.set_defaults(handler=_chat)


def _add_answer_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `ask` and `chat` share to a parser: those of text generation and those of the model."""
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--sample", action="store_true", help="sample the answer (default: take the likeliest tokens)")
    parser.add_argument("--temperature", type=float, help="with --sample")
    parser.add_argument("--system-prompt", default="default", help="'' leaves it out (default: the model's own)")
    add_model_arguments(parser)


def _ask(arguments: argparse.Namespace) -> None:
    """Run `janus-hf ask`: answer the question about the images and print the answer while it is generated."""
    pipe, images, settings = _begin(arguments)
    pipe.ask(images, arguments.question, **settings)


def _chat(arguments: argparse.Namespace) -> None:
    """Run `janus-hf chat`: read messages and slash commands from standard input and print the answers.

    Each answer is printed while it is generated. The command ends with the input, or at "/quit".
    """
    from janus_hf.processing import load_picture

    pipe, images, settings = _begin(arguments)
    print(CHAT_HELP, file=sys.stderr)
    messages: list[dict[str, Any]] = []
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        if line in ("/quit", "/exit"):
            return
        if line == "/reset":
            messages, images = [], []
        elif line.startswith("/image "):
            try:
                images.append(load_picture(line.removeprefix("/image ").strip()))
            except (ValueError, OSError) as error:
                print(error, file=sys.stderr)
        elif line.startswith("/"):
            print(CHAT_HELP, file=sys.stderr)
        elif line:
            content = [{"type": "image", "image": image} for image in images] + [{"type": "text", "text": line}]
            messages.append({"role": "user", "content": content})
            messages.append({"role": "assistant", "content": pipe.chat(messages, **settings)})
            images = []


def _begin(arguments: argparse.Namespace) -> tuple["JanusProPipeline", "list[Image]", dict[str, Any]]:
    """Load the images and the pipeline for `ask` or `chat`, and return them with the settings of text generation.

    Settings are checked and images are read before the pipeline is loaded, because loading it takes longest.

    Returns:
        The pipeline, the images, and the keyword arguments of `pipe.ask` or `pipe.chat`. These contain a streamer,
        which prints the answer while it is generated.

    Raises:
        ValueError: If `--temperature` is given without `--sample`, an image cannot be read, or the device cannot be
            used.
    """
    from transformers import TextStreamer

    from janus_hf.processing import load_picture

    settings: dict[str, Any] = {"max_new_tokens": arguments.max_new_tokens, "do_sample": arguments.sample}
    if arguments.temperature is not None:
        if not arguments.sample:
            raise ValueError("`--temperature` must come together with --sample, got it alone: add --sample.")
        settings["temperature"] = arguments.temperature
    images = [load_picture(path) for path in arguments.image]
    pipe = load_pipeline(arguments)
    streamer = TextStreamer(pipe.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    return pipe, images, settings | {"system_prompt": arguments.system_prompt, "streamer": streamer}
