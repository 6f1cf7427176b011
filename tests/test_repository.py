"""What contributors rely on besides the code: one version of ruff, workflows that call make targets, templates."""

import re
from pathlib import Path

import pytest
import yaml

import janus_hf_cli
from janus_hf import __version__


ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SUFFIXES = (".py", ".cpp", ".md")
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def test_pre_commit_runs_the_same_ruff():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    [revision] = [repo["rev"] for repo in hooks["repos"] if "ruff" in repo["repo"]]
    assert f"ruff=={revision.removeprefix('v')}\n" in (ROOT / "constraints.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_make_targets_that_exist(path: Path):
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
    targets = {target for job in jobs for target in job["strategy"]["matrix"]["target"]}
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", MAKEFILE, flags=re.MULTILINE), target
    for job in jobs:
        assert [step["run"] for step in job["steps"] if "run" in step] == ["make ${{ matrix.target }}"]


def test_pull_requests_are_linted_typed_tested_and_built():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "check.yml").read_text(encoding="utf-8"))["jobs"]
    assert set(jobs["make"]["strategy"]["matrix"]["target"]) == {"lint", "types", "test", "build"}


def test_issue_templates_ask_for_the_environment():
    forms = {path.stem: path.read_text(encoding="utf-8") for path in TEMPLATES}
    assert set(forms) == {"bug", "feature", "config"}
    for name in ("bug", "feature"):
        assert yaml.safe_load(forms[name])["body"]
        assert "`janus-hf info --environment`" in forms[name]
    janus_hf_cli.make_parser().parse_args(["info", "--environment"])


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["license"] == "Apache-2.0"
    titles = [reference["title"] for reference in citation["references"]]
    assert any(title.startswith("Janus-Pro:") for title in titles)


@pytest.mark.parametrize("word", ["so many", "whoever", "nobody"])
def test_sentences_have_a_subject(word: str):
    """Words that hide who does what to which object (CONTRIBUTING.md, "Prose")."""
    sources = [
        path
        for folder in ("src", "docs")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".cpp", ".md")
    ]
    assert not [
        path.relative_to(ROOT).as_posix() for path in sources if word in path.read_text(encoding="utf-8").lower()
    ]
