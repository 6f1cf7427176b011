"""The benchmarks' own data: downloaded once, checked, or named to the user. None of it is part of this package."""

import hashlib
import os
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HOME
from transformers.utils import logging

from .folder import processes
from .paper import look_up


logger = logging.get_logger(__name__)

_TSV = "https://opencompass.openxlab.space/utils/VLMEval/"

# Address, and the MD5 sum that VLMEvalKit publishes for it.
SOURCES: dict[str, tuple[str, str | None]] = {
    "geneval": ("https://raw.githubusercontent.com/djghosh13/geneval/main/prompts/evaluation_metadata.jsonl", None),
    "dpg": ("https://raw.githubusercontent.com/TencentQQGYLab/ELLA/main/dpg_bench/dpg_bench.csv", None),
    "pope": (_TSV + "POPE.tsv", "c12f5acb142f2ef1f85a26ba2fbe41d5"),
    "mme": (_TSV + "MME.tsv", "b36b43c3f09801f5d368627fb92187c3"),
    "mmbench": (_TSV + "MMBench_DEV_EN.tsv", "b6caf1133a01c6bb705cf753bb527ed8"),
    "seed": (_TSV + "SEEDBench_IMG.tsv", "68017231464752261a2526d6ca3a10c0"),
    "gqa": (_TSV + "GQA_TestDev_Balanced.tsv", "99b62f22e224d9b2f32dcbe41359d1c9"),
    "mmmu": (_TSV + "MMMU_DEV_VAL.tsv", "585e8ad75e73f75dcad265dfd0417d64"),
    "mmvet": (_TSV + "MMVet.tsv", "748aa6d4aa9d4de798306a63718455e3"),
}


def find_data(benchmark: str, path: str | os.PathLike[str] | None = None) -> Path:
    """The benchmark's data file: the user's own, or the published one, downloaded into the Hugging Face cache.

    Args:
        benchmark: Its name.
        path: A file or folder that the user has.

    Raises:
        FileNotFoundError: If there is nothing at the path, the benchmark's licence forbids handing its data on, or the
            download fails; says where to get it.
    """
    published = look_up(benchmark)
    if path is not None:
        if not Path(path).exists():
            raise FileNotFoundError(f"There is no {path}. The data of {published.title}: {published.data}.")
        return Path(path)
    if benchmark not in SOURCES:
        raise FileNotFoundError(f"Get the data of {published.title} ({published.data}) and name it with --data.")
    url, checksum = SOURCES[benchmark]
    target = Path(HF_HOME) / "janus_hf" / Path(url).name
    with processes().local_main_process_first():
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(url, str(target), progress=processes().is_local_main_process)
            except OSError as error:
                raise FileNotFoundError(
                    f"{url} could not be downloaded ({error}). Get the data of {published.title} by hand "
                    f"({published.data}) and name it with --data."
                ) from error
    if checksum is not None and md5(target) != checksum:
        logger.warning(
            "%s is not the version of %s whose checksum is on record: scores may not be comparable. Delete it to "
            "download it again.",
            target,
            published.title,
        )
    return target


def md5(path: Path) -> str:
    """MD5 sum of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


__all__ = ["SOURCES", "find_data", "md5"]
