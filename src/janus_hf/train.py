"""Deprecated: `python -m janus_hf.train` warns and runs `janus-hf train`, which takes the same arguments."""

import sys
import warnings
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Warn, then run `janus-hf train` with these arguments (None: those of the process); return its exit status."""
    message = "`python -m janus_hf.train` will be removed: launch `python -m janus_hf_cli train` instead."
    warnings.warn(message, FutureWarning, stacklevel=2)
    import janus_hf_cli

    return janus_hf_cli.main(["train", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
