"""The parts of the script that trains the small model are tested one by one, because a whole run takes two hours."""

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from janus_hf import JanusProProcessor, JanusProVQConfig
from janus_hf.modeling import JanusProVQModel
from janus_hf.rewards.shapes_detector import detect
from janus_hf.shapes import COLORS, HELD_OUT, SHAPES, random_scene


sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
try:
    from small_world import boards, codec, muon, rows, settings, start
finally:
    sys.path.pop(0)


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    start.make_tokenizer(folder)
    return JanusProProcessor.from_pretrained(folder, num_image_tokens=64, system_prompt="")


def test_teacher_finds_every_patch_of_the_world():
    assert len(codec.patch_teacher().centres) == 4 * len(COLORS) * len(SHAPES) + 1


def test_words_of_the_world_are_single_tokens(processor):
    for word in (*COLORS, *SHAPES, "photo", "above", "left", "three", "crosses"):
        assert len(processor.tokenizer(f" {word}", add_special_tokens=False).input_ids) == 1, word


@pytest.mark.parametrize(
    "name", ["drawing", "hard_drawing", "questions", "hard_questions", "place_questions", "captions", "text"]
)
def test_rows_fit_and_show_nothing_that_is_held_out(processor, name):
    """A training row has room for three prompts with images, or for one image with its questions."""
    make_rows, arguments = rows.ROWS[name]
    for row in make_rows(**arguments | {"count": 200}):
        if "prompt" in row:
            found = {(thing.color, thing.label) for thing in detect(row["image"])}
            length = 64 + len(processor.prepare_image_generation(row["prompt"])["input_ids"][0])
            assert not found & HELD_OUT
            assert 3 * length <= settings.LENGTH
            continue
        messages = [message["content"].removeprefix("<image>\n") for message in row["messages"]]
        assert not any(f"{color} {shape}" in text for color, shape in HELD_OUT for text in messages)
        length = len(processor.tokenizer("\n\n".join(messages)).input_ids)
        assert length + (64 + 24 if "images" in row else 0) <= settings.LENGTH


def test_hard_questions_ask_for_numbers_and_positions():
    def share(kept):
        rng, kinds = np.random.default_rng(0), []
        for _ in range(100):
            messages = rows.dialogue(random_scene(rng), rng, 8, kept, opening="")
            kinds += [message["content"].split()[0] in ("How", "Where") for message in messages[::2]]
        return np.mean(kinds)

    assert share(rows.HARD_QUESTIONS) > share(None) + 0.05


def test_labels_name_the_object_on_every_patch():
    board = boards.LabelledBoards(4, seed=1)[2]
    colors, shapes, row_numbers, column_numbers = board["labels"].view(4, 8, 8)
    image = ((board["pixel_values"].movedim(0, -1) + 1) * 127.5).round().to(torch.uint8).numpy()
    for thing in detect(image):
        column, row = (int((thing.box[k] + thing.box[k + 2]) / 2) // settings.PATCH for k in (0, 1))
        assert list(COLORS)[colors[row, column] - 1] == thing.color
        assert SHAPES[shapes[row, column] - 1] == thing.label
    assert len(detect(image)) == int((colors > 0).sum()) // 4
    assert row_numbers[3, 5] == 3
    assert column_numbers[3, 5] == 5


def test_orthogonalise_flattens_the_spectrum():
    for shape in ((20, 50), (50, 20), (30, 30)):
        torch.manual_seed(0)
        values = torch.linalg.svdvals(muon.orthogonalise(torch.randn(shape)))
        assert values.min() > 0.5 or shape == (30, 30)  # a square random matrix has values near 0
        assert values.max() < 1.3


class Toy(nn.Module):
    """A model with one matrix that Muon trains, by its name, and a head that AdamW trains."""

    def __init__(self) -> None:
        super().__init__()
        self.language_model = nn.Module()
        self.language_model.layers = nn.ModuleList([nn.Linear(4, 6)])
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.language_model.layers[0](x))


def test_muon_resumes():
    torch.manual_seed(0)
    batches, model = torch.randn(6, 5, 4), Toy()
    optimizer = muon.Muon(model, 1e-3)

    def steps(model, optimizer, which):
        for index in which:
            model(batches[index]).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    before = copy.deepcopy(model.state_dict())
    steps(model, optimizer, range(3))
    resumed = copy.deepcopy(model)
    continued = muon.Muon(resumed, 1e-3)
    continued.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(model, optimizer, range(3, 6))
    steps(resumed, continued, range(3, 6))
    for name, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])
        assert not torch.equal(value, before[name])


def test_round_trip_gate_sees_a_bad_codec():
    untrained = JanusProVQModel(JanusProVQConfig(**settings.CODEC))
    assert max(codec.round_trip(untrained, prompts=4).values()) < 0.98


def test_dialogue_asks_different_questions():
    rng = np.random.default_rng(0)
    scene = random_scene(rng)
    messages = rows.dialogue(scene, rng, 8, opening="<image>\n")
    questions = [m["content"] for m in messages[::2]]
    assert messages[0]["content"].startswith("<image>\n")
    assert len(set(questions)) == len(questions)
    assert [m["role"] for m in messages] == ["user", "assistant"] * len(questions)
