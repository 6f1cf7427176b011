"""Janus-Pro inside lmms-eval and VLMEvalKit.

Every test runs against minimal stubs of the frameworks, and again against the frameworks where they are installed.
The slow tests are the proof on the real ones. `make test-harnesses` makes an environment with both and runs this file
there; `JANUS_HF_REQUIRE_HARNESSES=1` then turns a missing framework from a skip into a failure.

VLMEvalKit imports every model and data set it knows; what of their libraries is missing is stood in for (`STAND_INS`).
"""

import ast
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import ssl
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from PIL import Image

import janus_hf
from janus_hf.answering import answer
from janus_hf.assets import DEFAULT_MODEL
from janus_hf.evaluation.benchmarks import protocol
from janus_hf.integrations import load_pipeline
from janus_hf.shapes import ask, picture, random_scene


ROOT = Path(__file__).parents[2]
SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
# Third-party modules that VLMEvalKit 0.0.20 imports unconditionally and that have nothing to do with its base class.
STAND_INS = (
    "Levenshtein", "cv2", "decord", "jieba", "joblib", "math_verify", "nltk", "openai", "pylatexenc", "qwen_vl_utils",
    "rouge", "sklearn", "timeout_decorator", "torchvision",
)  # fmt: skip


# The frameworks, or what stands in for them


def module(name: str, **content) -> ModuleType:
    made = ModuleType(name)
    made.__path__ = []
    vars(made).update(content)
    return made


def lacking(name: str) -> None:
    """Skip, or fail where the frameworks are what the run is for."""
    message = f"{name} is not installed; `make test-harnesses` makes an environment that has it"
    if os.environ.get("JANUS_HF_REQUIRE_HARNESSES") == "1":
        pytest.fail(message)
    pytest.skip(message)


@contextmanager
def frameworks(kind: str, name: str, ours: str, stubs: dict[str, ModuleType]) -> Iterator[ModuleType]:
    """Our adapter module, newly imported on the real framework or on stubs of it."""
    if kind == "real" and importlib.util.find_spec(name) is None:
        lacking(name)
    with pytest.MonkeyPatch.context() as patch:
        for stub, content in (stubs if kind == "stub" else {}).items():
            patch.setitem(sys.modules, stub, content)
        patch.delitem(sys.modules, ours, raising=False)
        yield importlib.import_module(ours)
        sys.modules.pop(ours)


class StubLmms:
    def __init__(self):
        self._rank, self._world_size, self.task_dict = 0, 1, {}
        self.cache_hook = SimpleNamespace(add_partial=lambda attribute, request, result: None)

    rank = property(lambda self: self._rank)
    world_size = property(lambda self: self._world_size)

    def clean(self):
        self.is_clean = True


@dataclass
class StubManifest:
    model_id: str
    simple_class_path: str
    aliases: tuple[str, ...]


@pytest.fixture(scope="module", params=["stub", "real"])
def lmms(request):
    """`janus_hf.integrations.lmms_eval_model`."""
    names = ("lmms_eval", "lmms_eval.api", "lmms_eval.models")
    stubs = {name: module(name) for name in names}
    stubs["lmms_eval.api.model"] = module("lmms_eval.api.model", lmms=StubLmms)
    stubs["lmms_eval.models.registry_v2"] = module("lmms_eval.models.registry_v2", ModelManifest=StubManifest)
    with frameworks(request.param, "lmms_eval", "janus_hf.integrations.lmms_eval_model", stubs) as ours:
        yield ours


class StubBaseModel:
    dump_image_func = None

    def dump_image(self, line, dataset):
        return self.dump_image_func(line)

    def set_dump_image(self, function):
        self.dump_image_func = function

    def generate(self, message, dataset=None):
        assert all(part["type"] in self.allowed_types for part in message)
        return self.generate_inner(message, dataset)

    def chat(self, messages, dataset=None):
        return self.chat_inner(messages, dataset=dataset)


def stub_dataset_type(name: str) -> str:
    kinds = {"POPE": "Y/N", "MME": "Y/N", "MMBench_DEV_EN": "MCQ", "SEEDBench_IMG": "MCQ", "MMMU_DEV_VAL": "MCQ"}
    return kinds.get(name, "VQA")


