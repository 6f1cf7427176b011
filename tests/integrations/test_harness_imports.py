"""Missing harnesses, imports and the loading of the pipeline, for both adapters."""

import ast
import importlib
import sys
from pathlib import Path

import pytest
import torch

import janus_hf
from janus_hf.assets import DEFAULT_MODEL
from janus_hf.integrations import load_pipeline


@pytest.mark.parametrize(
    ("ours", "framework"),
    [("lmms_eval", "lmms_eval"), ("lmms_eval_model", "lmms_eval"), ("vlmeval", "vlmeval")],
)
def test_a_missing_framework_is_named(monkeypatch, ours, framework):
    for name in [name for name in sys.modules if name.partition(".")[0] == framework]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, framework, None)
    monkeypatch.delitem(sys.modules, f"janus_hf.integrations.{ours}", raising=False)
    with pytest.raises(ImportError, match="pip install"):
        importlib.import_module(f"janus_hf.integrations.{ours}").manifest()


def test_nothing_else_imports_the_frameworks():
    folder = Path(janus_hf.__file__).parent
    importing = set()
    for path in folder.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = [node for node in tree.body for node in (node.body if isinstance(node, ast.Try) else [node])]
        names = [alias.name for node in top if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module for node in top if isinstance(node, ast.ImportFrom) and node.module and not node.level]
        if {name.partition(".")[0] for name in names} & {"lmms_eval", "vlmeval"}:
            importing.add(path.name)
    assert importing == {"lmms_eval_model.py", "vlmeval.py"}


def test_loading_for_evaluation():
    pipe = load_pipeline(DEFAULT_MODEL, dtype="auto", device="cpu")
    assert pipe.model.dtype == torch.bfloat16  # the checkpoint's own
    assert load_pipeline(DEFAULT_MODEL, dtype="float32", device="cpu").model.dtype == torch.float32
