"""`HubUploadMixin`, the method `push_to_hub` of the pipeline, the model and the processor."""

import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError

from ..arguments import check_path
from .cards import CARD_FILE, finish_card, read_card
from .saved_files import outdated_files


class UploadArguments(TypedDict, total=False):
    """Keyword arguments of an upload to the Hub, for `push_to_hub` and for `save_pretrained(push_to_hub=True)`.

    `HubUploadMixin.push_to_hub` describes them.
    """

    repo_id: str
    commit_message: str | None
    commit_description: str | None
    private: bool | None
    token: str | bool | None
    revision: str | None
    create_pr: bool
    tags: str | list[str] | None


def check_upload_arguments(arguments: Mapping[str, object], *, uploads: bool) -> None:
    """Raise an error if a keyword argument of `save_pretrained` is unknown, or is for an upload that does not happen.

    Args:
        arguments: The keyword arguments that `save_pretrained` does not declare itself: those of `UploadArguments`, or
            mistakes of the caller.
        uploads: Whether `save_pretrained` uploads (`push_to_hub=True`).

    Raises:
        TypeError: If an argument is unknown, is for an upload and `uploads` is False, or `tags` is of the wrong type.
    """
    known = UploadArguments.__annotations__ if uploads else {}
    if unknown := sorted(arguments.keys() - known):
        raise TypeError(
            f"`save_pretrained` must receive arguments that it knows, got {unknown}: leave them out"
            + ("." if uploads else "; repo_id and the like need push_to_hub=True.")
        )
    tags = arguments.get("tags") or []
    if not isinstance(tags, str) and not (isinstance(tags, Collection) and all(isinstance(tag, str) for tag in tags)):
        raise TypeError(f"`tags` must be strings, got {tags!r}: give a list of strings.")


