"""`python -m benchmarks`: what there is to measure."""

import importlib


NAMES = ("drawing", "codec", "quality", "training", "load")

if __name__ == "__main__":
    for name in NAMES:
        text = importlib.import_module(f".{name}", __package__).__doc__ or ""
        print(f"python -m benchmarks.{name}\n    {text.strip().splitlines()[0]}\n")
