"""Errors, usage and help of all commands, and the command as it is installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from janus_hf import __version__


COMMANDS = ("draw", "ask", "chat", "convert", "info", "prepare", "train", "merge", "eval")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("ask", "nowhere.png", "what?"), "nowhere.png"),
        (("draw", "a", "--model", "/no/such/model"), "/no/such/model"),
        (("ask", "image.png", "what?", "--model", "/no/such/model"), "/no/such/model"),
        (("convert", "/no/such/model", "new", "--layout", "original"), "/no/such/model"),
        (("info", "/no/such/model"), "/no/such/model"),
        (("draw", "a", "--device", "abacus"), "got 'abacus', which cannot be used here"),
        (("draw", "a", "--guidance-scale", "-1"), "must be 0 or more, got -1"),
        (("draw", "a", "-n", "0"), "must be at least 1"),
        (("ask", "image.png", "fox " * 600), "holds 256: there is no room for an answer"),
    ],
)
def test_a_mistake_is_reported_in_one_line(run, image_path, arguments, part):
    status, out, err = run(*arguments)
    assert (status, out) == (1, "")
    assert f"janus-hf {arguments[0]}: " in err
    assert part in err.splitlines()[-1]
    assert "Traceback" not in err


def test_unavailable_hub(run, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    status, _, err = run("draw", "a", "--model", "nobody/no-such-model")
    assert status == 1
    assert "janus-hf draw: " in err


@pytest.mark.parametrize(
    "arguments",
    [(), ("paint",), ("draw",), ("ask", "image.png"), ("convert", "a", "b"), ("draw", "a", "--dtype", "int3")],
)
def test_wrong_usage(run, arguments, capsys):
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    assert error.value.code == 2
    assert "usage: janus-hf" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(run, capsys, command):
    with pytest.raises(SystemExit) as error:
        run(command, "--help")
    assert error.value.code == 0
    assert f"usage: janus-hf {command}" in capsys.readouterr().out


def test_installed_command():
    command = Path(sys.executable).with_name("janus-hf")
    result = subprocess.run([command, "--help"], capture_output=True, text=True, check=True)
    for name in COMMANDS:
        assert f"\n    {name} " in result.stdout
    version = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.strip() == f"janus_hf {__version__}"


def test_help_loads_nothing_heavy():
    """`--help` is fast because it imports neither `janus_hf` nor the libraries below it."""
    code = (
        "import sys, janus_hf_cli; janus_hf_cli.make_parser().format_help(); "
        "print(sorted({name.partition('.')[0] for name in sys.modules} "
        "& {'torch', 'transformers', 'diffusers', 'numpy', 'PIL', 'janus_hf', 'huggingface_hub'}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONSTARTUP": ""},
    )
    assert result.stdout.strip() == "[]"
