"""What `make demo` runs: a question about a photograph and a drawn prompt, on the embedded model, offline.

The photograph is scikit-image's astronaut (NASA, public domain).
"""

import sys
from pathlib import Path

import skimage.data
from PIL import Image

import janus_hf_cli


FOLDER = Path("janus_hf_demo")
QUESTION = "What is in this picture?"
PROMPT = "a red square above a blue circle"


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    photograph = FOLDER / "astronaut.png"
    Image.fromarray(skimage.data.astronaut()).save(photograph)

    print(f"$ janus-hf ask {photograph} {QUESTION!r} --max-new-tokens 24", flush=True)
    status = janus_hf_cli.main(["ask", str(photograph), QUESTION, "--max-new-tokens", "24"])
    picture = FOLDER / "drawn.png"
    print(f"$ janus-hf draw {PROMPT!r} --output {picture}", flush=True)
    status = status or janus_hf_cli.main(["draw", PROMPT, "--output", str(picture)])
    if status == 0:
        print(f"\nThe photograph that was asked about: {photograph}\nThe picture that was drawn:          {picture}")
    return status


if __name__ == "__main__":
    sys.exit(main())
