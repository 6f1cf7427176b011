"""No argument, method or attribute of diffusers' pipelines is accepted and ignored: it works, or is refused by name.

The names are read from the installed diffusers, so that a new version with a new name fails here.
"""

import ast
import inspect
import re
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.loaders.lora_base import LoraBaseMixin
from tiny_pipes import NUM_TOKENS, generate_ids, seeded
from transformers import PreTrainedModel

from janus_hf import JanusProPipeline
from janus_hf.hub.fetching import HUB_ARGUMENTS
from janus_hf.pipelines.diffusers_names import ABSENT, CALL_ARGUMENTS, LOADING_ARGUMENTS, LORA_ARGUMENTS, METHODS
from tiny import TINY_MODEL


PIPELINES = Path(diffusers.__file__).parent / "pipelines"
OWN_ARGUMENTS = set(inspect.signature(JanusProPipeline.__call__).parameters)


def popped(function):
    """Names of the keyword arguments that a function takes out of its `kwargs`."""
    return set(re.findall(r'kwargs\.pop\(\s*"(\w+)"', inspect.getsource(function)))


# Arguments of the call


@pytest.fixture(scope="module")
def call_arguments():
    """Keyword arguments of every text-to-image pipeline that diffusers' AutoPipeline knows, read without importing."""
    auto = ast.parse((PIPELINES / "auto_pipeline.py").read_text(encoding="utf-8"))
    table = next(
        node.value
        for node in auto.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "AUTO_TEXT2IMAGE_PIPELINES_MAPPING"
    )
    classes = {node.id for node in ast.walk(table) if isinstance(node, ast.Name)} - {"OrderedDict"}
    found = {}
    for path in PIPELINES.rglob("pipeline_*.py"):
        text = path.read_text(encoding="utf-8")
        if not any(f"class {name}(" in text for name in classes):
            continue
        for cls in ast.parse(text).body:
            if isinstance(cls, ast.ClassDef) and cls.name in classes:
                calls = [node for node in cls.body if isinstance(node, ast.FunctionDef) and node.name == "__call__"]
                found[cls.name] = {one.arg for call in calls for one in call.args.args + call.args.kwonlyargs}
    assert found.keys() == classes
    assert len(classes) > 40
    return set().union(*found.values())


def test_every_argument_of_a_call_is_sorted(call_arguments):
    assert call_arguments - OWN_ARGUMENTS - CALL_ARGUMENTS.keys() == set()
    assert OWN_ARGUMENTS & CALL_ARGUMENTS.keys() == set()


@pytest.mark.parametrize("name", [*CALL_ARGUMENTS, "promt"])
def test_an_argument_of_another_pipeline_is_refused_by_name(pipe, name):
    with pytest.raises(TypeError, match=rf"`{name}` must be .*`__call__`.*got 1 \(int\).*: ."):
        pipe("a fox", **{name: 1})


def test_arguments_that_say_nothing_are_allowed(pipe):
    plain = generate_ids(pipe)
    assert torch.equal(generate_ids(pipe, latents=None, negative_prompt_embeds=None, clip_skip=None), plain)


# Arguments of the loaders


def test_every_argument_of_loading_is_sorted():
    known = popped(DiffusionPipeline.from_pretrained) | popped(PreTrainedModel.from_pretrained)
    source = inspect.getsource(PreTrainedModel.from_pretrained)
    dropped = re.search(r'for name in \[("mirror"[^]]*)\]', source).group(1)
    known |= set(re.findall(r'"(\w+)"', dropped))
    passed_on = {
        *("dtype", "torch_dtype", "device_map", "max_memory", "offload_folder", "offload_buffers", "variant"),
        *("quantization_config", "use_safetensors", "disable_mmap", "state_dict", "adapter_kwargs", "adapter_name"),
        *("generation_config", "gguf_file", "distributed_config", "device_mesh", "tp_plan", "tp_size", "key_mapping"),
        *("trust_remote_code", "allow_all_kernels", "use_kernels", "kernel_config", "attn_implementation"),
        *("experts_implementation", "tqdm_class"),
    }
    internal = {"_from_pipeline", "_from_auto", "_commit_hash", "gguf_file"}
    assert known - passed_on - internal - set(HUB_ARGUMENTS) - LOADING_ARGUMENTS.keys() == set()
    assert passed_on & LOADING_ARGUMENTS.keys() == set()


@pytest.mark.parametrize("name", [*LOADING_ARGUMENTS, "max_memory", "offload_folder", "offload_buffers", "colour"])
def test_an_argument_of_another_loader_is_refused_by_name(name):
    with pytest.raises((TypeError, ValueError), match=name):
        JanusProPipeline.from_pretrained(TINY_MODEL, **{name: "auto"})


