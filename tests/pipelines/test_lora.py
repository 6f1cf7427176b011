"""LoRA adapters on the pipeline: made with PEFT, on this package's model and on transformers' own Janus."""

import copy
import json
import logging
import shutil

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import JanusForConditionalGeneration

from janus_hf import CheckpointError, JanusProPipeline
from tiny import TINY_MODEL


ATTENTION = r"model\.language_model\.layers\.\d+\.self_attn\.(q|k|v|o)_proj"
MLP = r"model\.language_model\.layers\.\d+\.mlp\.(up|down)_proj"
WHOLE = ["generation_head", "generation_aligner"]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base():
    """Shared: do not change it."""
    pipe = JanusProPipeline.from_pretrained(TINY_MODEL, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(base):
    own = JanusProPipeline(copy.deepcopy(base.model), base.processor)
    own.set_progress_bar_config(disable=True)
    return own


def draw(pipe):
    return pipe("a red fox", generator=torch.Generator().manual_seed(0), output_type="latent").images


@torch.no_grad()
def logits(pipe):
    """What the image head says after a prompt, and what the text head says: both feel every adapter used here."""
    inputs = pipe.processor.prepare_image_generation("a red fox")
    hidden = pipe.model.model(**inputs).last_hidden_state
    return torch.cat([pipe.model.model.generation_head(hidden), pipe.model.lm_head(hidden)], dim=-1)


def train(model, folder, seed, target=ATTENTION, **settings):
    """A PEFT adapter on `model` with random weights, large enough to change what is drawn; saved to `folder`."""
    torch.manual_seed(seed)
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=target, **settings))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    adapted.save_pretrained(folder)
    return adapted


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    """Folders of adapters: `a` and `b` on the attention, `m` on the MLP, `w` with whole modules besides."""
    root = tmp_path_factory.mktemp("adapters")
    for seed, (name, settings) in enumerate(
        {"a": {}, "b": {}, "m": {"target": MLP}, "w": {"modules_to_save": WHOLE}}.items()
    ):
        train(copy.deepcopy(base.model), root / name, seed, **settings)
    return root


def close(first, second):
    """Sums of the same products in another order: rounding of float32, measured 2e-7 on logits of about 1."""
    return torch.allclose(first, second, atol=1e-5, rtol=0)


def is_untouched(pipe, base):
    mine, theirs = pipe.model.state_dict(), base.model.state_dict()
    same_names = list(mine) == list(theirs)
    return same_names and all(torch.equal(mine[k], theirs[k]) for k in theirs) and pipe.get_list_adapters() == []


# --- loading


@pytest.mark.parametrize("name", ["a", "m", "w"])
def test_adapter_draws_as_in_peft(pipe, base, adapters, name):
    peft_model = PeftModel.from_pretrained(copy.deepcopy(base.model), adapters / name)
    expected = JanusProPipeline(peft_model.base_model.model, base.processor)
    expected.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(adapters / name)
    assert torch.equal(draw(pipe), draw(expected))
    assert torch.equal(logits(pipe), logits(expected))
    assert not close(logits(pipe), logits(base))
    assert not torch.equal(draw(pipe), draw(base))


def test_adapter_changes_answers(pipe, base, adapters):
    question = [{"role": "user", "content": "what is a fox?"}]
    pipe.load_lora_weights(adapters / "a")
    assert pipe.chat(question, max_new_tokens=8) != base.chat(question, max_new_tokens=8)


def test_adapter_made_on_transformers_janus(pipe, base, tmp_path):
    base.model.save_pretrained(tmp_path / "model", layout="transformers")
    theirs = JanusForConditionalGeneration.from_pretrained(tmp_path / "model")
    adapted = train(theirs, tmp_path / "adapter", 7)
    pipe.load_lora_weights(tmp_path / "adapter")
    inputs = pipe.processor("a red fox")
    with torch.no_grad():
        expected = adapted(**inputs).logits
        found = pipe.model(**inputs).logits
        plain = base.model(**inputs).logits
    torch.testing.assert_close(
        found, expected, atol=1e-5, rtol=0
    )  # measured 0; the adapter moves them by more than 0.1
    assert (found - plain).abs().max() > 0.1


