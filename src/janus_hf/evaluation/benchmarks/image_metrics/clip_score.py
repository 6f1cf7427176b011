"""CLIPScore, a metric of how well images match their prompts, computed with a CLIP model.

The score of one image has one definition in this package, the reward `rewards.clip.ClipScore`. The metric is the mean
of these scores over the images. torchmetrics' `CLIPScore` gives the same number if no cosine is negative (a test
compares them). It is not called here, because release 1.9 does not accept the outputs of transformers 5, and because
it cuts the end token off long prompts.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ....rewards.clip import ClipScore
from ...paper import look_up
from ...report import Report
from ...run_folder import environments, processes
from ...sharing import share
from ...sheets import save_sheet
from .image_folders import open_pictures


def evaluate_clip_score(pictures: Mapping[Path, str], scorer: ClipScore | None = None) -> Report:
    """Measure how well images match their prompts, and return the report.

    Args:
        pictures: Prompts by path of the image, as `run_pictures` or `prompted_pictures` returns them.
        scorer: CLIP model that computes the scores, and its batch size. None is OpenAI's ViT-L/14.

    Returns:
        The report. Its metric `clipscore`, in [0, 100], is the mean of 100 max(cos, 0) over the images, which are its
        rows. Here cos is the cosine between CLIP's embeddings of image and prompt. Images that cannot be read are in
        `failures`. The protocol states how many prompts are longer than CLIP reads.
    """
    scorer = scorer or ClipScore(device=processes().device)

    def score_batch(batch: Sequence[Path]) -> tuple[list[dict[str, Any]], list[str]]:
        images, unread = open_pictures(batch)
        scores = scorer(list(images.values()), [pictures[path] for path in images])
        return [
            {"filename": str(path), "prompt": pictures[path], "score": score}
            for path, score in zip(images, scores, strict=True)
        ], unread

    rows, failures = share(list(pictures), score_batch, batch_size=scorer.batch_size, title="scoring", unit="image")
    # `share` returns rows process by process; sort them, so that the number of processes does not matter.
    rows.sort(key=lambda row: str(row["filename"]))
    metrics = {"clipscore": float(np.mean([row["score"] for row in rows]))} if rows else {}
    sentences = [f"{len(rows)} images."]
    # Several images may share a prompt, which is counted once.
    prompts = sorted({str(row["prompt"]) for row in rows})
    if cut := sum(scorer.is_cut(prompts)):
        sentences.append(f"{cut} of {len(prompts)} prompts were cut to {scorer.num_tokens} tokens.")
    protocol = " ".join([*sentences, look_up("clipscore").protocol])
    settings = {"clip": scorer.source, "environments": environments(None)}
    return Report("clipscore", metrics, "clipscore", protocol, settings, rows, sorted(failures))


def save_report(report: Report, folder: str | os.PathLike[str]) -> None:
    """Save a report of CLIPScore or FID into a folder; see `Report.save` for the files.

    If the images have scores, also write `sheet.png` with the best and the worst of them.
    """
    report.save(folder)
    scored = [row for row in report.rows if "score" in row]
    if scored:
        columns = [[row[name] for row in scored] for name in ("filename", "prompt", "score")]
        save_sheet(Path(folder), *columns)


__all__ = ["evaluate_clip_score", "save_report"]
