"""`docs/data.md` is correct: its tables are complete, its rows can be prepared and its commands parse."""

import io
import re
import shlex
import tarfile
from pathlib import Path

import pytest

import janus_hf.data
from janus_hf.data import ADAPTERS, prepare_rows
from janus_hf.data.reading.tables import FORMATS
from janus_hf_cli import make_parser


PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
SECTIONS = [section.split("\n## ")[0] for section in PAGE.split("\n### `")[1:]]
EXAMPLES = {section.split("`")[0]: section.split("```jsonl\n")[1].split("```")[0] for section in SECTIONS}


def table(heading: str) -> list[str]:
    """Return the names in the first column of the table under a heading of the page."""
    return re.findall(r"^\| `(\w+)` \|", PAGE[PAGE.index(heading) :].split("\n\n## ")[0], flags=re.MULTILINE)


def test_every_adapter_has_its_row_and_its_example():
    assert table("## What a row may look like") == list(ADAPTERS) == list(EXAMPLES)


@pytest.mark.parametrize("name", ADAPTERS)
def test_examples_can_be_prepared(name, make_image, model, processor, tmp_path):
    make_image(1).save(tmp_path / "photo.jpg")
    (tmp_path / "rows.jsonl").write_text(EXAMPLES[name])
    prepared = prepare_rows(
        tmp_path / "rows.jsonl", model, processor, adapter="describe" if name == "describe" else None
    )
    assert (prepared.meta["adapter"], prepared.meta["skipped"]) == (name, {})
    assert len(prepared) == len(EXAMPLES[name].strip().splitlines())
    assert set(prepared.tasks) <= ({ADAPTERS[name].task} if ADAPTERS[name].task else {"understanding", "text"})


def test_every_reason_to_skip_is_listed():
    folder = Path(janus_hf.data.__file__).parent
    code = "".join(path.read_text(encoding="utf-8") for path in folder.rglob("*.py"))
    reasons = set(re.findall(r'RowError\(\s*"(\w+)"', code))
    assert len(reasons) > 5
    assert set(table("## What is skipped")) == reasons


def test_its_commands_parse():
    lines = [line for line in PAGE.splitlines() if line.startswith("janus-hf ")]
    assert len(lines) == 3
    for line in lines:
        make_parser().parse_args(shlex.split(line)[1:])


SECTION = PAGE[PAGE.index("## Folders and") : PAGE.index("## What is skipped")]
FORMS = re.findall(r"^\| `(\w+)` \| (.*) \| `(.+)` \|$", SECTION, flags=re.MULTILINE)
FOLDERS = [form for form in FORMS if form[2] in ADAPTERS]
REFUSED = [form for form in FORMS if form[2] not in ADAPTERS]


def files_of(holds):
    """Return the pairs (name, content or "") of the files that a row of a table of folders names."""
    return [tuple(pair) for pair in re.findall(r"`([^`]+)`(?: with `([^`]+)`)?", holds)]


def write_files(files, folder, make_image):
    """Write files, given as (name, content), where an image has no content."""
    for name, content in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if content:
            (folder / name).write_text(content.replace("\\n", "\n"))
        else:
            make_image(1).save(folder / name)


@pytest.mark.parametrize(("form", "holds", "adapter"), FOLDERS, ids=[form for form, _, _ in FOLDERS])
def test_folders_can_be_prepared(form, holds, adapter, make_image, model, processor, tmp_path):
    files = files_of(holds)
    if form == "archive":
        make_image(1).save(tmp_path / "image.jpg")
        contents = {".jpg": (tmp_path / "image.jpg").read_bytes(), ".txt": b"a lighthouse", ".json": b'{"width": 70}'}
        (tmp_path / "image.jpg").unlink()
        with tarfile.open(tmp_path / files[0][0], "w") as archive:
            for name, _ in files[1:]:
                info = tarfile.TarInfo(name)
                info.size = len(contents[Path(name).suffix])
                archive.addfile(info, io.BytesIO(contents[Path(name).suffix]))
        files = []
    write_files(files, tmp_path, make_image)
    prepared = prepare_rows(tmp_path, model, processor)
    count = {"classes": 2, "metadata_of_folders": 2}.get(form, 10 if "10_" in holds else 1)
    assert (prepared.meta["adapter"], len(prepared), prepared.meta["skipped"]) == (adapter, count, {})


@pytest.mark.parametrize(("form", "holds", "name"), REFUSED, ids=[form for form, _, _ in REFUSED])
def test_folders_are_refused_by_name(form, holds, name, make_image, model, processor, tmp_path):
    write_files(files_of(holds), tmp_path, make_image)
    with pytest.raises(ValueError, match=f"got '{name}', which are .*--ignore '{name}'"):
        prepare_rows(tmp_path, model, processor)
    assert len(prepare_rows(tmp_path, model, processor, ignore=[name])) == (10 if "10_" in holds else 1)


def test_every_folder_form_is_there():
    assert (len(FOLDERS), len(REFUSED)) == (16, 7)


def test_all_formats_of_files_are_listed():
    head = PAGE[: PAGE.index("`janus-hf prepare`")]
    assert set(re.findall(r"`(\.\w+)`", head)) == set(FORMATS) - {".ndjson", ".tgz"}
