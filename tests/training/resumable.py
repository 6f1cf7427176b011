"""`resumable.py HASHES RECIPE [OVERRIDE ...]`, run by `test_whole_way.py`: train a recipe, as `janus-hf train` does.

It also writes the hash of every batch that the collator makes to the file HASHES, one per line. The test counts the
lines to choose when to kill the process, and compares them between runs.
"""

import dataclasses
import hashlib
import sys
from pathlib import Path

import torch

from janus_hf.training import train
from janus_hf.training.mixture import load_mixture


def main(hashes: str, recipe: str, *overrides: str) -> None:
    torch.set_num_threads(1)

    def load_data(*args):
        data = load_mixture(*args)

        def collate(rows):
            batch = data.collator(rows)
            digest = hashlib.sha256()
            for name, value in sorted(batch.items()):
                digest.update(name.encode() + value.numpy().tobytes())
            with Path(hashes).open("a") as lines:
                lines.write(digest.hexdigest() + "\n")
            return batch

        return dataclasses.replace(data, collator=collate)

    train(recipe, overrides, load_data=load_data)


if __name__ == "__main__":
    main(*sys.argv[1:])
