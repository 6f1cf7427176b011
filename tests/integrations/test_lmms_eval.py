"""Janus-Pro inside lmms-eval: requests, settings, the authors' prompts; and the proof on the real harness."""

import importlib
import json
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from harness_requests import (
    ANSWERED,
    GREEDY,
    LETTER,
    SHORT,
    instance,
    multiple_choice,
    open_ended,
    requests_for,
    scenes,
    several_images,
    text_only,
    to_generate,
    yes_no,
)
from PIL import Image

from janus_hf.assets import DEFAULT_MODEL
from janus_hf.evaluation.benchmarks import protocol


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(lmms, tmp_path_factory):
    return lmms.JanusPro(
        pretrained=DEFAULT_MODEL, dtype="float32", device="cpu", output_dir=str(tmp_path_factory.mktemp("images"))
    )


@pytest.fixture
def answered(lmms, monkeypatch):
    """A stub of `answer` that returns its attribute `text` for each conversation and records its calls."""
    calls = []

    def answer(model, processor, conversations, **settings):
        calls.append((list(conversations), settings))
        return [answer.text for _ in conversations]

    answer.text, answer.calls = "Yes.", calls
    monkeypatch.setattr(lmms, "answer", answer)
    monkeypatch.setattr("janus_hf.integrations.paper_style.answer", answer)
    return answer


def one_by_one_and_together(model, made, batch_size, monkeypatch):
    monkeypatch.setattr(model, "batch_size", 1)
    singles = model.generate_until(made)
    monkeypatch.setattr(model, "batch_size", batch_size)
    return singles, model.generate_until(made)


def test_the_manifest_names_the_class(lmms):
    from janus_hf.integrations.lmms_eval import manifest

    made = manifest()
    assert (made.model_id, made.aliases) == ("janus_pro", ("janus",))
    module_name, _, class_name = made.simple_class_path.rpartition(".")
    assert getattr(importlib.import_module(module_name), class_name) is lmms.JanusPro
    assert issubclass(lmms.JanusPro, lmms.lmms)
    assert lmms.JanusPro.is_simple


def test_the_entry_point_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = project.get("entry-points", {}).get("lmms_eval.models")
    assert declared == {"janus_pro": "janus_hf.integrations.lmms_eval:manifest"}


@pytest.mark.parametrize("shape", ANSWERED)
def test_batched_is_single(lmms, model, monkeypatch, shape):
    singles, batched = one_by_one_and_together(model, requests_for(lmms, model, shape, 5), 3, monkeypatch)
    assert batched == singles
    assert len(singles) == 5
    assert all(isinstance(text, str) and text for text in singles)


def test_results_come_in_the_order_of_the_requests(lmms, model, monkeypatch):
    groups = [requests_for(lmms, model, shape, 3) for shape in ANSWERED]
    monkeypatch.setattr(model, "batch_size", 2)
    expected = [model.generate_until(group) for group in groups]
    mixed = model.generate_until([group[i] for i in range(3) for group in groups])
    assert mixed == [answers[i] for i in range(3) for answers in expected]


def test_generation_returns_paths(lmms, model, monkeypatch, tmp_path):
    calls = []

    def generate(prompts, *, num_images_per_prompt, generator, **settings):
        calls.append((prompts, [one.initial_seed() for one in generator], settings))
        gray = [Image.new("L", (2, 2), len(prompt)) for prompt in prompts for _ in range(num_images_per_prompt)]
        return gray, None

    for name, value in (("pipe", generate), ("batch_size", 3), ("images_per_prompt", 2), ("output_dir", tmp_path)):
        monkeypatch.setattr(model, name, value)
    named = [json.loads(text) for text in model.generate_until(requests_for(lmms, model, to_generate, 5))]
    folder = tmp_path.resolve() / "WISE"
    assert named == [{"text": "", "images": [str(folder / f"{i:04d}_s{k}.png") for k in (0, 1)]} for i in range(5)]
    prompts = [f"a photo of a {color} circle" for color in ("red", "blue", "green", "orange", "purple")]
    settings = {"guidance_scale": None, "batch_size": 3, "return_dict": False}
    assert calls == [(prompts[:3], [42, 43] * 3, settings), (prompts[3:], [42, 43] * 2, settings)]
    pixels = [Image.open(path).getpixel((0, 0)) for one in named for path in one["images"]]
    assert pixels == [len(prompt) for prompt in prompts for _ in range(2)]


def test_editing_is_refused(lmms, model):
    model.task_dict["WISE"] = {"test": [{"image": scenes(1)[0][0]}]}
    edit = instance(lmms, ("make it blue", GREEDY, lambda doc: [doc["image"]], 0, "WISE", "test"))
    with pytest.raises(ValueError, match="cannot edit images"):
        model.generate_until([edit])