@pytest.fixture(scope="module", params=["stub", "real"])
def vlmeval(request):
    """`janus_hf.integrations.vlmeval`."""
    stubs = {name: module(name) for name in ("vlmeval", "vlmeval.vlm")}
    stubs["vlmeval"].vlm = stubs["vlmeval.vlm"]
    stubs["vlmeval.vlm.base"] = module("vlmeval.vlm.base", BaseModel=StubBaseModel)
    stubs["vlmeval.dataset"] = module("vlmeval.dataset", DATASET_TYPE=stub_dataset_type)
    stubs["vlmeval.config"] = module("vlmeval.config", supported_VLM={})
    stubs["vlmeval.run"] = stubs["vlmeval"].run = module("vlmeval.run", main=lambda: None)
    with standing_in(), frameworks(request.param, "vlmeval", "janus_hf.integrations.vlmeval", stubs) as ours:
        yield ours


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        is_ours = name.partition(".")[0] in STAND_INS
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if is_ours else None

    def create_module(self, spec):
        made = module(spec.name)
        made.__getattr__ = self.attribute
        return made

    @staticmethod
    def attribute(name):
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=name)

    def exec_module(self, module):
        pass


@contextmanager
def standing_in() -> Iterator[None]:
    """VLMEvalKit may import what is not there; what it changes globally while it is imported is put back."""
    finder, grad = StandIns(), torch.is_grad_enabled()
    context, rng = ssl._create_default_https_context, torch.get_rng_state()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] in STAND_INS]:
            if isinstance(getattr(sys.modules[name].__spec__, "loader", None), StandIns):
                del sys.modules[name]
        ssl._create_default_https_context = context
        torch.set_grad_enabled(grad)
        torch.set_rng_state(rng)


@pytest.fixture(scope="module")
def pandas():
    if importlib.util.find_spec("pandas") is None:
        lacking("pandas")
    return importlib.import_module("pandas")


# Fabricated requests


def scenes(count, seed=0):
    rng = np.random.default_rng(seed)
    made = [random_scene(rng) for _ in range(count)]
    return [(picture(scene), ask(scene, rng).question) for scene in made]


GREEDY = {"max_new_tokens": 6, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False}


def yes_no(count):
    colors = ("red", "blue", "green", "orange")
    docs = [
        {"image": image, "question": f"Is there a {colors[i % 4]} circle? Please answer yes or no."}
        for i, (image, _) in enumerate(scenes(count, seed=1))
    ]
    return "pope", docs, lambda doc: doc["question"] + SHORT, lambda doc: [doc["image"]], GREEDY


def multiple_choice(count):
    letters = dict(zip("ABCD", ("red", "blue", "green", "nan"), strict=True))
    docs = [{"image": image, "question": text, "hint": "nan", **letters} for image, text in scenes(count, seed=2)]

    def text(doc):
        return doc["question"] + "".join(f"\n{letter}. {doc[letter]}" for letter in "ABC") + LETTER

    return "mmbench_en_dev_static", docs, text, lambda doc: [doc["image"]], {"until": ["ASSISTANT:"], **GREEDY}


def open_ended(count):
    docs = [{"image": image, "question": "Describe the picture."} for image, _ in scenes(count, seed=3)]
    settings = GREEDY | {"max_new_tokens": 12, "temperature": 0.2}
    return "mmvet", docs, lambda doc: doc["question"], lambda doc: [doc["image"]], settings


def several_pictures(count):
    shown = [image for image, _ in scenes(2 * count, seed=4)]
    # The prompt is short and names few things: two pictures fill half of the small model's context.
    docs = [{"images": shown[2 * i : 2 * i + 2], "marked": i % 2} for i in range(count)]

    def text(doc):
        return (
            "In <image> and in <image> what shape is the red thing?"
            if doc["marked"]
            else "How many circles are there?"
        )

    return "muirbench", docs, text, lambda doc: doc["images"], GREEDY | {"image_aspect_ratio": "original"}


def text_only(count):
    docs = [{"question": text} for _, text in scenes(count, seed=5)]
    return "mmlu", docs, lambda doc: doc["question"], lambda doc: [None], {"until": ["\n\n"], "max_new_tokens": 6}


def to_draw(count):
    colors = ("red", "blue", "green", "orange", "purple", "brown")
    shapes = ("circle", "square", "triangle", "cross")
    docs = [{"Prompt": f"a photo of a {colors[i % 6]} {shapes[i // 6 % 4]}"} for i in range(count)]
    return "WISE", docs, lambda doc: doc["Prompt"], lambda doc: [], GREEDY


ANSWERED = (yes_no, multiple_choice, open_ended, several_pictures, text_only)


def requests_for(lmms, model, shape, count):
    """Instances as `construct_requests` makes them; their rows go into the model's `task_dict`."""
    task, docs, text, visuals, settings = shape(count)
    model.task_dict[task] = {"test": docs}
    made = [instance(lmms, (text(doc), dict(settings), visuals, i, task, "test")) for i, doc in enumerate(docs)]
    return made


