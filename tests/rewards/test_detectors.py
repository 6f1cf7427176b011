"""Detectors: post-processing against a second statement of the published one in NumPy, preparation by hand, and the
wiring on tiny random models.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from janus_hf.rewards.detectors import COLORS, ClipColors, cut_out, with_colors
from janus_hf.rewards.geneval_rules import Detection
from janus_hf.rewards.grounding_dino import GroundingDinoDetector
from janus_hf.rewards.mask2former import COCO_NAMES, MEAN, STD, Mask2FormerDetector, fit, post_process_instances
from janus_hf.rewards.shapes_detector import ShapesDetector, detect
from janus_hf.shapes import TAGS, make_drawing, picture
from tiny_judges import bert_tokenizer, clip, grounding_dino, mask2former


def noise(width=48, height=32, seed=0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, size=(height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


# Post-processing, stated in float64 arrays after mmdet 2.27 (maskformer_fusion_head.py, mask2former_head.py)


def line_weights(old: int, new: int) -> np.ndarray:
    """`(new, old)`: bilinear interpolation along a line whose pixels' centres lie at half-integers."""
    weights = np.zeros((new, old))
    for i in range(new):
        at = max((i + 0.5) * old / new - 0.5, 0.0)
        low = min(int(at), old - 1)
        weights[i, low] += 1 - (at - low)
        weights[i, min(low + 1, old - 1)] += at - low
    return weights


def bilinear(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rows, columns = (line_weights(old, new) for old, new in zip(maps.shape[-2:], size, strict=True))
    return rows @ maps @ columns.T


def published(class_logits, mask_logits, image_size, resized_size, padded_size, max_per_image=100):
    exponentials = np.exp(class_logits.astype(np.float64) - class_logits.max(axis=1, keepdims=True))
    probabilities = (exponentials / exponentials.sum(axis=1, keepdims=True))[:, :-1]
    upsampled = bilinear(mask_logits.astype(np.float64), padded_size)[:, : resized_size[0], : resized_size[1]]
    upsampled = bilinear(upsampled, image_size)
    labels, scores, boxes, masks = [], [], [], []
    for place in np.argsort(-probabilities.ravel(), kind="stable")[:max_per_image]:
        query, label = divmod(int(place), probabilities.shape[1])
        mask = upsampled[query] > 0
        sure = (1 / (1 + np.exp(-upsampled[query])) * mask).sum() / (mask.sum() + 1e-6)
        ys, xs = np.nonzero(mask)
        labels.append(label)
        scores.append(probabilities[query, label] * sure)
        boxes.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(xs) else [0, 0, 0, 0])
        masks.append(mask)
    return np.array(labels), np.array(scores), np.array(boxes, dtype=float), np.array(masks)