def test_bare_yes_and_no_lose_their_full_stop(lmms, model, answered):
    assert model.generate_until(requests_for(lmms, model, yes_no, 2)) == ["Yes", "Yes"]
    answered.text = "Yes. It is red."
    assert model.generate_until(requests_for(lmms, model, yes_no, 1)) == ["Yes. It is red."]


def test_until_cuts_but_not_paragraphs(lmms, model, answered):
    answered.text = "B\n\nASSISTANT: no, C"
    assert model.generate_until(requests_for(lmms, model, multiple_choice, 1)) == ["B\n\n"]
    assert model.generate_until(requests_for(lmms, model, text_only, 1)) == [answered.text]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"max_new_tokens": 1024, "do_sample": False}),
        (GREEDY, {"max_new_tokens": 6, "do_sample": False, "num_beams": 1}),
        ({"temperature": 0.2, "do_sample": False}, {"max_new_tokens": 1024, "do_sample": False}),
        ({"temperature": 0.0, "do_sample": True}, {"max_new_tokens": 1024, "do_sample": False}),
        ({"temperature": 0.7}, {"max_new_tokens": 1024, "do_sample": True, "temperature": 0.7}),
        ({"do_sample": True, "top_p": 0.9}, {"max_new_tokens": 1024, "do_sample": True, "top_p": 0.9}),
        ({"image_aspect_ratio": "pad", "top_p": None}, {"max_new_tokens": 1024, "do_sample": False}),
    ],
)
def test_generation_settings(lmms, given, expected):
    assert lmms.generation_settings(given) == ([], expected)


def test_where_images_stand(lmms):
    def parts(context, images):
        [turn] = lmms.lmms_conversation(context, images)
        return [part.get("text", part.get("image")) for part in turn["content"]]

    assert parts("a <image> b", [1]) == ["a", 1, "b"]
    assert parts("<image> <image>\nwhich?", [1, 2]) == [1, 2, "which?"]
    assert parts("which?", [1, 2]) == [1, 2, "which?"]
    assert parts("<image> which?", [1, 2]) == [1, 2, "<image> which?"]  # one mark, two images: a word like others
    assert parts("which?", []) == ["which?"]


PAPER_ROWS = [
    ("pope", {"question": "Is it? Please answer yes or no."}, f"\nIs it?{SHORT}"),
    ("mme", {"question": "Is it? Please answer yes or no."}, f"\nIs it? Please answer yes or no.{SHORT}"),
    ("gqa", {"question": "Who?"}, f"Who?{SHORT}"),
    ("mmvet", {"question": "Why?"}, "\nWhy?"),
    (
        "mmbench_en_dev",
        {"question": "Which?", "hint": "Look.", "A": "x", "B": "y", "C": "nan", "D": None, "answer": "A"},
        f"\nHint: Look.\nWhich?\nA. x\nB. y\n{LETTER}",
    ),
    (
        "seedbench",
        {"question": "Which?", "choice_a": "w", "choice_b": "x", "choice_c": "y", "choice_d": "z"},
        f"\nWhich?\nA. w\nB. x\nC. y\nD. z\n{LETTER}",
    ),
    (
        "mmmu_val",
        {"question": "<image 1> Which?", "options": "['x', 'y']"},
        f"\n<image 1> Which?\nA. x\nB. y\n{LETTER}",
    ),
    ("mmmu_val", {"question": "How many?", "options": "[]"}, "\nHow many?\nAnswer the question directly. "),
]


@pytest.mark.parametrize(("task", "doc", "expected"), PAPER_ROWS)
def test_the_paper_style_asks_as_the_authors_did(lmms, model, answered, monkeypatch, task, doc, expected):
    image = scenes(1)[0][0]
    model.task_dict[task] = {"test": [doc]}
    monkeypatch.setattr(model, "prompt_style", "paper")
    model.generate_until([instance(lmms, ("another prompt", GREEDY, lambda doc: [image], 0, task, "test"))])
    [([[turn]], settings)] = answered.calls
    assert turn == {"role": "user", "content": f"<image_placeholder>{expected}", "images": [image]}
    system_prompt = protocol.MM_VET_SYSTEM_PROMPT if task == "mmvet" else ""
    assert settings == {"max_new_tokens": 2048, "system_prompt": system_prompt, "roles": ("User", "Assistant")}


def test_the_paper_style_refuses_what_the_authors_did_not_do(lmms, model, monkeypatch):
    monkeypatch.setattr(model, "prompt_style", "paper")
    with pytest.raises(ValueError, match=r"the tasks pope, .*; got 'muirbench'. Use prompt_style=lmms"):
        model.generate_until(requests_for(lmms, model, several_images, 1))
    with pytest.raises(ValueError, match="several rounds"):
        model.generate_until_multi_round([])


