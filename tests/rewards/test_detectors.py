"""What detectors share: names, refused input, and colours by CLIP; and the exact detector of the shapes world."""

import numpy as np
import pytest
import torch
from PIL import Image

from janus_hf.rewards.detectors import COLORS, ClipColors, cut_out, with_colors
from janus_hf.rewards.geneval_rules import Detection
from janus_hf.rewards.grounding_dino import GroundingDinoDetector
from janus_hf.rewards.mask2former import Mask2FormerDetector
from janus_hf.rewards.shapes_detector import ShapesDetector, detect
from janus_hf.shapes import TAGS, make_drawing, picture
from tiny_judges import clip, mask2former, noise


@pytest.fixture(scope="module")
def network():
    return mask2former()


def detector_of(network, **settings):
    return Mask2FormerDetector(network, scale=(96, 64), min_score=0.0, **settings)


def test_bad_input_is_refused(network):
    with pytest.raises(TypeError, match="must be a PIL image, got ndarray"):
        detector_of(network).detect([np.zeros((8, 8, 3))])
    with pytest.raises(ValueError, match="one line per image, got 0 lines for 1 images"):
        detector_of(network).detect([noise(48, 32)], [])
    with pytest.raises(ValueError, match="`processor` must be given with a loaded model, got only a CLIPModel"):
        ClipColors(clip()[0])


def test_detectors_have_names(network):
    assert Mask2FormerDetector().name == "Mask2Former (facebook/mask2former-swin-small-coco-instance)"
    assert detector_of(network).name == "Mask2Former (Mask2FormerForUniversalSegmentation)"
    assert GroundingDinoDetector().name == "GroundingDINO (IDEA-Research/grounding-dino-tiny)"
    assert "small world" in ShapesDetector().name


# Colours


def box_mask(box, size=(48, 32)) -> np.ndarray:
    mask = np.zeros(size[::-1], dtype=bool)
    left, top, right, bottom = map(int, box)
    mask[top:bottom, left:right] = True
    return mask


def test_an_object_is_cut_out_on_grey():
    image = Image.new("RGB", (48, 32), "red")
    mask = box_mask((4, 2, 20, 10))
    mask[2:4] = False
    shown = np.asarray(cut_out(image, Detection("cat", 1.0, (4.0, 2.0, 20.0, 10.0), mask=mask)))
    assert shown.shape == (8, 16, 3)
    assert (shown[:2] == 0x99).all()
    assert (shown[2:] == (255, 0, 0)).all()
    whole = cut_out(image, Detection("cat", 1.0, (4.0, 2.0, 20.0, 10.0)))
    assert (np.asarray(whole) == (255, 0, 0)).all()
    with pytest.raises(ValueError, match="got 48 x 32 for an image of 32 x 32"):
        cut_out(image.resize((32, 32)), Detection("cat", 1.0, (4.0, 2.0, 20.0, 10.0), mask=mask))
    with pytest.raises(ValueError, match="`box` must hold a pixel"):
        cut_out(image, Detection("cat", 1.0, (0.0, 0.0, 0.0, 0.0)))


class Recorder:
    """Names every colour "red" and records the objects that it was called with."""

    def __init__(self) -> None:
        self.calls: list[list[Detection]] = []

    def __call__(self, image, things):
        self.calls.append(list(things))
        return ["red"] * len(things)


def test_only_colours_that_the_rules_compare_are_named():
    dogs = [Detection("dog", score, (0.0, 0.0, 8.0, 8.0)) for score in (0.4, 0.9, 0.6)]
    cats = [Detection("cat", 0.8, (0.0, 0.0, 8.0, 8.0))]
    two_red_dogs = {"include": [{"class": "dog", "count": 2, "color": "red"}, {"class": "cat", "count": 1}]}
    recorder = Recorder()
    colored = with_colors(noise(48, 32), [*dogs, *cats], two_red_dogs, recorder)
    assert recorder.calls == [[dogs[1], dogs[2]]]
    assert [d.color for d in colored] == [None, "red", "red", None]
    assert with_colors(noise(48, 32), cats, {"include": [{"class": "cat", "count": 1}]}, recorder) == cats
    assert len(recorder.calls) == 1
    equal = [dogs[0], Detection("dog", 0.4, (0.0, 0.0, 8.0, 8.0))]  # two objects that are equal in everything
    one = {"include": [{"class": "dog", "count": 1, "color": "red"}]}
    assert [d.color for d in with_colors(noise(48, 32), equal, one, recorder)] == [None, "red"]


