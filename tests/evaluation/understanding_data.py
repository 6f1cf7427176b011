"""Data of the understanding benchmarks in VLMEvalKit's layout, and a stand-in for the model that answers them."""

import base64
import csv
import io
from types import SimpleNamespace

import numpy as np
import torch

from janus_hf.evaluation.benchmarks import understanding
from janus_hf.shapes import picture, random_scene


def base64_image(seed=0):
    """Return an image of the shapes world as base64."""
    buffer = io.BytesIO()
    picture(random_scene(np.random.default_rng(seed))).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


IMAGE = base64_image()


def write_tsv(path, rows):
    """Write a table with the columns of all rows and return its path."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, delimiter="\t", restval="")
        table.writeheader()
        table.writerows(rows)
    return path


class Answerer:
    """A stand-in for pipeline and model that answers by the question's text and records the user turns."""

    def __init__(self, monkeypatch, answers, stop_after=None):
        self.model = torch.nn.Identity()  # whose weights are always the same
        self.model.config, self.model.dtype = SimpleNamespace(), torch.float32
        self.processor = SimpleNamespace(image_token="<image_placeholder>")
        self.answers, self.stop_after, self.asked, self.options = answers, stop_after, [], []
        monkeypatch.setattr(understanding, "answer", self.answer)

    def answer(self, model, processor, conversations, **options):
        assert model is self.model
        self.options.append(options)
        given = []
        for (turn,) in conversations:
            if self.stop_after is not None and len(self.asked) >= self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(turn)
            given.append(next(text for question, text in self.answers.items() if question in turn["content"]))
        return given


# POPE's questions as (index, correct answer, splits, given answer). The splits share questions, as in VLMEvalKit's
# table.
POPE = [
    ("1", "Yes", "random,popular", "Yes"),
    ("2", "Yes", "random", "No."),
    ("3", "No", "random", "yes"),
    ("4", "No", "random,popular,adversarial", "no"),
    ("5", "Yes", "random", "Yes, there is a dog."),
    ("6", "No", "adversarial", "no"),
]


def pope_tsv(path):
    """Write POPE's table and return its path."""
    rows = [
        {
            "index": index,
            "image": IMAGE if index == "4" else "4",  # the others share the image of a later row
            "question": f"Is there thing {index}? Please answer yes or no.",
            "answer": answer,
            "category": splits,
        }
        for index, answer, splits, _ in POPE
    ]
    return write_tsv(path, rows)


POPE_ANSWERS = {f"thing {index}?": given for index, _, _, given in POPE}


def mme_rows(verdicts):
    """Return the rows of MME's table and the answers by question.

    Args:
        verdicts: By (task, image), the answers to its two questions, whose correct answers are yes and no.
    """
    rows, answers = [], {}
    for (task, name), given in verdicts.items():
        for number, (right, text) in enumerate(zip(("Yes", "No"), given, strict=True)):
            question = f"{task} {name} {number}?"
            rows.append(
                {
                    "index": str(len(rows)),
                    "category": task,
                    "image_path": name,
                    "question": question,
                    "answer": right,
                    "image": IMAGE,
                }
            )
            answers[question] = text
    return rows, answers


MME = {
    ("existence", "a.jpg"): ("Yes", "No"),
    ("existence", "b.jpg"): ("Yes", "Yes"),
    ("existence", "c.jpg"): ("yes.", "no."),
    ("existence", "d.jpg"): ("I think so", "No"),
    ("OCR", "a.jpg"): ("No", "Yes"),  # the same name as in another task is another image
    ("OCR", "e.jpg"): ("Yes", "No"),
    ("code_reasoning", "f.jpg"): ("Yes", "No"),
}
