"""Functions that find a model or a processor in a folder or on the Hub, before anything large is downloaded.

All files of one load come from one commit, even if a new commit is pushed in the meantime. The first request is for
config.json: the Hub's answer names the commit, and the content shows whether the repository holds a Janus-Pro at all.
For an adapter the base model is opened too, at the revision that adapter_config.json names.
"""

import os
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import HfApi, ResolvedRevision, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, HTTPError, RepositoryNotFoundError, RevisionResolutionError
from transformers.utils import extract_commit_hash

from ..errors import CheckpointError
from ..files import read_json
from ..layouts import read_config
from .fetching import fetch_files, find_file
from .hub_errors import explain, was_caused_by


# Files of a repository, and the argument with which AutoModel passes an adapter on to `from_pretrained`.
CONFIG_FILE, ADAPTER_CONFIG_FILE = "config.json", "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"
ADAPTER_ARGUMENT = "_adapter_model_path"


@dataclass(frozen=True)
class Source:
    """A folder, or a Hub repository at one commit.

    Args:
        path: Folder or repository id.
        hub_kwargs: Arguments of Hub calls (`HUB_ARGUMENTS` in `fetching.py`). For a repository, `revision` is a
            `huggingface_hub.ResolvedRevision`: a string equal to the revision that the caller asked for, which also
            holds the commit.
    """

    path: str | os.PathLike[str]
    hub_kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def revision(self) -> str | None:
        """The branch, tag or commit that the caller asked for; None if the caller named none, or for a folder."""
        revision = self.hub_kwargs.get("revision")
        return revision.initial if isinstance(revision, ResolvedRevision) else None

    @property
    def commit(self) -> str | None:
        """Hash of the commit that all files come from; None for a folder."""
        revision = self.hub_kwargs.get("revision")
        return revision.resolved if isinstance(revision, ResolvedRevision) else None

    @property
    def is_offline(self) -> bool:
        """Whether the caller has chosen to work offline (`local_files_only=True` or HF_HUB_OFFLINE=1)."""
        return bool(self.hub_kwargs.get("local_files_only")) or is_offline_mode()

    @property
    def adapter_arguments(self) -> dict[str, Any]:
        """Value of the argument `adapter_kwargs` of transformers' methods, which locates the files of this adapter.

        `revision` and `subfolder` are always in it, because transformers would otherwise use those of the base model.
        """
        return {"revision": None, "subfolder": "", **self.hub_kwargs}

    def find(self, name: str) -> str | None:
        """Return the path of a file, downloaded if necessary, or None if there is no such file (see `find_file`)."""
        return find_file(self.path, name, **self.hub_kwargs)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return the content of a JSON file, or None if there is no such file.

        Raises:
            OSError: If the file cannot be downloaded or read.
            CheckpointError: If it does not hold a JSON object.
        """
        path = self.find(name)
        content = None if path is None else read_json(path)
        if content is not None and not isinstance(content, dict):
            raise CheckpointError(
                f"{path} must hold a JSON object, got {type(content).__name__}: copy or download it again."
            )
        return content

    def download(self, *names: str) -> list[str]:
        """Download files into the cache, where transformers finds them, and return the names of those that exist.

        Raises:
            OSError: If a file cannot be downloaded or read (see `fetch_files`).
        """
        # With force_download=True, transformers downloads the files again itself, so here those in the cache suffice.
        found = fetch_files(self.path, needed=[], optional=names, **{**self.hub_kwargs, "force_download": False})
        return [name for name in names if found[name] is not None]


@dataclass(frozen=True)
class Checkpoint:
    """A model's checkpoint, and the adapter to be loaded on it if there is one."""

    source: Source
    adapter: Source | None = None

    def holder_of(self, name: str) -> Source:
        """Return `adapter` if there is one and it has a file of this name, otherwise `source`.

        Raises:
            OSError: If nothing shows whether the adapter has the file (see `fetch_files`).
        """
        return self.adapter if self.adapter is not None and self.adapter.download(name) else self.source

    def loading_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments for a model's `from_pretrained`; its first argument is `self.source.path`."""
        if self.adapter is None:
            return dict(self.source.hub_kwargs)
        # transformers has no public argument for a base model and an adapter at once; this is the one that its
        # AutoModel passes to from_pretrained. `load_adapter` after loading is public, but leaves the adapter in the
        # dtype of its file. tests/modeling/test_canaries.py checks that the argument works.
        return self.source.hub_kwargs | {
            "adapter_kwargs": {**self.adapter.adapter_arguments, ADAPTER_ARGUMENT: self.adapter.path}
        }


