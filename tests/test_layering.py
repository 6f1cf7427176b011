"""Who may import whom (CONTRIBUTING.md), by reading the syntax trees."""

import ast
from pathlib import Path

import pytest


SOURCE = Path(__file__).parents[1] / "src"
PACKAGE = SOURCE / "janus_hf"

# What the modules of a part may import of ours, besides their own part. `modeling` takes the drawing loop from
# `generation` as a mixin, as transformers' models take GenerationMixin.
ALLOWED = {
    "_version": set(),
    "errors": set(),
    "assets": set(),
    "configuration": {"errors"},
    "generation": {"configuration", "errors"},
    "modeling": {"configuration", "errors", "generation"},
    "processing": {"configuration", "errors"},
    "checkpoints": {"configuration", "errors", "modeling", "processing"},
    "pipelines": {"checkpoints", "configuration", "errors", "generation", "modeling", "processing"},
    "data": {"configuration", "errors", "processing", "_version"},
    "rewards": {"_version", "errors", "shapes"},
    "shapes": set(),
    "integrations": {"evaluation", "pipelines"},
    "evaluation": {"_version", "rewards", "configuration", "errors", "pipelines", "data", "shapes"},
    "training": {"checkpoints", "configuration", "data", "errors", "generation", "modeling", "processing"},
    "train": {"training"},
    "__init__": None,  # puts everything together
}
# Libraries that a part must not know of.
FORBIDDEN = {
    "configuration": {"torch", "PIL", "tokenizers", "diffusers"},
    "generation": {"PIL", "tokenizers", "diffusers", "datasets", "trl"},
    "modeling": {"PIL", "tokenizers", "diffusers", "datasets", "trl"},
    "processing": {"diffusers", "datasets", "trl"},
    "data": {"diffusers", "trl"},
    "training": {"diffusers"},
}


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Absolute names of everything a file imports, wherever in the file."""
    package = ("janus_hf", *path.relative_to(PACKAGE).parts[:-1])
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{stem}.{alias.name}" for alias in node.names}
    return names


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_upwards(path: Path):
    part = part_of(path)
    assert part in ALLOWED, f"add {part} to the table of this test and to CONTRIBUTING.md"
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("janus_hf.")}
    if ALLOWED[part] is not None:
        assert ours - {part} <= ALLOWED[part]
    libraries = {name.split(".")[0] for name in imports(path)}
    assert not libraries & (FORBIDDEN.get(part, set()) | {"janus_hf_cli", "tests", "scripts", "benchmarks"})


def test_the_table_names_only_what_exists():
    existing = {part_of(path) for path in FILES}
    planned = {"data", "training", "train"}
    assert set(ALLOWED) - planned <= existing


@pytest.mark.parametrize("path", sorted((SOURCE / "janus_hf_cli").glob("*.py")), ids=lambda path: path.stem)
def test_the_command_line_imports_inside_its_handlers(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    modules = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in top if isinstance(node, ast.ImportFrom) and not node.level}
    assert {module.split(".")[0] for module in modules} <= {
        "argparse", "collections", "importlib", "os", "pathlib", "re", "sys", "typing",
    }  # fmt: skip
