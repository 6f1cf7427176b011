"""Run `janus-hf COMMAND ...` as `python -m janus_hf_cli COMMAND ...`; `accelerate launch -m` needs this form."""

import sys

from . import main


if __name__ == "__main__":
    sys.exit(main())
