"""mPLUG in another interpreter, with a stand-in for modelscope that prints to standard output as the real one does."""

import sys

import pytest
from PIL import Image

from janus_hf.rewards.mplug import MplugJudge
from tiny_judges import write_modelscope


def test_mplug_in_another_interpreter(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(write_modelscope(tmp_path)))
    with MplugJudge(sys.executable, device="cpu") as judge:
        assert judge(Image.new("RGB", (3, 2)), ["a?", "b?"]) == ["yes", "yes"]
        assert judge(Image.new("RGB", (2, 2)), ["a?"]) == ["no"]
        with pytest.raises(ValueError, match="mPLUG failed: KeyError"):
            judge(Image.new("RGB", (2, 2)), ["fail?"])
        assert judge(Image.new("RGB", (3, 2)), ["a?"]) == ["yes"]
        with pytest.raises(ChildProcessError, match="ended with status 3"):
            judge(Image.new("RGB", (2, 2)), ["die?"])
    assert judge.process is None
    with pytest.raises(FileNotFoundError):
        MplugJudge("no-such-python")(Image.new("RGB", (2, 2)), ["a?"])
