"""Mask2Former: preparation worked out by hand, post-processing against a second statement of mmdet's in NumPy, and the
wiring of both on a tiny random network.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from janus_hf.rewards.mask2former import COCO_NAMES, MEAN, STD, Mask2FormerDetector, fit, post_process_instances
from tiny_judges import mask2former, noise


# Post-processing, restated in float64 after mmdet 2.27 (maskformer_fusion_head.py, mask2former_head.py)


def line_weights(old: int, new: int) -> np.ndarray:
    """Return the matrix `(new, old)` of bilinear interpolation along a line.

    The centres of the line's pixels lie at half-integers.
    """
    weights = np.zeros((new, old))
    for i in range(new):
        at = max((i + 0.5) * old / new - 0.5, 0.0)
        low = min(int(at), old - 1)
        weights[i, low] += 1 - (at - low)
        weights[i, min(low + 1, old - 1)] += at - low
    return weights


def bilinear(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize maps `(..., H, W)` to `(..., *size)`."""
    rows, columns = (line_weights(old, new) for old, new in zip(maps.shape[-2:], size, strict=True))
    return rows @ maps @ columns.T


def published(class_logits, mask_logits, image_size, resized_size, padded_size, max_per_image=100):
    """Return labels, scores, boxes and masks; the arguments are those of `post_process_instances`."""
    exponentials = np.exp(class_logits.astype(np.float64) - class_logits.max(axis=1, keepdims=True))
    probabilities = (exponentials / exponentials.sum(axis=1, keepdims=True))[:, :-1]
    upsampled = bilinear(mask_logits.astype(np.float64), padded_size)[:, : resized_size[0], : resized_size[1]]
    upsampled = bilinear(upsampled, image_size)
    labels, scores, boxes, masks = [], [], [], []
    for index in np.argsort(-probabilities.ravel(), kind="stable")[:max_per_image]:
        query, label = divmod(int(index), probabilities.shape[1])
        mask = upsampled[query] > 0
        sure = (1 / (1 + np.exp(-upsampled[query])) * mask).sum() / (mask.sum() + 1e-6)
        ys, xs = np.nonzero(mask)
        labels.append(label)
        scores.append(probabilities[query, label] * sure)
        boxes.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(xs) else [0, 0, 0, 0])
        masks.append(mask)
    return np.array(labels), np.array(scores), np.array(boxes, dtype=float), np.array(masks)


SIZES = [
    # sizes of the image, resized, padded, and of the network's masks
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


def test_a_query_may_be_several_instances_and_few_queries_are_no_error():
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
def test_images_are_fitted_into_the_official_scale(size, resized, padded):
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


def test_detections_do_not_depend_on_the_rest_of_the_batch(network):
    images = [noise(40, 24, 0), noise(32, 32, 1), noise(40, 24, 2)]
    together = detector_of(network, batch_size=2).detect(images)
    for image, found in zip(images, together, strict=True):
        (alone,) = detector_of(network).detect([image])
        assert [d.label for d in found] == [d.label for d in alone]
        np.testing.assert_allclose([d.score for d in found], [d.score for d in alone], atol=1e-5)
        assert [d.box for d in found] == [d.box for d in alone]
    assert [d.score for d in together[0]] != [d.score for d in together[2]]


def test_unlikely_detections_are_left_out(network):
    (unfiltered,) = detector_of(network).detect([noise(48, 32)])
    middle = sorted(d.score for d in unfiltered)[len(unfiltered) // 2]
    (kept,) = Mask2FormerDetector(network, scale=(96, 64), min_score=middle).detect([noise(48, 32)])
    assert kept == [d for d in unfiltered if d.score > middle]


def test_a_model_of_other_classes_needs_their_names(network):
    with pytest.raises(ValueError, match=r"the model's 80 classes, got 2 names: pass names="):
        detector_of(network, names=["cat", "dog"]).detect([noise(48, 32)])
    two = mask2former(num_labels=2)
    (found,) = detector_of(two, names=["cat", "dog"]).detect([noise(48, 32)])
    assert {d.label for d in found} == {"cat", "dog"}


def test_mask2former_without_scipy_says_what_to_install(monkeypatch):
    monkeypatch.setattr("transformers.utils.is_scipy_available", lambda: False)
    with pytest.raises(ImportError, match="pip install scipy"):
        Mask2FormerDetector().detect([noise(48, 32)])