def open_source(path: str | os.PathLike[str], hub_kwargs: dict[str, Any], *, first: str = CONFIG_FILE) -> Source:
    """Return a folder as it is, or a repository at the commit that its revision names now.

    To learn the commit, a file is requested from the Hub, whose answer names the commit too. Offline, the commit is
    the one that the cache remembers. A revision that was resolved for this repository before is kept without a
    request.

    Args:
        path: Folder or repository id.
        hub_kwargs: Arguments of Hub calls (`HUB_ARGUMENTS` in `fetching.py`).
        first: Name of the file to request. The repository may lack it.

    Raises:
        OSError: If the repository cannot be opened. The message is one line that says why.
    """
    hub_kwargs = {name: value for name, value in hub_kwargs.items() if value is not None}
    if os.path.exists(path):
        return Source(path, hub_kwargs)
    path, revision = str(path), hub_kwargs.get("revision")
    if isinstance(revision, ResolvedRevision):
        if _resolve_from_cache(path, revision, hub_kwargs) is revision:
            return Source(path, hub_kwargs)
        hub_kwargs["revision"] = revision = revision.initial
    try:
        file = None if Source(path, hub_kwargs).is_offline else find_file(path, first, **hub_kwargs)
    except OSError as error:
        if was_caused_by(error, RepositoryNotFoundError) and _is_dataset(path, hub_kwargs):
            raise OSError(
                f"{path!r} must be a model repository, got a dataset: name the repository of a model."
            ) from error
        raise
    if commit := extract_commit_hash(file, None):
        resolved: ResolvedRevision | None = ResolvedRevision(commit, revision, path)
    else:  # if the Hub has no such file, its answer names the commit too, and huggingface_hub wrote it to the cache
        resolved = _resolve_from_cache(path, revision, hub_kwargs)
    if resolved is None:
        reason = explain(path, RevisionResolutionError(), **hub_kwargs)
        raise OSError(f"{path!r} cannot be opened: {reason}")
    return Source(path, {**hub_kwargs, "revision": resolved})


def open_checkpoint(
    path: str | os.PathLike[str],
    hub_kwargs: dict[str, Any],
    adapter_kwargs: dict[str, Any] | None = None,
    *,
    needs_config: bool = True,
) -> Checkpoint:
    """Return the checkpoint of a Janus-Pro, or an adapter with the checkpoint of its base model; refuse all others.

    Args:
        path: Folder or repository id of a checkpoint or of an adapter.
        hub_kwargs: Arguments of Hub calls. For an adapter, `revision` and `subfolder` are those of the adapter; the
            base model is taken at the revision that adapter_config.json names.
        adapter_kwargs: Arguments of Hub calls that replace those of `hub_kwargs` if `path` is an adapter.
        needs_config: Whether a checkpoint without the config.json of a Janus-Pro is refused.

    Raises:
        CheckpointError: If there is no config.json.
        OSError: If the repository, or that of the base model, cannot be opened.
        ValueError: If the files are of another kind of model, or an adapter does not name its base model.
    """
    source = open_source(path, {**hub_kwargs, **(adapter_kwargs or {})})
    if adapter_config := find_adapter(source):
        return Checkpoint(open_base(source, adapter_config), source)
    if adapter_kwargs:
        source = open_source(path, hub_kwargs)
    if needs_config:
        check_family(source)
    return Checkpoint(source)