def test_names_are_given_or_counted(pipe, adapters):
    pipe.load_lora_weights(adapters / "a")
    pipe.load_lora_weights(adapters / "b", adapter_name="mine")
    pipe.load_lora_weights(adapters / "m")
    assert pipe.get_list_adapters() == ["default_0", "mine", "default_1"]
    assert pipe.get_active_adapters() == ["default_1"]
    pipe.delete_adapters("default_0")
    pipe.load_lora_weights(adapters / "a")
    assert sorted(pipe.get_list_adapters()) == ["default_0", "default_1", "mine"]
    with pytest.raises(ValueError, match="'mine' is loaded already: pick another adapter_name"):
        pipe.load_lora_weights(adapters / "a", adapter_name="mine")


@pytest.mark.parametrize("name", ["a", "model", "head", "weight", "lora"])
def test_names_that_are_part_of_the_models_own(pipe, adapters, name):
    """transformers takes every parameter with the adapter's name inside its own for one that the adapter lacks."""
    pipe.load_lora_weights(adapters / "w", adapter_name=name)
    assert pipe.get_active_adapters() == [name]


@pytest.mark.filterwarnings("error::UserWarning")
def test_loading_and_deleting_raise_no_false_alarm(pipe, adapters, caplog):
    """transformers would print the first adapter's weights as missing from the second, and newly initialised."""
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        for name in ("a", "b", "w"):
            pipe.load_lora_weights(adapters / name, name)
        pipe.delete_adapters(["w", "a"])
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.text == ""


def test_hub_arguments_are_passed_on(pipe, adapters, monkeypatch):
    calls = []
    load_adapter = pipe.model.load_adapter

    def spy(source, **kwargs):
        calls.append((source, kwargs["adapter_kwargs"]))
        return load_adapter(adapters / "a", **{**kwargs, "adapter_kwargs": {}})

    monkeypatch.setattr(pipe.model, "load_adapter", spy)
    pipe.load_lora_weights("me/fox-lora", revision="main", token="secret", subfolder="last")
    assert calls == [("me/fox-lora", {"revision": "main", "token": "secret", "subfolder": "last"})]
    (tmp := adapters / "outer").mkdir(exist_ok=True)
    shutil.copytree(adapters / "b", tmp / "inner", dirs_exist_ok=True)
    monkeypatch.undo()
    pipe.load_lora_weights(tmp, subfolder="inner")
    assert pipe.get_list_adapters() == ["default_0", "default_1"]


# --- what does not fit


def broken(adapters, folder, change):
    """A copy of adapter `a` whose weights (a dict) or config (`change["config"]`) are changed."""
    shutil.copytree(adapters / "a", folder)
    tensors = load_file(folder / WEIGHTS)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    change(tensors, config)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def wrong_shape(tensors, config):
    key = next(key for key in tensors if "layers.0.self_attn.k_proj.lora_A" in key)
    tensors[key] = tensors[key][:, :10].contiguous()


def other_rank(tensors, config):
    config["r"] = 2


def incomplete(tensors, config):
    del tensors[next(key for key in tensors if "layers.0.self_attn.k_proj.lora_A" in key)]


def other_depth(tensors, config):
    key = next(key for key in tensors if "layers.0.self_attn.k_proj.lora_A" in key)
    tensors[key.replace("layers.0", "layers.7")] = tensors[key].clone()


def other_targets(tensors, config):
    config["target_modules"] = ["to_q"]


BROKEN = [
    (wrong_shape, CheckpointError, r"wrong shape \(1\):\n.*layers.0.self_attn.k_proj.lora_A.*\(4, 10\) in the files"),
    (other_rank, CheckpointError, r"wrong shape \(16\)"),
    (incomplete, CheckpointError, r"missing \(1\):\n.*layers.0.self_attn.k_proj.lora_A"),
    (other_depth, CheckpointError, r"unexpected \(1\):\n.*layers.7.self_attn.k_proj.lora_A"),
    (other_targets, ValueError, "to_q"),
]


@pytest.mark.parametrize(("change", "error", "message"), BROKEN)
def test_misfits_leave_the_model_as_it_was(pipe, base, adapters, tmp_path, change, error, message):
    folder = broken(adapters, tmp_path / "broken", change)
    with pytest.raises(error, match=message):
        pipe.load_lora_weights(folder)
    assert is_untouched(pipe, base)
    pipe.load_lora_weights(adapters / "a")  # still usable
    assert pipe.get_active_adapters() == ["default_0"]


