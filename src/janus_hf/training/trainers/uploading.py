"""`UploadingTrainer`, the base class of the trainers that push runs to the Hub, and the check of the run's repository.

The class corrects three faults of the uploads of transformers' `Trainer`. Those publish the Hub token and folders of
this machine, lose the errors of uploads in the background, and fail on missing rights or a missing branch only after
the last step.
"""

import logging
import os
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo, HfApi, ModelCard
from transformers import Trainer
from transformers.trainer_utils import HubStrategy, SaveStrategy

from ...hub.cards import CARD_FILE, read_card
from ...hub.saved_files import outdated_files
from ..recording import write_card
from .run_arguments import RunArguments
from .staging import stage_upload


logger = logging.getLogger(__name__)


def prepare_repository(args: RunArguments, *, token: str | None = None, private: bool | None = None) -> str:
    """Create the repository and the branch that a run is pushed to, and check that the token may write to them.

    Args:
        args: The run's configuration, whose `hub_model_id` (by default the name of the output folder), `hub_revision`,
            `hub_token` and `hub_private_repo` are used.
        token: Hub token to use instead of `args.hub_token`.
        private: Whether the repository is private, instead of `args.hub_private_repo`.

    Returns:
        The repository's full id, `owner/name`.

    Raises:
        ValueError: If the repository exists and is private where a public one is requested, or public where a private
            one is requested.
        OSError: If the Hub cannot be reached, or the token may not write to the repository.
    """
    api = HfApi(token=token or args.hub_token)
    repo_id, revision = args.hub_model_id or Path(args.output_dir).absolute().name, args.hub_revision
    private = args.hub_private_repo if private is None else private
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        api.auth_check(repo_id, write=True)
        if revision and revision.startswith("refs/"):
            api.model_info(repo_id, revision=revision)  # a pull request must exist, because the Hub chooses its number
        elif revision:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        is_private = api.model_info(repo_id).private
    except Exception as error:  # errors of the connection have classes of the HTTP library, which differs by version
        where = f"{repo_id!r}" + (f" at revision {revision!r}" if revision else "")
        raise OSError(
            f"`hub_model_id` must be a repository that the Hub token may write to, got {where}, and {_reason(error)} "
            "Log in with `hf auth login` or set HF_TOKEN or `hub_token` to a token with the right to write, or change "
            "`hub_model_id`."
        ) from error
    if private is not None and is_private is not None and private != is_private:
        raise ValueError(
            f"`hub_private_repo` must be what the existing repository {repo_id!r} is, {is_private}, got {private}: "
            "leave it out, change the repository's settings on the Hub, or choose another `hub_model_id`."
        )
    return repo_id


