"""Functions that find and download single files of a checkpoint, and the arguments of Hub calls."""

import os
from collections.abc import Iterable, Mapping
from types import NoneType
from typing import Any

from huggingface_hub import (
    _CACHED_NO_EXIST,
    ResolvedRevision,
    get_cached_repo_tree,
    is_offline_mode,
    try_to_load_from_cache,
)
from huggingface_hub.errors import CachedRepoTreeNotFoundError, HFValidationError, HTTPError
from transformers.utils import cached_file

from ..arguments import describe
from .hub_errors import explain


# Arguments of `from_pretrained` that say where on the Hub, or where in the cache, a file is.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def hub_arguments(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of `kwargs` that say where on the Hub or in the cache a file is (`HUB_ARGUMENTS`).

    Raises:
        TypeError: If `revision` or `subfolder` is neither a string nor a path.
    """
    for name in ("revision", "subfolder"):
        if not isinstance(value := kwargs.get(name), (str, os.PathLike, NoneType)):
            raise TypeError(f"`{name}` must be a string or None, got {describe(value)}: pass its name.")
    return {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}


def find_file(source: str | os.PathLike[str], name: str, **hub_kwargs: Any) -> str | None:
    """Return the path of a checkpoint's file, downloaded if necessary, or None if the checkpoint has no such file.

    Args:
        source: Repository id or folder.
        name: Name of the file.
        hub_kwargs: Arguments of Hub calls (`HUB_ARGUMENTS`).

    Raises:
        OSError: If the file cannot be read, or nothing shows whether the repository has it: the Hub does not answer,
            refuses access, or has no such repository or revision; the downloaded file cannot be written; or the folder
            has an entry of this name that is not a file, such as a broken link. The message is one line that says
            which of these it is and what to do.
    """
    if os.path.isdir(source):
        local = os.path.join(source, hub_kwargs.get("subfolder") or "", name)
        if os.path.lexists(local) and not os.path.isfile(local):
            raise OSError(
                f"{name} of {str(source)!r} cannot be read: it must be a file, got a folder or a link to nothing: "
                "copy the checkpoint again, with the files that its links point to."
            )
    try:
        path: str | None = cached_file(source, name, **hub_kwargs)
    # An error of the connection during a download is an HTTPError of the HTTP library and no OSError.
    except (OSError, HTTPError) as error:
        # transformers raises OSError for every failure. Errors of the connection, the repository, the revision and the
        # disk have a `__cause__` or an `errno`; the error for a file that is known to be absent has neither.
        known_to_be_absent = isinstance(error, OSError) and error.__cause__ is None and error.errno is None
        if not known_to_be_absent and not _cache_knows_absence(source, name, hub_kwargs):
            reason = explain(source, error, **hub_kwargs)
            raise OSError(f"{name} of {str(source)!r} cannot be read: {reason}") from error
        return None
    return path


def fetch_files(
    source: str | os.PathLike[str], *, needed: Iterable[str], optional: Iterable[str] = (), **hub_kwargs: Any
) -> dict[str, str | None]:
    """Return the paths of a checkpoint's files, downloaded if necessary, with None for a file that it does not have.

    The loaders of transformers treat a file whose download fails as absent. Call this function before them to get the
    error of the download instead. It asks the Hub only about files that the cache has no information about.

    Args:
        source: Repository id or folder.
        needed: Names of files without which the checkpoint would be read wrongly, if it has them.
        optional: Names of files that most checkpoints do not have. Where the caller has chosen to work offline
            (`local_files_only=True` or HF_HUB_OFFLINE=1), such a file counts as absent if it is not in the cache: a
            cache that `hf download` filled does not record which files the repository lacks.
        hub_kwargs: Arguments of Hub calls (`HUB_ARGUMENTS`).

    Raises:
        OSError: See `find_file`.
    """
    is_folder = os.path.isdir(source)
    offline = not is_folder and _is_offline(hub_kwargs)
    optional = set(optional)
    paths: dict[str, str | None] = {}
    for name in (*needed, *sorted(optional)):
        known = None if is_folder else _look_up_in_cache(source, name, hub_kwargs)
        if known is not None:
            paths[name] = known if isinstance(known, str) else None
        elif offline and name in optional:
            paths[name] = None
        else:
            paths[name] = find_file(source, name, **hub_kwargs)
    return paths


def _cache_knows_absence(source: str | os.PathLike[str], name: str, hub_kwargs: Mapping[str, Any]) -> bool:
    """Return whether the cache knows that the repository has no such file.

    The cache has a marker for every file that was requested and that the Hub does not have. If the caller has chosen
    to work offline, the list of all files that `snapshot_download` stores in the cache counts as well. transformers
    reads only the marker, and only if `revision` is the hash of a commit.
    """
    return not os.path.isdir(source) and _look_up_in_cache(source, name, hub_kwargs) is _CACHED_NO_EXIST


def _is_offline(hub_kwargs: Mapping[str, Any]) -> bool:
    """Return whether the caller has chosen to work offline."""
    return is_offline_mode() or bool(hub_kwargs.get("local_files_only"))


def _look_up_in_cache(source: str | os.PathLike[str], name: str, hub_kwargs: Mapping[str, Any]) -> object:
    """Return what the cache knows about a repository's file.

    Returns:
        The path of the file in the cache; `_CACHED_NO_EXIST` if the repository has no such file; or None if the cache
        has no information about it.
    """
    revision = hub_kwargs.get("revision")
    where: dict[str, Any] = {
        "cache_dir": hub_kwargs.get("cache_dir"),
        "revision": revision.resolved if isinstance(revision, ResolvedRevision) else revision,
    }
    path = os.path.join(hub_kwargs.get("subfolder") or "", name)
    try:
        found = try_to_load_from_cache(str(source), path, **where)
        if found is not None or not _is_offline(hub_kwargs):
            return found
        listed = {file.path for file in get_cached_repo_tree(str(source), **where)}
        return None if path in listed else _CACHED_NO_EXIST
    # The path of a folder that does not exist is no repository id.
    except (HFValidationError, CachedRepoTreeNotFoundError):
        return None


__all__ = ["HUB_ARGUMENTS", "fetch_files", "find_file", "hub_arguments"]