SIZES = [
    # picture, resized, padded, the network's masks
    ((24, 40), (48, 80), (64, 96), (16, 24)),  # enlarged, padded both ways
    ((64, 64), (64, 64), (64, 64), (16, 16)),
    ((90, 50), (57, 32), (64, 32), (16, 8)),  # shrunk
    ((33, 7), (96, 20), (96, 32), (24, 8)),
]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "x".join(map(str, sizes[0])))
def test_post_processing_is_the_published_one(sizes, seed):
    *sizes, (height, width) = sizes
    rng = np.random.default_rng(seed)
    classes = rng.normal(scale=3, size=(20, 11)).astype(np.float32)
    masks = rng.normal(scale=4, size=(20, height, width)).astype(np.float32) - 3
    for query in range(20):  # so that boxes differ
        masks[query, : query % height] -= 20
        masks[query, :, width - query % width :] -= 20
    masks[3] = -5  # without any pixel
    expected = published(classes, masks, *sizes)
    found = post_process_instances(torch.from_numpy(classes), torch.from_numpy(masks), *sizes)
    assert len(found.labels) == 100  # of 200 pairs
    assert found.labels.tolist() == expected[0].tolist()
    np.testing.assert_allclose(found.scores, expected[1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.boxes, expected[2], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found.masks, expected[3])
    assert not found.masks.flatten(1).any(dim=1).all()  # the empty one is among them
    assert len({tuple(box) for box in expected[2].tolist()}) > 5


def test_a_query_may_be_several_things_and_few_queries_are_no_error():
    classes = torch.tensor([[2.0, 1.0, 0.0, -4.0]])
    found = post_process_instances(classes, torch.ones(1, 2, 2), (4, 4), (8, 8), (8, 8))
    assert found.labels.tolist() == [0, 1, 2]
    expected = classes[0].softmax(dim=-1)[:3] * torch.sigmoid(torch.tensor(1.0))
    torch.testing.assert_close(found.scores, expected)
    assert found.boxes.tolist() == [[0, 0, 4, 4]] * 3


# Preparation


@pytest.mark.parametrize(
    ("size", "resized", "padded"),
    [
        ((384, 384), (800, 800), (800, 800)),
        ((1000, 500), (667, 1333), (672, 1344)),  # 1333 / 1000 < 800 / 500; 500 * 1.333 = 666.5, rounded up
        ((500, 1000), (1333, 667), (1344, 672)),
        ((1600, 1200), (800, 1067), (800, 1088)),  # 800 / 1200 < 1333 / 1600; 1600 / 1.5 = 1066.67
    ],
)
def test_pictures_are_fitted_into_the_official_scale(size, resized, padded):
    pixels, fitted = fit(Image.new("RGB", size, (10, 20, 30)))
    assert (fitted, tuple(pixels.shape)) == (resized, (3, *padded))
    expected = torch.tensor([(10 - 123.675) / 58.395, (20 - 116.28) / 57.12, (30 - 103.53) / 57.375])
    inside = pixels[:, : resized[0], : resized[1]]
    torch.testing.assert_close(inside, expected[:, None, None].expand_as(inside))
    assert pixels.abs().sum(dim=0).gt(0).sum() == resized[0] * resized[1]  # all padding is zero


@pytest.mark.parametrize("scale", [(96, 64), (24, 16)], ids=["enlarged", "shrunk"])
def test_resizing_is_bilinear_without_smoothing_in_whole_levels(scale):
    image = noise(48, 32)
    pixels, size = fit(image, scale)
    expected = np.rint(bilinear(np.asarray(image).transpose(2, 0, 1).astype(float), (scale[1], scale[0])))
    levels = pixels[:, : size[0], : size[1]] * STD[:, None, None] + MEAN[:, None, None]
    difference = np.abs(levels.numpy() - expected)
    assert size == (scale[1], scale[0])
    # A value within float32's error of a half may be rounded either way.
    assert difference.max() < 1.01
    assert (difference > 1e-3).mean() < 0.01


def test_the_names_are_cocos():
    assert len(COCO_NAMES) == len(set(COCO_NAMES)) == 80
    at = {name: index for index, name in enumerate(COCO_NAMES)}  # indices as in COCO's list of 80
    renamed = {"computer mouse": 64, "tv remote": 65, "computer keyboard": 66}
    assert {name: at[name] for name in renamed} == renamed
    assert (at["person"], at["traffic light"], at["hot dog"], at["toothbrush"]) == (0, 9, 52, 79)


# Mask2Former


@pytest.fixture(scope="module")
def network():
    return mask2former()


def detector_of(network, **settings):
    return Mask2FormerDetector(network, scale=(96, 64), min_score=0.0, **settings)


def test_mask2former_is_wired_to_its_pre_and_post_processing(network):
    image = noise(40, 24)
    (found,) = detector_of(network).detect([image])
    pixels, resized = fit(image, (96, 64))
    with torch.no_grad():
        outputs = network(pixel_values=pixels[None])
    labels, scores, boxes, masks = published(
        outputs.class_queries_logits[0].numpy(),
        outputs.masks_queries_logits[0].numpy(),
        (24, 40),
        resized,
        tuple(pixels.shape[1:]),
    )
    kept = scores > 0
    assert kept.sum() == len(found) > 10
    assert [d.label for d in found] == [COCO_NAMES[label] for label in labels[kept]]
    np.testing.assert_allclose([d.score for d in found], scores[kept], atol=1e-5)
    np.testing.assert_allclose([d.box for d in found], boxes[kept], atol=1e-5)
    np.testing.assert_array_equal([d.mask for d in found], masks[kept])
    assert {d.color for d in found} == {None}


def test_a_pictures_detections_do_not_depend_on_its_company(network):
    images = [noise(40, 24, 0), noise(32, 32, 1), noise(40, 24, 2)]
    together = detector_of(network, batch_size=2).detect(images)
    for image, found in zip(images, together, strict=True):
        (alone,) = detector_of(network).detect([image])
        assert [d.label for d in found] == [d.label for d in alone]
        np.testing.assert_allclose([d.score for d in found], [d.score for d in alone], atol=1e-5)
        assert [d.box for d in found] == [d.box for d in alone]
    assert [d.score for d in together[0]] != [d.score for d in together[2]]


def test_unlikely_detections_are_left_out(network):
    (everything,) = detector_of(network).detect([noise()])
    middle = sorted(d.score for d in everything)[len(everything) // 2]
    (kept,) = Mask2FormerDetector(network, scale=(96, 64), min_score=middle).detect([noise()])
    assert kept == [d for d in everything if d.score > middle]


def test_a_model_of_other_classes_needs_their_names(network):
    with pytest.raises(ValueError, match=r"80 classes apart, but there are 2 names.*pass names="):
        detector_of(network, names=["cat", "dog"]).detect([noise()])
    two = mask2former(num_labels=2)
    (found,) = detector_of(two, names=["cat", "dog"]).detect([noise()])
    assert {d.label for d in found} == {"cat", "dog"}


def test_mask2former_without_scipy_says_what_to_install(monkeypatch):
    monkeypatch.setattr("transformers.utils.is_scipy_available", lambda: False)
    with pytest.raises(ImportError, match="pip install scipy"):
        Mask2FormerDetector().detect([noise()])


def test_bad_input_is_refused(network):
    with pytest.raises(TypeError, match=r"PIL pictures, got a ndarray"):
        detector_of(network).detect([np.zeros((8, 8, 3))])
    with pytest.raises(ValueError, match="each of 1 pictures, got 0"):
        detector_of(network).detect([noise()], [])
    with pytest.raises(ValueError, match="without its processor"):
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


def test_a_thing_is_shown_alone_on_grey():
    image = Image.new("RGB", (48, 32), "red")
    mask = box_mask((4, 2, 20, 10))
    mask[2:4] = False
    shown = np.asarray(cut_out(image, Detection("cat", 1.0, (4.0, 2.0, 20.0, 10.0), mask=mask)))
    assert shown.shape == (8, 16, 3)
    assert (shown[:2] == 0x99).all()
    assert (shown[2:] == (255, 0, 0)).all()
    whole = cut_out(image, Detection("cat", 1.0, (4.0, 2.0, 20.0, 10.0)))
    assert (np.asarray(whole) == (255, 0, 0)).all()
    with pytest.raises(ValueError, match="48 x 32, the picture 32 x 32"):
        cut_out(image.resize((32, 32)), Detection("cat", 1.0, (4.0, 2.0, 20.0, 10.0), mask=mask))
    with pytest.raises(ValueError, match="is empty"):
        cut_out(image, Detection("cat", 1.0, (0.0, 0.0, 0.0, 0.0)))


class Recorder:
    """Calls everything red, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[Detection]] = []

    def __call__(self, image, things):
        self.asked.append(list(things))
        return ["red"] * len(things)


def test_colours_are_looked_at_only_where_the_rules_will():
    dogs = [Detection("dog", score, (0.0, 0.0, 8.0, 8.0)) for score in (0.4, 0.9, 0.6)]
    cats = [Detection("cat", 0.8, (0.0, 0.0, 8.0, 8.0))]
    two_red_dogs = {"include": [{"class": "dog", "count": 2, "color": "red"}, {"class": "cat", "count": 1}]}
    recorder = Recorder()
    seen = with_colors(noise(), [*dogs, *cats], two_red_dogs, recorder)
    assert recorder.asked == [[dogs[1], dogs[2]]]
    assert [d.color for d in seen] == [None, "red", "red", None]
    assert with_colors(noise(), cats, {"include": [{"class": "cat", "count": 1}]}, recorder) == cats
    assert len(recorder.asked) == 1
    equal = [dogs[0], Detection("dog", 0.4, (0.0, 0.0, 8.0, 8.0))]  # two things, alike in everything
    one = {"include": [{"class": "dog", "count": 1, "color": "red"}]}
    assert [d.color for d in with_colors(noise(), equal, one, recorder)] == [None, "red"]


def test_the_detector_asks_for_colours(network):
    recorder, image = Recorder(), noise()
    (plain,) = detector_of(network).detect([image])
    best = max(plain, key=lambda d: d.score)
    metadata = [{"include": [{"class": best.label, "count": 1, "color": "blue"}]}]
    (found,) = detector_of(network, colors=recorder).detect([image], metadata)
    assert recorder.asked == [[best]]
    assert [d.color for d in found] == ["red" if d is max(found, key=lambda d: d.score) else None for d in found]
    (again,) = detector_of(network).detect([image], [{"include": [{"class": best.label, "count": 1}]}])
    assert again == plain  # no colours asked: no CLIP is loaded


class PlainColors(ClipColors):
    """With features that mean something: of a picture its mean colour, of a text that of the colour it names."""

    def image_features(self, images):
        means = torch.tensor(np.array([np.asarray(image).mean(axis=(0, 1)) for image in images]), dtype=torch.float32)
        return torch.nn.functional.normalize(means - 128, dim=-1)

    def text_features(self, texts):
        palette = {color: Image.new("RGB", (1, 1), color) for color in COLORS}
        return self.image_features([next(palette[color] for color in COLORS if color in text) for text in texts])


def test_the_thing_is_asked_and_not_what_is_around_it():
    image = Image.new("RGB", (48, 32), "blue")
    image.paste("red", (10, 10, 20, 20))
    red = Detection("cat", 1.0, (8.0, 8.0, 22.0, 22.0), mask=box_mask((10, 10, 20, 20)))
    blue = Detection("cat", 1.0, (30.0, 0.0, 40.0, 8.0))
    assert PlainColors()(image, [red, blue]) == ["red", "blue"]
    assert PlainColors()(image, []) == []


def test_clip_colours_are_those_of_the_nearest_mean_sentence():
    model, processor = clip()
    colors = ClipColors(model, processor, batch_size=3)
    image, box = noise(), (4.0, 2.0, 28.0, 22.0)
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


# GroundingDINO


class Answers:
    """A model with given outputs."""

    def __init__(self, logits, boxes):
        self.outputs = SimpleNamespace(logits=logits, pred_boxes=boxes)
        self.config = SimpleNamespace(max_text_len=16)
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def to(self, **kwargs):
        return self

    def eval(self):
        return self

    def __call__(self, **inputs):
        return self.outputs


def test_grounding_dino_maps_tokens_to_classes_and_boxes_to_pixels():
    _, processor = grounding_dino()
    text = processor.tokenizer("hot dog. cat.")["input_ids"]
    tokens = bert_tokenizer().convert_ids_to_tokens(text)
    assert tokens == ["[CLS]", "hot", "dog", ".", "cat", ".", "[SEP]"]
    logits = torch.full((1, 3, 16), -10.0)
    logits[0, 0, 4] = 2.0  # cat
    logits[0, 1, 1:3] = torch.tensor([1.0, 3.0])  # hot, dog
    logits[0, 2, 2] = 0.2  # dog without hot: half of sigmoid(0.2), below the threshold
    boxes = torch.tensor([[[0.5, 0.5, 0.5, 0.25], [0.25, 0.25, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]])
    model = Answers(logits, boxes)
    metadata = [{"include": [{"class": "hot dog", "count": 1}], "exclude": [{"class": "cat", "count": 2}]}]
    (found,) = GroundingDinoDetector(model, processor, threshold=0.3).detect([noise(80, 40)], metadata)
    assert [d.label for d in found] == ["cat", "hot dog"]
    sigmoid = [1 / (1 + np.exp(-value)) for value in (2.0, 1.0, 3.0)]
    np.testing.assert_allclose([d.score for d in found], [sigmoid[0], (sigmoid[1] + sigmoid[2]) / 2], atol=1e-6)
    np.testing.assert_allclose([d.box for d in found], [(20, 15, 60, 25), (0, 0, 40, 20)], atol=1e-5)


def test_grounding_dino_is_wired_and_batches_texts_of_different_lengths():
    model, processor = grounding_dino()
    images = [noise(64, 64, 0), noise(64, 64, 1)]
    metadata = [
        {"include": [{"class": "cat", "count": 1}]},
        {"include": [{"class": "dog", "count": 1}, {"class": "apple", "count": 1}]},
    ]
    detector = GroundingDinoDetector(model, processor, threshold=0.0)
    together = detector.detect(images, metadata)
    assert {d.label for d in together[0]} == {"cat"}
    assert {d.label for d in together[1]} <= {"dog", "apple"}
    assert [len(found) for found in together] == [10, 10]
    for image, line, found in zip(images, metadata, together, strict=True):
        (alone,) = detector.detect([image], [line])
        np.testing.assert_allclose([d.score for d in found], [d.score for d in alone], atol=1e-5)
        np.testing.assert_allclose([d.box for d in found], [d.box for d in alone], atol=1e-3)


def test_grounding_dino_must_know_what_to_look_for():
    model, processor = grounding_dino()
    with pytest.raises(ValueError, match="Nothing to look for"):
        GroundingDinoDetector(model, processor).detect([noise()])
    (found,) = GroundingDinoDetector(model, processor, classes=["cat"], threshold=0.0).detect([noise()])
    assert {d.label for d in found} == {"cat"}
    many = GroundingDinoDetector(model, processor, classes=["cat"] * 9)
    with pytest.raises(ValueError, match="make 20 tokens, the model reads 16"):
        many.detect([noise()])


# The small world


def test_the_shapes_detector_is_the_exact_one():
    rng = np.random.default_rng(0)
    scenes = [make_drawing(tag, rng).scene for tag in TAGS]
    pictures = [picture(scene) for scene in scenes]
    found = ShapesDetector().detect(pictures, [{}] * len(pictures))
    assert found == [detect(image) for image in pictures]
    assert all(d.color for things in found for d in things)