class UploadingTrainer(Trainer):
    """transformers' `Trainer` whose uploads contain no tokens and no paths of this machine, and do not fail silently.

    All fields of the configuration that begin with `hub_` mean what they mean in transformers. Every upload is one
    commit of the model, its processor, its card, samples and logs.
    """

    args: RunArguments

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # Any: arguments of the parent class
        # This client runs background uploads in a single thread, so they run one after another.
        self._hub = HfApi()
        self._uploads: list[Future[CommitInfo]] = []  # uploads whose success or failure was not looked up yet
        super().__init__(*args, **kwargs)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the run's repository and branch and check that they can be written to; see `prepare_repository`.

        transformers calls this method when a trainer with `push_to_hub=True` is made. Only the main process uses the
        Hub.

        Args:
            token: Hub token to use instead of `args.hub_token`.
            private: Whether the repository is private, instead of `args.hub_private_repo`.

        Raises:
            ValueError, OSError: See `prepare_repository`.
        """
        if self.is_world_process_zero():
            self.hub_model_id = prepare_repository(self.args, token=token, private=private)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> "CommitInfo | Future[CommitInfo] | None":
        """Save the model, its processor and its card to the output folder, and upload the folder in one commit.

        Every process must call this method, because the weights of a sharded model are gathered from all of them. Only
        the main process uploads.

        Args:
            commit_message: Title of the commit.
            blocking: Whether to wait until the upload has ended.
            token: Hub token to use instead of `args.hub_token`.
            revision: Branch to use instead of `args.hub_revision`.
            private: Whether a repository that is created now is private, instead of `args.hub_private_repo`.
            kwargs: Arguments of `create_model_card`.

        Returns:
            The Hub's information about the commit, or with `blocking=False` a future of it. On processes other than
            the main one the result is None.

        Raises:
            OSError: If the Hub refuses the upload or cannot be reached. With `blocking=False` the future raises the
                exception of the upload itself.
            ValueError: See `prepare_repository`.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        future = self.start_upload(commit_message or "End of training", token=token, revision=revision)
        return self.finish_upload(future) if blocking else future

    def start_upload(
        self,
        commit_message: str,
        *,
        token: str | None = None,
        revision: str | None = None,
        model: Path | None = None,
        checkpoint_name: str = "",
    ) -> "Future[CommitInfo]":
        """Start an upload of the run in the background; it waits for the uploads that were started before.

        Only the main process may call this method.

        Args:
            commit_message: Title of the commit.
            token: Hub token to use instead of `args.hub_token`.
            revision: Branch to use instead of `args.hub_revision`.
            model: Folder of the checkpoint whose model is uploaded; None uploads the model in the output folder.
            checkpoint_name: Name of the folder in the repository to which the whole checkpoint is uploaded in
                addition; empty to upload only its model.

        Returns:
            A future of the Hub's information about the commit.
        """
        assert self.hub_model_id is not None  # set by `init_hf_repo`
        run = Path(self.args.output_dir)
        staged = TemporaryDirectory(prefix="_upload-", dir=run)
        folder = Path(staged.name)
        stage_upload(folder, run, self.args, model=model, checkpoint_name=checkpoint_name)
        target = {
            "repo_id": self.hub_model_id,
            "revision": revision or self.args.hub_revision,
            "token": token or self.args.hub_token,
        }
        card = self.generated_card()

        def upload() -> CommitInfo:
            """Upload the folder in one commit and remove it."""
            with staged:
                present = self._hub.list_repo_files(**target)
                found = []
                if CARD_FILE in present:
                    found = read_card(self._hub.hf_hub_download(filename=CARD_FILE, **target))
                _finish_card(folder, card, found)
                return self._hub.upload_folder(
                    folder_path=folder,
                    commit_message=commit_message,
                    delete_patterns=outdated_files(os.listdir(folder), present),
                    **target,
                )

        self._uploads.append(self._hub.run_as_future(upload))
        return self._uploads[-1]

    def generated_card(self) -> ModelCard | None:
        """Return the card of the run in its present state, or None to upload README.md of the output folder.

        Subclasses override this method; this one returns None.
        """
        return None

    def finish_upload(self, future: "Future[CommitInfo]") -> CommitInfo:
        """Wait for an upload and return the Hub's information about its commit.

        Raises:
            OSError: If the Hub refused the upload or could not be reached. The files are in the output folder.
        """
        try:
            return future.result()
        except Exception as error:  # errors of the connection have classes of the HTTP library
            raise OSError(
                f"The upload to {self.hub_model_id!r} failed: {_reason(error)} The model is saved in "
                f"{self.args.output_dir!r}: call `push_to_hub` again, or run the recipe again with "
                "`training.resume_from_checkpoint=auto`, which trains no further and uploads it."
            ) from error
        finally:
            self._uploads.remove(future)

    # `Trainer` calls this method after each save. No public callback runs at that time on the main process alone.
    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Start an upload of a checkpoint's model.

        If `args.hub_strategy` is "checkpoint" or "all_checkpoints", the whole checkpoint is uploaded as well. If the
        previous upload still runs, this one is skipped with a warning, unless `args.hub_always_push` is set.

        Args:
            checkpoint_folder: Folder of the checkpoint that was just saved.
        """
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        step = self.state.global_step
        self._report_failures(future for future in list(self._uploads) if future.done())
        if self._uploads and not self.args.hub_always_push:
            logger.warning(
                "Step %d is not uploaded, because the previous upload still runs: set `hub_always_push=True` to "
                "upload every save.",
                step,
            )
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        by_steps = self.args.save_strategy == SaveStrategy.STEPS
        names = {
            HubStrategy.CHECKPOINT: "last-checkpoint",
            HubStrategy.ALL_CHECKPOINTS: os.path.basename(checkpoint_folder),
        }
        self.start_upload(
            "Training in progress, " + (f"step {step}" if by_steps else f"epoch {int(self.state.epoch or 0)}"),
            model=Path(checkpoint_folder),
            checkpoint_name=names.get(HubStrategy(self.args.hub_strategy), ""),
        )

    # `Trainer.train` calls this method at its end.
    def _finish_current_push(self) -> None:
        """Wait for all uploads in the background, and warn about those that failed."""
        self._report_failures(list(self._uploads))

    def _report_failures(self, uploads: "Iterable[Future[CommitInfo]]") -> None:
        """Wait for uploads in the background, and log a warning with the error of each that failed."""
        for future in uploads:
            self._uploads.remove(future)
            if (error := future.exception()) is not None:
                logger.warning(
                    "An upload to %r failed: %s The files are in %r; the next upload, or `push_to_hub`, uploads them.",
                    self.hub_model_id,
                    _reason(error),
                    self.args.output_dir,
                )


def _finish_card(folder: Path, generated: ModelCard | None, found: list[str]) -> None:
    """Write README.md into a folder: a card on the Hub or in the folder that was edited by hand, else a generated one.

    Metadata that an edited card lacks is added to it.

    Args:
        folder: Folder of the upload.
        generated: The generated card; None uses the card in the folder instead.
        found: List with the text of the card on the Hub; empty if there is none.
    """
    local = read_card(folder)
    if generated is None and local:
        generated = ModelCard(local[0], ignore_metadata_errors=True)
    if generated is not None:
        write_card(folder, generated, [*found, *local])


def _reason(error: BaseException) -> str:
    """Return the message of an error as one line that ends with a full stop."""
    text = getattr(error, "server_message", None) or " ".join(str(error).split()) or type(error).__name__
    return text.rstrip(".") + "."


__all__ = ["UploadingTrainer", "prepare_repository"]