def open_given_adapter(
    base: str | os.PathLike[str],
    path: str | os.PathLike[str],
    hub_kwargs: dict[str, Any],
    adapter_kwargs: dict[str, Any],
) -> Checkpoint:
    """Return the checkpoint of an adapter whose base model the caller, transformers' `AutoModel`, has found already.

    AutoModel reads config.json of the base model at the revision that its caller gave for the adapter. The base model
    itself is loaded at the revision that adapter_config.json names.

    Args:
        base: Folder or repository id of the base model.
        path: Folder or repository id of the adapter.
        hub_kwargs: Arguments of Hub calls with which AutoModel has read config.json of the base model.
        adapter_kwargs: Arguments of Hub calls for the adapter, where they differ from `hub_kwargs`.

    Raises:
        OSError: If a repository cannot be opened.
        ValueError: If config.json differs between the two revisions of the base model.
    """
    shared = {name: value for name, value in hub_kwargs.items() if name not in ("revision", "subfolder")}
    adapter = open_source(path, {**shared, **adapter_kwargs})
    adapter_config = adapter.read_json(ADAPTER_CONFIG_FILE) or {}
    wanted = adapter_config.get("revision") or "main"
    read = open_source(base, hub_kwargs)
    if (hub_kwargs.get("revision") or "main") == wanted:
        return Checkpoint(read, adapter)
    source = open_base(adapter, adapter_config)
    if read.read_json(CONFIG_FILE) != source.read_json(CONFIG_FILE):
        raise ValueError(
            f"config.json of {str(base)!r} must be the same at revision {str(hub_kwargs['revision'])!r}, where "
            f"AutoModel reads it, and at {wanted!r}, which the adapter {str(path)!r} names, but it is not: load the "
            "adapter with JanusProForConditionalGeneration.from_pretrained."
        )
    return Checkpoint(source, adapter)


def find_adapter(source: Source) -> dict[str, Any] | None:
    """Return the content of adapter_config.json if `source` is an adapter without its base model, otherwise None.

    A folder that holds a whole model and an adapter gives None, because transformers loads it as that model with the
    adapter. A repository with an adapter gives the adapter even if it holds a whole model too: it is always loaded on
    the base model that the adapter names.

    Raises:
        OSError: If adapter_config.json cannot be downloaded or read.
        CheckpointError: If it does not hold a JSON object.
    """
    if os.path.isdir(source.path):
        folder = os.path.join(source.path, source.hub_kwargs.get("subfolder") or "")
        has_model = os.path.exists(os.path.join(folder, CONFIG_FILE))
        return None if has_model else source.read_json(ADAPTER_CONFIG_FILE)
    if source.is_offline:
        # `hf download` does not record in the cache that a file is absent, so one that is not cached counts as absent.
        name = os.path.join(source.hub_kwargs.get("subfolder") or "", ADAPTER_CONFIG_FILE)
        cache_dir = source.hub_kwargs.get("cache_dir")
        if not isinstance(try_to_load_from_cache(str(source.path), name, cache_dir, source.commit), str):
            return None
    return source.read_json(ADAPTER_CONFIG_FILE)


def open_base(adapter: Source, adapter_config: dict[str, Any], base: str | os.PathLike[str] | None = None) -> Source:
    """Return the base model of an adapter, at the revision that the adapter's config names.

    Args:
        adapter: The adapter.
        adapter_config: Content of its adapter_config.json.
        base: Folder or repository to use as the base model; None takes the one that the adapter's config names. If it
            is another repository, the revision in the adapter's config is not used.

    Raises:
        OSError, ValueError: As in `open_checkpoint`; the message also names the adapter.
    """
    named = adapter_config.get("base_model_name_or_path")
    path = base or named
    if not path:
        raise ValueError(
            f"adapter_config.json of {str(adapter.path)!r} must name the base model, got none: load the model that it "
            "was trained on, then call its `load_adapter`."
        )
    hub_kwargs = {name: value for name, value in adapter.hub_kwargs.items() if name not in ("revision", "subfolder")}
    if (base is None or str(base) == named) and adapter_config.get("revision"):
        hub_kwargs["revision"] = adapter_config["revision"]
    try:
        source = open_source(path, hub_kwargs)
        check_family(source)
    except (OSError, ValueError) as error:
        kind = OSError if isinstance(error, OSError) else CheckpointError
        raise kind(
            f"The base model {str(path)!r} of the adapter {str(adapter.path)!r} cannot be opened: {error}"
        ) from error
    return source


