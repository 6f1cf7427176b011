"""Path of the small model that ships inside the package, and the note that the command line prints when it uses it.

The command line uses this model when no `--model` is given. In Python its folder is `DEFAULT_MODEL`:

    JanusProPipeline.from_pretrained(DEFAULT_MODEL)

It knows coloured shapes on a board and nothing else, and it was trained on prompts of one form: "a photo of a red
circle", "a photo of a red circle and a blue square". The images that it generates for other prompts do not fit them.
"""

from pathlib import Path


DEFAULT_MODEL = str(Path(__file__).parent / "janus-shapes")
DEFAULT_MODEL_NOTE = (
    "janus-hf: no --model given, using the small embedded one. It knows coloured shapes on a board and nothing else, "
    "and its prompts begin with 'a photo of': draw 'a photo of a red circle and a blue square', or ask about such an "
    "image. For the world: --model deepseek-ai/Janus-Pro-1B"
)