@pytest.mark.parametrize(("change", "error", "message"), BROKEN)
def test_misfits_leave_other_adapters_as_they_were(pipe, adapters, tmp_path, change, error, message):
    pipe.load_lora_weights(adapters / "b", "good")
    pipe.load_lora_weights(adapters / "w", "better")
    pipe.set_adapters(["good", "better"], [0.5, 2.0])
    before = logits(pipe)
    with pytest.raises(error, match=message):
        pipe.load_lora_weights(broken(adapters, tmp_path / "broken", change), "bad")
    assert (pipe.get_list_adapters(), pipe.get_active_adapters()) == (["good", "better"], ["good", "better"])
    assert torch.equal(logits(pipe), before)


def test_file_that_is_missing_or_damaged(pipe, base, adapters, tmp_path):
    with pytest.raises(OSError, match="no-such-folder"):
        pipe.load_lora_weights("/no-such-folder")
    shutil.copytree(adapters / "a", tmp_path / "cut")
    content = (tmp_path / "cut" / WEIGHTS).read_bytes()
    (tmp_path / "cut" / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="does not fit this model, so it was not loaded"):
        pipe.load_lora_weights(tmp_path / "cut")
    (tmp_path / "cut" / WEIGHTS).unlink()
    with pytest.raises(OSError, match=WEIGHTS):
        pipe.load_lora_weights(tmp_path / "cut")
    assert is_untouched(pipe, base)


def test_other_kinds_of_adapters(pipe, base, tmp_path):
    config = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    get_peft_model(copy.deepcopy(base.model), config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="adapter of kind IA3; pipelines take LoRA adapters only"):
        pipe.load_lora_weights(tmp_path)
    assert is_untouched(pipe, base)


# --- choosing


def deltas(base, adapters, *scaled):
    """Base weights plus the sum of `scale * alpha / r * B A` of the named adapters, computed by hand."""
    state_dict = {key: tensor.clone() for key, tensor in base.model.state_dict().items()}
    for name, scale in scaled:
        tensors = load_file(adapters / name / WEIGHTS)
        for key, down in tensors.items():
            if key.endswith("lora_A.weight"):
                up = tensors[key.replace("lora_A", "lora_B")]
                target = key.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
                state_dict[target] += scale * (8 / 4) * up @ down
            elif "lora_B" not in key:
                state_dict[key.removeprefix("base_model.model.")] = tensors[key]
    return state_dict


def with_weights(base, state_dict):
    model = copy.deepcopy(base.model)
    model.load_state_dict(state_dict)
    other = JanusProPipeline(model, base.processor)
    other.set_progress_bar_config(disable=True)
    return other


@pytest.mark.parametrize(
    ("names", "weights", "expected"),
    [
        ("a", None, [("a", 1)]),
        ("a", 0.5, [("a", 0.5)]),
        (["a"], [0.0], [("a", 0)]),
        (["a", "b"], None, [("a", 1), ("b", 1)]),
        (["a", "b"], [0.25, -1.5], [("a", 0.25), ("b", -1.5)]),
        (["a", "b", "m"], 0.5, [("a", 0.5), ("b", 0.5), ("m", 0.5)]),
        (["w", "m"], [1.0, 2.0], [("w", 1), ("m", 2)]),
    ],
)
def test_adapters_together_are_the_weighted_sum_of_their_deltas(pipe, base, adapters, names, weights, expected):
    for name in ("a", "b", "m", "w"):
        pipe.load_lora_weights(adapters / name, name)
    pipe.set_adapters(names, weights)
    assert pipe.get_active_adapters() == ([names] if isinstance(names, str) else names)
    reference = with_weights(base, deltas(base, adapters, *expected))
    assert close(logits(pipe), logits(reference))
    if len(expected) > 1:
        assert not close(logits(pipe), logits(with_weights(base, deltas(base, adapters, expected[0]))))


def test_weights_are_set_anew_each_time(pipe, adapters):
    pipe.load_lora_weights(adapters / "a", "a")
    full = logits(pipe)
    pipe.set_adapters("a", 0.3)
    assert not close(logits(pipe), full)
    pipe.set_adapters("a")
    assert torch.equal(logits(pipe), full)


