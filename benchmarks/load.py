"""Measure time and memory of loading a full-size checkpoint of deepseek-ai/Janus, against only reading its files.

    python -m benchmarks.load [--size 1b|7b] [--folder FOLDER] [--repeats 3]

The benchmark writes a random checkpoint in the file format of deepseek-ai/Janus (every key, shape and dtype of the
real one; 4.2 GB for the 1B). Then it measures two ways of loading it in turn, each in a fresh process:

* read:  `torch.load(mmap=True)` of every file and a copy of every tensor, which is the least that a loader must do if
  its weights are to be independent of the files;
* ours:  `AutoModel.from_pretrained` of this package, followed by reading every weight once, because a memory-mapped
  load would otherwise seem to take no time.

Memory is the peak of the process's resident set, split into anonymous pages (which the process owns) and file pages
(the page cache of the mapped checkpoint, which the system reclaims when it needs the memory). The memory that the
interpreter uses after all imports is subtracted.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch

from .memory import PeakMemory
from .reporting import make_parser, measure_in_new_process


GOLDENS = Path(__file__).parents[1] / "tests" / "goldens"
LAYERS = {"1b": 24, "7b": 30}
WIDTHS = {"1b": 2048, "7b": 4096}


def make_checkpoint(folder: Path, size: str) -> int:
    """Write a random checkpoint in the file format of deepseek-ai/Janus and return the size of its weights in bytes.

    Args:
        folder: Existing folder to write into.
        size: "1b" or "7b".
    """
    keys = json.loads((GOLDENS / f"keys_{size}.json").read_text())["keys"]
    width = WIDTHS[size]
    text = {
        "num_hidden_layers": LAYERS[size],
        "vocab_size": 102400,
        "max_position_embeddings": 16384,
        "model_type": "llama",
    }
    if size == "1b":
        text |= {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16, "num_key_value_heads": 16}
    aligner = {"depth": 2, "n_embed": width, "projector_type": "mlp_gelu"}
    config = {
        "model_type": "multi_modality",
        "architectures": ["MultiModalityCausalLM"],
        "torch_dtype": "bfloat16",
        "language_config": text,
        "vision_config": {
            "cls": "CLIPVisionTower",
            "params": {
                "image_size": 384,
                "model_name": "siglip_large_patch16_384",
                "select_feature": "same",
                "select_layer": -1,
            },
        },
        "aligner_config": {"cls": "MlpProjector", "params": aligner | {"input_dim": 1024}},
        "gen_vision_config": {"cls": "VQ-16", "params": {"image_token_size": 16384, "n_embed": 8}},
        "gen_aligner_config": {"cls": "MlpProjector", "params": aligner | {"input_dim": 8}},
        "gen_head_config": {
            "cls": "vision_head",
            "params": {"image_token_embed": width, "image_token_size": 16384, "n_embed": width},
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.empty(entry["shape"], dtype=torch.bfloat16).uniform_(-0.02, 0.02, generator=generator)
        for name, entry in keys.items()
    }
    names = list(weights)
    shards = [names] if size == "1b" else [names[: len(names) // 2], names[len(names) // 2 :]]
    files = ["pytorch_model.bin"] if size == "1b" else [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    for file, part in zip(files, shards, strict=True):
        torch.save({name: weights[name] for name in part}, folder / file)
    if len(files) > 1:
        index = {"metadata": {}, "weight_map": {n: f for f, part in zip(files, shards, strict=True) for n in part}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return sum(tensor.nbytes for tensor in weights.values())


def read_files(folder: Path) -> dict[str, torch.Tensor]:
    """Read every weight file of a checkpoint and return a copy of every tensor by name, as the baseline."""
    copies = {}
    for file in sorted(folder.glob("*.bin")):
        for name, tensor in torch.load(file, mmap=True, weights_only=True, map_location="cpu").items():
            copies[name] = tensor.clone()
    return copies


def load_ours(folder: Path) -> object:
    """Load and return a model with `AutoModel.from_pretrained`, and read from every memory page of its weights."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder)
    for parameter in model.parameters():
        # Reading one element of every half page makes the system load all pages.
        parameter.view(-1)[:: 2048 // parameter.element_size()].sum()
    return model


def measure(what: str, folder: Path) -> None:
    """Load a checkpoint, and print seconds and peak memory in bytes as one line of JSON. Call it in a fresh process.

    Args:
        what: "read" to call `read_files`, "ours" to call `load_ours`.
        folder: Folder of the checkpoint.
    """
    import janus_hf  # noqa: F401  imported before the clock starts

    with PeakMemory() as memory:
        start = time.perf_counter()
        result = {"read": read_files, "ours": load_ours}[what](folder)
        seconds = time.perf_counter() - start
    del result
    print(json.dumps({"seconds": seconds, "anonymous": memory.peak[0], "file": memory.peak[1]}))


def main() -> None:
    """Write the checkpoint, measure both ways of loading it, and print the table."""
    parser = make_parser(__doc__)
    parser.add_argument("--size", choices=("1b", "7b"), default="1b")
    parser.add_argument("--folder", type=Path, help="keep the checkpoint here (default: a temporary folder)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", choices=("read", "ours"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.folder)
        return

    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="janus-hf-benchmark-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        size = make_checkpoint(folder, arguments.size)
        runs: dict[str, list[dict[str, float]]] = {"read": [], "ours": []}
        for _ in range(arguments.repeats):
            for what, results in runs.items():
                measured = measure_in_new_process("benchmarks.load", "--folder", str(folder), "--measure", what)
                results.append(measured)
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder)
    seconds = {what: statistics.median(run["seconds"] for run in results) for what, results in runs.items()}
    print(
        f"checkpoint: {arguments.size}, {size / 1e9:.2f} GB, torch {torch.__version__}, median of "
        f"{arguments.repeats}\n"
    )
    print(
        "| | seconds | times reading | peak anonymous / checkpoint | peak file pages / checkpoint "
        "|\n|---|---|---|---|---|"
    )
    for what, results in runs.items():
        anonymous, file = (max(run[kind] for run in results) / size for kind in ("anonymous", "file"))
        print(
            f"| {what} | {seconds[what]:.2f} | {seconds[what] / seconds['read']:.2f} | {anonymous:.2f} | {file:.2f} |"
        )


if __name__ == "__main__":
    main()
