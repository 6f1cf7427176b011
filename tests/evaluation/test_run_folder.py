"""The folder of a run: settings, environments, and the hash of the weights."""

import json
from argparse import Namespace

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from transformers import BitsAndBytesConfig

from janus_hf.evaluation import run_folder
from janus_hf.evaluation.evaluators import make_evaluator
from janus_hf.evaluation.run_folder import environments, hash_weights, open_run, run_settings


def test_a_folder_belongs_to_its_settings(tmp_path):
    settings = {"seed": 0, "tags": ("a", "b")}
    assert open_run(tmp_path / "run", settings) == open_run(tmp_path / "run", settings)
    with pytest.raises(ValueError, match="limit: None there, 5 now\n  seed: 0 there, 1 now\nChoose another"):
        open_run(tmp_path / "run", settings | {"seed": 1, "limit": 5})


def test_a_run_says_how_its_weights_were_quantised(tmp_path):
    def quantised(config) -> dict:
        network = torch.nn.Linear(2, 2)
        network.dtype, network.config = torch.float32, Namespace(**config)
        return run_settings(Namespace(model=network), seed=0)

    plain = quantised({})
    assert plain["quantization"] is None
    asked = quantised({"quantization_config": BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=5.0)})
    assert asked["quantization"]["quant_method"] == "bitsandbytes"
    assert asked["quantization"]["llm_int8_threshold"] == 5.0
    assert quantised({"quantization_config": asked["quantization"]})["quantization"] == asked["quantization"]
    assert json.loads(json.dumps(asked)) == asked
    open_run(tmp_path / "run", asked)
    with pytest.raises(ValueError, match="  quantization: .*'bitsandbytes'.* there, None now"):
        open_run(tmp_path / "run", plain)


@pytest.mark.parametrize("written", [{}, {"environment": {"torch": "2.6"}}])
def test_a_folder_that_recorded_no_environments_is_refused_by_its_settings_alone(written, tmp_path):
    """Early versions of this package recorded no environments."""
    (tmp_path / "settings.json").write_text(json.dumps({"settings": {"seed": 0}} | written))
    with pytest.raises(ValueError, match="made with other settings:\n  seed: 0 there, 1 now"):
        open_run(tmp_path, {"seed": 1})
    assert environments(tmp_path) == []
    open_run(tmp_path, {"seed": 0})
    assert environments(tmp_path) == environments(None)


@pytest.mark.parametrize("content", ["no JSON", "[]", '{"seed": 0}', '{"settings": 3}'])
def test_settings_of_another_program_are_refused(content, tmp_path):
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(ValueError, match=r"settings.json must hold the settings of a run.*move the file away"):
        open_run(tmp_path, {"seed": 0})


def test_a_run_that_was_killed_while_it_began_continues(tmp_path):
    """A killed process leaves the temporary file of `settings.json`; anything else in the folder is not ours."""
    (tmp_path / ".settings.json.0123abcd").write_text('{"settings"')
    open_run(tmp_path, {"seed": 0})
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]
    for name in ("notes.txt", ".hidden", "settings.json.bak"):
        folder = tmp_path / f"with {name}"
        folder.mkdir()
        (folder / name).touch()
        with pytest.raises(FileExistsError, match="holds other files than a run"):
            open_run(folder, {"seed": 0})


VERSIONS = {"janus_hf": "0.1", "torch": "2.6", "transformers": "5.23", "device": "cpu", "processes": 1}


@pytest.fixture
def warnings(monkeypatch):
    told = []
    monkeypatch.setattr(run_folder.logger, "warning", lambda text, *values: told.append(text % values))
    return told


def test_other_versions_bring_a_warning_and_are_recorded(tmp_path, monkeypatch, warnings):
    now = dict(VERSIONS)
    monkeypatch.setattr(run_folder, "environment", lambda: dict(now))
    open_run(tmp_path / "run", {"seed": 0})
    now["processes"] = 2  # does not change a number
    open_run(tmp_path / "run", {"seed": 0})
    assert warnings == []
    now |= {"transformers": "5.24", "janus_hf": "0.2"}
    open_run(tmp_path / "run", {"seed": 0})
    assert [line.partition("was made with ")[2].partition(":")[0] for line in warnings] == [
        "janus_hf 0.1, and it continues with 0.2",
        "transformers 5.23, and it continues with 5.24",
    ]
    assert environments(tmp_path / "run") == [VERSIONS, VERSIONS | {"processes": 2}, now]
    warnings.clear()
    now |= VERSIONS  # the first versions again, but another part of the run was made with the others
    open_run(tmp_path / "run", {"seed": 0})
    assert len(warnings) == 2
    assert len(environments(tmp_path / "run")) == 3


def test_a_report_names_what_its_run_was_made_with(pipe, tmp_path, monkeypatch, warnings):
    evaluate = make_evaluator("geneval", detector="shapes", prompts_per_tag=1, images_per_prompt=1, limit=1)
    now = environments(None)[0]
    monkeypatch.setattr(run_folder, "environment", lambda: now | {"torch": "1.0"})
    evaluate(pipe, tmp_path)
    monkeypatch.setattr(run_folder, "environment", lambda: now)
    text = evaluate(pipe, tmp_path).to_markdown()
    assert '"torch": "1.0"' in text
    assert f'"torch": "{torch.__version__}"' in text
    assert any("torch 1.0, and it continues with" in line for line in warnings)


def test_the_hash_of_weights_depends_on_their_bytes():
    module = torch.nn.Linear(3, 2).to(torch.bfloat16)
    before = hash_weights(module)
    assert hash_weights(module) == before
    with torch.no_grad():
        module.bias[0] += 1
    assert hash_weights(module) != before


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_offloaded_weights_are_hashed(place, tmp_path):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    before = hash_weights(module)
    if place == "cpu":
        cpu_offload(module, torch.device("cpu"), offload_buffers=True)
    else:
        disk_offload(module, tmp_path, torch.device("cpu"))
    assert module[0].weight.is_meta
    assert hash_weights(module) == before
    assert module[0].weight.is_meta  # nothing was left in memory


def test_weights_without_values_are_refused():
    with pytest.raises(ValueError, match="bias has no values here"):
        hash_weights(torch.nn.Linear(3, 2, device="meta"))


def test_quantised_weights_are_hashed_by_their_parts():
    """PyTorch's own example of a tensor that consists of others, as torchao's quantised tensors do."""
    from torch.testing._internal.two_tensor import TwoTensor

    module = torch.nn.Module()
    hashes = set()
    for second in (0.0, 1.0):
        module.weight = torch.nn.Parameter(TwoTensor(torch.zeros(2), torch.full((2,), second)), requires_grad=False)
        hashes |= {hash_weights(module), hash_weights(module)}
    assert len(hashes) == 2
