"""The guides' Python blocks run, their commands parse, their links lead somewhere, their numbers are the package's."""

import re
import shlex
from pathlib import Path

import pytest

import janus_hf_cli
from janus_hf.assets import DEFAULT_MODEL
from janus_hf.evaluation.paper import BENCHMARKS


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


@pytest.mark.slow
def test_the_speed_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks("speed.md"):
        code = re.sub(r'"deepseek-ai/[\w.-]+"', repr(DEFAULT_MODEL), block).replace(
            'dtype="bfloat16"', 'dtype="float32"'
        )
        exec(compile(code, "speed.md", "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_parse_and_links_lead_somewhere(page: Path):
    text = page.read_text(encoding="utf-8")
    parser = janus_hf_cli.make_parser()
    for command in re.findall(r"^janus-hf (.*?)(?:\s{2,}#.*)?$", text, flags=re.MULTILINE):
        parser.parse_args(shlex.split(command))
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (page.parent / link).exists(), link


def test_every_benchmark_has_its_row():
    for name, published in BENCHMARKS.items():
        row = re.search(rf"^\| `janus-hf eval {name}` \| .* \| (.*?) \| .* \|$", EVALUATION, flags=re.MULTILINE)
        assert row, name
        stated = [float(number) for number in re.findall(r"[\d.]+", row[1])]
        assert stated == [scores.get("overall", next(iter(scores.values()))) for scores in published.scores.values()]