def test_a_detector_names_colours_that_metadata_ask_for(network):
    recorder, image = Recorder(), noise(48, 32)
    (plain,) = detector_of(network).detect([image])
    best = max(plain, key=lambda d: d.score)
    metadata = [{"include": [{"class": best.label, "count": 1, "color": "blue"}]}]
    (found,) = detector_of(network, colors=recorder).detect([image], metadata)
    assert recorder.calls == [[best]]
    assert [d.color for d in found] == ["red" if d is max(found, key=lambda d: d.score) else None for d in found]
    (again,) = detector_of(network).detect([image], [{"include": [{"class": best.label, "count": 1}]}])
    assert again == plain  # no clause asks for a colour, so no CLIP is loaded


class PlainColors(ClipColors):
    """Features with a meaning: an image's is its mean colour, a text's is the colour that the text names."""

    def image_features(self, images):
        means = torch.tensor(np.array([np.asarray(image).mean(axis=(0, 1)) for image in images]), dtype=torch.float32)
        return torch.nn.functional.normalize(means - 128, dim=-1)

    def text_features(self, texts):
        palette = {color: Image.new("RGB", (1, 1), color) for color in COLORS}
        return self.image_features([next(palette[color] for color in COLORS if color in text) for text in texts])


def test_the_objects_colour_is_named_and_not_its_surroundings():
    image = Image.new("RGB", (48, 32), "blue")
    image.paste("red", (10, 10, 20, 20))
    red = Detection("cat", 1.0, (8.0, 8.0, 22.0, 22.0), mask=box_mask((10, 10, 20, 20)))
    blue = Detection("cat", 1.0, (30.0, 0.0, 40.0, 8.0))
    assert PlainColors()(image, [red, blue]) == ["red", "blue"]
    assert PlainColors()(image, []) == []


def test_clip_names_the_colour_of_the_nearest_mean_sentence():
    model, processor = clip()
    colors = ClipColors(model, processor, batch_size=3)
    image, box = noise(48, 32), (4.0, 2.0, 28.0, 22.0)
    things = [Detection("cat", 1.0, box, mask=box_mask(box)), Detection("dog", 1.0, (8.0, 8.0, 40.0, 30.0))]
    given = colors(image, things)

    def text(sentence):
        with torch.no_grad():
            embeds = model.get_text_features(**processor.tokenizer([sentence], return_tensors="pt")).pooler_output[0]
        return embeds / embeds.norm()

    for thing, color in zip(things, given, strict=True):
        rows = []
        for name in ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"):
            of = [f"a {name} {thing.label}", f"a {name}-colored {thing.label}", f"a {name} object"]
            mean = torch.stack([text(f"a photo of {words}") for words in of]).mean(dim=0)
            rows.append(mean / mean.norm())
        pixels = processor.image_processor(images=cut_out(image, thing), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            seen = model.get_image_features(pixel_values=pixels).pooler_output[0]
        expected = torch.stack(rows)
        torch.testing.assert_close(colors.color_features(thing.label), expected, atol=1e-5, rtol=0)
        assert color == COLORS[int((expected @ seen).argmax())]


# The shapes world


def test_the_shapes_detector_is_the_exact_one():
    rng = np.random.default_rng(0)
    scenes = [make_drawing(tag, rng).scene for tag in TAGS]
    images = [picture(scene) for scene in scenes]
    found = ShapesDetector().detect(images, [{}] * len(images))
    assert found == [detect(image) for image in images]
    assert all(d.color for detections in found for d in detections)
