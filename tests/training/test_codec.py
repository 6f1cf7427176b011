"""`CodecTrainer`: learning codes with and without a teacher, restarts of unused codes, and the terms of the loss."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from janus_hf.configuration import JanusProVQConfig
from janus_hf.modeling import JanusProVQModel
from janus_hf.shapes import make_drawing, render
from janus_hf.training.trainers.codec import (
    CodecTrainer,
    CodecTrainingArguments,
    PatchTeacher,
    initialise_codebook,
    kmeans,
)


def make_codec(seed=0, num_embeddings=256):
    """Return a small random codec for images of 64x64 pixels."""
    torch.manual_seed(seed)
    return JanusProVQModel(
        JanusProVQConfig(
            image_size=64,
            base_channels=32,
            channel_multiplier=[1, 1, 1, 1],
            num_res_blocks=1,
            latent_channels=32,
            num_embeddings=num_embeddings,
        )
    )


@pytest.fixture(scope="module")
def images():
    """Return 24 images `(24, 3, 64, 64)` of the shapes world, in [-1, 1]."""
    rng = np.random.default_rng(0)
    scenes = [render(make_drawing("counting", rng).scene) for _ in range(24)]
    return torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2).float() / 127.5 - 1


def train(codec, images, tmp_path, teacher=None, **kwargs):
    hooks = {name: kwargs.pop(name) for name in ("perceptual", "adversarial") if name in kwargs}
    settings = {"max_steps": 12, "per_device_train_batch_size": 8, "learning_rate": 2e-3, "logging_steps": 4} | kwargs
    arguments = CodecTrainingArguments(
        output_dir=tmp_path, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, **settings
    )
    rows = [{"pixel_values": image} for image in images]
    trainer = CodecTrainer(codec, teacher=teacher, args=arguments, train_dataset=rows, **hooks)
    trainer.train()
    return trainer


def logged(trainer, name):
    return [float(entry[name]) for entry in trainer.state.log_history if name in entry]


def test_kmeans_finds_separate_clusters():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = (centres[:, None] + 0.1 * torch.randn(3, 20, 2, generator=generator)).flatten(0, 1)
    found = kmeans(points, 3)
    assert torch.cdist(centres, found).min(dim=1).values.max() < 0.1
    with pytest.raises(ValueError, match="got 2 and 3"):
        kmeans(points[:2], 3)


def test_teacher_names_patches_and_places_codes_apart(images):
    teacher = PatchTeacher.fit(images, 256, 8)
    ids = teacher(images)
    assert ids.shape == (24, 64)
    patches = F.unfold(images, 8, stride=8).transpose(1, 2).flatten(0, 1)
    assert torch.equal(teacher.centres[ids.flatten()], patches)  # as many centres as distinct patches: lossless
    codebook = teacher.codebook(256, 8)
    torch.testing.assert_close(codebook.norm(dim=-1), torch.ones(256))
    cosines = codebook @ codebook.T - 2 * torch.eye(256)
    assert cosines.max() < 0.9  # 0.9 is an angle of 26 degrees; random vectors come as near as 0.98


@pytest.mark.slow
def test_taught_codec_learns_the_teachers_codes(images, tmp_path):
    teacher = PatchTeacher.fit(images, 256, 8)
    codec = make_codec()
    before = (codec.encode_image_ids(images) == teacher(images)).float().mean()
    trainer = train(codec, images, tmp_path, teacher, max_steps=60)
    codec.eval()
    after = (codec.encode_image_ids(images) == teacher(images)).float().mean()
    assert before < 0.2
    assert after > 0.9
    assert logged(trainer, "l1_loss")[-1] < 0.5 * logged(trainer, "l1_loss")[0]
    torch.testing.assert_close(codec.quantize.embedding.weight, teacher.codebook(256, 8, seed=trainer.args.seed))


def test_untaught_codec_learns_to_draw(images, tmp_path):
    codec = make_codec(num_embeddings=64)
    initialise_codebook(codec, images.split(8))
    assert codec.encode_image_ids(images).unique().numel() == 64  # every code is someone's nearest
    trainer = train(codec, images, tmp_path, max_steps=24)
    assert logged(trainer, "l1_loss")[-1] < 0.8 * logged(trainer, "l1_loss")[0]
    assert "codebook_loss" in trainer.state.log_history[0]


def test_unused_codes_restart_early_only(images, tmp_path):
    def rows_moved(**settings):
        codec = make_codec(num_embeddings=64)
        with torch.no_grad():  # one code near everything, the others at its antipode: used by nothing
            latents = F.normalize(codec.encode_latents(images).movedim(1, -1).flatten(0, 2), dim=-1)
            centre = F.normalize(latents.mean(dim=0), dim=0)
            codec.quantize.embedding.weight[:] = -centre
            codec.quantize.embedding.weight[0] = centre
        start = codec.quantize.embedding.weight.detach().clone()
        train(codec, images, tmp_path, max_steps=4, learning_rate=0.0, **settings)
        return (codec.quantize.embedding.weight != start).any(dim=-1).sum().item()

    assert rows_moved(restart_every=0) == 0
    assert rows_moved(restart_every=2, restart_until=0.0) == 0
    assert rows_moved(restart_every=2, restart_until=1.0) >= 60  # 63, less the few that some latent does lie near


def unmoved(codec, start):
    return torch.equal(codec.quantize.embedding.weight, start)


def test_codes_restart_once_per_step_not_per_micro_batch(images, tmp_path):
    codec = make_codec(num_embeddings=64)
    initialise_codebook(codec, images.split(8))
    used = [codec.encode_image_ids(batch).unique().numel() for batch in (images, images[:2])]
    assert used[0] == 64 > used[1] + 10  # all images together use all codes, two of them do not
    start = codec.quantize.embedding.weight.detach().clone()
    settings = {"restart_every": 1, "restart_until": 1.0, "learning_rate": 0.0, "max_steps": 3}
    settings |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 12}
    train(codec, images, tmp_path, **settings)
    assert unmoved(codec, start)
    train(codec, images, tmp_path, **settings | {"gradient_accumulation_steps": 1})
    assert not unmoved(codec, start)


def test_evaluation_restarts_nothing(images, tmp_path):
    codec = make_codec(num_embeddings=64)
    start = codec.quantize.embedding.weight.detach().clone()
    arguments = CodecTrainingArguments(
        output_dir=tmp_path, report_to=[], use_cpu=True, disable_tqdm=True, restart_every=1, restart_until=1.0
    )
    trainer = CodecTrainer(codec, args=arguments)
    trainer.state.max_steps = 4  # as in the middle of training
    trainer.compute_loss(codec.eval(), {"pixel_values": images[:2]})
    assert unmoved(codec, start)
    assert trainer.usage.sum() == 0


def test_unused_codes_restart_where_the_drawing_is_worst(images, tmp_path, monkeypatch):
    codec = make_codec(num_embeddings=64)
    with torch.no_grad():
        codec.quantize.embedding.weight[1:] = -codec.quantize.embedding.weight[0]
    start = codec.quantize.embedding.weight.detach().clone()
    outputs = []
    restart = CodecTrainer.restart_unused_codes

    def remember(self, model, pixel_values, output):
        restart(self, model, pixel_values, output)
        error = (output.pixel_values - pixel_values).detach().square().mean(dim=1)
        moved = (codec.quantize.embedding.weight != start).any(dim=-1)
        outputs.append((output.latents.flatten(0, 1), error, codec.quantize.embedding.weight[moved].clone()))

    monkeypatch.setattr(CodecTrainer, "restart_unused_codes", remember)
    settings = {"max_steps": 1, "per_device_train_batch_size": 24, "restart_every": 1, "restart_until": 1.0}
    train(codec, images, tmp_path, **settings)
    ((latents, error, restarted),) = outputs
    assert len(restarted) == 62  # of 63 equal codes one is used
    worst = F.avg_pool2d(error, 8).flatten().topk(62).indices
    # Each exactly one of the worst places' latents, and no place twice.
    found = (restarted[:, None] == latents[worst]).all(dim=-1)
    assert found.sum(dim=0).eq(1).all()
    assert found.sum(dim=1).eq(1).all()


def test_hooks_take_part_in_the_loss(images, tmp_path):
    seen = []

    def hook(reconstruction, target):
        seen.append(reconstruction.shape == target.shape)
        return (reconstruction - target).square().sum() * 0 + 3.0

    settings = {"max_steps": 4, "logging_steps": 1, "perceptual": hook, "adversarial": hook, "adversarial_start": 2}
    trainer = train(make_codec(), images, tmp_path, **settings)
    assert all(seen)
    assert len(seen) == 4 + 2
    assert logged(trainer, "perceptual_loss") == [3.0] * 4
    assert logged(trainer, "adversarial_loss") == [1.5] * 2


def test_bad_settings(tmp_path):
    with pytest.raises(ValueError, match="`l1_weight` must not be negative"):
        CodecTrainingArguments(output_dir=tmp_path, l1_weight=-1.0)
    with pytest.raises(ValueError, match="`restart_until` in"):
        CodecTrainingArguments(output_dir=tmp_path, restart_until=2.0)
