"""`accelerate launch -m janus_hf.train recipe.yaml [section.key=value ...]`; the same code as `janus-hf train`."""

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Train a recipe; returns the exit status."""
    path, *overrides = (sys.argv[1:] if argv is None else list(argv)) or [""]
    if path in ("", "-h", "--help"):
        sys.stderr.write(f"{__doc__}\n")
        return 2 if path == "" else 0

    from .training.run import train

    train(path, overrides, report=lambda line: sys.stderr.write(f"{line}\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
