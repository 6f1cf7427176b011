"""The training loss: each label is scored by its own head, in chunks, and every trainable part gets a gradient."""

import copy

import pytest
import torch
import torch.nn.functional as F

from janus_hf.modeling import loss as loss_module
from janus_hf.modeling.loss import chunked_cross_entropy


V, K, IMAGE, PAD, BOS = 96, 40, 90, 91, 92  # of the tiny config
PER_IMAGE = 9


def images(count, seed=0):
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def model(make_model):
    return make_model().train()


@pytest.fixture
def batch():
    """Two rows: an image with an answer and generated codes, and an unconditional prompt, made of pads, with codes."""
    ids = torch.tensor(
        [
            [BOS, *[IMAGE] * PER_IMAGE, 5, 6, 7, 8, V + 1, V + 39, V + 7, 9],
            [BOS, *[PAD] * 11, 94, V + 3, V + 0, V + 12, V + 5, V + 6],
        ]
    )
    labels = ids.clone()
    labels[0, :11] = -100
    labels[1, :13] = -100
    return {"input_ids": ids, "labels": labels, "pixel_values": images(1)}


def only(batch, kind):
    """Return the batch with the labels of one kind, "text" or "image", and -100 for the others."""
    labels = batch["labels"]
    keep = (labels >= V) if kind == "image" else (labels >= 0) & (labels < V)
    return {**batch, "labels": torch.where(keep, labels, -100)}


def gradients(model, batch, **kwargs):
    model.zero_grad()
    outputs = model(**batch, **kwargs)
    outputs.loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def reached(grads):
    """Return the names of the parts, such as "vision_model" or "lm_head", that got a non-zero gradient."""
    names = (name.removeprefix("model.") for name, grad in grads.items() if grad.abs().sum() > 0)
    return {name.split(".")[0] for name in names}


# --- the value


def test_equals_plain_cross_entropy(model, batch):
    outputs = model(**batch)
    with torch.no_grad():
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        hidden = model.model(**inputs).last_hidden_state[:, :-1]
        labels = batch["labels"][:, 1:]
        is_text, is_image = (labels >= 0) & (labels < V), labels >= V
        text = F.cross_entropy(model.lm_head(hidden[is_text]), labels[is_text], reduction="none")
        image = F.cross_entropy(model.model.generation_head(hidden[is_image]), labels[is_image] - V, reduction="none")
    assert (outputs.num_text_labels, outputs.num_image_labels) == (4, 8)
    tolerance = {"atol": 1e-5, "rtol": 0}  # measured 0; shifting the labels by one moves the loss by 0.1 or more
    torch.testing.assert_close(outputs.text_loss, text.mean(), **tolerance)
    torch.testing.assert_close(outputs.image_loss, image.mean(), **tolerance)
    torch.testing.assert_close(outputs.loss, torch.cat([text, image]).mean(), **tolerance)
    assert outputs.logits is None
    assert outputs.loss.requires_grad
    assert not outputs.text_loss.requires_grad
    assert not outputs.image_loss.requires_grad


def test_labels_of_the_first_position_are_not_used(model, batch):
    expected = model(**batch).loss
    batch["labels"] = batch["labels"].clone()
    batch["labels"][:, 0] = 3
    assert torch.equal(model(**batch).loss, expected)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_num_items_in_batch_divides_the_sum(model, batch, as_tensor):
    """Accumulating two micro-batches gives the loss and the gradient of the whole batch."""
    del batch["pixel_values"]
    batch["input_ids"] = torch.where(batch["input_ids"] == IMAGE, 3, batch["input_ids"])
    whole = gradients(model, batch)
    items = torch.tensor(12) if as_tensor else 12
    model.zero_grad()
    total = 0.0
    for row in range(2):
        micro = {name: value[row : row + 1] for name, value in batch.items()}
        outputs = model(**micro, num_items_in_batch=items)
        outputs.loss.backward()
        total += outputs.loss.item()
    assert total == pytest.approx(model(**batch).loss.item(), abs=1e-5)
    for name, parameter in model.named_parameters():
        if name in whole:
            # Measured 9.5e-7 of gradients up to 0.2; the mean of the two means is wrong by tens of percent.
            torch.testing.assert_close(parameter.grad, whole[name], atol=2e-5, rtol=0)
    assert model.accepts_loss_kwargs