def test_rounds(lmms, model, answered):
    image, other = (image for image, _ in scenes(2))
    asked = []

    def next_round(doc, previous_output, round_idx, previous_round_info):
        asked.append((doc, list(previous_output), round_idx, previous_round_info))
        if round_idx == 2:
            return None, None, True, [f"{text}!" for text in previous_output], None
        answered.text = "no"
        return [other], "and here?", False, previous_output, {"seen": 1}

    doc = {"image": image}
    model.task_dict["rounds"] = {"test": [doc]}
    arguments = ("is it here?", {"until": ["x"]}, lambda doc: [doc["image"]], next_round, 0, "rounds", "test")
    result = model.generate_until_multi_round([instance(lmms, arguments, "generate_until_multi_round")])
    assert result == [["Yes!", "no!"]]
    assert asked == [(doc, ["Yes"], 1, None), (doc, ["Yes", "no"], 2, {"seen": 1})]
    shown = [[part.get("image") or part["text"] for part in turn["content"]] for [[turn]], _ in answered.calls]
    assert shown == [[image, "is it here?"], [other, "and here?"]]


def test_likelihoods_are_not_offered(model):
    with pytest.raises(NotImplementedError, match="seedbench instead of seedbench_ppl"):
        model.loglikelihood([])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"prompt_style": "papers"}, "'lmms' or 'paper', got 'papers'"),
        ({"batch_size": "auto"}, "got 'auto' and 1"),
        ({"images_per_prompt": 0}, "got 1 and 0"),
        ({"dtype": "float33"}, "got 'float33'"),
    ],
)
def test_bad_arguments(lmms, argument, message):
    with pytest.raises(ValueError, match=message):
        lmms.JanusPro(pretrained=DEFAULT_MODEL, device="cpu", **argument)


def test_processes_share_the_work_on_their_own_devices(lmms, monkeypatch):
    accelerator = SimpleNamespace(process_index=1, num_processes=2, device=torch.device("meta"))
    monkeypatch.setattr(lmms, "Accelerator", lambda: accelerator)
    monkeypatch.setattr(lmms, "load_pipeline", lambda pretrained, *, dtype, device, revision: device)
    model = lmms.JanusPro(pretrained="x", device="cuda:0")
    assert (model.rank, model.world_size, model.pipe, model.device) == (1, 2, model.device, torch.device("meta"))


@pytest.mark.slow
@pytest.mark.parametrize("lmms", ["real"], indirect=True)
def test_lmms_eval_resolves_builds_and_asks(lmms, monkeypatch, tmp_path):
    """lmms-eval finds the model by its entry point, builds it from a string and sends 24 requests of each kind."""
    from lmms_eval.models import MODEL_REGISTRY_V2, get_model

    assert lmms.lmms.__module__ == "lmms_eval.api.model"  # no stub
    assert {MODEL_REGISTRY_V2.resolve(name).model_id for name in ("janus_pro", "janus")} == {"janus_pro"}
    model = get_model("janus_pro").create_from_arg_string(
        f"pretrained={DEFAULT_MODEL},dtype=float32,guidance_scale=1",
        {"batch_size": 1, "max_batch_size": None, "device": "cpu"},
    )
    assert type(model) is lmms.JanusPro
    for shape in ANSWERED:
        singles, batched = one_by_one_and_together(model, requests_for(lmms, model, shape, 24), 7, monkeypatch)
        assert batched == singles, shape.__name__
        assert len(singles) == 24
        assert len(set(singles)) > 1, shape.__name__  # equality of constants would prove nothing
    for shape in (yes_no, multiple_choice, open_ended):
        monkeypatch.setattr(model, "prompt_style", "paper")
        singles, batched = one_by_one_and_together(model, requests_for(lmms, model, shape, 24), 7, monkeypatch)
        assert batched == singles, shape.__name__
    monkeypatch.setattr(model, "prompt_style", "lmms")
    generated = []
    for batch_size in (1, 8):
        monkeypatch.setattr(model, "batch_size", batch_size)
        monkeypatch.setattr(model, "output_dir", tmp_path / str(batch_size))
        texts = model.generate_until(requests_for(lmms, model, to_generate, 20))
        assert all(json.loads(text).keys() == {"text", "images"} for text in texts)
        generated.append(
            [np.asarray(Image.open(path)).astype(int) for text in texts for path in json.loads(text)["images"]]
        )
    assert len(generated[0]) == len(generated[1]) == 20
    # Convolutions sum in another order in another batch: a value at the edge may round to its neighbour.
    assert max(abs(one - other).max() for one, other in zip(*generated, strict=True)) <= 1
    assert max(abs(one - generated[0][0]).max() for one in generated[0]) > 100
    model.clean()
    assert model.pipe is None
