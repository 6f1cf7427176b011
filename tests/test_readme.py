"""The README's Python blocks run, on the model inside the package in place of the released ones."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from janus_hf.assets import DEFAULT_MODEL


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_readme_has_code():
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_readme_block_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code, replaced = re.subn(r'"deepseek-ai/[\w.-]+"', repr(DEFAULT_MODEL), block)
    assert replaced, "every block of the README names a released checkpoint"
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    if "image" in names:
        assert Image.open(tmp_path / "lighthouse.png").size == (64, 64)
    if "images" in names:
        assert [image.size for image in names["images"]] == [(64, 64)] * 2


def test_commands_of_the_readme_exist():
    """Every `janus-hf` line parses, every `make` target exists, every linked file is there."""
    import shlex

    import janus_hf_cli

    commands = re.findall(r"^janus-hf (.*?)(?:\s{2,}#.*)?$", README, flags=re.MULTILINE)
    assert len(commands) >= 5
    parser = janus_hf_cli.make_parser()
    for command in commands:
        parser.parse_args(shlex.split(command))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


def test_golden_table_is_the_one_the_script_measures():
    """Same quantities and limits as `make goldens` prints; the measured deviations differ between machines."""
    import sys

    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import golden_table
    finally:
        sys.path.pop(0)
    rows = list(golden_table.measure())
    for quantity, deviation, allowed in rows:
        assert deviation <= allowed, quantity
        assert re.search(
            rf"^\| {re.escape(quantity)} \| .* \| {f'{allowed:.0e}' if allowed else 'exact'} \|$", README, re.M
        )
    table = README[README.index("| quantity |") :].split("\n\n")[0].splitlines()
    assert len(table) == len(rows) + 2
