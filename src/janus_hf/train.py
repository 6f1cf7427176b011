"""The deprecated command `python -m janus_hf.train`: it warns and runs `janus-hf train` with the same arguments."""

import sys
import warnings
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Warn, then run `janus-hf train` with these arguments (None: the process's own) and return its exit status."""
    message = "`python -m janus_hf.train` will be removed: launch `python -m janus_hf_cli train` instead."
    warnings.warn(message, FutureWarning, stacklevel=2)
    import janus_hf_cli

    return janus_hf_cli.main(["train", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