def instance(lmms, arguments, request_type="generate_until"):
    if lmms.lmms is StubLmms:
        return SimpleNamespace(args=arguments)
    from lmms_eval.api.instance import Instance

    metadata = {"task": arguments[-2], "doc_id": arguments[-3], "repeats": 1}
    return Instance(request_type=request_type, arguments=arguments, idx=0, metadata=metadata)


@pytest.fixture(scope="module")
def model(lmms, tmp_path_factory):
    return lmms.JanusPro(
        pretrained=DEFAULT_MODEL, dtype="float32", device="cpu", output_dir=str(tmp_path_factory.mktemp("drawn"))
    )


@pytest.fixture
def answered(lmms, monkeypatch):
    """Calls of the answering function, which gives back "Yes." for each conversation, or what it is told."""
    calls = []

    def answer(model, processor, conversations, **settings):
        calls.append((list(conversations), settings))
        return [answer.text for _ in conversations]

    answer.text, answer.calls = "Yes.", calls
    monkeypatch.setattr(lmms, "answer", answer)
    return answer


def one_by_one_and_together(model, made, batch_size, monkeypatch):
    monkeypatch.setattr(model, "batch_size", 1)
    singles = model.generate_until(made)
    monkeypatch.setattr(model, "batch_size", batch_size)
    return singles, model.generate_until(made)


# lmms-eval


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


def test_drawing_returns_paths(lmms, model, monkeypatch, tmp_path):
    calls = []

    def draw(prompts, *, num_images_per_prompt, generator, **settings):
        calls.append((prompts, [one.initial_seed() for one in generator], settings))
        gray = [Image.new("L", (2, 2), len(prompt)) for prompt in prompts for _ in range(num_images_per_prompt)]
        return SimpleNamespace(images=gray)

    for name, value in (("pipe", draw), ("batch_size", 3), ("images_per_prompt", 2), ("output_dir", tmp_path)):
        monkeypatch.setattr(model, name, value)
    drawn = [json.loads(text) for text in model.generate_until(requests_for(lmms, model, to_draw, 5))]
    folder = tmp_path.resolve() / "WISE"
    assert drawn == [{"text": "", "images": [str(folder / f"{i:04d}_s{k}.png") for k in (0, 1)]} for i in range(5)]
    prompts = [f"a photo of a {color} circle" for color in ("red", "blue", "green", "orange", "purple")]
    settings = {"guidance_scale": None, "batch_size": 3}
    assert calls == [(prompts[:3], [42, 43] * 3, settings), (prompts[3:], [42, 43] * 2, settings)]
    pixels = [Image.open(path).getpixel((0, 0)) for one in drawn for path in one["images"]]
    assert pixels == [len(prompt) for prompt in prompts for _ in range(2)]


def test_editing_is_refused(lmms, model):
    model.task_dict["WISE"] = {"test": [{"image": scenes(1)[0][0]}]}
    edit = instance(lmms, ("make it blue", GREEDY, lambda doc: [doc["image"]], 0, "WISE", "test"))
    with pytest.raises(ValueError, match="cannot edit pictures"):
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


def test_where_pictures_stand(lmms):
    def parts(context, pictures):
        [turn] = lmms.lmms_conversation(context, pictures)
        return [part.get("text", part.get("image")) for part in turn["content"]]

    assert parts("a <image> b", [1]) == ["a", 1, "b"]
    assert parts("<image> <image>\nwhich?", [1, 2]) == [1, 2, "which?"]
    assert parts("which?", [1, 2]) == [1, 2, "which?"]
    assert parts("<image> which?", [1, 2]) == [1, 2, "<image> which?"]  # one mark, two pictures: a word like others
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
        model.generate_until(requests_for(lmms, model, several_pictures, 1))
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
        ({"prompt_style": "papers"}, "'lmms' or 'paper'; got 'papers'"),
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


# VLMEvalKit


@pytest.fixture(scope="module")
def adapter(vlmeval):
    return vlmeval.JanusPro(DEFAULT_MODEL, dtype="float32", device="cpu", max_new_tokens=6)


def rows(count, folder, **columns):
    made = []
    for i, (image, text) in enumerate(scenes(count, seed=7)):
        image.save(folder / f"{i}.png")
        made.append({"index": i, "question": text, "image_path": str(folder / f"{i}.png"), **columns})
    return made


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
    pictures = [{"type": "image", "value": "1.png"}, {"type": "image", "value": "2.png"}]
    assert adapter.build_prompt(pandas.Series(line), dataset) == [*pictures, {"type": "text", "value": expected}]


