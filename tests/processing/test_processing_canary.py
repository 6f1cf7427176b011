"""The private parts of transformers that `janus_hf.processing` uses. If a test fails, read their changes first."""

import inspect
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
from transformers import AutoImageProcessor, AutoTokenizer, ProcessorMixin

from janus_hf import JanusProProcessor


def test_the_overridden_methods_still_have_these_arguments() -> None:
    """`saving.ProcessorFiles` overrides both."""
    tokenizer = inspect.signature(ProcessorMixin._load_tokenizer_from_pretrained).parameters
    assert list(tokenizer) == ["sub_processor_type", "pretrained_model_name_or_path", "subfolder", "kwargs"]
    arguments = inspect.signature(ProcessorMixin._get_arguments_from_pretrained).parameters
    assert list(arguments) == ["pretrained_model_name_or_path", "processor_dict", "kwargs"]


@pytest.mark.parametrize("name", ["_get_arguments_from_pretrained", "_load_tokenizer_from_pretrained"])
def test_from_pretrained_still_calls_the_overridden_methods(
    name: str, golden_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    override = Mock(side_effect=getattr(JanusProProcessor, name))
    monkeypatch.setattr(JanusProProcessor, name, override)
    JanusProProcessor.from_pretrained(golden_checkpoint)
    override.assert_called_once()


def test_the_public_loaders_still_fail(golden_checkpoint: Path, tmp_path: Path) -> None:
    """If this fails, the overrides of `saving.ProcessorFiles` may no longer be needed."""
    tokenizer = AutoTokenizer.from_pretrained(golden_checkpoint)
    assert tokenizer.bos_token_id not in tokenizer.encode("a")
    shutil.copy(golden_checkpoint / "config.json", tmp_path)
    with pytest.raises(OSError, match="preprocessor_config.json"):
        AutoImageProcessor.from_pretrained(tmp_path)
