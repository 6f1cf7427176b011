"""Find the data of benchmarks: download the published file into the cache, or tell the user where to get it.

The data are not part of this package.
"""

import os
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

from huggingface_hub.constants import HF_HOME
from huggingface_hub.utils import WeakFileLock
from tqdm.auto import tqdm

from ..files import atomic_path, hash_file
from .paper import look_up


_TSV = "https://opencompass.openxlab.space/utils/"
_TIMEOUT = 60  # seconds to wait for the server's next bytes
_CHUNK = 1 << 20  # bytes read at a time

# By benchmark, the URL of its data file and the MD5 sum that VLMEvalKit publishes for it, or None. VLMEvalKit has
# moved some tables (MMBench and SEED-Bench from VLMEval/ to benchmarks/) with the sums unchanged. DPG-Bench's file is
# in the repository ELLA, of which no commit is known to have it, so its URL is that of the main branch; a run whose
# data file has changed since it began is refused.
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
    """Return the path of a benchmark's data: `path` if it is given, otherwise the published file in the cache.

    The published file is downloaded into the Hugging Face cache if it is not there yet. Meanwhile the other processes
    of the machine wait at a file lock and not at a distributed barrier, because a barrier times out during a long
    download. Data at `path` are used without a check of their content.

    Args:
        benchmark: Name of the benchmark, a key of `paper.BENCHMARKS`.
        path: File or folder of the user's own copy. None stands for the published file.

    Raises:
        FileNotFoundError: If there is nothing at `path`, the benchmark's licence forbids distributing its data, or the
            download fails. The message says where to get the data.
        ValueError: If the benchmark is unknown, or the published file does not have the MD5 sum in `SOURCES`. The file
            stays in the cache.
    """
    published = look_up(benchmark)
    if path is not None:
        if not Path(path).exists():
            raise FileNotFoundError(f"There is no {path}. The data of {published.title}: {published.data}.")
        return Path(path)
    if benchmark not in SOURCES:
        raise FileNotFoundError(f"Get the data of {published.title} ({published.data}) and name it with --data.")
    url, checksum = SOURCES[benchmark]
    target = Path(HF_HOME, "janus_hf", url.partition("://")[2])  # another URL is another file in the cache
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
    if checksum is not None and (found := hash_file(target, "md5")) != checksum:
        raise ValueError(
            f"{target} must have the MD5 sum {checksum}, which is on record for {published.title}, got {found}. The "
            "file was kept: delete it to download it again, or name it with --data to use it as it is; scores may "
            "then not be comparable."
        )
    return target


def _download(url: str, target: Path) -> None:
    """Download a URL to the file `target`, with a progress bar. `target` appears only when the download is complete.

    Raises:
        OSError: If the server does not send the file, or sends only a part of it.
    """
    with atomic_path(target) as partial:
        with urlopen(Request(url, headers={"User-Agent": "janus_hf"}), timeout=_TIMEOUT) as response:
            length = int(response.headers.get("Content-Length") or 0)
            bar = tqdm(total=length or None, unit="B", unit_scale=True, desc=target.name)
            with partial.open("wb") as file, bar:
                while chunk := response.read(_CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
        size = partial.stat().st_size
        if length and size != length:
            raise OSError(f"{size} of {length} bytes came")


__all__ = ["SOURCES", "find_data"]
