"""Fabricated questions about images of the shapes world, in the form in which the harnesses pass them."""

from types import SimpleNamespace

import numpy as np
from harness_stubs import StubLmms

from janus_hf.shapes import ask, picture, random_scene


SHORT = "\nAnswer the question using a single word or phrase."


LETTER = "\nAnswer with the option's letter from the given choices directly."


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


def several_images(count):
    shown = [image for image, _ in scenes(2 * count, seed=4)]
    # The prompt is short and names few things: two images fill half of the small model's context.
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


def to_generate(count):
    colors = ("red", "blue", "green", "orange", "purple", "brown")
    shapes = ("circle", "square", "triangle", "cross")
    docs = [{"Prompt": f"a photo of a {colors[i % 6]} {shapes[i // 6 % 4]}"} for i in range(count)]
    return "WISE", docs, lambda doc: doc["Prompt"], lambda doc: [], GREEDY


ANSWERED = (yes_no, multiple_choice, open_ended, several_images, text_only)


def requests_for(lmms, model, shape, count):
    """Return requests in the form of lmms-eval's `construct_requests`; put their rows into the model's `task_dict`."""
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


def rows(count, folder, **columns):
    made = []
    for i, (image, text) in enumerate(scenes(count, seed=7)):
        image.save(folder / f"{i}.png")
        made.append({"index": i, "question": text, "image_path": str(folder / f"{i}.png"), **columns})
    return made