def test_arguments_of_loading_that_say_what_is_done_anyway_are_allowed():
    says_nothing = {
        "safety_checker": None,
        "low_cpu_mem_usage": True,
        "use_safetensors": True,
        "custom_pipeline": None,
    }
    assert JanusProPipeline.from_pretrained(TINY_MODEL, trust_remote_code=True, **says_nothing).model.training is False


def test_every_argument_of_loading_adapters_is_sorted():
    from diffusers.loaders import lora_pipeline

    source = inspect.getsource(lora_pipeline)
    known = set(re.findall(r'kwargs\.pop\(\s*"(\w+)"', source))
    loads = ast.walk(ast.parse(source))
    for node in loads:
        if isinstance(node, ast.FunctionDef) and node.name == "load_lora_weights":
            known |= {one.arg for one in node.args.args + node.args.kwonlyargs}
    own = {"self", "pretrained_model_name_or_path_or_dict", "adapter_name"}
    assert known - own - set(HUB_ARGUMENTS) - LORA_ARGUMENTS.keys() == set()


@pytest.mark.parametrize("name", [*LORA_ARGUMENTS, "colour"])
def test_an_argument_of_loading_other_adapters_is_refused_by_name(pipe, name):
    with pytest.raises(TypeError, match=rf"`{name}` must be .*`load_lora_weights`, got 'x' \(str\).*: \w+"):
        pipe.load_lora_weights("nowhere", **{name: "x"})


def test_the_fixed_name_of_an_adapters_file_is_allowed(pipe):
    with pytest.raises(OSError, match="nowhere"):  # the folder is looked for
        pipe.load_lora_weights(
            "./nowhere", weight_name="adapter_model.safetensors", low_cpu_mem_usage=True, hotswap=None
        )


# Methods


# Methods of the base classes that work as they are, or change nothing that could be expected of them; most have a test
# of their own: offloading, saving, devices, progress.
WORKING = {
    *("components", "config", "config_name", "device", "dtype", "download", "enable_group_offload"),
    *(
        "enable_model_cpu_offload",
        "enable_sequential_cpu_offload",
        "extract_init_dict",
        "from_pipe",
        "get_config_dict",
    ),
    *(
        "get_config_dict",
        "has_compatibles",
        "hf_device_map",
        "ignore_for_config",
        "load_config",
        "maybe_free_model_hooks",
    ),
    *("name_or_path", "numpy_to_pil", "parameters", "progress_bar", "register_for_auto_class", "register_modules"),
    *("register_to_config", "remove_all_hooks", "reset_device_map", "save_config", "to_json_file", "to_json_string"),
    *("disable_attention_slicing", "disable_xformers_memory_efficient_attention", "lora_scale", "pack_weights"),
}


def test_every_inherited_method_is_sorted():
    for base in (DiffusionPipeline, LoraBaseMixin):
        for name in dir(base):
            is_own = inspect.getattr_static(base, name) is not inspect.getattr_static(JanusProPipeline, name)
            if not name.startswith("_") and not is_own:
                assert name in WORKING, f"{base.__name__}.{name} is inherited: does it work, or is it to be refused?"
    assert not WORKING & METHODS.keys()


@pytest.mark.parametrize("name", METHODS)
def test_a_method_without_an_effect_is_refused(pipe, name):
    arguments = {"set_attention_slice": [1], "set_use_memory_efficient_attention_xformers": [True]}.get(name, [])
    with pytest.raises(ValueError, match=f"`{name}` must not be called on this pipeline.*: "):
        getattr(pipe, name)(*arguments)


def test_turning_off_what_is_off_is_allowed(pipe):
    pipe.disable_attention_slicing()
    pipe.disable_xformers_memory_efficient_attention()
    pipe.safety_checker = None


@pytest.mark.parametrize("name", ABSENT)
def test_an_attribute_of_other_pipelines(pipe, name):
    assert not hasattr(pipe, name)
    with pytest.raises(AttributeError, match=f"JanusProPipeline has no `{name}`: "):
        getattr(pipe, name)
    with pytest.raises(ValueError, match=f"`{name}` must not be set, got 0.0"):
        setattr(pipe, name, 0.0)


def test_unknown_words_of_methods_are_refused(pipe):
    with pytest.raises(TypeError, match="`colour` must be an argument of `to`"):
        pipe.to("cpu", colour="red")
    with pytest.raises(TypeError, match="`shade` must be an argument of tqdm"):
        pipe.set_progress_bar_config(shade="red")


