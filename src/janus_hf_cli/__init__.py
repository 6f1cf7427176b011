"""The command line `janus-hf`: the parser of its arguments and the function that runs a sub-command.

`janus_hf_cli` is a package beside `janus_hf` and not inside it. Importing `janus_hf` registers the model with
transformers and loads torch, which takes seconds, and `janus-hf --help` should not wait for that. For the same reason
every slow import is inside a handler, the function that runs a sub-command.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from .ask import add_ask_parser, add_chat_parser
from .checkpoint_commands import add_assemble_parser, add_convert_parser, add_info_parser, add_merge_parser
from .draw import add_draw_parser
from .evaluate import add_eval_parser
from .training_commands import add_prepare_parser, add_train_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command of `janus-hf` and return the exit status.

    Args:
        argv: The arguments after the name of the program; None takes those of `sys.argv`.

    Returns:
        0 on success, 1 after an error (its message is printed on standard error), 130 after Ctrl-C, or the status that
        the sub-command returns, such as 75 of `train` if SIGTERM stopped the run and it can be resumed.

    Raises:
        SystemExit: If the arguments cannot be parsed (status 2), or after `--help` and `--version` (status 0).
    """
    arguments = make_parser().parse_args(argv)
    try:
        status: int | None = arguments.handler(arguments)
    # ImportError: an optional dependency is not installed; its message names the extra to install.
    except (ValueError, TypeError, OSError, FloatingPointError, ImportError) as error:
        print(f"janus-hf {arguments.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    return status or 0


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of `janus-hf` with all sub-commands.

    The parsed arguments have the attribute `handler`, the function that runs the chosen sub-command.
    """
    parser = argparse.ArgumentParser(
        prog="janus-hf", description="Janus-Pro: generate images, ask questions about images."
    )
    parser.add_argument("--version", action="version", version=f"janus_hf {version('janus_hf')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add_parser in (
        add_draw_parser,
        add_ask_parser,
        add_chat_parser,
        add_convert_parser,
        add_info_parser,
        add_prepare_parser,
        add_train_parser,
        add_merge_parser,
        add_assemble_parser,
        add_eval_parser,
    ):
        add_parser(commands)
    return parser


__all__ = ["main", "make_parser"]
