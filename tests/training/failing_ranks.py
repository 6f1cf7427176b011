"""`failing_ranks.py FOLDER`, run by `test_start_up.py` under `accelerate launch`.

Let processes fail in every way of `FAILURES` and write what each raised to FOLDER/RANK.json.
"""

import json
import sys
from pathlib import Path

import toy
from accelerate import PartialState

from janus_hf.training import train
from janus_hf.training.distributed.processes import together
from janus_hf.training.mixture import load_mixture


def fail(*ranks: int) -> None:
    """Raise on these ranks, each for a reason of its own."""
    if (rank := PartialState().process_index) in ranks:
        raise ValueError(f"Rank {rank}\nis at fault.")


def nested(*ranks: int) -> None:
    """Raise inside a call inside the call, on these ranks."""
    together(lambda: None)
    together(lambda: fail(*ranks))
    together(lambda: None)


def between(*ranks: int) -> None:
    """Raise on these ranks while the others are in a call inside the call."""
    fail(*ranks)
    together(lambda: None)


def start(folder: Path, where: str, rank: int) -> None:
    """Start a run that cannot start on one rank: its model is missing, its data are, or its rows cannot be packed."""
    faulty = PartialState().process_index == rank
    model = folder / ("missing" if where == "model" and faulty else "base")
    source = folder / ("missing.jsonl" if where == "data" and faulty else "rows.jsonl")

    def load_data(section, args, *parts):
        args.max_length = 10**6 if where == "plan" and faulty else 256
        return load_mixture(section, args, *parts)

    recipe = {
        "model": {"path": str(model)},
        "data": {"sources": [{"name": "rows", "path": str(source), "ratio": 1}]},
        "training": {
            "stage": "lora_drawing",
            "output_dir": str(folder / f"{where}-{rank}"),
            "max_steps": 1,
            "max_length": 256,
            "use_cpu": True,
            "report_to": "none",
        },
    }
    train(recipe, load_data=load_data)


def main(path: str) -> None:
    folder = Path(path)
    args = toy.config_for(folder / "unused")  # creates the process group
    failures = {
        "nobody": lambda: together(lambda: None),
        "first": lambda: together(lambda: fail(0)),
        "second": lambda: together(lambda: fail(1)),
        "both": lambda: together(lambda: fail(0, 1)),
        "nested first": lambda: together(lambda: nested(0)),
        "nested second": lambda: together(lambda: nested(1)),
        "between first": lambda: together(lambda: between(0)),
        "between second": lambda: together(lambda: between(1)),
    }
    for where in ("model", "data", "plan"):
        for rank in range(2):
            failures[f"{where} {rank}"] = lambda where=where, rank=rank: start(folder, where, rank)
    raised = {}
    for name, failure in failures.items():
        try:
            failure()
            raised[name] = ["", ""]
        except Exception as error:
            raised[name] = [type(error).__name__, str(error)]
    (folder / f"{args.process_index}.json").write_text(json.dumps(raised))
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
