"""Image codes of data are computed in float32, whatever the dtype of the model and whatever surrounds the call."""

import copy
import json

import numpy as np
import pytest
import torch

from janus_hf.data import load_prepared, prepare, prepare_rows
from janus_hf.data.integrity.precision import float32_codec


@pytest.fixture(scope="module")
def expected(drawings, model, processor):
    """The ids of the drawings, from the model in float32."""
    return ids_of(prepare_rows(drawings, model, processor))


def ids_of(rows):
    """Return the ids of all rows, one after another."""
    return np.concatenate([rows[index]["input_ids"] for index in range(len(rows))]).tolist()


@pytest.fixture
def rounded(model):
    """A float32 model whose codec has weights that bfloat16 holds exactly, so that its dtype loses nothing."""
    return copy.deepcopy(model).to(torch.bfloat16).float()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_codes_do_not_depend_on_the_dtype(dtype, autocast, rounded, drawings, processor):
    straight = ids_of(prepare_rows(drawings, rounded, processor))
    other = copy.deepcopy(rounded).to(dtype)
    before = {name: (tensor, tensor.data_ptr()) for name, tensor in other.state_dict(keep_vars=True).items()}
    with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        assert ids_of(prepare_rows(drawings, other, processor)) == straight
    # The weights are the same tensors, in their own memory and dtype.
    after = other.state_dict(keep_vars=True)
    assert all(after[name] is tensor and tensor.data_ptr() == place for name, (tensor, place) in before.items())
    assert {tensor.dtype for tensor in other.model.vqmodel.parameters()} == {dtype}


def test_the_dtype_would_matter(rounded, drawings, processor):
    """Otherwise the test above could not fail."""
    pixels = processor.image_processor([row["image"] for row in drawings], mode="generation")["pixel_values"]
    low = copy.deepcopy(rounded).to(torch.bfloat16)
    assert not torch.equal(low.encode_image_ids(pixels), rounded.encode_image_ids(pixels))


def test_autocast_does_not_matter_for_a_model_in_float32(model, drawings, processor, expected):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ids_of(prepare_rows(drawings, model, processor)) == expected


def test_weights_and_settings_come_back_after_a_failure(model):
    low = copy.deepcopy(model.model.vqmodel).to(torch.bfloat16)
    matmul = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(RuntimeError, match="out of memory in torch.float32"), float32_codec(low):
            raise RuntimeError(f"out of memory in {low.dtype}")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(matmul)
    assert low.dtype == torch.bfloat16


def test_offloaded_weights_of_another_dtype_are_refused(model):
    codec = copy.deepcopy(model.model.vqmodel).to(torch.bfloat16).to("meta")
    message = r"must be in memory .* got offloaded weights in torch.bfloat16"
    with pytest.raises(ValueError, match=message), float32_codec(codec):
        pass


@pytest.mark.parametrize("found", ["bfloat16", None])
@pytest.mark.parametrize("kind", ["drawings", "conversations"])
def test_data_of_another_precision_are_read_with_a_warning(found, kind, model, processor, tmp_path, caplog, request):
    """Data of an early version do not state it. Rows without image codes have no precision."""
    source = request.getfixturevalue(kind)
    prepare(source, tmp_path, model, processor)
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta.pop("code_precision") == "float32"
    load_prepared(tmp_path)
    assert "precision" not in caplog.text
    (tmp_path / "meta.json").write_text(json.dumps(meta | ({"code_precision": found} if found else {})))
    rows = load_prepared(tmp_path, model=model, processor=processor)
    assert len(rows) == len(source)
    warned = "should have been computed in float32" in caplog.text
    assert warned == (kind == "drawings")
    # A run that prepared its data with an early version goes on with them.
    assert prepare(source, tmp_path, model, processor).meta["code_precision"] == found


def test_a_folder_never_holds_codes_of_two_precisions(drawings, model, processor, tmp_path):
    prepare(drawings, tmp_path, model, processor, num_shards=3, rank=1, world_size=2)
    meta = json.loads((tmp_path / "meta.json").read_text())
    del meta["code_precision"]
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="must hold image codes that were computed in float32"):
        prepare(drawings, tmp_path, model, processor, num_shards=3)
