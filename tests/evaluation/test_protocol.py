"""The authors' prompts, character by character.

The expected strings were copied from vlmeval/vlm/janus.py of VLMEvalKit, not from the code under test.
"""

import math

import numpy as np
import pytest

from janus_hf.evaluation.benchmarks import protocol
from janus_hf.shapes import picture, random_scene


def test_pope_loses_its_tail_and_mme_keeps_it():
    question = "Is there a dog in the image? Please answer yes or no."
    assert protocol.paper_prompt("pope", question) == (
        "\nIs there a dog in the image?\nAnswer the question using a single word or phrase."
    )
    assert protocol.paper_prompt("mme", question) == (
        "\nIs there a dog in the image? Please answer yes or no.\nAnswer the question using a single word or phrase."
    )


@pytest.mark.parametrize("benchmark", ["mmbench", "seed", "mmmu"])
def test_multiple_choice(benchmark):
    options = {"A": "one", "B": "two", "C": 3}
    assert protocol.paper_prompt(benchmark, "How many?", options=options) == (
        "\nHow many?\nA. one\nB. two\nC. 3\n\nAnswer with the option's letter from the given choices directly."
    )
    assert protocol.paper_prompt(benchmark, "How many?", options=options, hint="Count them.") == (
        "\nHint: Count them.\nHow many?\nA. one\nB. two\nC. 3\n\n"
        "Answer with the option's letter from the given choices directly."
    )


@pytest.mark.parametrize("missing", [None, math.nan, "", "nan"])
def test_missing_options_and_hints_are_left_out(missing):
    options = {"A": "one", "B": "two", "C": missing, "D": missing}
    assert protocol.multiple_choice_prompt("How many?", options, hint=missing) == (
        "\nHow many?\nA. one\nB. two\n\nAnswer with the option's letter from the given choices directly."
    )
    assert (
        protocol.multiple_choice_prompt("How many?", {"A": missing}) == "\nHow many?\nAnswer the question directly. "
    )


def test_open_questions():
    assert protocol.paper_prompt("mmvet", "What is x?") == "\nWhat is x?"
    assert protocol.paper_prompt("gqa", "Who?") == "Who?\nAnswer the question using a single word or phrase."


def test_only_mm_vet_has_a_system_prompt():
    assert {name for name in protocol.BENCHMARKS if protocol.system_prompt(name)} == {"mmvet"}
    assert protocol.system_prompt("mmvet") == (
        "You are a helpful assistant. Please answer truthfully and write out your thinking step by step to be sure "
        "you get the right answer."
    )


@pytest.mark.parametrize(
    "call", [lambda: protocol.paper_prompt("vqav2", "?"), lambda: protocol.system_prompt("vqav2")]
)
def test_unknown_benchmarks_name_the_known(call):
    with pytest.raises(ValueError, match=r"pope, mme, mmbench, seed, mmmu, gqa, mmvet, got 'vqav2'"):
        call()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes.", "Yes"),
        ("no .", "no"),
        (" NO.\n", "NO"),
        ("Yes", "Yes"),
        ("Yes. It is.", "Yes. It is."),
        ("Norway.", "Norway."),
        ("A.", "A."),
    ],
)
def test_bare_yes_and_no_lose_their_full_stop(answer, expected):
    assert protocol.plain_yes_no(answer) == expected


def test_rendered_as_the_authors_do(pipe):
    """The authors' adapter joins placeholders and prompt without a separator; its roles are "User" and "Assistant"."""

    def rendered(prompt, pictures, system_prompt=""):
        return pipe.processor.apply_chat_template(
            protocol.paper_conversation(prompt, pictures),
            roles=list(protocol.ROLES),
            system_prompt=system_prompt,
            add_generation_prompt=True,
        )

    scene = picture(random_scene(np.random.default_rng(3)))
    assert rendered("\nWhat?", [scene, scene]) == ("User: <image_placeholder><image_placeholder>\nWhat?\n\nAssistant:")
    assert rendered("Who?", [scene], "Think.") == "Think.\n\nUser: <image_placeholder>Who?\n\nAssistant:"
    assert rendered("\nWhat?", []) == "User: What?\n\nAssistant:"  # contents are stripped, as originally
