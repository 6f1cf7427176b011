"""Our own objects are typed: `Any` hides from reader, editor and type checker what a parameter is."""

import ast
from pathlib import Path

import pytest


SOURCE = Path(__file__).parents[1] / "src"
OURS = ("model", "pipe", "pipeline", "processor", "config")  # names of parameters that hold this package's objects
ALLOWED = 20


def is_any(annotation: ast.expr | None) -> bool:
    """Whether an annotation is missing, `Any`, or a union with `Any`."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    if isinstance(annotation, ast.BinOp):
        return is_any(annotation.left) or is_any(annotation.right)
    return annotation is None or (isinstance(annotation, ast.Name) and annotation.id == "Any")


def untyped_parameters(source: str) -> list[tuple[int, str]]:
    """Line and name of every parameter in `OURS` whose annotation says nothing."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            found += [(one.lineno, one.arg) for one in parameters if one.arg in OURS and is_any(one.annotation)]
    return found


def all_untyped() -> list[tuple[Path, int, str]]:
    return [
        (path, line, name)
        for path in sorted(SOURCE.rglob("*.py"))
        for line, name in untyped_parameters(path.read_text(encoding="utf-8"))
    ]


def test_few_parameters_are_any():
    assert len(all_untyped()) <= ALLOWED


def test_each_of_them_gives_its_reason():
    """In a comment on its line: `model: Any,  # Any: ...`."""
    without = [
        f"{path.relative_to(SOURCE)}:{line} {name}"
        for path, line, name in all_untyped()
        if "# Any: " not in path.read_text(encoding="utf-8").splitlines()[line - 1]
    ]
    assert not without


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(model: Any, other: Any): ...", ["model"]),
        ("def f(self, *, pipe: 'Any' = None): ...", ["pipe"]),
        ("def f(config: dict[str, Any]): ...", []),
        ("def f(processor): ...", ["processor"]),
        ("def f(processor: Any | None = None): ...", ["processor"]),
        ("def f(model: PreTrainedModel, config: 'JanusProConfig'): ...", []),
    ],
)
def test_untyped_parameters_are_found(source: str, expected: list[str]):
    assert [name for _, name in untyped_parameters(source)] == expected
