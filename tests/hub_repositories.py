"""Repositories of a small Hub in memory: commits, branches, access rights, and the rules for model cards."""

import hashlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import yaml


# User, organisations that the user may write to, and whether the token may write, by token.
USERS = {"hf_me": ("me", ("team",), True), "hf_me_read": ("me", ("team",), False), "hf_other": ("other", (), True)}
_LICENSES = {"mit", "apache-2.0", "other", "openrail", "cc-by-4.0", "gpl-3.0", "unknown"}
_LFS_SUFFIXES = (".bin", ".safetensors", ".pt", ".pth", ".png", ".jpg", ".zip", ".npz", ".parquet", ".arrow")
_commit_numbers = itertools.count()


class HubError(Exception):
    """An answer of the Hub with an error status.

    `code` is the Hub's name of the error (header `X-Error-Code`), by which the client chooses its exception.
    """

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = headers | ({"X-Error-Code": code} if code else {})


@dataclass(frozen=True)
class File:
    """One version of a file. `etag` is the git hash of a small file, the SHA-256 of a file in large file storage."""

    data: bytes
    lfs: bool
    etag: str

    @classmethod
    def of(cls, path: str, data: bytes) -> "File":
        lfs = in_lfs(path, len(data), data[:512])
        return cls(data, lfs, hashlib.sha256(data).hexdigest() if lfs else git_hash(data))

    def node(self, path: str) -> dict:
        """This file as an entry of the API's listing of a folder."""
        entry = {"type": "file", "oid": git_hash(self.data), "size": len(self.data), "path": path}
        if self.lfs:
            entry["lfs"] = {"oid": self.etag, "size": len(self.data), "pointerSize": 134}
        return entry


@dataclass(frozen=True)
class Commit:
    sha: str
    title: str
    description: str
    files: dict[str, File]


@dataclass
class Repository:
    """A repository with its commits, and references (`heads/main`, `tags/v1`, `pr/1`) to their hashes."""

    private: bool = False
    gated: bool = False
    granted: tuple[str, ...] = ()
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def add_commit(self, ref: str, title: str, files: dict[str, File], description: str = "") -> str:
        sha = hashlib.sha1(f"{title}{next(_commit_numbers)}".encode()).hexdigest()
        self.commits[sha] = Commit(sha, title, description, files)
        self.refs[ref] = sha
        return sha

    def resolve(self, revision: str) -> Commit:
        """Return the commit of a branch, a tag, `refs/pr/N` or a hash."""
        for ref in (f"heads/{revision}", f"tags/{revision}", revision.removeprefix("refs/")):
            if ref in self.refs:
                return self.commits[self.refs[ref]]
        if revision in self.commits:
            return self.commits[revision]
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def info(self, repo_id: str, revision: str) -> dict:
        """What the API says about the repository at a revision."""
        commit = self.resolve(revision)
        readme = commit.files.get("README.md")
        card = card_data(readme.data.decode()) if readme else {}
        return {
            "_id": "0" * 24,
            "id": repo_id,
            "modelId": repo_id,
            "author": repo_id.split("/")[0],
            "private": self.private,
            "gated": self.gated,
            "sha": commit.sha,
            "tags": card.get("tags") or [],
            "pipeline_tag": card.get("pipeline_tag"),
            "library_name": card.get("library_name"),
            "cardData": card,
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
            "spaces": [],
        }


def in_lfs(path: str, size: int, sample: bytes) -> bool:
    return bool(size) and (path.lower().endswith(_LFS_SUFFIXES) or size > 10_000_000 or b"\0" in sample)


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def card_data(text: str) -> dict:
    """Return the metadata at the head of a model card."""
    head = re.match(r"^---\r?\n(.*?)\r?\n---\s*(\r?\n|$)", text, re.S)
    return (yaml.safe_load(head[1]) or {}) if head else {}


def card_errors(text: str) -> Iterator[str]:
    """Yield what the Hub refuses in the metadata of a model card."""
    data = card_data(text)
    bases = data.get("base_model") or []
    for base in bases if isinstance(bases, list) else [bases]:
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(base)):
            yield f'"base_model" with value "{base}" is not valid. Use a model id from https://hf.co/models.'
    if data.get("license") is not None and data["license"] not in _LICENSES:
        yield f'"license" must be one of {sorted(_LICENSES)}, got {data["license"]!r}'
    tags = data.get("tags")
    if tags is not None and not (isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)):
        yield '"tags" must be an array of strings'
    for key in ("library_name", "license_name", "license_link"):
        if data.get(key) is not None and not isinstance(data[key], str):
            yield f'"{key}" must be a string'
