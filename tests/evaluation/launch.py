"""Run `janus-hf eval` in one new process, or in several under `accelerate launch`."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image


COMMAND = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines=1"]
COMMAND += ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]


def start(arguments: list[str], processes: int) -> subprocess.Popen:
    """Start `janus-hf eval ARGUMENTS` on the CPU, in a process group of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CI": "1", "HF_HUB_OFFLINE": "1"}
    command = [*COMMAND, f"--num_processes={processes}"] if processes > 1 else [sys.executable]
    return subprocess.Popen(
        [*command, "-m", "janus_hf_cli", "eval", *arguments, "--device", "cpu"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(arguments: list[str], processes: int) -> None:
    """Run `janus-hf eval ARGUMENTS` on the CPU to its end, and assert that it succeeds."""
    process = start(arguments, processes)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]


def files(folder: Path, pattern: str) -> dict[str, bytes]:
    """Return the bytes of all files that match a pattern, by relative path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.glob(pattern))}


def assert_same_images(one: Path, two: Path, pattern: str) -> None:
    """Assert that the same images lie in both folders, up to one level of 255 per pixel.

    Ranks generate in other batches than one process, and on some processors (seen with AVX-512) matrix kernels round
    differently by batch size: one pixel then differs by one level. Another seed or prompt changes most pixels by more.
    """
    paths = [path.relative_to(one) for path in sorted(one.glob(pattern))]
    assert paths == [path.relative_to(two) for path in sorted(two.glob(pattern))]
    for path in paths:
        pixels = [np.asarray(Image.open(folder / path)).astype(np.int16) for folder in (one, two)]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1, path