class HubUploadMixin:
    """Add `push_to_hub` to a class with `save_pretrained`, which writes its files into a folder.

    List it before the library's class among the base classes, because it overrides that class's `push_to_hub`.
    """

    save_pretrained: Callable[..., Any]  # Any: each class declares its own arguments and result
    # Method that returns a generated model card. Each class defines its own, with the argument `repo_id` (full id of
    # the repository) and the keyword arguments `has_processor` (whether the repository holds a processor after the
    # upload), `loading` (arguments with which the files have to be loaded; None as a value leaves one out) and `token`
    # (Hub token with which the card of the base model may be read).
    _generated_card: Callable[..., ModelCard]
    # Whether uploads leave the card to another component. True for a processor: it writes a card only to add tags.
    _card_belongs_to_others = False

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        tags: str | list[str] | None = None,
        **saving: Any,  # Any: each class declares the arguments of its own save_pretrained
    ) -> CommitInfo:
        """Save into a temporary folder and upload the files to a repository on the Hub, in one commit.

        Weight files of an earlier upload that the new files replace are deleted in the same commit: those of the same
        variant, and those of an adapter if a whole model is uploaded. All other files of the repository are kept.

        A model card that was edited by hand is kept, and only metadata that it lacks is added. If there is no such
        card, a pipeline or a model writes a generated one. A processor writes a card only if it receives `tags`.

        Args:
            repo_id: `name` or `organisation/name`; the repository is created if it does not exist.
            commit_message, commit_description: Title and description of the commit.
            private: Whether a repository that is created now is private; None is the Hub's default. True is refused
                for a public repository that exists.
            token: Hub token; None is the stored one.
            revision: Branch to upload to, which is created from the main branch if it does not exist, or a pull
                request (`refs/pr/1`). None is the main branch.
            create_pr: Open a pull request instead of committing to the branch.
            tags: Tags to add to the model card.
            saving: Arguments of `save_pretrained`, such as `variant` and `max_shard_size`.

        Returns:
            The Hub's information about the commit, which as a string is the commit's URL.

        Raises:
            TypeError: If an argument is unknown, or `repo_id` is not a string.
            ValueError: If `private` is True and the repository is public, or the Hub does not accept the metadata of
                the model card.
            HfHubHTTPError: If the Hub refuses the upload. The repository then has the same files as before.
        """
        check_path(repo_id, "repo_id", "the name of a repository")
        upload: UploadArguments = {
            "repo_id": repo_id,
            "commit_message": commit_message,
            "commit_description": commit_description,
            "private": private,
            "token": token,
            "revision": revision,
            "create_pr": create_pr,
            "tags": tags,
        }
        check_upload_arguments(upload, uploads=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **saving)
            return self._upload(folder, os.listdir(folder), upload, variant=saving.get("variant"))

    def _upload(
        self,
        folder: str | os.PathLike[str],
        names: Iterable[str],
        arguments: UploadArguments,
        *,
        variant: str | None = None,
    ) -> CommitInfo:
        """Upload files of a folder in one commit that also deletes the weight files which they replace.

        The arguments, results and errors of an upload are described in `push_to_hub`.

        Args:
            folder: Folder of the files. Its model card, if it has one, is used if the repository has none.
            names: Names of the files.
            arguments: Arguments of the upload; `repo_id` defaults to the folder's name.
            variant: Variant of the weights, which the code in the model card must name.
        """
        token, revision = arguments.get("token"), arguments.get("revision")
        create_pr = bool(arguments.get("create_pr"))
        tags = arguments.get("tags") or []
        tags = [tags] if isinstance(tags, str) else list(tags)
        written = set(names) - {CARD_FILE}

        api = HfApi(token=token)
        repo_id = arguments.get("repo_id") or Path(folder).resolve().name
        repo_id = api.create_repo(repo_id, private=arguments.get("private"), exist_ok=True).repo_id
        if arguments.get("private") and api.repo_info(repo_id).private is False:
            raise ValueError(
                f"`private` must be left out for {repo_id}, which exists and is public, got True: make the repository "
                "private first (HfApi.update_repo_settings), or push to another one."
            )
        is_new_branch = _create_branch(api, repo_id, revision, create_pr)
        try:
            present = set(api.list_repo_files(repo_id, revision=revision))
            additions: list[CommitOperationAdd | CommitOperationDelete] = [
                CommitOperationAdd(name, self._publishable(Path(folder, name))) for name in sorted(written)
            ]
            if tags or not self._card_belongs_to_others:
                on_hub = CARD_FILE in present
                found = read_card(api.hf_hub_download(repo_id, CARD_FILE, revision=revision)) if on_hub else []
                is_pull_request = create_pr or (revision or "").startswith("refs/pr/")
                loading = {"variant": variant, "revision": None if is_pull_request else revision}
                generated = self._generated_card(
                    repo_id,
                    has_processor="processor_config.json" in present | written,
                    loading=loading,
                    token=token,
                )
                card = finish_card(
                    generated, [*found, *read_card(folder)], tags, keep_text=self._card_belongs_to_others
                )
                if [card] != found:
                    additions.append(CommitOperationAdd(CARD_FILE, card.encode(errors="surrogateescape")))
            return api.create_commit(
                repo_id,
                [*additions, *map(CommitOperationDelete, outdated_files(written, present))],
                commit_message=arguments.get("commit_message") or f"Upload {self._name_in_commits()}",
                commit_description=arguments.get("commit_description"),
                revision=revision,
                create_pr=create_pr,
            )
        except BaseException:
            if is_new_branch and revision is not None:
                with suppress(Exception):  # the first error is the one to report
                    api.delete_branch(repo_id, branch=revision)
            raise

    def _name_in_commits(self) -> str:
        """Return the object's name for the default title of a commit; the title is the same as in transformers."""
        name = type(self).__name__
        return next((word.lower() for word in ("Model", "Processor") if word in name), name)

    def _publishable(self, path: Path) -> Path | bytes:
        """Return the path of a file to upload it unchanged, or the bytes to upload in its place."""
        return path


def _create_branch(api: HfApi, repo_id: str, revision: str | None, create_pr: bool) -> bool:
    """Create the branch `revision` if it does not exist, and return whether it was created."""
    if revision is None or revision.startswith("refs/pr/"):
        return False
    try:
        api.create_branch(repo_id, branch=revision)
    except HfHubHTTPError as error:
        exists = error.response.status_code == 409
        # Without the right to create a branch, a pull request against an existing one is still possible.
        if not exists and not (create_pr and error.response.status_code == 403):
            raise
        return False
    return True


__all__ = ["HubUploadMixin", "UploadArguments", "check_upload_arguments"]
