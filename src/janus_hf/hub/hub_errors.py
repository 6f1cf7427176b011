"""Functions that explain in one line why a repository or one of its files cannot be downloaded from the Hub.

transformers raises `OSError` for every failure of a download, with a message of several lines that sometimes names a
wrong cause. The exception of huggingface_hub that caused it is found by following `__cause__`.
"""

import os
from collections.abc import Iterator
from typing import Any

from huggingface_hub import constants, is_offline_mode
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


_LOG_IN = "log in with `hf auth login` or pass `token=...`"


def explain(source: str | os.PathLike[str], error: BaseException, **hub_kwargs: Any) -> str:
    """Return one line that says why the files of `source` cannot be downloaded or read, and what to do.

    Args:
        source: Repository id, or the path of a folder.
        error: The exception that a download raised; the exceptions that caused it are examined too.
        hub_kwargs: The arguments of the download (`HUB_ARGUMENTS` in `fetching.py`).
    """
    chain = list(_chain(error))
    page = f"{constants.ENDPOINT}/{source}"
    if was_caused_by(error, HFValidationError):
        return (
            f"{str(source)!r} is not a folder on this machine, and not a repository id such as "
            "'deepseek-ai/Janus-Pro-1B' either: check the path."
        )
    if was_caused_by(error, GatedRepoError):
        return (
            f"the repository {str(source)!r} is gated, and access has not been granted to you: ask for it on {page}, "
            f"then {_LOG_IN} of the account that has it."
        )
    if was_caused_by(error, RepositoryNotFoundError):
        return (
            f"{str(source)!r} is not a folder on this machine, and {constants.ENDPOINT} shows you no model repository "
            f"of this id: check the spelling; if the repository is private, {_LOG_IN}."
        )
    if was_caused_by(error, RevisionNotFoundError):
        return (
            f"the repository {str(source)!r} has no branch, tag or commit {str(hub_kwargs.get('revision'))!r}: choose "
            f"one of those on {page}/tree/main."
        )
    if status := next((link.response.status_code for link in chain if isinstance(link, HfHubHTTPError)), None):
        return f"{constants.ENDPOINT} answers HTTP {status}{_ADVICE.get(status, ': try again later.')}"
    if is_offline_mode() or hub_kwargs.get("local_files_only"):
        switch = "HF_HUB_OFFLINE=1" if is_offline_mode() else "local_files_only=True"
        return (
            f"{switch} forbids asking the Hub, and the cache ({_cache(hub_kwargs)}) does not hold what is needed of "
            f"the repository {str(source)!r}: run `hf download {source}` with a connection first, or remove {switch}; "
            "for a folder, check the path."
        )
    if isinstance(root := chain[-1], OSError) and root.errno is not None and root.filename is not None:
        return f"{root.filename} cannot be used ({root.strerror}): check its permissions and the space on the disk."
    reason = " ".join(str(root).split()) or type(root).__name__
    return (
        f"{constants.ENDPOINT} cannot be reached ({type(root).__name__}: {reason}), and the cache "
        f"({_cache(hub_kwargs)}) does not hold what is needed of the repository {str(source)!r}: check the "
        "connection, the proxy and HF_ENDPOINT; for a folder, check the path."
    )


_ADVICE = {
    401: ": the token is not valid; log in with `hf auth login`, or pass a valid `token=...`.",
    403: ": the token may not read this repository; give it that right in the settings of the account, or "
    + _LOG_IN
    + " of an account that may.",
    429: f", which means too many requests: wait some minutes; to have a higher limit, {_LOG_IN}.",
}


def _cache(hub_kwargs: dict[str, Any]) -> str | os.PathLike[str]:
    """Return the folder of the cache that a download with these arguments uses."""
    return hub_kwargs.get("cache_dir") or constants.HF_HUB_CACHE


def was_caused_by(error: BaseException, kind: type[BaseException]) -> bool:
    """Return whether an exception, or one of the exceptions that caused it, is an instance of the class `kind`."""
    return any(isinstance(link, kind) for link in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, then the exception that caused it, and so on to the original cause."""
    while error is not None:
        yield error
        error = error.__cause__


__all__ = ["explain", "was_caused_by"]
