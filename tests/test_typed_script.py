"""Type checkers with their default settings accept `typed_script.py` and infer the types that it asserts."""

import json
import subprocess
import sys
from importlib.util import find_spec
from inspect import signature
from pathlib import Path

import pytest

from janus_hf import JanusProForConditionalGeneration, JanusProPipeline
from janus_hf.generation.images import PromptArguments
from janus_hf.pipelines.call_arguments import CallArguments


SCRIPT = Path(__file__).parent / "typed_script.py"
SOURCE = Path(__file__).parents[1] / "src"


@pytest.mark.parametrize(
    ("method", "arguments", "in_overloads"),
    [
        (
            JanusProPipeline.__call__,
            CallArguments,
            {"self", "prompt", "negative_prompt", "output_type", "return_dict"},
        ),
        (
            JanusProForConditionalGeneration.generate_images,
            PromptArguments,
            {"self", "input_ids", "attention_mask", "return_dict_in_generate"},
        ),
    ],
)
def test_overloads_name_every_argument(method, arguments, in_overloads):
    # `__call__` has a `**unknown` too, whose names are all refused.
    parameters = {name: one for name, one in signature(method).parameters.items() if one.kind != one.VAR_KEYWORD}
    assert set(parameters) == in_overloads | set(arguments.__annotations__)
    for name, annotation in arguments.__annotations__.items():
        assert parameters[name].annotation == annotation, name


def errors_in(script: str, checker: list[str], folder: Path) -> list[str]:
    """The lines of a checker's output that report errors of the script itself, not of the packages behind it."""
    path = folder / "script.py"
    path.write_text(script, encoding="utf-8")
    # pyright's way to find packages outside of the environment, such as this one in a checkout that is not installed.
    (folder / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(SOURCE)]}), encoding="utf-8")
    result = subprocess.run([*checker, str(path)], capture_output=True, text=True, check=False, cwd=folder)
    return [line for line in result.stdout.splitlines() if "script.py:" in line and "error" in line]


CHECKERS = {
    # No configuration file: mypy's defaults, not this repository's settings.
    "mypy": [sys.executable, "-m", "mypy", "--config-file=", "--cache-dir=cache"],
    "pyright": [sys.executable, "-m", "pyright", "--pythonpath", sys.executable],
}
WRONG = '\npipe("a fox", output_typ="pil")\nfrom janus_hf import JanusProPipelines\nassert_type(pipe("a fox"), str)\n'


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKERS)
def test_checkers_infer_the_types(name, tmp_path, monkeypatch):
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    monkeypatch.setenv("MYPYPATH", str(SOURCE))
    script = SCRIPT.read_text(encoding="utf-8")
    assert errors_in(script, CHECKERS[name], tmp_path) == []
    # The same checker finds a misspelled argument, a misspelled name and a wrong type, so it has not seen Any.
    errors = errors_in(script + WRONG, CHECKERS[name], tmp_path)
    last = len(script.splitlines())
    for line in (last + 2, last + 3, last + 4):
        assert any(f"script.py:{line}:" in error for error in errors), errors
