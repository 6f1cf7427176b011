"""`accelerate launch -m janus_hf_cli eval ...`: the command in several processes."""

import sys

from . import main


if __name__ == "__main__":
    sys.exit(main())
