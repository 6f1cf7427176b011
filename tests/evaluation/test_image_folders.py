"""Finding the images of a run, of a folder, and of a folder with prompts."""

import pytest
from image_files import write, write_run

from janus_hf.evaluation.benchmarks.image_metrics import (
    folder_pictures,
    prompted_pictures,
    reference_pictures,
    run_pictures,
)


def test_a_run_is_read_in_the_official_layout(tmp_path):
    run = write_run(tmp_path / "run", ["a cat", "a dog"])
    read = {path.relative_to(run).as_posix(): prompt for path, prompt in run_pictures(run).items()}
    assert read == {
        "00000/samples/0000.png": "a cat",
        "00000/samples/0001.png": "a cat",
        "00001/samples/0000.png": "a dog",
        "00001/samples/0001.png": "a dog",
    }
    with pytest.raises(ValueError, match="must hold images alone, but holds a run"):
        folder_pictures(run)
    assert reference_pictures(run) == list(run_pictures(run))
    assert reference_pictures(run / "00001" / "samples") == folder_pictures(run / "00001" / "samples")
    (run / "00001/samples/0001.png").unlink()
    with pytest.raises(ValueError, match="00001 must have 2 images as other prompts have, got 1: the run was stopped"):
        run_pictures(run)
    (run / "00001/samples/0000.png").unlink()
    with pytest.raises(ValueError, match="00001 must have 2 images .* got 0"):
        run_pictures(run)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="must be the folder of a run"):
        run_pictures(tmp_path / "empty")
    (run / "00001/metadata.jsonl").write_text("[]\n")
    write(run / "00001/samples", 2, seed=0)
    with pytest.raises(ValueError, match=r"00001.metadata.jsonl must have an object with 'prompt'"):
        run_pictures(run)


def test_a_folder_is_read_with_its_prompts(tmp_path):
    images = [*write(tmp_path / "a", 1, seed=0), *write(tmp_path / "a" / "b", 1, seed=1)]
    (tmp_path / "a" / "note.txt").write_text("no image")
    assert folder_pictures(tmp_path / "a") == images
    with pytest.raises(FileNotFoundError, match="needs a prompt for every image"):
        prompted_pictures(tmp_path / "a")
    lines = tmp_path / "a" / "metadata.jsonl"
    lines.write_text('{"file_name": "0000.png", "prompt": "a cat"}\n')
    with pytest.raises(ValueError, match=r"no line for 1 of 2 images, such as 0000.png"):
        prompted_pictures(tmp_path / "a")
    lines.write_text(lines.read_text() + '\n{"file_name": "b/0000.png", "caption": "a dog"}\n')
    assert prompted_pictures(tmp_path / "a") == dict(zip(images, ["a cat", "a dog"], strict=True))
    for line in ('{"file_name": "0000.png", "label": 3}', '{"prompt": "a cat"}', "no JSON", "[]"):
        lines.write_text(f"{line}\n")
        with pytest.raises(ValueError, match="line 1 must be (an object with 'file_name'|JSON)"):
            prompted_pictures(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="found none"):
        folder_pictures(tmp_path / "none")
