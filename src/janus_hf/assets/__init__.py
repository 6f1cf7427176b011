"""Path of the small model that ships inside the package, and the note that the command line prints when it uses it.

The command line uses this model when no `--model` is given.
"""

from pathlib import Path


DEFAULT_MODEL = str(Path(__file__).parent / "janus-shapes")
DEFAULT_MODEL_NOTE = (
    "janus-hf: no --model given, using the small embedded one. It knows coloured shapes on a board and nothing else: "
    "draw 'a photo of a red circle and a blue square', or ask about such an image. For the world: "
    "--model deepseek-ai/Janus-Pro-1B"
)
