"""Steps with few kernels compute the present model, whatever was done to it, and leave it as it was."""

import weakref

import pytest
import torch
from image_prompts import seeds
from safetensors.torch import save_file, save_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from janus_hf.generation.cache import PreallocatedCache
from janus_hf.generation.decoders import plain
from janus_hf.generation.decoders.fused_layers import FusedModel, fuse, fused_model


def in_place(layer):
    with torch.no_grad():
        layer.self_attn.k_proj.weight.mul_(-1)


def like_peft(layer):
    layer.mlp.up_proj.weight.data += 1


def new_storage(layer):
    layer.self_attn.q_proj.weight.data = layer.self_attn.q_proj.weight.data.flip(0)


def new_parameter(layer):
    layer.mlp.gate_proj.weight = nn.Parameter(layer.mlp.gate_proj.weight.detach() * 2)


def new_module(layer):
    linear = nn.Linear(layer.self_attn.v_proj.in_features, layer.self_attn.v_proj.out_features, bias=False)
    linear.weight = nn.Parameter(-layer.self_attn.v_proj.weight.detach())
    layer.self_attn.v_proj = linear


def not_joined(layer):
    with torch.no_grad():
        layer.mlp.down_proj.weight.mul_(-1)


def norm(layer):
    with torch.no_grad():
        layer.input_layernorm.weight.add_(torch.linspace(-1, 1, len(layer.input_layernorm.weight)))


def rope(model):
    model.rotary_emb.inv_freq.mul_(1.7)


def new_rope(model):
    model.rotary_emb.register_buffer("inv_freq", model.rotary_emb.inv_freq * 1.7, persistent=False)


def shallower(model):
    model.config.num_hidden_layers = 1


def hook(layer):
    layer.self_attn.q_proj.register_forward_hook(lambda module, args, output: -output)


def hook_before(layer):
    layer.mlp.down_proj.register_forward_pre_hook(lambda module, args: (-args[0],))


def other_forward(layer):
    forward = layer.self_attn.o_proj.forward
    layer.self_attn.o_proj.forward = lambda x: -forward(x)


CHANGES = [in_place, like_peft, new_storage, new_parameter, new_module, not_joined, norm, hook, hook_before]
CHANGES += [other_forward]
CHANGES_OF_THE_MODEL = [rope, new_rope, shallower]


@pytest.mark.parametrize("change", [*CHANGES, *CHANGES_OF_THE_MODEL])
@torch.no_grad()
def test_changed_layers_give_the_images_of_the_changed_model(make_model, mixed, images_of, change):
    model = make_model()
    before = images_of(model, *mixed, generator=seeds(1, 2, 3))
    fused = fuse(model.model)
    language_model = model.model.language_model
    change(language_model if change in CHANGES_OF_THE_MODEL else language_model.layers[0])
    after = images_of(model, *mixed, generator=seeds(1, 2, 3))
    assert torch.equal(after, images_of(model, *mixed, fused=False, generator=seeds(1, 2, 3)))
    assert not torch.equal(after, before)
    # A decoder that keeps the model updates it.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain, "few_kernels_pay", lambda device: True)
        patch.setattr(plain, "fuse", lambda model: fuse(model, fused))
        assert torch.equal(model.generate_images(*mixed, generator=seeds(1, 2, 3)), after)