def check_family(source: Source, *, required: bool = True) -> None:
    """Raise an error that says what `source` is, unless its config.json is that of a Janus or Janus-Pro.

    Args:
        source: The folder or repository.
        required: Whether a source without config.json is refused too.

    Raises:
        CheckpointError: If config.json is missing and `required`, or does not hold a JSON object.
        OSError: If config.json cannot be downloaded or read.
        ValueError: If config.json is that of another model family.
    """
    config = source.read_json(CONFIG_FILE)
    name = str(source.path)
    if config is None:
        if required:
            raise CheckpointError(
                f"{name!r} must hold a config.json, or an adapter_config.json if it is an adapter, got neither: "
                + _what_it_is(source)
            )
        return
    if not isinstance(config.get("model_type"), str):
        raise ValueError(
            f"{name!r} must be a Janus or Janus-Pro checkpoint, got a config.json that names no model_type"
            + (f", of the diffusers class {config['_class_name']}" if "_class_name" in config else "")
            + ": name another folder or repository."
        )
    try:
        read_config(config)
    except ValueError as error:
        raise ValueError(f"{name!r} cannot be loaded: {error}") from error


def _what_it_is(source: Source) -> str:
    """Return a sentence that says what a folder or repository without config.json is, and what to do with it."""
    try:
        if adapter := source.read_json(ADAPTER_CONFIG_FILE):
            return (
                f"it is an adapter for {adapter.get('base_model_name_or_path')!r}; load it with from_pretrained of "
                "the model or the pipeline, or put it into its base model with `janus-hf merge`."
            )
        if pipeline := source.read_json("model_index.json"):
            return (
                f"it is a diffusers pipeline of the class {pipeline.get('_class_name')}; load it with "
                "diffusers.DiffusionPipeline.from_pretrained."
            )
        if os.path.isdir(source.path):
            names = os.listdir(source.path)
        else:
            names = HfApi().list_repo_files(
                str(source.path), revision=source.commit, token=source.hub_kwargs.get("token")
            )
    except (OSError, ValueError, HTTPError):
        names = []
    if any(name.endswith(".gguf") for name in names):
        return "it holds GGUF files, which are for llama.cpp; load the repository that they were converted from."
    folders = sorted({os.path.dirname(name) for name in names if os.path.basename(name) == CONFIG_FILE})
    if folders:
        return f"config.json is in {', '.join(folders)}; pass `subfolder`."
    return "check the name, and that all files are there."


def _resolve_from_cache(path: str, revision: str | None, hub_kwargs: dict[str, Any]) -> ResolvedRevision | None:
    """Return a revision with the commit that the cache remembers for it, or None if the cache knows none.

    A revision that was resolved for this repository before is returned as it is.

    Raises:
        OSError: If `path` cannot be the id of a repository.
    """
    try:
        return HfApi().resolve_revision(
            path, revision=revision, cache_dir=hub_kwargs.get("cache_dir"), local_files_only=True
        )
    except RevisionResolutionError:
        return None
    except HFValidationError as error:
        raise OSError(explain(path, error)) from error


def _is_dataset(path: str, hub_kwargs: dict[str, Any]) -> bool:
    """Return whether the Hub has a dataset of this id; False if it does not answer or must not be asked."""
    if is_offline_mode():
        return False
    try:
        return HfApi().repo_exists(path, repo_type="dataset", token=hub_kwargs.get("token"))
    except (HTTPError, HFValidationError):
        return False


__all__ = [
    "ADAPTER_ARGUMENT",
    "ADAPTER_CONFIG_FILE",
    "ADAPTER_WEIGHTS_FILE",
    "CONFIG_FILE",
    "Checkpoint",
    "Source",
    "check_family",
    "find_adapter",
    "open_base",
    "open_checkpoint",
    "open_given_adapter",
    "open_source",
]
