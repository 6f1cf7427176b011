"""A run that cannot start says why in one line, the same on every process."""

import json
from pathlib import Path

import pytest
import toy
from PIL import Image


SCRIPT = Path(__file__).with_name("failing_ranks.py")
# What fails -> the rank that is at fault, and words of its reason.
FAILURES = {
    "first": (0, "Rank 0"),
    "second": (1, "Rank 1"),
    "both": (0, "Rank 0"),
    "nested first": (0, "Rank 0"),
    "nested second": (1, "Rank 1"),
    "between first": (0, "Rank 0"),
    "between second": (1, "Rank 1"),
    **{f"model {rank}": (rank, "missing") for rank in range(2)},
    **{f"data {rank}": (rank, "missing.jsonl") for rank in range(2)},
    **{f"plan {rank}": (rank, "`max_length` must") for rank in range(2)},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a model and one drawing row."""
    folder = tmp_path_factory.mktemp("start-up")
    for part in (toy.load_model(), toy.load_processor()):
        part.save_pretrained(folder / "base")
    Image.new("RGB", (64, 64), "red").save(folder / "red.png")
    (folder / "rows.jsonl").write_text(json.dumps({"prompt": "red", "image": "red.png"}) + "\n")
    return folder


@pytest.mark.slow
def test_all_processes_give_the_reason_of_the_first_that_failed(folder):
    result = toy.launch(str(SCRIPT), str(folder))
    assert result.returncode == 0, result.stderr[-3000:]
    raised = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    assert [one.pop("nobody") for one in raised] == [["", ""]] * 2
    assert raised[0].keys() == FAILURES.keys()
    for name, (rank, words) in FAILURES.items():
        kind, reason = raised[rank][name]
        assert words in reason, (name, reason)
        assert kind != "ChildProcessError"
        line = " ".join(reason.split())
        assert raised[1 - rank][name] == ["ChildProcessError", f"Process {rank} of 2 stopped: {line}"], name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ([], "The launcher started 2 processes but this one works with 1: set `use_cpu=True`"),
        (["training.use_cpu=true", "data.sources.0.path=nowhere.jsonl"], "nowhere.jsonl"),
        (
            ["training.use_cpu=true", "training.num_processes=3"],
            "`num_processes` must be the number of running processes",
        ),
    ],
    ids=["no use_cpu", "no data", "other number of processes"],
)
def test_wrong_launches_have_one_reason(overrides, reason, folder, tmp_path):
    """Without GPUs and `use_cpu`, each process would prepare the data for itself, and find the others' unfinished."""
    (tmp_path / "recipe.yaml").write_text(
        f"model: {{path: {folder / 'base'}}}\n"
        f"data: {{sources: [{{name: rows, path: {folder / 'rows.jsonl'}, ratio: 1}}]}}\n"
        "training: {stage: lora_drawing, output_dir: out, max_steps: 1, max_length: 256, report_to: none}\n"
    )
    result = toy.launch("-m", "janus_hf_cli", "train", "recipe.yaml", *overrides, cwd=tmp_path)
    assert result.returncode != 0
    told = [line for line in result.stderr.splitlines() if line.startswith("janus-hf train:")]
    assert told
    assert all(reason in line for line in told), told