class Addresses(TorchDispatchMode):
    """Records the addresses of the matrices that are multiplied with."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._schema.name in ("aten::mm", "aten::addmm_"):
            self.found.append(args[-1].data_ptr())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("change", [in_place, like_peft, new_storage, new_parameter, not_joined, norm])
@torch.no_grad()
def test_new_values_are_copied_in_place(make_model, change):
    """So captured graphs, which read the addresses of the copies, stay valid."""
    model = make_model().model
    fused, found = fuse(model), []
    for _ in range(2):
        cache = PreallocatedCache(model.config.text_config, 4)
        with Addresses() as addresses:
            fused.language_model(
                inputs_embeds=torch.ones(1, 1, model.config.text_config.hidden_size),
                attention_mask=None,
                position_ids=torch.tensor([[0]]),
                past_key_values=cache,
            )
        found.append(addresses.found)
        change(model.language_model.layers[0])
        assert fuse(model, fused) is fused
    assert found[0] == found[1]
    assert len(found[0]) == 4 * len(model.language_model.layers)


def load_adapter(model):
    from peft import LoraConfig

    model.add_adapter(LoraConfig(target_modules=["q_proj", "down_proj"], r=4, init_lora_weights=False))
    model.eval()


@pytest.mark.parametrize("change", [new_module, hook, load_adapter, lambda model: model.bfloat16()])
@torch.no_grad()
def test_other_layers_need_a_new_model(make_model, change):
    model = make_model()
    fused = fuse(model.model)
    change(model.model.language_model.layers[0] if change in (new_module, hook) else model)
    again = fuse(model.model, fused)
    assert again is not fused
    assert isinstance(again, FusedModel)
    assert fuse(make_model().model, fused) is not fused, "another model with the same sizes"


def test_what_no_step_reads_may_change(make_model):
    """The decoder keeps the fused model, and its graphs, if the embeddings of text or the vision tower change."""
    model = make_model()
    fused = fuse(model.model)
    model.resize_token_embeddings(100, mean_resizing=False)
    model.model.vision_model.double()
    model.gradient_checkpointing_enable()
    assert fuse(model.model, fused) is fused


def test_adapters(make_model, mixed, images_of):
    pytest.importorskip("peft")
    model = make_model()
    images = [images_of(model, *mixed, generator=seeds(1, 2, 3))]
    load_adapter(model)
    for switch in ("enable_adapters", "disable_adapters"):
        getattr(model, switch)()
        images.append(images_of(model, *mixed, generator=seeds(1, 2, 3)))
        assert torch.equal(images[-1], images_of(model, *mixed, fused=False, generator=seeds(1, 2, 3)))
    assert not torch.equal(images[1], images[0])
    assert torch.equal(images[2], images[0])


@pytest.mark.slow
def test_quantised_layers(make_model, tiny_config, mixed, images_of):
    quantization = pytest.importorskip("torchao.quantization")
    model = make_model(
        tiny_config(
            text={"hidden_size": 64, "intermediate_size": 128},
            vq={"projection_dim": 64},
            vision={"projection_dim": 64},
        )
    )
    quantization.quantize_(model.model.language_model.layers, quantization.Int8WeightOnlyConfig(version=2))
    fused, plain_ones = (images_of(model, *mixed, fused=fused, generator=seeds(1, 2, 3)) for fused in (True, False))
    assert torch.equal(fused, plain_ones)


# What the layers cannot do: the steps then run with those of transformers.


def eager(model):
    model.set_attn_implementation("eager")


def training(model):
    model.train()


def hook_on_layer(model):
    model.language_model.layers[1].register_forward_hook(lambda module, args, output: -output)


def hook_on_model(model):
    model.language_model.register_forward_hook(lambda module, args, output: None)


def hook_on_norm(model):
    model.language_model.norm.register_forward_pre_hook(lambda module, args: (-args[0],))


def forward_of_attention(model):
    attention = model.language_model.layers[0].self_attn
    forward = attention.forward

    def negated(*args, **kwargs):
        output, weights = forward(*args, **kwargs)
        return -output, weights

    attention.forward = negated


def other_norm(model):
    class DoubledNorm(type(model.language_model.norm)):
        def forward(self, hidden_states):
            return 2 * super().forward(hidden_states)

    model.language_model.layers[0].input_layernorm.__class__ = DoubledNorm


def other_mlp(model):
    class Negated(type(model.language_model.layers[0].mlp)):
        def forward(self, x):
            return -super().forward(x)

    model.language_model.layers[0].mlp.__class__ = Negated


def compiled_layer(model):
    model.language_model.layers[0].compile(backend="eager")


def norms_in_float64(model):
    model.language_model.norm.double()


def empty_weights(model):
    model.language_model.layers[0].input_layernorm.weight = nn.Parameter(torch.empty(0))


REFUSALS = {
    eager: "the attention implementation is 'eager'",
    training: "the model is in training mode",
    hook_on_layer: "a module of the class LlamaDecoderLayer has hooks",
    hook_on_model: "a module of the class LlamaModel has hooks",
    hook_on_norm: "a module of the class LlamaRMSNorm has hooks",
    forward_of_attention: "a module of the class LlamaAttention has hooks, is compiled, or has another `forward`",
    other_norm: "a module is of the class DoubledNorm, not LlamaRMSNorm",
    other_mlp: "a module is of the class Negated, not LlamaMLP",
    compiled_layer: "a module of the class LlamaDecoderLayer has hooks, is compiled",
    norms_in_float64: "the norms have different dtypes",
    empty_weights: "the weights are sharded or quantised",
}


@pytest.mark.parametrize("change", REFUSALS)
def test_other_models_keep_their_layers(make_model, mixed, images_of, change, caplog):
    model = make_model()
    change(model.model)
    with caplog.at_level("INFO", logger="janus_hf"):
        assert fuse(model.model) is model.model
    assert f"Steps use the layers of transformers, which launch more kernels: {REFUSALS[change]}" in caplog.text
    if change in (empty_weights, norms_in_float64):  # these models do not run
        return
    images = images_of(model, *mixed, fused=None, generator=seeds(1, 2, 3))
    assert torch.equal(images, images_of(model, *mixed, fused=False, generator=seeds(1, 2, 3)))


def test_another_language_model_keeps_its_layers(make_model, tiny_config):
    model = make_model(tiny_config(text={"model_type": "qwen2", "layer_types": None}))
    assert fuse(model.model) is model.model


def test_autocast_keeps_the_layers(make_model, mixed, images_of):
    model = make_model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        images = images_of(model, *mixed, fused=None, generator=seeds(1, 2, 3))
        assert torch.equal(images, images_of(model, *mixed, fused=False, generator=seeds(1, 2, 3)))


def test_collected_hidden_states_do_not_matter(make_model, mixed, images_of):
    """transformers leaves hooks on all layers after `output_hidden_states=True`."""
    model = make_model()
    expected = images_of(model, *mixed, fused=False, generator=seeds(1, 2, 3))
    model.model.language_model(torch.tensor([[1, 2]]), output_hidden_states=True, output_attentions=True)
    assert model.model.language_model.layers[0]._forward_hooks
    assert torch.equal(images_of(model, *mixed, generator=seeds(1, 2, 3)), expected)


# Memory.


def test_copies_are_freed_with_the_batch(make_model, mixed, images_of, monkeypatch):
    made = []
    monkeypatch.setattr(plain, "fuse", lambda model: made.append(weakref.ref(one := fuse(model))) or one)
    model = make_model()
    sizes = []
    images_of(model, *mixed, callback=lambda position, tokens: sizes.append(made and made[0]() is not None))
    assert sizes[2:] == [True] * len(sizes[2:])
    assert [reference() for reference in made] == [None]


def test_a_model_that_has_generated_is_saved_as_before(make_model, mixed, few_kernels, tmp_path):
    model = make_model()
    expected = {name: weight.clone() for name, weight in model.state_dict().items()}
    saved = []

    def save(position, tokens):
        """Save in the middle of a batch too, when the copies exist."""
        if position == 5:
            save_file(dict(model.state_dict()), tmp_path / "file.safetensors")
            save_model(model, str(tmp_path / "model.safetensors"))
            model.save_pretrained(tmp_path / "folder")
            saved.append(position)

    model.generate_images(*mixed, callback=save)
    assert saved == [5]
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    loaded = type(model).from_pretrained(tmp_path / "folder").state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in expected.items())
    pointers = [weight.untyped_storage().data_ptr() for weight in model.parameters()]
    assert len(pointers) == len(set(pointers))


@pytest.mark.parametrize(("memory", "joins"), [(1.0, True), (0.9, False)])
def test_small_devices_get_no_copies(released, memory, joins, monkeypatch):
    """The total memory decides, not what is free: images must not depend on that."""
    from transformers import LlamaConfig, LlamaModel

    class Properties:
        total_memory = memory * 8 * 4 * 2 * (3 * 16 * 16 + 2 * 16 * 32)

    text = LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=8)
    llama = LlamaModel(text)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    assert fused_model._may_join(llama, torch.device("cuda")) is joins
    assert fused_model._may_join(llama, torch.device("cpu"))


def test_too_little_memory_for_copies(make_model, mixed, images_of, monkeypatch, caplog):
    model = make_model()
    expected = images_of(model, *mixed, fused=False, generator=seeds(1, 2, 3))
    initialise = FusedModel.__init__
    asked = []

    def refuse_copies(self, model, *, joined):
        asked.append(joined)
        if joined:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        initialise(self, model, joined=joined)

    monkeypatch.setattr(FusedModel, "__init__", refuse_copies)
    monkeypatch.setattr(plain, "few_kernels_pay", lambda device: True)
    assert torch.equal(model.generate_images(*mixed, generator=seeds(1, 2, 3)), expected)
    assert asked == [True, False]
    assert "generate fewer images at once" in caplog.text
