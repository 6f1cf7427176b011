"""Who may import whom (CONTRIBUTING.md, "Who may import whom"), by reading the syntax trees.

Imports inside functions and under `TYPE_CHECKING` count like all others: a reader follows them too.
"""

import ast
from collections.abc import Mapping
from pathlib import Path

import pytest


SOURCE = Path(__file__).parents[1] / "src"
PACKAGE = SOURCE / "janus_hf"

# Rooms of the package, from the bottom up. A room imports rooms of its own layer or of layers below.
LAYERS = (
    {
        "_version",
        "answering",
        "arguments",
        "assets",
        "errors",
        "files",
        "generation",
        "hub",
        "image_grid",
        "layouts",
        "protocols",
        "shapes",
        "summaries",
        "tokenizer",
    },
    {"configuration", "processing", "rewards"},
    {"modeling", "data", "evaluation"},
    {"checkpoints"},
    {"pipelines", "training"},
    {"integrations"},
)
LAYER_OF = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}

# What the layers would allow and must not be, with the reason.
NEVER = {
    ("training", "pipelines"): "training runs without diffusers",
    ("training", "evaluation"): "benchmarks during training come in as callables",
    ("pipelines", "training"): "a user who generates images needs no trainer",
    ("evaluation", "modeling"): "evaluation judges from outside",
    ("evaluation", "data"): "evaluation judges from outside",
    ("data", "modeling"): "data takes the model as an argument",
    ("shapes", "rewards"): "rewards know the shapes world, not the reverse",
    ("layouts", "generation"): "layouts are tables and pure functions",
}
# `janus_hf.train` forwards `python -m janus_hf.train` to the command line for one release.
UPWARD = {("train", "janus_hf_cli")}

# Libraries that a room must not import.
FORBIDDEN = {
    "layouts": {"torch", "PIL", "diffusers", "datasets", "trl"},
    "configuration": {"torch", "PIL", "tokenizers", "diffusers"},
    "generation": {"PIL", "tokenizers", "diffusers", "datasets", "trl"},
    "answering": {"PIL", "tokenizers", "diffusers", "datasets", "trl"},
    "modeling": {"PIL", "tokenizers", "diffusers", "datasets", "trl"},
    "processing": {"diffusers", "datasets", "trl"},
    "data": {"diffusers", "trl"},
    "training": {"diffusers"},
}
# Modules that may share a name: the fixed file names of families.
FAMILY_FILES = {"model.py", "outputs.py", "janus_pro.py", "janus_flow.py"}


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """The room of a module: the name below `janus_hf`, "__init__" for the package itself, else the package's name."""
    package, _, rest = module.partition(".")
    return package if package != "janus_hf" else rest.split(".")[0] or "__init__"


def imports(path: Path) -> set[str]:
    """Absolute names of everything a file imports, wherever in the file."""
    package = module_of(path).split(".")
    package = package if path.stem == "__init__" else package[:-1]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{stem}.{alias.name}" for alias in node.names}
    return names


FILES = sorted(SOURCE.rglob("*.py"))
MODULES = {module_of(path): path for path in FILES}


def imported_modules(path: Path) -> set[str]:
    """Modules of ours that a file imports, without itself."""
    found = set()
    for name in imports(path):
        parts = name.split(".")
        known = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
        module = next((candidate for candidate in known if candidate in MODULES), None)
        if module is not None:
            found.add(module)
    return found - {module_of(path)}


GRAPH = {module: imported_modules(path) for module, path in MODULES.items()}


def circle(graph: Mapping[str, set[str]]) -> list[str] | None:
    """A path that ends where it begins; None if there is none."""
    done: set[str] = set()

    def visit(node: str, trail: list[str]) -> list[str] | None:
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in done:
            return None
        for other in sorted(graph.get(node, ())):
            if found := visit(other, [*trail, node]):
                return found
        done.add(node)
        return None

    return next((found for node in sorted(graph) if (found := visit(node, []))), None)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_downwards(module: str):
    room = room_of(module)
    libraries = {name.split(".")[0] for name in imports(MODULES[module])}
    assert not libraries & (FORBIDDEN.get(room, set()) | {"tests", "scripts", "benchmarks"})
    if room in ("__init__", "janus_hf_cli"):  # these put everything together
        return
    others = {room_of(other) for other in GRAPH[module]} - {room}
    if room == "train":
        assert {(room, other) for other in others} <= UPWARD
        return
    assert room in LAYER_OF, f"add {room} to the layers of this test and to CONTRIBUTING.md"
    upwards = {other for other in others if LAYER_OF.get(other, len(LAYERS)) > LAYER_OF[room]}
    assert not upwards, f"{room} must not import from a layer above its own"
    assert not {pair: NEVER[pair] for other in others if (pair := (room, other)) in NEVER}


def test_the_tables_name_only_what_exists():
    assert set(LAYER_OF) <= {room_of(module) for module in MODULES}
    assert {room for pair in NEVER for room in pair} | set(FORBIDDEN) <= set(LAYER_OF)


def test_there_is_no_circle_of_files():
    assert circle(GRAPH) is None


def test_there_is_no_circle_of_rooms():
    rooms: dict[str, set[str]] = {}
    for module, others in GRAPH.items():
        rooms.setdefault(room_of(module), set()).update(room_of(other) for other in others)
    assert circle({room: others - {room} for room, others in rooms.items() if room != "__init__"}) is None


def test_circles_would_be_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


def test_no_two_modules_share_a_name():
    names = [
        path.name for path in FILES if path.stem not in ("__init__", "__main__") and path.name not in FAMILY_FILES
    ]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}), ids=lambda path: path.name)
def test_a_folder_holds_at_most_twelve_files(folder: Path):
    assert len([path for path in folder.glob("*.py") if path.stem not in ("__init__", "__main__")]) <= 12


def test_files_are_short():
    sources = [*FILES, *SOURCE.rglob("*.cpp")]
    lengths = sorted(len(path.read_text(encoding="utf-8").splitlines()) for path in sources)
    assert lengths[-1] <= 400
    assert lengths[len(lengths) // 2] <= 160


def files_with(*words: str) -> set[str]:
    """Files of the package in which every one of the words stands."""
    texts = {path: path.read_text(encoding="utf-8") for path in FILES}
    return {path.relative_to(SOURCE).as_posix() for path, text in texts.items() if all(word in text for word in words)}


def test_conversations_are_answered_in_one_place():
    assert files_with(".apply_chat_template(", ".generate(") == {"janus_hf/answering.py"}


def test_the_work_of_a_run_is_shared_in_one_place():
    assert files_with("gather_object(") == {"janus_hf/evaluation/sharing.py"}
    assert files_with(".process_index ::") == {"janus_hf/evaluation/sharing.py"}


@pytest.mark.parametrize("path", sorted((SOURCE / "janus_hf_cli").glob("*.py")), ids=lambda path: path.stem)
def test_the_command_line_imports_inside_its_handlers(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    modules = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in top if isinstance(node, ast.ImportFrom) and not node.level}
    assert {module.split(".")[0] for module in modules} <= {
        "argparse", "collections", "importlib", "os", "pathlib", "re", "sys", "typing",
    }  # fmt: skip
