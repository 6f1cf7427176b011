"""The batch holds what inference would see, with documents isolated and captions dropped as the sampler drops them."""

import copy

import pytest
import torch

from janus_hf.data import TASKS, JanusProCollator, PackedDataset, make_plan, prepare_rows


@pytest.fixture(scope="module")
def sources(drawings, conversations, model, processor):
    """One prepared source per task: name -> rows."""
    return {
        "draw": prepare_rows(drawings, model, processor),
        "talk": prepare_rows(conversations, model, processor),
        "read": prepare_rows([{"text": f"Some text, number {n}."} for n in range(4)], model, processor),
    }


@pytest.fixture(scope="module")
def packed(sources):
    """All rows of the sources, each once, in packs of 512 tokens."""
    return PackedDataset(sources, max_length=512)


@pytest.fixture
def collate(processor):
    """A collator that drops no caption."""
    return JanusProCollator(processor, caption_drop=0.0)


def loss_sum(model, batch):
    """Return the sum of the losses of all trained labels, and their number."""
    count = int((batch["labels"] != -100).sum())
    with torch.no_grad():
        output = model(**batch, num_items_in_batch=1)
    assert int(output.num_text_labels + output.num_image_labels) == count
    return output.loss.item(), count


def test_packed_losses_are_the_sum_of_separate_ones(packed, collate, model):
    packs = [packed[index] for index in range(len(packed))]
    assert len(packs) >= 3
    total, count = loss_sum(model, collate(packs))
    separate = [loss_sum(model, collate([document])) for pack in packs for document in pack["documents"]]
    assert count == sum(n for _, n in separate)
    assert total == pytest.approx(sum(loss for loss, _ in separate), rel=1e-5)
    assert total / count == pytest.approx(sum(loss for loss, _ in separate) / count, abs=1e-5)


def test_a_leak_between_documents_would_be_seen(packed, collate, model):
    """As one document the batch has another loss; a mask without padding changes nothing."""
    batch = collate([packed[0]])
    isolated, _ = loss_sum(model, batch)
    leaking, _ = loss_sum(model, {name: value for name, value in batch.items() if name != "position_ids"})
    assert abs(leaking - isolated) > 1e-3
    masked, _ = loss_sum(model, batch | {"attention_mask": torch.ones_like(batch["input_ids"])})
    assert masked == isolated


def test_padding_and_gradients_do_not_depend_on_packing(packed, processor, model):
    model = copy.deepcopy(model)

    def gradients(batches):
        model.zero_grad()
        for batch in batches:
            model(**batch, num_items_in_batch=100).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    packs = [packed[index] for index in range(3)]
    padded = JanusProCollator(processor, caption_drop=0.0, pad_to=512)
    plain = JanusProCollator(processor, caption_drop=0.0)
    together = gradients([padded(packs)])
    apart = gradients([plain([document]) for pack in packs for document in pack["documents"]])
    assert together.keys() == apart.keys()
    for name, gradient in together.items():
        assert torch.allclose(gradient, apart[name], atol=1e-5), name


def test_the_batch_is_that_of_the_inference_processor(conversations, sources, collate, processor):
    turns = [
        turn | {"content": turn["content"].replace("<image>", processor.image_token)}
        for turn in conversations[1]["messages"]
    ]
    expected = processor(processor.apply_chat_template(turns), conversations[1]["images"])
    batch = collate([sources["talk"][1]])
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])
    assert batch["position_ids"].tolist() == [list(range(expected["input_ids"].shape[1]))]
    assert "attention_mask" not in batch
    assert {value.dtype for name, value in batch.items() if name != "pixel_values"} == {torch.int64}


def test_images_are_in_reading_order(sources, collate, processor):
    talk = sources["talk"]
    batch = collate([{"documents": [talk[2], talk[3], talk[1]]}, {"documents": [talk[0]]}])
    files = [*talk[2]["images"], *talk[1]["images"], *talk[0]["images"]]
    assert torch.equal(batch["pixel_values"], processor.image_processor(files)["pixel_values"])
    starts = [0, talk[2]["length"], talk[2]["length"] + talk[3]["length"]]
    assert (batch["position_ids"][0] == 0).nonzero().flatten().tolist()[:3] == starts
    assert batch["position_ids"].shape == batch["labels"].shape == (2, sum(talk[n]["length"] for n in (1, 2, 3)))
    padding = slice(talk[0]["length"], None)
    assert set(batch["labels"][1, padding].tolist()) == {-100}
    assert set(batch["input_ids"][1, padding].tolist()) == {processor.pad_token_id}
    assert batch["position_ids"][1, padding].tolist() == list(range(batch["labels"].shape[1] - talk[0]["length"]))


