"""After any change of the model, captured steps generate the images of the changed model.

A graph reads the present values of weights that were written to in place. Everything else that changes which kernels
run, or on which addresses, is noticed before the next batch, without waiting for the device.
"""

import copy
import functools

import pytest
import torch
from image_prompts import seeds
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from graph_emulator import EmulatedGraph


def layer_of(model):
    return model.model.language_model.layers[0]


def noise_like(weight):
    return torch.randn(weight.shape, generator=torch.Generator().manual_seed(5)).to(weight)


def generate(model, mixed):
    return model.generate_images(*mixed, generator=seeds(1, 2, 3))


# --- in place


@torch.no_grad()
def write(model):
    layer_of(model).mlp.down_proj.weight.mul_(-1)


def write_like_peft(model):
    layer_of(model).self_attn.v_proj.weight.data += 1


@torch.no_grad()
def write_to_codes(model):
    model.model.generation_embeddings.weight.neg_()


@torch.no_grad()
def write_to_head(model):
    next(model.model.generation_head.parameters()).neg_()


@torch.no_grad()
def write_to_buffer(model):
    model.model.language_model.rotary_emb.inv_freq.mul_(1.7)


def step_of_an_optimizer(model):
    """As between the rollouts of a training run."""
    model.train()
    model.gradient_checkpointing_enable()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    ids = torch.tensor([[3, 4, 100, 101, 102]])
    model(input_ids=ids, labels=torch.cat([torch.full((1, 1), -100), ids[:, 1:]], dim=1)).loss.backward()
    optimizer.step()
    model.gradient_checkpointing_disable()
    model.eval()


def load_values(model):
    state = {name: noise_like(value) * 0.2 for name, value in model.state_dict().items() if "layers" in name}
    model.load_state_dict(state, strict=False)


# --- replaced storages


def replace_data(model):
    weight = layer_of(model).mlp.up_proj.weight
    weight.data = noise_like(weight)


def replace_parameter(model):
    projection = layer_of(model).mlp.up_proj
    projection.weight = nn.Parameter(noise_like(projection.weight))


def replace_buffer(model):
    rope = model.model.language_model.rotary_emb
    rope.inv_freq = rope.inv_freq * 1.7


def load_by_assigning(model):
    state = {name: noise_like(value) * 0.2 for name, value in model.state_dict().items() if "layers" in name}
    model.load_state_dict(state, strict=False, assign=True)


def move_there_and_back(model):
    """The values are the same, the addresses are not."""
    write(model.to(torch.float64).to(torch.float32))


def change_dtype(model):
    write(model.double())


# --- replaced modules and settings


def replace_module(model):
    mlp = layer_of(model).mlp
    new = nn.Linear(mlp.down_proj.in_features, mlp.down_proj.out_features)
    new.weight.data, new.bias.data = mlp.down_proj.weight.data, torch.ones_like(new.bias)
    mlp.down_proj = new.eval()


def replace_activation(model):
    layer_of(model).mlp.act_fn = nn.Tanh().eval()


def change_number(model):
    layer_of(model).input_layernorm.variance_epsilon = 10.0


def change_scaling(model):
    layer_of(model).self_attn.scaling *= 3


def change_forward(model):
    """As libraries do that wrap layers."""
    mlp = layer_of(model).mlp
    mlp.forward = functools.partial(lambda forward, x: 2 * forward(x), mlp.forward)


def drop_layer(model):
    del model.model.language_model.layers[1]
    model.config.text_config.num_hidden_layers = 1


def add_bias(model):
    layer_of(model).mlp.down_proj.bias = nn.Parameter(torch.ones(48))


def change_context(model):
    model.config.text_config.max_position_embeddings = 40


IN_PLACE = (write, write_like_peft, write_to_codes, write_to_head, write_to_buffer, step_of_an_optimizer, load_values)
REPLACED = (
    replace_data, replace_parameter, replace_buffer, load_by_assigning, move_there_and_back, change_dtype,
    replace_module, replace_activation, change_number, change_scaling, change_forward, drop_layer, add_bias,
)  # fmt: skip


@pytest.mark.parametrize("change", [*IN_PLACE, *REPLACED], ids=lambda change: change.__name__)
def test_the_image_is_that_of_the_changed_model(make_captured, make_model, mixed, change):
    captured, plain = make_captured(), make_model()
    before = generate(captured, mixed)
    for model in (captured, plain):
        change(model)
    after = generate(captured, mixed)
    assert torch.equal(after, generate(plain, mixed))
    assert not torch.equal(after, before)
    assert EmulatedGraph.captured == (1 if change in IN_PLACE else 2)
    assert torch.equal(generate(captured, mixed), after)
    assert EmulatedGraph.captured == (1 if change in IN_PLACE else 2)


