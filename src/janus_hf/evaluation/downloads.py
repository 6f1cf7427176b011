"""The benchmarks' own data: downloaded once, checked, or named to the user. None of it is part of this package."""

import hashlib
import os
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

from huggingface_hub.constants import HF_HOME
from huggingface_hub.utils import WeakFileLock
from tqdm.auto import tqdm

from .paper import look_up


_TSV = "https://opencompass.openxlab.space/utils/"
_TIMEOUT = 60  # seconds without a byte
_PIECE = 1 << 20

# Address, and the MD5 sum that VLMEvalKit publishes for it. VLMEvalKit has moved some tables (MMBench and SEED-Bench
# from VLMEval/ to benchmarks/), with the sums unchanged. Of ELLA no commit that has the file is on record, so its main
# branch it is; a run refuses to go on with other content than it began with.
SOURCES: dict[str, tuple[str, str | None]] = {
    "geneval": (
        "https://raw.githubusercontent.com/djghosh13/geneval/d927da8e42fde2b1b5cd743da4df5ff83c1654ff/"
        "prompts/evaluation_metadata.jsonl",
        None,
    ),
    "dpg": ("https://raw.githubusercontent.com/TencentQQGYLab/ELLA/main/dpg_bench/dpg_bench.csv", None),
    "pope": (_TSV + "VLMEval/POPE.tsv", "c12f5acb142f2ef1f85a26ba2fbe41d5"),
    "mme": (_TSV + "VLMEval/MME.tsv", "b36b43c3f09801f5d368627fb92187c3"),
    "mmbench": (_TSV + "benchmarks/MMBench/MMBench_DEV_EN.tsv", "b6caf1133a01c6bb705cf753bb527ed8"),
    "seed": (_TSV + "benchmarks/SEEDBench/SEEDBench_IMG.tsv", "68017231464752261a2526d6ca3a10c0"),
    "gqa": (_TSV + "VLMEval/GQA_TestDev_Balanced.tsv", "99b62f22e224d9b2f32dcbe41359d1c9"),
    "mmmu": (_TSV + "VLMEval/MMMU_DEV_VAL.tsv", "585e8ad75e73f75dcad265dfd0417d64"),
    "mmvet": (_TSV + "VLMEval/MMVet.tsv", "748aa6d4aa9d4de798306a63718455e3"),
}


def find_data(benchmark: str, path: str | os.PathLike[str] | None = None) -> Path:
    """The benchmark's data file: the user's own, or the published one, downloaded into the Hugging Face cache.

    The processes of a node wait for each other at a file lock, not at a barrier, which would time out during a long
    download. A file of the user's own is not checked.

    Args:
        benchmark: Its name.
        path: A file or folder that the user has.

    Raises:
        FileNotFoundError: If there is nothing at the path, the benchmark's licence forbids handing its data on, or the
            download fails; says where to get it.
        ValueError: If the published file has not the checksum on record. The file is kept.
    """
    published = look_up(benchmark)
    if path is not None:
        if not Path(path).exists():
            raise FileNotFoundError(f"There is no {path}. The data of {published.title}: {published.data}.")
        return Path(path)
    if benchmark not in SOURCES:
        raise FileNotFoundError(f"Get the data of {published.title} ({published.data}) and name it with --data.")
    url, checksum = SOURCES[benchmark]
    target = Path(HF_HOME, "janus_hf", url.partition("://")[2])  # another address is another file
    target.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(f"{target}.lock"):
        if not target.is_file():
            try:
                _download(url, target)
            except (OSError, HTTPException) as error:
                raise FileNotFoundError(
                    f"{url} could not be downloaded ({error}). Get the data of {published.title} by hand "
                    f"({published.data}) and name it with --data FILE, or put it at {target}."
                ) from error
    if checksum is not None and (found := md5(target)) != checksum:
        raise ValueError(
            f"Expected {target} to have the MD5 sum {checksum}, which is on record for {published.title}; found "
            f"{found}. The file was kept: delete it to download it again, or name it with --data to use it as it is; "
            "scores may then not be comparable."
        )
    return target


def _download(url: str, target: Path) -> None:
    """Fetch a file; what is at `target` afterwards is whole.

    Raises:
        OSError: If the server does not give it, or not to its end.
    """
    partial = target.with_name(f"{target.name}.part")
    with urlopen(Request(url, headers={"User-Agent": "janus_hf"}), timeout=_TIMEOUT) as response:
        length = int(response.headers.get("Content-Length") or 0)
        bar = tqdm(total=length or None, unit="B", unit_scale=True, desc=target.name)
        with partial.open("wb") as file, bar:
            while piece := response.read(_PIECE):
                file.write(piece)
                bar.update(len(piece))
    size = partial.stat().st_size
    if length and size != length:
        raise OSError(f"{size} of {length} bytes came")
    os.replace(partial, target)


def md5(path: Path) -> str:
    """MD5 sum of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


__all__ = ["SOURCES", "find_data", "md5"]