def test_bad_choices(pipe, adapters):
    pipe.load_lora_weights(adapters / "w", "w")
    pipe.load_lora_weights(adapters / "a", "a")
    shutil.copytree(adapters / "w", adapters / "v", dirs_exist_ok=True)
    pipe.load_lora_weights(adapters / "v", "v")
    before = logits(pipe)
    for names, weights, message in (
        ("x", None, r"No adapter named x is loaded; loaded are \['w', 'a', 'v'\]"),
        (["a", "w"], [1.0], "one weight per adapter, 2 in all, got 1"),
        ([], None, r"at least one adapter's name, got none.*disable_lora"),
        (["w", "a", "v"], None, r"Adapters \['w', 'v'\] each bring their own copy"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe.set_adapters(names, weights)
    with pytest.raises(ValueError, match="No adapter named x is loaded"):
        pipe.delete_adapters(["x"])
    assert torch.equal(logits(pipe), before)


@pytest.mark.parametrize("name", ["a", "w"])
def test_disable_and_enable(pipe, base, adapters, name):
    pipe.load_lora_weights(adapters / name)
    adapted = logits(pipe)
    pipe.disable_lora()
    assert torch.equal(logits(pipe), logits(base))
    assert pipe.get_list_adapters() == ["default_0"]
    pipe.enable_lora()
    assert torch.equal(logits(pipe), adapted)
    pipe.disable_lora()
    pipe.set_adapters("default_0")  # to choose is to use
    assert torch.equal(logits(pipe), adapted)


def test_delete(pipe, base, adapters):
    for name in ("a", "w", "m"):
        pipe.load_lora_weights(adapters / name, name)
    pipe.set_adapters(["a", "m"], [0.5, 2.0])
    pipe.delete_adapters("a")
    assert (pipe.get_list_adapters(), pipe.get_active_adapters()) == (["w", "m"], ["m"])
    assert close(logits(pipe), logits(with_weights(base, deltas(base, adapters, ("m", 2)))))
    pipe.delete_adapters("m")  # nothing is active any more: the first one left becomes so
    assert pipe.get_active_adapters() == ["w"]
    assert close(logits(pipe), logits(with_weights(base, deltas(base, adapters, ("w", 1)))))
    pipe.delete_adapters(["w"])
    assert is_untouched(pipe, base)


def test_delete_one_of_three_that_are_active_together(pipe, base, adapters):
    for name in ("a", "w", "m"):
        pipe.load_lora_weights(adapters / name, name)
    pipe.set_adapters(["a", "w", "m"])
    pipe.delete_adapters("w")
    assert pipe.get_active_adapters() == ["a", "m"]
    assert close(logits(pipe), logits(with_weights(base, deltas(base, adapters, ("a", 1), ("m", 1)))))


def test_deleting_while_disabled_stays_disabled(pipe, base, adapters):
    for name in ("a", "w"):
        pipe.load_lora_weights(adapters / name, name)
    pipe.disable_lora()
    pipe.delete_adapters("w")
    assert torch.equal(logits(pipe), logits(base))


@pytest.mark.parametrize("names", [["a"], ["w", "a"], ["a", "w", "m"]])
def test_unload_brings_the_base_model_back_exactly(pipe, base, adapters, names):
    for name in names:
        pipe.load_lora_weights(adapters / name, name)
    pipe.unload_lora_weights()
    assert is_untouched(pipe, base)
    assert torch.equal(draw(pipe), draw(base))
    pipe.unload_lora_weights()  # nothing to do
    pipe.load_lora_weights(adapters / "a")
    assert not close(logits(pipe), logits(base))


def test_adapters_of_overlapping_modules(pipe, base, tmp_path):
    """A layer and the whole module around it cannot be adapted side by side: the second is refused."""
    train(copy.deepcopy(base.model), tmp_path / "inner", 3, target=r".*generation_head\.proj_out")
    train(copy.deepcopy(base.model), tmp_path / "outer", 4, modules_to_save=["generation_head"])
    pipe.load_lora_weights(tmp_path / "inner")
    inner = logits(pipe)
    assert not close(inner, logits(base))
    with pytest.raises(CheckpointError, match=r"missing \(4\):\n.*generation_head.modules_to_save"):
        pipe.load_lora_weights(tmp_path / "outer")
    assert torch.equal(logits(pipe), inner)
    pipe.unload_lora_weights()
    assert is_untouched(pipe, base)


# --- fusing


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [("a", 0.5), ("m", 2)]),
        ({"safe_fusing": True}, [("a", 0.5), ("m", 2)]),
        ({"lora_scale": 0.5}, [("a", 0.25), ("m", 1)]),
        ({"adapter_names": ["b"]}, [("b", 1)]),
        ({"adapter_names": "b", "lora_scale": 3.0}, [("b", 3)]),
        ({"adapter_names": ["w", "m"]}, [("w", 1), ("m", 2)]),
    ],
)
def test_fused_weights_are_the_sum_and_stay(pipe, base, adapters, tmp_path, arguments, expected):
    for name in ("a", "b", "m", "w"):
        pipe.load_lora_weights(adapters / name, name)
    pipe.set_adapters(["a", "m"], [0.5, 2.0])
    pipe.fuse_lora(**arguments)
    reference = deltas(base, adapters, *expected)
    drawn = logits(pipe)
    assert close(drawn, logits(with_weights(base, reference)))

    pipe.unload_lora_weights()
    assert pipe.get_list_adapters() == []
    found = pipe.model.state_dict()
    assert found.keys() == reference.keys()
    for key, tensor in reference.items():
        torch.testing.assert_close(found[key], tensor, atol=1e-6, rtol=0)  # float32 sums of values below 1
    assert close(logits(pipe), drawn)

    pipe.save_pretrained(tmp_path)
    again = JanusProPipeline.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, found[key]) for key, tensor in again.model.state_dict().items())