def test_what_no_step_reads_may_change(make_captured, mixed):
    """The embeddings of text, the vision tower, the image codec, and gradient checkpointing, which is for training."""
    captured = make_captured()
    before = generate(captured, mixed)
    captured.set_input_embeddings(copy.deepcopy(captured.get_input_embeddings()))
    captured.model.vision_model.double()
    captured.model.vqmodel.to(torch.bfloat16)
    captured.gradient_checkpointing_enable()
    captured.model.language_model._gradient_checkpointing_func = functools.partial(checkpoint)
    captured.enable_input_require_grads()
    captured.generation_config.eos_token_id = 3
    assert torch.equal(generate(captured, mixed), before)
    assert EmulatedGraph.captured == 1


def test_embeddings_of_another_size(make_captured, mixed):
    captured = make_captured()
    before = generate(captured, mixed)
    captured.resize_token_embeddings(100, mean_resizing=False)
    for _ in range(2):
        assert torch.equal(generate(captured, mixed), before)


def test_hidden_states_of_other_calls_do_not_matter(make_captured, mixed, caplog):
    """transformers leaves hooks on the layers that it was asked to collect the hidden states of."""
    captured = make_captured()
    expected = generate(captured, mixed)
    captured(input_ids=mixed[0][:1], output_hidden_states=True)
    assert any(module._forward_hooks for module in captured.model.language_model.modules())
    for _ in range(2):
        assert torch.equal(generate(captured, mixed), expected)
    assert EmulatedGraph.captured == 2
    assert not caplog.records


class Refuse(TorchDispatchMode):
    """Context in which every operator is an error."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        raise AssertionError(f"{function} runs on the device")


def test_changes_are_noticed_without_the_device(make_captured, mixed):
    captured = make_captured()
    generate(captured, mixed)
    with Refuse(), torch.no_grad():
        captured._decoder.prepare(captured.model)
    generate(captured, mixed)
    assert EmulatedGraph.captured == 1


def test_a_model_and_its_changed_copy(make_captured, make_model, mixed):
    """Graphs are not copied, and a shallow copy, which shares the decoder, generates its own images."""
    captured, plain = make_captured(), make_model()
    expected = generate(captured, mixed)
    copied, shallow = copy.deepcopy(captured), copy.copy(captured)
    for model in (copied, plain):
        write(model)
    changed = generate(plain, mixed)
    assert not torch.equal(changed, expected)
    for _ in range(2):
        assert torch.equal(generate(captured, mixed), expected)
        assert torch.equal(generate(copied, mixed), changed)
        assert torch.equal(generate(shallow, mixed), expected)
    assert EmulatedGraph.captured == 2


@pytest.fixture
def adapted(make_captured, make_model):
    """A captured and a plain model with the same two adapters "a" and "b", of which "a" is active."""
    peft = pytest.importorskip("peft")
    models = make_captured(), make_model()
    for model in models:
        for name in "ab":
            model.add_adapter(
                peft.LoraConfig(target_modules=["q_proj", "down_proj"], r=4, init_lora_weights=False), name
            )
        model.set_adapter("a")
        model.eval()
    models[1].load_state_dict(models[0].state_dict())
    return models


def scale(model, factor):
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.set_scale("a", factor)


def merge(model):
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.merge()


def unmerge(model):
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.unmerge()


def replace_weights_of_the_adapter(model):
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.lora_A["a"].weight.data = torch.ones_like(module.lora_A["a"].weight)


def test_adapters(adapted, mixed):
    changes = [
        lambda model: None,
        lambda model: model.set_adapter("b"),
        lambda model: model.disable_adapters(),
        lambda model: model.enable_adapters(),
        lambda model: model.set_adapter(["a", "b"]),
        lambda model: scale(model, 3.0),
        lambda model: scale(model, 0.25),
        replace_weights_of_the_adapter,
        merge,
        unmerge,
        lambda model: model.delete_adapter("b"),
        lambda model: model.delete_adapter("a"),
    ]
    images = []
    for number, change in enumerate(changes):
        for model in adapted:
            change(model)
            model.eval()
        images.append(generate(adapted[0], mixed))
        assert torch.equal(images[-1], generate(adapted[1], mixed)), number
        assert torch.equal(images[-1], generate(adapted[0], mixed)), number
    assert EmulatedGraph.captured == len(changes)
    assert len({tuple(image.flatten().tolist()) for image in images}) >= 8


def test_quantised_weights(make_captured, make_model, mixed):
    quantization = pytest.importorskip("torchao.quantization")
    captured, plain = make_captured(), make_model()
    before = generate(captured, mixed)
    for model in (captured, plain):
        quantization.quantize_(model.model.language_model, quantization.Int8WeightOnlyConfig())
    for _ in range(2):
        assert torch.equal(generate(captured, mixed), generate(plain, mixed))
    assert EmulatedGraph.captured == 2
    for model in (captured, plain):
        layer_of(model).mlp.down_proj.weight = nn.Parameter(torch.ones(48, 64))
    for _ in range(2):
        after = generate(captured, mixed)
        assert torch.equal(after, generate(plain, mixed))
    assert EmulatedGraph.captured == 3
    assert not torch.equal(after, before)
