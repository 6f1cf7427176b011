"""Print the command and the purpose of every benchmark: `python -m benchmarks`."""

import ast
from pathlib import Path


NAMES = ("drawing", "codec", "quality", "prepare", "training", "load", "gpu")

if __name__ == "__main__":
    for name in NAMES:
        # The files are parsed instead of imported, because importing all benchmarks takes seconds.
        folder = Path(__file__).parent
        file = folder / name / "__main__.py" if (folder / name).is_dir() else folder / f"{name}.py"
        source = file.read_text(encoding="utf-8")
        text = ast.get_docstring(ast.parse(source)) or ""
        print(f"python -m benchmarks.{name}\n    {text.splitlines()[0]}\n")
