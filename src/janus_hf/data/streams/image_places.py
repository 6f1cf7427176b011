"""`ImagePlaces`, which reads the images that rows name by path or address, from places that the user trusts.

The author of a data set decides what addresses its rows hold. So rows of a source that is not on this machine may
name images only where the source itself is, or at hosts that the user allows.
"""

import os
import threading
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from transformers.utils import logging

from ..reading.refusals import RowError, SourceError
from .addresses import host_of, is_address, origin, protocol_of, read_address, without_secrets


logger = logging.get_logger(__name__)


class ImagePlaces:
    """Reader of the images that the rows of one source name. Several threads may use it at the same time.

    Args:
        folder: Folder that relative paths start from: a local folder, or an address.
        source: Name of the source, for messages.
        is_remote: Whether the source is not on this machine: at an address, or on the Hub.
        hosts: Hosts and buckets where images may be, though the source is elsewhere; they may hold wildcards, and "*"
            allows all.
        options: Arguments of `prepare`, of which `storage_options` and `token` are used.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] = ".",
        *,
        source: str = "the source",
        is_remote: bool = False,
        hosts: Collection[str] = (),
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if isinstance(hosts, str) or not all(isinstance(host, str) and "/" not in host for host in hosts):
            raise ValueError(
                f"`image_hosts` must be a list of hosts or buckets without slashes, got {hosts!r}: write "
                "['images.example.org'], or ['*'] to allow all."
            )
        self.folder, self.source, self.is_remote = os.fspath(folder), source, is_remote
        self.hosts, self.options = tuple(host.lower() for host in hosts), dict(options or {})
        self.named: set[str] = set()
        self.lock = threading.Lock()

    def read(self, image: str | os.PathLike[str], *, is_own: bool = False) -> bytes | str | os.PathLike[str]:
        """Return the content of an image file; of what is no file, such as base64 or an http(s) address, itself.

        Args:
            image: Path, address, `data:` URL or base64.
            is_own: Whether `datasets` wrote a path, and not a row.

        Raises:
            RowError: If the file does not exist or cannot be read.
            SourceError: If the image is at a place that the user has not allowed.
        """
        name = os.fspath(image)
        if not is_address(name) and is_address(self.folder) and "." in name and not name.startswith("data:"):
            if not os.path.isabs(name):
                name = self._join(name)
            elif not is_own:
                raise RowError("missing_picture", f"A path in {self.source} must be relative, got {name!r}.")
        if is_address(name):
            self._check(name)
            if protocol_of(name) in ("http", "https"):
                return name  # `load_picture` downloads it
            try:
                return read_address(name, self.options)
            except FileNotFoundError as error:
                raise RowError("missing_picture", str(error)) from error
            except OSError as error:
                raise RowError("bad_picture", str(error)) from error
        if is_address(self.folder) and not os.path.isabs(name):
            return name  # base64
        path = Path(self.folder, name)
        if not _is_file(path):
            return image
        try:
            return path.read_bytes()
        except OSError as error:
            raise RowError("bad_picture", f"The file of an image must be readable, got {error}.") from error

    def _join(self, name: str) -> str:
        """Return the address of a relative path, which may not lead out of the folder's host or bucket."""
        protocol, _, rest = self.folder.partition("://")
        parts: list[str] = []
        for part in PurePosixPath(rest, name).parts:
            if part == ".." and len(parts) > 1:
                parts.pop()
            elif part != "..":
                parts.append(part)
        return f"{protocol}://{'/'.join(parts)}" if parts[:1] != ["/"] else f"{protocol}:///{'/'.join(parts[1:])}"

    def _check(self, address: str) -> None:
        """Raise `SourceError` if an address may not be read. Log once that a host is asked for images."""
        place = origin(address)
        if (is_address(self.folder) and place == origin(self.folder)) or place in self.named:
            return
        host = host_of(address)
        if self.is_remote and not any(fnmatchcase(host, pattern) for pattern in self.hosts):
            raise SourceError(
                f"An image must be where {self.source} is, or at a host that you allow, got "
                f"{without_secrets(address)!r}: allow it with image_hosts=[{host!r}] (--image-host {host} at the "
                "command line; '*' allows all), or download the images."
            )
        with self.lock:
            if place not in self.named:
                self.named.add(place)
                logger.warning(f"{self.source}: images are read from {place}, because rows name them there.")


def _is_file(path: Path) -> bool:
    """Return whether a file exists. An image in base64 is no path, and too long to be one."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or has a null character
        return False


__all__ = ["ImagePlaces"]
