"""Janus-Pro inside VLMEvalKit: prompts, conversations, the launcher; and the proof on the real harness."""

import importlib
import sys

import pytest
from harness_requests import LETTER, SHORT, rows
from PIL import Image

from janus_hf.answering import answer
from janus_hf.assets import DEFAULT_MODEL
from janus_hf.evaluation.benchmarks import protocol


@pytest.fixture(scope="module")
def adapter(vlmeval):
    return vlmeval.JanusPro(DEFAULT_MODEL, dtype="float32", device="cpu", max_new_tokens=6)


VLM_ROWS = [
    ("POPE", {"question": "Is it? Please answer yes or no."}, f"\nIs it?{SHORT}"),
    ("MME", {"question": "Is it? Please answer yes or no."}, f"\nIs it? Please answer yes or no.{SHORT}"),
    (
        "MMBench_DEV_EN",
        {"question": "Which?", "hint": "Look.", "A": "x", "B": "y", "C": float("nan"), "D": float("nan")},
        f"\nHint: Look.\nWhich?\nA. x\nB. y\n{LETTER}",
    ),
    ("SEEDBench_IMG", {"question": "Which?", "A": "x", "B": 2}, f"\nWhich?\nA. x\nB. 2\n{LETTER}"),
    ("MMMU_DEV_VAL", {"question": "<image 1>?", "A": "x", "hint": float("nan")}, f"\n<image 1>?\nA. x\n{LETTER}"),
    ("MMVet", {"question": "Why?"}, "\nWhy?"),
]


@pytest.mark.parametrize(("dataset", "line", "expected"), VLM_ROWS)
def test_rows_become_the_authors_prompts(adapter, pandas, dataset, line, expected):
    adapter.set_dump_image(lambda line: ["1.png", "2.png"])
    images = [{"type": "image", "value": "1.png"}, {"type": "image", "value": "2.png"}]
    assert adapter.build_prompt(pandas.Series(line), dataset) == [*images, {"type": "text", "value": expected}]


def test_other_data_sets_keep_their_own_prompt(adapter):
    assert not adapter.use_custom_prompt("GQA_TestDev_Balanced")
    with pytest.raises(ValueError, match="VLMEvalKit's own is used"):
        adapter.build_prompt({"question": "Who?"}, "GQA_TestDev_Balanced")


def test_what_the_model_reads(vlmeval, adapter, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(
        "janus_hf.integrations.paper_style.answer",
        lambda model, processor, talk, **settings: calls.append((talk, settings)) or ["x"],
    )
    [row] = rows(1, tmp_path)
    path = row["image_path"]
    message = [{"type": "image", "value": path}, {"type": "text", "value": "\nWhy?"}, {"type": "image", "value": path}]
    assert adapter.generate(message, dataset="MMVet") == "x"
    [turn] = calls[0][0][0]
    assert turn["content"] == "<image_placeholder>\nWhy?<image_placeholder>"
    assert (turn["role"], turn["images"]) == ("user", [path, path])
    assert calls[0][1] == {
        "system_prompt": protocol.MM_VET_SYSTEM_PROMPT,
        "roles": ("User", "Assistant"),
        "max_new_tokens": 6,
    }
    adapter.generate([{"type": "text", "value": "Why?"}], dataset="POPE")
    assert calls[-1][1]["system_prompt"] == ""


def test_a_conversation(vlmeval, adapter, tmp_path):
    [row] = rows(1, tmp_path)
    content = [{"type": "image", "value": row["image_path"]}, {"type": "text", "value": "\nIs there a red circle?"}]
    turns = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "value": "no"}]},
        {"role": "user", "content": [{"type": "text", "value": "How many circles are there?"}]},
    ]
    image_of_row = Image.open(row["image_path"])
    expected = answer(
        adapter.pipe.model,
        adapter.pipe.processor,
        [
            [
                {"role": "User", "content": "<image_placeholder>\nIs there a red circle?", "images": [image_of_row]},
                {"role": "Assistant", "content": "no"},
                {"role": "User", "content": "How many circles are there?"},
            ]
        ],
        roles=protocol.ROLES,
        max_new_tokens=6,
    )
    assert [adapter.chat(turns)] == expected


def test_the_launcher_registers_and_runs(vlmeval, monkeypatch):
    from vlmeval.config import supported_VLM

    importlib.import_module("vlmeval.run")
    seen = []
    monkeypatch.setattr(sys, "argv", ["before"])
    monkeypatch.setattr(sys.modules["vlmeval.run"], "main", lambda: seen.append(list(sys.argv)))
    vlmeval.main(["--data", "POPE", "MME", "--model", "JanusPro", "--pretrained", DEFAULT_MODEL, "--dtype", "float32"])
    name = f"JanusPro_{DEFAULT_MODEL.strip('/').replace('/', '--')}"
    assert seen == [["run.py", "--data", "POPE", "MME", "--model", name]]
    assert sys.argv == ["before"]
    assert isinstance(supported_VLM[name](device="cpu"), vlmeval.JanusPro)
    assert vlmeval.register() == "JanusPro"  # its own name: results of two checkpoints never mix
    assert supported_VLM["JanusPro"].keywords["model_path"] == "deepseek-ai/Janus-Pro-7B"


def test_the_launcher_needs_our_model(vlmeval, capsys):
    with pytest.raises(SystemExit):
        vlmeval.main(["--data", "POPE", "--model", "Janus-Pro-7B"])
    assert "expected --model JanusPro" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("vlmeval", ["real"], indirect=True)
def test_vlmevalkit_asks(vlmeval, adapter, pandas, tmp_path):
    """Answers to 24 rows of each kind, through the real base class, equal those of one batch."""
    assert vlmeval.BaseModel.__module__ == "vlmeval.vlm.base"  # no stub
    adapter.set_dump_image(lambda line: [line["image_path"]])
    options = {"A": "red", "B": "blue", "C": "green", "hint": float("nan")}
    made = rows(24, tmp_path)
    sent = {
        "POPE": [adapter.build_prompt(pandas.Series(row), "POPE") for row in made],
        "MMBench_DEV_EN": [adapter.build_prompt(pandas.Series(row | options), "MMBench_DEV_EN") for row in made],
        "MMVet": [adapter.build_prompt(pandas.Series(row), "MMVet") for row in made],
        "two images": [
            [{"type": "image", "value": made[i - k]["image_path"]} for k in (0, 1)]
            + [{"type": "text", "value": "\nWhy?"}]
            for i in range(24)
        ],
        "text": [[{"type": "text", "value": row["question"]}] for row in made],
    }
    for dataset, messages in sent.items():
        singles = [adapter.generate(message, dataset=dataset) for message in messages]
        conversations = [
            protocol.paper_conversation(
                message[-1]["value"], [Image.open(part["value"]) for part in message if part["type"] == "image"]
            )
            for message in messages
        ]
        system_prompt = protocol.MM_VET_SYSTEM_PROMPT if dataset == "MMVet" else ""
        settings = {"system_prompt": system_prompt, "roles": protocol.ROLES, "max_new_tokens": 6}
        assert singles == answer(adapter.pipe.model, adapter.pipe.processor, conversations, **settings), dataset
        assert len(set(singles)) > 1, dataset