def test_dropped_captions_are_the_samplers_unconditional_row(sources, processor, model):
    """Used as the negative prompt, a row without its caption gives the logits of default guidance, bit for bit."""
    row = sources["draw"][2]
    end = row["prompt_end"] + 1
    kept, dropped = (
        JanusProCollator(processor, caption_drop=p, always_picture=False)([row])["input_ids"][0] for p in (0.0, 1.0)
    )
    prompt = processor.prepare_image_generation("a board with 2 dots")["input_ids"]
    assert torch.equal(kept[None, :end], prompt)
    assert torch.equal(dropped[end:], kept[end:])

    def logits(**negative):
        return model.generate_images(
            kept[None, :end], do_sample=False, output_logits=True, return_dict_in_generate=True, **negative
        ).logits

    expected = logits()
    assert torch.equal(logits(negative_input_ids=dropped[None, :end]), expected)
    almost = dropped[None, :end].clone()
    almost[0, 1] = prompt[0, 1]
    assert not torch.equal(logits(negative_input_ids=almost), expected)
    for other in (sources["talk"][0], sources["read"][0]):
        ids = JanusProCollator(processor, caption_drop=1.0)([other])["input_ids"][0]
        assert ids[: other["length"]].tolist() == other["input_ids"].tolist()


def test_one_caption_in_ten_is_dropped_whatever_the_order(processor):
    collate = JanusProCollator(processor, seed=3)
    rows = [{"source": "draw", "row": n, "visit": visit} for visit in range(2) for n in range(10_000)]
    drops = [collate.drops_caption(row) for row in rows]
    assert sum(drops) / len(drops) == pytest.approx(0.1, abs=0.01)
    assert drops == [JanusProCollator(processor, seed=3).drops_caption(row) for row in rows]
    first, second = drops[:10_000], drops[10_000:]
    both = sum(a and b for a, b in zip(first, second, strict=True)) / 10_000
    assert both == pytest.approx(0.01, abs=0.005)  # visits are independent
    assert [JanusProCollator(processor, seed=4).drops_caption(row) for row in rows] != drops


def test_collating_changes_no_document(packed, processor):
    pack = packed[0]
    before = copy.deepcopy(pack)
    JanusProCollator(processor, caption_drop=1.0)([pack])
    assert str(pack) == str(before)


def test_every_batch_has_an_image(sources, processor, model):
    slots = processor.num_image_tokens + 2
    row = sources["read"][0]
    collate = JanusProCollator(processor, max_length=512)
    beside = collate([row, sources["read"][1]])
    assert beside["input_ids"].shape == (2, row["length"] + slots)
    assert beside["pixel_values"].shape == (1, 3, 64, 64)
    below = JanusProCollator(processor, max_length=row["length"])([row])
    assert below["input_ids"].shape == (2, slots)
    without = JanusProCollator(processor, always_picture=False)([row])
    assert "pixel_values" not in without
    losses = [loss_sum(model, batch)[0] for batch in (collate([row]), below, without)]
    assert losses == pytest.approx(losses[:1] * 3, rel=1e-6)
    trained = copy.deepcopy(model)
    trained(**below).loss.backward()
    assert all(p.grad is not None for name, p in trained.named_parameters() if "vqmodel" not in name)


def test_variable_length_arguments_cover_the_batch(sources, processor):
    read = sources["read"]
    collate = JanusProCollator(processor, varlen=True, always_picture=False, pad_to=64)
    batch = collate([{"documents": [read[0], read[1]]}, {"documents": [read[2]]}])
    first, second, third = (read[n]["length"] for n in range(3))
    assert batch["cu_seq_lens_q"].tolist() == [0, first, first + second, 64, 64 + third, 128]
    assert batch["cu_seq_lens_q"].dtype == torch.int32
    assert batch["max_length_q"] == batch["max_length_k"] == max(first, second, 64 - third, 64 - first - second)
    starts = (batch["position_ids"].flatten() == 0).nonzero().flatten()
    assert starts.tolist() == batch["cu_seq_lens_k"][:-1].tolist()


def test_task_ids_tell_the_task_of_every_label(packed, processor):
    batch = JanusProCollator(processor, return_task_ids=True)([packed[index] for index in range(3)])
    documents = [document for index in range(3) for document in packed[index]["documents"]]
    assert torch.equal(batch["task_ids"] == -1, batch["labels"] == -100)
    for number, task in enumerate(TASKS):
        expected = sum(int((d["labels"] != -100).sum()) for d in documents if d["task"] == task)
        assert int((batch["task_ids"] == number).sum()) == expected


def test_impossible_requests_are_refused(sources, processor):
    with pytest.raises(ValueError, match="a probability"):
        JanusProCollator(processor, caption_drop=10)
    with pytest.raises(ValueError, match="at least one pack"):
        JanusProCollator(processor)([])
    with pytest.raises(ValueError, match=r"which row it is .*, got one without \['row', 'source', 'visit'\]"):
        JanusProCollator(processor)([sources["draw"][0]])
    with pytest.raises(ValueError, match="at most pad_to=8 ids"):
        JanusProCollator(processor, pad_to=8, always_picture=False)([sources["read"][0]])


def test_plans_for_other_sources_are_refused(sources):
    plan = make_plan({name: source.lengths for name, source in sources.items()}, max_length=512)
    PackedDataset(sources, plan)
    with pytest.raises(ValueError, match=r"must be those of the plan, .*, got \['draw'\]"):
        PackedDataset({"draw": sources["draw"]}, plan)
    with pytest.raises(ValueError, match="other rows of the source 'draw'"):
        PackedDataset(sources | {"draw": sources["read"]}, plan)
    with pytest.raises(ValueError, match="got both or neither"):
        PackedDataset(sources)
