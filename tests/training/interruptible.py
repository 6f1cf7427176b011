"""`interruptible.py FILE RECIPE [OVERRIDE ...]`, run by `test_stopping.py`: `janus-hf train`, with a diary.

It appends to FILE a line with its process number, one per step of the main process, and one with its exit status.
"""

import os
import sys
from pathlib import Path

import torch

from janus_hf.training.reports.forecast import HoursCallback
from janus_hf_cli import main


def run(diary: str, *arguments: str) -> int:
    torch.set_num_threads(1)

    def write(line):
        with Path(diary).open("a") as file:
            file.write(line + "\n")

    def on_step_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            write(f"step {state.global_step}")

    HoursCallback.on_step_begin = on_step_begin
    write(f"pid {os.getpid()}")
    status = main(["train", *arguments])
    write(f"rc {status}")
    return status


if __name__ == "__main__":
    status = run(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # see two_ranks.py
