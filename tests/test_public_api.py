"""The exported names, their docstrings, and what importing the package does and does not do."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import janus_hf


SOURCE = Path(__file__).parents[1] / "src"


def test_exported_names():
    assert janus_hf.__all__ == [
        "CheckpointError",
        "CheckpointInfo",
        "JanusProConfig",
        "JanusProForConditionalGeneration",
        "JanusProImageProcessor",
        "JanusProModel",
        "JanusProPipeline",
        "JanusProPipelineOutput",
        "JanusProProcessor",
        "JanusProVQConfig",
        "JanusProVQModel",
        "JanusProVisionConfig",
        "JanusProVisionModel",
        "__version__",
        "assemble_checkpoint",
        "convert_checkpoint",
        "inspect_checkpoint",
    ]
    assert dir(janus_hf) == sorted(janus_hf.__all__)
    for name in janus_hf.__all__:
        assert getattr(janus_hf, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'JanusProPipelines'"):
        janus_hf.JanusProPipelines  # noqa: B018


# Methods that need no docstring: overrides whose meaning is transformers' or torch's own. The class of a network's
# inner part documents its `forward`, with shapes.
INHERITED = {
    "forward",
    "convert",
    "reverse_op",
    "get_input_embeddings",
    "set_input_embeddings",
    "chat_template",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
}


def public_definitions():
    for path in sorted(SOURCE.rglob("*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        yield f"{path.relative_to(SOURCE)}", module
        owners = [module, *(node for node in module.body if isinstance(node, ast.ClassDef))]
        for owner in owners:
            if isinstance(owner, ast.ClassDef) and owner.name.startswith("_"):
                continue
            for node in owner.body:
                is_definition = isinstance(node, (ast.FunctionDef, ast.ClassDef))
                is_overload = is_definition and "overload" in [ast.unparse(one) for one in node.decorator_list]
                if is_overload:  # the implementation behind it has the docstring
                    continue
                if is_definition and not node.name.startswith("_") and node.name not in INHERITED:
                    yield f"{path.relative_to(SOURCE)}:{node.lineno} {node.name}", node


def test_everything_public_has_a_docstring():
    definitions = list(public_definitions())
    assert len(definitions) > 200
    assert [name for name, node in definitions if not ast.get_docstring(node)] == []


def run(code: str) -> object:
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return json.loads(output)


def test_importing_is_light_and_registers():
    """The libraries of pipeline and trainer load at first use, and the Auto classes know the model at once."""
    loaded, registered = run(
        "import json, sys, janus_hf\n"
        "from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText\n"
        "from transformers import AutoModelForMultimodalLM\n"
        "names = ('diffusers', 'trl', 'datasets', 'peft', 'skimage')\n"
        "loaded = [name for name in names if name in sys.modules]\n"
        "autos = (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM)\n"
        "registered = [auto._model_mapping[janus_hf.JanusProConfig].__name__ for auto in autos]\n"
        "print(json.dumps([loaded, registered]))\n"
    )
    assert loaded == []
    assert registered == ["JanusProForConditionalGeneration"] * 4


def test_the_command_lines_help_needs_no_torch():
    loaded = run(
        "import json, sys, janus_hf_cli\n"
        "janus_hf_cli.make_parser().format_help()\n"
        "print(json.dumps([name for name in ('torch', 'transformers', 'janus_hf') if name in sys.modules]))\n"
    )
    assert loaded == []