def test_packed_equals_separate(model):
    documents = [[BOS, 5, 6, 7], [BOS, 9, 94, V + 1, V + 2], [BOS, 30, 31]]
    packed = torch.tensor([[token for document in documents for token in document]])
    labels = packed.clone()
    labels[0, [0, 4, 9]] = -100  # the first token of every document
    positions = torch.cat([torch.arange(len(document)) for document in documents])[None]
    together = gradients(model, {"input_ids": packed, "labels": labels, "position_ids": positions})
    model.zero_grad()
    for document in documents:
        ids = torch.tensor([document])
        model(input_ids=ids, labels=ids, num_items_in_batch=9).loss.backward()
    for name, parameter in model.named_parameters():
        if name in together:
            # Measured 8.3e-7 of gradients up to 0.3; a leak between the documents changes them in the first digit.
            torch.testing.assert_close(together[name], parameter.grad, atol=2e-5, rtol=0)


def test_without_any_label_the_loss_is_zero(model, batch):
    batch["labels"] = torch.full_like(batch["labels"], -100)
    outputs = model(**batch)
    outputs.loss.backward()
    assert outputs.loss == outputs.text_loss == outputs.image_loss == 0
    # Zero, not None: a rank without labels takes part in the others' reductions.
    for name, parameter in model.named_parameters():
        assert "vqmodel" in name or (parameter.grad is not None and not parameter.grad.any()), name


# --- which head, which gradient


def test_text_labels_train_the_text_head_only(model, batch):
    grads = gradients(model, only(batch, "text"))
    everywhere = {"vision_model", "aligner", "language_model", "generation_embeddings", "generation_aligner"}
    assert reached(grads) == everywhere | {"lm_head"}  # the last text label follows three codes
    # Zero, not None: optimisers and distributed reductions must see the same parameters on every rank.
    head = {name: grad for name, grad in grads.items() if "generation_head" in name}
    assert len(head) == 4
    assert not any(grad.any() for grad in head.values())


def test_image_labels_train_the_image_head_only(model, batch):
    grads = gradients(model, only(batch, "image"))
    assert reached(grads) == {
        "vision_model",
        "aligner",
        "language_model",
        "generation_embeddings",
        "generation_aligner",
        "generation_head",
    }
    assert "lm_head.weight" in grads
    assert not grads["lm_head.weight"].any()


def test_text_without_codes_or_images_leaves_zero_gradients_on_the_generation_path(model):
    ids = torch.tensor([[BOS, 3, 4, 5]])
    grads = gradients(model, {"input_ids": ids, "labels": ids})
    assert reached(grads) == {"language_model", "lm_head"}
    for name, parameter in model.named_parameters():
        if "generation_" in name:
            assert parameter.grad is not None, name
            assert not parameter.grad.any(), name


def test_the_codec_is_not_trained_by_the_language_models_loss(model, batch):
    grads = gradients(model, batch)
    assert not any("vqmodel" in name for name in grads)
    assert {name for name, _ in model.named_parameters() if "vqmodel" not in name} == set(grads)


def test_code_embeddings_get_gradients_of_their_own_rows(model, batch):
    grads = gradients(model, batch)
    rows = grads["model.generation_embeddings.weight"].abs().sum(-1).nonzero().flatten().tolist()
    assert set(rows) == {1, 39, 7, 3, 0, 12, 5}  # not the last code of the second row, from which nothing is predicted


def test_pads_are_trained(model, batch):
    """The unconditional prompt is made of pads. If they were a padding_idx, their embedding would never be trained."""
    assert model.get_input_embeddings().padding_idx is None
    grads = gradients(model, only(batch, "image"))
    assert grads["model.language_model.embed_tokens.weight"][PAD].any()


def test_pads_are_trained_whatever_the_text_config_says(make_model, tiny_config, batch):
    model = make_model(tiny_config(text={"pad_token_id": PAD})).train()
    grads = gradients(model, only(batch, "image"))
    assert grads["model.language_model.embed_tokens.weight"][PAD].any()


# --- chunks


@pytest.mark.parametrize("chunk_size", [1, 3, 8, 100])
def test_chunked_equals_whole(chunk_size):
    torch.manual_seed(0)
    head, hidden = torch.nn.Linear(16, 30), torch.randn(8, 16)
    labels = torch.randint(30, (8,))

    def run(function):
        own, leaf = copy.deepcopy(head), hidden.clone().requires_grad_()
        value = function(own, leaf)
        value.backward()
        return value.detach(), leaf.grad, own.weight.grad, own.bias.grad

    chunked = run(lambda own, leaf: chunked_cross_entropy(own, leaf, labels, chunk_size=chunk_size))
    whole = run(lambda own, leaf: F.cross_entropy(own(leaf), labels, reduction="sum"))
    for one, other in zip(chunked, whole, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)  # measured 1.9e-6; a lost chunk is off by 12 %


