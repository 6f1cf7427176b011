"""The model that ships inside the package: what the command line uses when no `--model` is named."""

from pathlib import Path


DEFAULT_MODEL = str(Path(__file__).parent / "tiny-janus-pro")
DEFAULT_MODEL_NOTE = (
    "janus-hf: no --model given, using the tiny embedded one. It is UNTRAINED: its pictures and answers are noise. "
    "For real ones: --model deepseek-ai/Janus-Pro-1B"
)
