"""The guides' Python blocks run, their commands parse, their links lead somewhere, their numbers are the package's."""

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

import janus_hf_cli
from janus_hf.assets import DEFAULT_MODEL
from janus_hf.evaluation.benchmarks.image_metrics import PICTURE_METRICS
from janus_hf.evaluation.evaluators import KNOWN
from janus_hf.evaluation.paper import BENCHMARKS
from janus_hf.training.recipes import load_recipe


ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
EVALUATION = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_evaluation_page_runs(tmp_path, monkeypatch):
    """Its blocks build on each other."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks("evaluation.md"):
        exec(compile(block, "evaluation.md", "exec"), names)
    assert (tmp_path / "runs" / "shapes-geneval" / "report.json").is_file()


def test_the_prompts_page_runs():
    names: dict[str, object] = {}
    for block in blocks("prompts.md"):
        code = block.replace('"deepseek-ai/Janus-Pro-1B"', repr(str(DEFAULT_MODEL)))
        exec(compile(code, "prompts.md", "exec"), names)
    assert names["by_role"] != names["as_the_original"]
    assert all(names["batch"][key].equal(names["same"][key]) for key in names["batch"])


@pytest.mark.slow
def test_the_speed_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks("speed.md"):
        code = re.sub(r'"deepseek-ai/[\w.-]+"', repr(DEFAULT_MODEL), block).replace(
            'dtype="bfloat16"', 'dtype="float32"'
        )
        exec(compile(code, "speed.md", "exec"), names)


@pytest.mark.slow
def test_the_training_page_runs(tmp_path, monkeypatch):
    """Its blocks train a single step of the small model on one image."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CI", "1")
    (tmp_path / "my-pictures").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "my-pictures" / "0.png")
    row = {"file_name": "0.png", "prompt": "a photo of a red square"}
    (tmp_path / "my-pictures" / "metadata.jsonl").write_text(json.dumps(row), encoding="utf-8")
    name = '"deepseek-ai/Janus-Pro-1B"'
    changes = {f"{name})": f'{name}, dtype="float32")', "500": "1", "1024": "256", name: repr(str(DEFAULT_MODEL))}
    names: dict[str, object] = {}
    for block in blocks("training.md")[:2]:
        for old, new in changes.items():
            block = block.replace(old, new)
        exec(compile(block, "training.md", "exec"), names)
    for run in ("pictures", "trainer"):
        assert (tmp_path / "runs" / run / "adapter_model.safetensors").is_file()


def written_commands(text: str) -> list[list[str]]:
    """Arguments of what is there to be run: in code blocks, and in the first cells of tables."""
    fenced = [block.replace("\\\n", " ") for block in re.findall(r"^```bash\n(.*?)^```", text, flags=re.M | re.S)]
    lines = [line for block in fenced for line in block.splitlines()]
    cells = re.findall(r"^\| `([^`]*)` \|", text, flags=re.MULTILINE)
    return [command for line in lines + cells if (command := arguments_of(line)) is not None]


def mentioned_commands(text: str) -> list[list[str]]:
    """The same of code within sentences: it may leave out arguments, or end in dots."""
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    found = [command for span in spans if (command := arguments_of(span)) is not None]
    return [[word for word in command if word != "..."] for command in found if "COMMAND" not in command]


def arguments_of(line: str) -> list[str] | None:
    """What the parser gets of a line; None of lines that are no `janus-hf`."""
    words = shlex.split(line, comments=True) if "janus" in line else []
    if words[:1] == ["janus-hf"]:
        return words[1:]
    return words[words.index("janus_hf_cli") + 1 :] if "janus_hf_cli" in words else None


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_commands_parse(page: Path, capsys: pytest.CaptureFixture):
    text, parser = page.read_text(encoding="utf-8"), janus_hf_cli.make_parser()
    for command in written_commands(text):
        parser.parse_args(command)
    for command in mentioned_commands(text):
        try:
            parser.parse_args(command)
        except SystemExit:
            assert "the following arguments are required" in capsys.readouterr().err, command
            with pytest.raises(SystemExit):
                parser.parse_args([*command[: 1 + (command[0] == "eval")], "--help"])
            options = {word for word in command if word.startswith("-")}
            assert options <= set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", capsys.readouterr().out)), command


def test_recipes_of_the_training_page_load():
    """With the changes that the commands make, such as a mix of real and synthetic images."""
    commands = written_commands((ROOT / "docs" / "training.md").read_text(encoding="utf-8"))
    recipes = [load_recipe(ROOT / command[1], command[2:]) for command in commands if command[0] == "train"]
    assert len(recipes) >= 4
    mixed = {"understanding": 4, "text": 6, "real": 5, "synthetic": 5}
    assert mixed in [recipe.ratios for recipe in recipes]


def test_commands_are_found_and_wrong_ones_would_be(capsys: pytest.CaptureFixture):
    text = "\n".join(
        [
            "```bash", "janus-hf info x   # said of x", "accelerate launch -m janus_hf_cli eval \\", "  imagenet",
            "ls", "```", "| `janus-hf draw --colour` | a row |", "| see `janus-hf ask` | `janus-hf chat ...` |",
        ]
    )  # fmt: skip
    assert written_commands(text) == [["info", "x"], ["eval", "imagenet"], ["draw", "--colour"]]
    assert mentioned_commands(text) == [["draw", "--colour"], ["ask"], ["chat"]]
    for command in (["eval", "imagenet"], ["draw", "a", "--colour"]):
        with pytest.raises(SystemExit):
            janus_hf_cli.make_parser().parse_args(command)
        assert "the following arguments are required" not in capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path):
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"`make ([a-z-]+)`", page.read_text(encoding="utf-8")):
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), (page.name, target)


def test_every_benchmark_has_its_row():
    rows = {command[1] for command in written_commands(EVALUATION) if command[0] == "eval"}
    assert rows == {*BENCHMARKS, "report"} == {*KNOWN, *PICTURE_METRICS, "report"}
    for name, published in BENCHMARKS.items():
        row = re.search(rf"^\| `janus-hf eval {name}\b[^`]*` \| .* \| (.*?) \| .* \|$", EVALUATION, flags=re.MULTILINE)
        assert row, name
        stated = [float(number) for number in re.findall(r"[\d.]+", row[1])]
        assert stated == [scores.get("overall", next(iter(scores.values()))) for scores in published.scores.values()]


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/where_to_change.md"])
def test_named_files_exist(page: str):
    """Paths in backticks, from the repository's root, `src/` or `src/janus_hf/`."""
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:[\w.-]+/)+[\w.-]*|[a-z_]+\.(?:py|md))`", text))
    assert len(named) > 5
    starts = (ROOT, ROOT / "src", ROOT / "src" / "janus_hf")
    assert not [path for path in named if not any((start / path).exists() for start in starts)]


def test_the_map_names_what_is_there():
    """Every room of the package stands in the tree of CONTRIBUTING.md, and nothing else."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tree = text[text.index("src/janus_hf/\n") : text.index("src/janus_hf_cli/")]
    named = set(re.findall(r"^  ([\w.]+/?) ", tree, flags=re.MULTILINE))
    package = ROOT / "src" / "janus_hf"
    rooms = {f"{path.name}/" for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"}
    files = {path.name for path in package.glob("*.py")} - {"_version.py", "train.py"}
    assert named == rooms | files