def test_other_data_sets_keep_their_own_prompt(adapter):
    assert not adapter.use_custom_prompt("GQA_TestDev_Balanced")
    with pytest.raises(ValueError, match="VLMEvalKit's own is used"):
        adapter.build_prompt({"question": "Who?"}, "GQA_TestDev_Balanced")


def test_what_the_model_reads(vlmeval, adapter, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(
        vlmeval, "answer", lambda model, processor, talk, **settings: calls.append((talk, settings)) or ["x"]
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
    picture_of_row = Image.open(row["image_path"])
    expected = answer(
        adapter.pipe.model,
        adapter.pipe.processor,
        [
            [
                {"role": "User", "content": "<image_placeholder>\nIs there a red circle?", "images": [picture_of_row]},
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


# Both


@pytest.mark.parametrize(
    ("ours", "framework"),
    [("lmms_eval", "lmms_eval"), ("lmms_eval_model", "lmms_eval"), ("vlmeval", "vlmeval")],
)
def test_a_missing_framework_is_named(monkeypatch, ours, framework):
    for name in [name for name in sys.modules if name.partition(".")[0] == framework]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, framework, None)
    monkeypatch.delitem(sys.modules, f"janus_hf.integrations.{ours}", raising=False)
    with pytest.raises(ImportError, match="pip install"):
        importlib.import_module(f"janus_hf.integrations.{ours}").manifest()


def test_nothing_else_imports_the_frameworks():
    folder = Path(janus_hf.__file__).parent
    importing = set()
    for path in folder.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = [node for node in tree.body for node in (node.body if isinstance(node, ast.Try) else [node])]
        names = [alias.name for node in top if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module for node in top if isinstance(node, ast.ImportFrom) and node.module and not node.level]
        if {name.partition(".")[0] for name in names} & {"lmms_eval", "vlmeval"}:
            importing.add(path.name)
    assert importing == {"lmms_eval_model.py", "vlmeval.py"}


# The proof on the real frameworks


@pytest.mark.slow
@pytest.mark.parametrize("lmms", ["real"], indirect=True)
def test_lmms_eval_resolves_builds_and_asks(lmms, monkeypatch, tmp_path):
    """Found through the installed entry point, built from a string of arguments, 24 requests of each shape."""
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
    drawn = []
    for batch_size in (1, 8):
        monkeypatch.setattr(model, "batch_size", batch_size)
        monkeypatch.setattr(model, "output_dir", tmp_path / str(batch_size))
        texts = model.generate_until(requests_for(lmms, model, to_draw, 20))
        assert all(json.loads(text).keys() == {"text", "images"} for text in texts)
        drawn.append(
            [np.asarray(Image.open(path)).astype(int) for text in texts for path in json.loads(text)["images"]]
        )
    assert len(drawn[0]) == len(drawn[1]) == 20
    # Convolutions sum in another order in another batch: a value at the edge may round to its neighbour.
    assert max(abs(one - other).max() for one, other in zip(*drawn, strict=True)) <= 1
    assert max(abs(one - drawn[0][0]).max() for one in drawn[0]) > 100
    model.clean()
    assert model.pipe is None


@pytest.mark.slow
@pytest.mark.parametrize("vlmeval", ["real"], indirect=True)
def test_vlmevalkit_asks(vlmeval, adapter, pandas, tmp_path):
    """24 rows of each kind through the real base class: single answers equal those of one batch."""
    assert vlmeval.BaseModel.__module__ == "vlmeval.vlm.base"  # no stub
    adapter.set_dump_image(lambda line: [line["image_path"]])
    options = {"A": "red", "B": "blue", "C": "green", "hint": float("nan")}
    made = rows(24, tmp_path)
    sent = {
        "POPE": [adapter.build_prompt(pandas.Series(row), "POPE") for row in made],
        "MMBench_DEV_EN": [adapter.build_prompt(pandas.Series(row | options), "MMBench_DEV_EN") for row in made],
        "MMVet": [adapter.build_prompt(pandas.Series(row), "MMVet") for row in made],
        "two pictures": [
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


def test_loading_for_evaluation():
    pipe = load_pipeline(DEFAULT_MODEL, dtype="auto", device="cpu")
    assert pipe.model.dtype == torch.bfloat16  # the checkpoint's own
    assert load_pipeline(DEFAULT_MODEL, dtype="float32", device="cpu").model.dtype == torch.float32