@pytest.mark.parametrize("count", [0, 8])
def test_more_calls_of_the_head_change_nothing(count, monkeypatch):
    """Under ZeRO-3 every rank calls its heads as often as the one with most labels, also in the backward pass."""
    torch.manual_seed(0)
    head, hidden = torch.nn.Linear(16, 30), torch.randn(count, 16, requires_grad=True)
    labels = torch.randint(30, (count,))

    def run():
        head.zero_grad()
        value = chunked_cross_entropy(head, hidden, labels, chunk_size=3)
        value.backward()
        return value.detach(), hidden.grad.clone(), head.weight.grad.clone(), head.bias.grad.clone()

    expected, calls = run(), []
    hidden.grad = None
    monkeypatch.setattr(loss_module, "num_head_calls", lambda *args: 5)
    head.register_forward_hook(lambda *args: calls.append(0))
    assert all(torch.equal(one, other) for one, other in zip(run(), expected, strict=True))
    assert len(calls) == 2 * 5


def test_logits_are_never_held_whole(model, batch, monkeypatch):
    monkeypatch.setattr(loss_module.chunked_cross_entropy, "__kwdefaults__", {"chunk_size": 3})
    whole, rows = model(**batch).loss.item(), {"text": [], "image": []}
    model.lm_head.register_forward_hook(lambda module, args, out: rows["text"].append(len(out)))
    model.model.generation_head.register_forward_hook(lambda module, args, out: rows["image"].append(len(out)))
    model(**batch).loss.backward()
    assert sorted(rows["text"]) == [1, 1, 3, 3]  # forward, and again in backward
    assert sorted(rows["image"]) == [2, 2, 3, 3, 3, 3]
    with torch.no_grad():
        rows["text"].clear()
        assert model(**batch).loss.item() == pytest.approx(whole, abs=1e-5)
    assert rows["text"] == [3, 1]


def test_saved_activations_do_not_hold_the_logits():
    """No tensor that autograd keeps between forward and backward is as large as one chunk's logits."""
    head, hidden = torch.nn.Linear(8, 5000), torch.randn(64, 8, requires_grad=True)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        chunked_cross_entropy(head, hidden, torch.zeros(64, dtype=torch.long), chunk_size=16)
    assert max(sizes, default=0) < 16 * 5000


def test_losses_are_float32_in_bfloat16(make_model, batch):
    model = make_model().to(torch.bfloat16).train()
    outputs = model(**batch)
    outputs.loss.backward()
    assert outputs.loss.dtype == outputs.text_loss.dtype == outputs.image_loss.dtype == torch.float32
    full = make_model()(**batch)
    assert outputs.loss.item() == pytest.approx(full.loss.item(), rel=0.02)


# --- gradient checkpointing


@pytest.mark.parametrize("settings", [None, {"use_reentrant": False}])
def test_gradient_checkpointing_changes_no_gradient(make_model, batch, settings):
    plain = gradients(make_model().train(), batch)
    model = make_model().train()
    model.activation_checkpointing_enable(settings)
    calls = []
    model.model.language_model.layers[0].mlp.register_forward_pre_hook(lambda *args: calls.append(0))
    model.model.vision_model.encoder.layers[0].mlp.register_forward_pre_hook(lambda *args: calls.append(0))
    found = gradients(model, batch)
    assert len(calls) == 4  # both ran twice
    assert found.keys() == plain.keys()
    for name, grad in found.items():
        torch.testing.assert_close(grad, plain[name], atol=1e-6, rtol=1e-5)  # measured 0


def test_a_few_steps_learn_both_kinds(model, batch):
    optimiser = torch.optim.Adam((p for n, p in model.named_parameters() if "vqmodel" not in n), lr=3e-3)
    before = model(**batch)
    for _ in range(12):
        optimiser.zero_grad()
        model(**batch).loss.backward()
        optimiser.step()
    after = model(**batch)
    assert after.text_loss < before.text_loss / 2
    assert after.image_loss < before.image_loss / 2


def test_codes_outside_the_codebook_are_an_error(model, batch):
    batch["labels"][0, -1] = V + K
    with pytest.raises(IndexError):
        model(**batch)
