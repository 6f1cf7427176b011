"""Functions that find and read files by address (`s3://`, `https://`, `hf://`, ...), through fsspec.

Most protocols need a package of their own, which is named if it is missing.
"""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import datasets
import fsspec

from ..reading.refusals import SourceError


# Protocol -> package with which fsspec reads it. Of other protocols, the package is in fsspec's own message.
PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "http": "aiohttp",
    "https": "aiohttp",
    "sftp": "paramiko",
    "ssh": "paramiko",
}
# Options of `prepare` that hold secrets, on which the rows do not depend. They are never written to a file.
SECRET_OPTIONS = ("token", "storage_options")
# Parts of a query that sign an address, or say until when; a new signature is not a new source.
_SIGNATURES = re.compile(
    r"x-(amz|goog|ms)-.*|.*(token|secret|password|signature|credential|auth|api_?key).*|key|sig|se|sp|sr|st|sv|skoid"
    r"|sktid|skt|ske|sks|skv|spr|expires|policy|key-pair-id|awsaccesskeyid|googleaccessid",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://.*", re.DOTALL)
# A `pathlib.Path` of an address has one slash.
_PATH_OF_ADDRESS = re.compile(r"(?!file:)[A-Za-z][A-Za-z0-9+.-]+:/")


def refuse_path(path: os.PathLike[str]) -> None:
    """Raise `ValueError` if a `pathlib.Path` was made of an address, which loses one of its slashes."""
    if _PATH_OF_ADDRESS.match(os.fspath(path)):
        raise ValueError(f"`source` must be a string if it is an address, got {path!r}: pass the address itself.")


def is_address(name: object) -> bool:
    """Return whether a name is the address of a file, such as `s3://bucket/rows.parquet`, and no local path."""
    return isinstance(name, str) and _ADDRESS.match(name) is not None and not name.startswith("file://")


def local_path(name: str) -> str:
    """Return a `file://` address as a path, and any other name as it is."""
    return name.removeprefix("file://") if name.startswith("file://") else name


def hub_address(address: str) -> str:
    """Return the https address of a download from the Hub as an hf address, which uses a token; any other as it is."""
    endpoint = f"{datasets.config.HF_ENDPOINT}/"
    if not address.startswith(endpoint) or "/resolve/" not in address:
        return address
    return "hf://" + path_in(address).removeprefix(endpoint).replace("/resolve/", "@", 1)


def protocol_of(address: str) -> str:
    """Return the protocol of an address, such as "s3"."""
    return address.partition("://")[0].lower()


def path_in(address: str) -> str:
    """Return an address without query and fragment, by which the format of an http(s) file can be told."""
    return re.split(r"[?#]", address)[0] if protocol_of(address) in ("http", "https") else address


def has_wildcards(address: str) -> bool:
    """Return whether an address is a glob pattern. In http(s), a question mark begins the query."""
    return any(mark in path_in(address) for mark in "*?[")


def folder_of(address: str) -> str:
    """Return the address of the folder that a file is in; of a pattern, the folder before its first wildcard."""
    protocol, _, rest = path_in(address).partition("://")
    path = PurePosixPath(rest)
    while any(mark in str(path.parent) for mark in "*["):
        path = path.parent
    return f"{protocol}://{path.parent}"


def origin(address: str) -> str:
    """Return whose an address is: protocol and host or bucket; on the Hub, the repository."""
    protocol, _, rest = address.partition("://")
    if protocol == "hf":
        parts = PurePosixPath(rest).parts
        length = 3 if parts[:1] in (("datasets",), ("spaces",), ("buckets",)) else 2
        return f"hf://{'/'.join(parts[:length]).partition('@')[0]}"
    return f"{protocol.lower()}://{host_of(address)}"


def host_of(address: str) -> str:
    """Return the host (with a port) or the bucket of an address, without the name of a user."""
    if protocol_of(address) == "hf":
        return "huggingface.co"
    return urlsplit(path_in(address)).netloc.rpartition("@")[2].lower()


def without_secrets(address: str) -> str:
    """Return an address without the name and password of a user, and without signatures in its query."""
    if not is_address(address) or protocol_of(address) == "hf":
        return address
    protocol, _, rest = address.partition("://")
    place, slash, rest = rest.partition("/")
    address = f"{protocol}://{place.rpartition('@')[2]}{slash}{rest}"
    if protocol_of(address) not in ("http", "https"):
        return address
    path, mark, query = address.partition("?")
    parts = parse_qsl(query, keep_blank_values=True)
    kept = [(name, value) for name, value in parts if not _SIGNATURES.fullmatch(name)]
    query = query if kept == parts else urlencode(kept)
    return f"{path}{mark}{query}" if query else path


def refuse_address(argument: str, folder: str | os.PathLike[str]) -> None:
    """Raise `ValueError` if the folder of prepared rows is an address: its files are mapped into memory.

    Args:
        argument: Name of the argument, for the message.
        folder: The folder.
    """
    name = os.fspath(folder)
    if _PATH_OF_ADDRESS.match(name):
        raise ValueError(
            f"`{argument}` must be a local folder, because prepared rows are mapped into memory, got {name!r}: "
            "prepare and train in a local folder, and copy it from or to that place with its own tool."
        )


def open_filesystem(address: str, options: Mapping[str, Any]) -> tuple[Any, str]:  # Any: fsspec is untyped
    """Return the fsspec file system of an address, and the path of the address in it.

    Args:
        address: The address, which may be a pattern.
        options: Arguments of `prepare`; `storage_options` and, for the Hub, `token` are used.

    Raises:
        SourceError: If there is no such protocol, or the package for it is not installed.
    """
    protocol = protocol_of(address)
    arguments = dict(options.get("storage_options") or {})
    if protocol == "hf":
        # So `datasets` does; there is no other setting of the endpoint that it would use too.
        arguments = {"token": options.get("token"), "endpoint": datasets.config.HF_ENDPOINT} | arguments
    try:
        filesystem, path = fsspec.core.url_to_fs(address, **arguments)
    except ImportError as error:
        package = PACKAGES.get(protocol)
        what = f"the package {package}, which is not installed: pip install {package}" if package else str(error)
        raise SourceError(f"{protocol}:// needs {what}. Got {without_secrets(address)!r}.") from error
    except ValueError as error:
        raise SourceError(
            f"`source` must be at an address that fsspec knows ({', '.join(sorted(PACKAGES))}, hf, ...), got "
            f"{without_secrets(address)!r}: {error}."
        ) from error
    return filesystem, str(path)


def list_files(address: str, options: Mapping[str, Any]) -> list[str]:
    """Return the addresses of the files that an address names, in the order of their names.

    Args:
        address: Address of a file, or a glob pattern.
        options: See `open_filesystem`.

    Raises:
        FileNotFoundError: If there is no such file.
        SourceError: If the address is that of a folder, or cannot be reached.
    """
    shown = without_secrets(address)
    if re.fullmatch(r"hf://datasets/[^/@]+/[^/@]+(@[^/]+)?/?", address):
        name = address.removeprefix("hf://datasets/").rstrip("/")
        repository, _, revision = name.partition("@")
        more = f" with revision={revision!r}" if revision else ""
        raise SourceError(
            f"`source` must be the id of a data set on the Hub, or files of it, got {shown!r}: write "
            f"{repository!r}{more}."
        )
    filesystem, path = open_filesystem(address, options)
    try:
        if not has_wildcards(address):
            if filesystem.exists(path) and (_is_like_file(address) or not filesystem.isdir(path)):
                return [address]
            found, is_folder = [], not _is_like_file(address) and filesystem.isdir(path)
        else:
            found, is_folder = sorted(filesystem.glob(path)), False
            if "**" in path:
                found = [name for name in found if not filesystem.isdir(name)]
        is_prepared = is_folder and filesystem.exists(f"{path.rstrip('/')}/meta.json")
    except Exception as error:  # each file system raises errors of its own
        raise SourceError(
            f"`source` must be at an address that can be read, got {shown!r} and {type(error).__name__}: "
            f"{_short(error)}. Check the address, the network and your rights there (`storage_options`)."
        ) from error
    if is_prepared:
        raise SourceError(
            f"Prepared rows must be in a local folder, because they are mapped into memory, got {shown!r}: copy that "
            "folder to a local disk, and name the copy."
        )
    if is_folder:
        raise SourceError(
            f"`source` must name files at an address, got the folder {shown!r}: name its files by their suffix, as in "
            f"'{shown.rstrip('/')}/*.jsonl', or copy the folder to a local disk."
        )
    if not found:
        raise FileNotFoundError(
            f"`source` must be the address of a file, or match files, got {shown!r}, where there is none: correct it."
        )
    protocol, *rest = address.partition("://")[0], *address.split("::")[1:]
    return ["::".join([name if "://" in name else f"{protocol}://{name}", *rest]) for name in found]


def version_of(addresses: Sequence[str], options: Mapping[str, Any]) -> str | None:
    """Return a hash of what is known about files, which changes when they change; None if `datasets` knows it itself.

    `datasets` keeps what it downloads by address and ETag. Without one it would not see that a file has changed.

    Args:
        addresses: Their addresses.
        options: See `open_filesystem`.
    """
    infos = []
    for address in addresses:
        if is_address(address) and protocol_of(address) != "hf":
            filesystem, path = open_filesystem(address, options)
            info = filesystem.info(path)
            if not {"ETag", "etag", "mtime"} & set(info):
                infos.append(f"{address} {sorted((name, str(value)) for name, value in info.items())}")
    return hashlib.sha256("\n".join(infos).encode()).hexdigest()[:16] if infos else None


def read_address(address: str, options: Mapping[str, Any]) -> bytes:
    """Return the content of the file at an address.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it cannot be read.
        SourceError: If there is no such protocol, or the package for it is not installed.
    """
    filesystem, path = open_filesystem(address, options)
    try:
        content: bytes = filesystem.cat_file(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no file at {without_secrets(address)!r}.") from error
    except Exception as error:  # each file system raises errors of its own
        raise OSError(
            f"{without_secrets(address)!r} cannot be read ({type(error).__name__}: {_short(error)})."
        ) from error
    return content


def _is_like_file(address: str) -> bool:
    """Return whether the last part of an address has a suffix. To ask an http server may read the whole file."""
    return "." in PurePosixPath(path_in(address).partition("://")[2]).name and not path_in(address).endswith("/")


def _short(error: BaseException) -> str:
    """Return the message of an error on one line."""
    return " ".join(str(error).split())[:300].rstrip(".") or "no message"


__all__ = [
    "PACKAGES",
    "SECRET_OPTIONS",
    "folder_of",
    "has_wildcards",
    "host_of",
    "hub_address",
    "is_address",
    "list_files",
    "local_path",
    "open_filesystem",
    "origin",
    "path_in",
    "protocol_of",
    "read_address",
    "refuse_address",
    "refuse_path",
    "version_of",
    "without_secrets",
]
