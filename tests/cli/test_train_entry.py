"""`python -m janus_hf.train`, the deprecated name of `janus-hf train`."""

import pytest

import janus_hf_cli
from janus_hf import train


def test_it_warns_and_runs_the_command(monkeypatch):
    calls = []
    monkeypatch.setattr(janus_hf_cli, "main", lambda arguments: calls.append(arguments) or 3)
    with pytest.warns(FutureWarning, match="janus_hf_cli train"):
        assert train.main(["recipe.yaml", "training.max_steps=3"]) == 3
    monkeypatch.setattr("sys.argv", ["train.py", "other.yaml"])
    with pytest.warns(FutureWarning, match="janus_hf_cli train"):
        train.main()
    assert calls == [["train", "recipe.yaml", "training.max_steps=3"], ["train", "other.yaml"]]


@pytest.mark.parametrize(("arguments", "status"), [([], 2), (["--help"], 0)])
def test_it_explains_itself(arguments, status, capsys):
    with pytest.warns(FutureWarning), pytest.raises(SystemExit) as error:
        train.main(arguments)
    assert error.value.code == status
    captured = capsys.readouterr()
    assert "usage: janus-hf train" in captured.out + captured.err