def test_unfuse(pipe, base, adapters):
    for name in ("a", "m"):
        pipe.load_lora_weights(adapters / name, name)
    pipe.set_adapters(["a", "m"], [0.5, 2.0])
    before = logits(pipe)
    for lora_scale in (1.0, 0.7, 0.0):
        pipe.fuse_lora(lora_scale=lora_scale)
        pipe.unfuse_lora()
        assert close(logits(pipe), before)  # the adapters' own weights are theirs again, too
    pipe.unfuse_lora()  # nothing to do
    pipe.unload_lora_weights()
    for key, tensor in base.model.state_dict().items():
        torch.testing.assert_close(pipe.model.state_dict()[key], tensor, atol=1e-6, rtol=0)  # (x + d) - d in float32


def test_fused_adapters_are_not_changed_behind_ones_back(pipe, adapters):
    with pytest.raises(ValueError, match="nothing to fuse"):
        pipe.fuse_lora()
    for name in ("a", "b"):
        pipe.load_lora_weights(adapters / name, name)
    pipe.fuse_lora()
    fused = logits(pipe)
    for action in (
        pipe.fuse_lora,
        pipe.disable_lora,
        lambda: pipe.set_adapters("a"),
        lambda: pipe.delete_adapters("a"),
        lambda: pipe.load_lora_weights(adapters / "m"),
    ):
        with pytest.raises(ValueError, match=r"Adapters \['b'\] are fused into the weights.*unfuse_lora"):
            action()
    assert torch.equal(logits(pipe), fused)
    assert pipe.get_list_adapters() == ["a", "b"]


def test_safe_fusing_refuses_broken_weights_and_undoes_what_it_began(pipe, base, adapters, tmp_path):
    def overflow(tensors, config):
        key = next(key for key in tensors if "layers.1.self_attn.o_proj.lora_B" in key)
        tensors[key][0, 0] = float("inf")

    pipe.load_lora_weights(broken(adapters, tmp_path / "broken", overflow), "a")
    with pytest.raises(ValueError, match="The adapter a seems to be broken"):
        pipe.fuse_lora(lora_scale=0.5, safe_fusing=True)
    pipe.disable_lora()  # refused if anything were still fused
    assert close(logits(pipe), logits(base))


# --- saving


@pytest.mark.parametrize("name", ["a", "w"])
def test_saved_adapter_loads_in_plain_peft(pipe, base, adapters, tmp_path, name):
    pipe.load_lora_weights(adapters / "m", "other")
    pipe.load_lora_weights(adapters / name, "mine")
    pipe.save_lora_weights(tmp_path)
    first, second = load_file(adapters / name / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    peft_model = PeftModel.from_pretrained(copy.deepcopy(base.model), tmp_path)
    assert torch.equal(
        logits(JanusProPipeline(peft_model.base_model.model, base.processor)),
        logits(pipe),
    )


def test_one_adapter_is_saved_at_a_time(pipe, adapters, tmp_path):
    for name in ("a", "m"):
        pipe.load_lora_weights(adapters / name, name)
    pipe.set_adapters(["a", "m"])
    with pytest.raises(ValueError, match=r"active are \['a', 'm'\]. Choose it with set_adapters"):
        pipe.save_lora_weights(tmp_path / "both")
    pipe.unload_lora_weights()
    with pytest.raises(ValueError, match=r"active are \[\]"):
        pipe.save_lora_weights(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_pipeline_is_not_saved_with_adapters_loaded(pipe, adapters, tmp_path):
    pipe.load_lora_weights(adapters / "a", "a")
    pipe.fuse_lora()
    with pytest.raises(ValueError, match=r"Adapters \['a'\] are loaded.*save_lora_weights.*fuse_lora\(\) and unload"):
        pipe.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []
