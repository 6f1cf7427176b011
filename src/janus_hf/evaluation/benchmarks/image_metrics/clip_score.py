"""CLIPScore of pictures that are there already."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from accelerate.utils import gather_object

from ....rewards.rewards import ClipScore
from ...paper import look_up
from ...report import Report
from ...run_folder import environments, processes
from ...sheets import save_sheet
from .image_folders import open_pictures, own_batches


def evaluate_clip_score(pictures: Mapping[Path, str], scorer: ClipScore | None = None) -> Report:
    """How well pictures fit their prompts, by CLIP.

    Args:
        pictures: Prompts by picture: `run_pictures` or `prompted_pictures`.
        scorer: Which CLIP, and how many pictures at a time; by default OpenAI's ViT-L/14.

    Returns:
        `clipscore`, in [0, 100], is the mean of 100 max(cos, 0) over the pictures; rows are pictures. Those that
        cannot be read are in `failures`. How many prompts are longer than CLIP reads is in the protocol.
    """
    scorer = scorer or ClipScore(device=processes().device)
    rows, failures = [], []
    for batch in own_batches(list(pictures), scorer.batch_size, "scoring"):
        images, unread = open_pictures(batch)
        scores = scorer(list(images.values()), [pictures[path] for path in images])
        rows += [
            {"filename": str(path), "prompt": pictures[path], "score": score}
            for path, score in zip(images, scores, strict=True)
        ]
        failures += unread
    rows = sorted(gather_object(rows), key=lambda row: str(row["filename"]))
    metrics = {"clipscore": float(np.mean([row["score"] for row in rows]))} if rows else {}
    sentences = [f"{len(rows)} pictures."]
    prompts = sorted({str(row["prompt"]) for row in rows})
    if cut := sum(scorer.is_cut(prompts)):
        sentences.append(f"{cut} of {len(prompts)} prompts were cut to {scorer.num_tokens} tokens.")
    protocol = " ".join([*sentences, look_up("clipscore").protocol])
    settings = {"clip": scorer.source, "environments": environments(None)}
    return Report("clipscore", metrics, "clipscore", protocol, settings, rows, sorted(gather_object(failures)))


def save_report(report: Report, folder: str | os.PathLike[str]) -> None:
    """The files of `Report.save`, and of CLIPScore `sheet.png` with the best and the worst pictures."""
    report.save(folder)
    scored = [row for row in report.rows if "score" in row]
    if scored:
        columns = [[row[name] for row in scored] for name in ("filename", "prompt", "score")]
        save_sheet(Path(folder), *columns)


__all__ = ["evaluate_clip_score", "save_report"]
