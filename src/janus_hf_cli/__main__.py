"""Entry point of `python -m janus_hf_cli COMMAND ...`, which `accelerate launch -m` runs in several processes."""

import sys

from . import main


if __name__ == "__main__":
    sys.exit(main())