@pytest.mark.parametrize("method", ["fuse_lora", "unfuse_lora"])
def test_components_with_adapters(pipe, method):
    with pytest.raises(ValueError, match=r"`components` must be \['model'\].*got \['unet'\]"):
        getattr(pipe, method)(components=["unet"])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"a": 0.5}, r"write set_adapters\(\['a'\], \[0.5\]\)"),
        (["a", "a"], "must be different names"),
        ({"a", "b"}, "a name or a list of names"),  # its order says nothing about that of the weights
    ],
)
def test_names_of_adapters(pipe, names, words, monkeypatch):
    monkeypatch.setattr(type(pipe), "_adapter_names", lambda self: ["a", "b"])
    with pytest.raises((TypeError, ValueError), match=words):
        pipe.set_adapters(names)


def test_a_state_dict_is_no_adapter(pipe):
    with pytest.raises(TypeError, match="got a dict: save the weights with PEFT's save_pretrained"):
        pipe.load_lora_weights({"a": torch.zeros(1)})


# Callbacks


class Cutoff(PipelineCallback):
    tensor_inputs = ["image_ids"]

    def callback_fn(self, pipeline, step_index, timesteps, callback_kwargs):
        self.seen = callback_kwargs
        return {"image_ids": torch.full_like(callback_kwargs["image_ids"], 7)}


class Latents(Cutoff):
    tensor_inputs = ["latents"]


def test_callback_objects_of_diffusers_state_their_tensors(pipe):
    for callback in (Cutoff(), MultiPipelineCallbacks([Cutoff()])):
        ids = generate_ids(pipe, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=[])
        assert ids.unique().tolist() == [7]
    with pytest.raises(ValueError, match="`callback_on_step_end_tensor_inputs` must be among.*'latents'"):
        generate_ids(pipe, callback_on_step_end=Latents())


@pytest.mark.parametrize("returned", ["latents", "prompt_embeds"])
def test_returned_tensors_of_other_names_are_refused(pipe, returned):
    with pytest.raises(ValueError, match=rf"must return tensors among \['image_ids'\], got \['{returned}'\]"):
        generate_ids(pipe, callback_on_step_end=lambda *arguments: {returned: torch.zeros(1)})


# Interrupts


def stop_at(last, returned=None, calls=None):
    """A callback that sets the flag at a step, and returns something."""

    def callback(pipe, step, timestep, tensors):
        if calls is not None:
            calls.append(step)
        if step == last:
            pipe._interrupt = True
        return returned(tensors) if returned else None

    return callback


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("output_type", ["latent", "pil", "np", "pt"])
def test_an_interrupt_ends_generation(pipe, window, output_type):
    calls = []
    arguments = {"output_type": output_type, "speculative_window": window}
    result = pipe("a fox", generator=seeded(0), callback_on_step_end=stop_at(5, calls=calls), **arguments)
    assert calls == list(range(6))
    assert pipe.interrupt
    whole = generate_ids(pipe)
    assert not pipe.interrupt
    assert result.image_ids.shape == whole.shape == (1, NUM_TOKENS)
    assert torch.equal(result.image_ids[:, :6], whole[:, :6])
    assert (result.image_ids[:, 6:] == whole[:, 5:6]).all()
    assert len(result.images) == 1


def test_generation_continues_after_an_interrupt(pipe):
    part = pipe("a fox", generator=seeded(0), output_type="latent", callback_on_step_end=stop_at(9)).image_ids
    assert torch.equal(generate_ids(pipe, "a fox", image_ids=part[:, :10]), generate_ids(pipe, "a fox"))


def test_an_interrupt_keeps_what_the_callback_returned(pipe):
    def sevens(tensors):
        return {"image_ids": torch.full_like(tensors["image_ids"], 7)}

    assert generate_ids(pipe, callback_on_step_end=stop_at(2, sevens)).unique().tolist() == [7]


def test_an_interrupt_leaves_out_the_batches_after_it(pipe):
    calls = []

    def stop_in_the_second_batch(pipe, step, timestep, tensors):
        calls.append(step)
        pipe._interrupt = len(calls) == NUM_TOKENS + 3

    arguments = {"batch_size": 1, "callback_on_step_end": stop_in_the_second_batch}
    result = pipe(["a", "b", "c"], generator=seeded(0, 1, 2), **arguments)
    assert len(result.images) == len(result.image_ids) == 2
    assert torch.equal(result.image_ids[0], generate_ids(pipe, "a")[0])
    assert len(calls) == NUM_TOKENS + 3
