"""Uploading of models to the Hugging Face hub: the repository before anything loads, checkpoints on the way, the
finished model at the end."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

from posttrain.errors import UserError
from posttrain.hub import PAGE, address, ask, explain, hide_token, status, token
from posttrain.model_card import is_card, write_card
from posttrain.provenance import Provenance

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from posttrain.methods import Method

logger = logging.getLogger(__name__)

# Of a checkpoint's files, those that make up its model; its tokenizer's are written anew.
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
)
# transformers' pickled arguments are of no use to anyone else, and a card of peft's names paths of this machine.
NOT_UPLOADED = ("training_args.bin", "README.md")


def create_repository(arguments: TrainingArguments) -> None:
    """Make the repository, and its branch `hub_revision`, if they are not there.

    Args:
        arguments: With hub_model_id; gets its owner if it has none.

    Raises:
        UserError: They cannot be made, or not be written to.
    """
    from huggingface_hub import HfApi

    api, what = HfApi(token=token()), f"--push_to_hub: {arguments.hub_model_id}"
    try:
        arguments.hub_model_id = api.create_repo(
            arguments.hub_model_id, private=arguments.hub_private_repo, exist_ok=True
        ).repo_id
        if arguments.hub_revision not in (None, "main"):
            api.create_branch(arguments.hub_model_id, branch=arguments.hub_revision, exist_ok=True)
        ask(f"api/models/{arguments.hub_model_id}/auth-check/write")
    except Exception as error:
        if status(error) == 404 and type(error).__name__ == "HfHubHTTPError":
            return  # a mirror that does not know the last question
        raise explain(error, what) or error from None


class HubTrainer(Trainer):
    """transformers.Trainer with uploads of exactly the files that a model consists of, and this project's card."""

    method: Method
    provenance: Provenance | None = None  # of the first process

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """`create_repository` was called before the model was loaded."""
        self.hub_model_id = self.args.hub_model_id
        self.push_in_progress = None
        if self.is_world_process_zero():
            shutil.rmtree(self._staging, ignore_errors=True)

    @property
    def _staging(self) -> Path:
        return Path(self.args.output_dir) / ".uploading"

    def write_card(self, folder: Path, counts: dict[str, int], place: Path | None = None) -> None:
        """Writes README.md beside a model, with what has been logged so far; but for one that somebody has written for
        the place where the model goes."""
        if place is not None and (place / "README.md").is_file() and not is_card(place / "README.md"):
            logger.warning("%s is not a card of posttrain, and stays as it is.", place / "README.md")
            (folder / "README.md").unlink(missing_ok=True)  # peft writes one, too
            return
        repository = self.hub_model_id if self.args.push_to_hub else None
        hashes = [] if self.provenance is None else self.provenance.hashes()
        history, steps = self.state.log_history, self.state.global_step
        write_card(folder, self.method.config, history, steps, counts, repository, hashes)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """`hub_strategy`: every_save uploads the model of each checkpoint, checkpoint and all_checkpoints also the
        checkpoint itself, all as one commit, while training goes on."""
        if self.args.hub_strategy == HubStrategy.END:
            return
        self.accelerator.wait_for_everyone()  # each process writes files of its own into a checkpoint
        before: PushInProgress | None = self.push_in_progress
        jobs = [] if before is None or before.is_done() else before.jobs
        if not self.is_world_process_zero() or (jobs and not self.args.hub_always_push):
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        folder = self._staging / str(self.state.global_step)
        self._stage(Path(checkpoint_folder), folder)
        job = self._upload(folder, f"Training in progress, step {self.state.global_step}", in_background=True)
        job.add_done_callback(lambda done: _tidy_up(done, folder))
        self.push_in_progress = PushInProgress([*jobs, job])

    def _stage(self, checkpoint: Path, folder: Path) -> None:
        """Gathers what is uploaded, in links: the checkpoint may be rotated away before the upload has ended."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _link_files(folder, checkpoint, (path for pattern in MODEL_FILES for path in checkpoint.glob(pattern)))
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        self.write_card(folder, {})
        if self.args.hub_strategy != HubStrategy.EVERY_SAVE:
            is_last = self.args.hub_strategy == HubStrategy.CHECKPOINT
            files = (path for path in checkpoint.rglob("*") if path.is_file() and path.name not in NOT_UPLOADED)
            _link_files(folder / ("last-checkpoint" if is_last else checkpoint.name), checkpoint, files)

    def _upload(self, folder: Path, message: str, names: list[str] | None = None, in_background: bool = False) -> Any:
        from huggingface_hub import HfApi

        return HfApi(token=token()).upload_folder(
            repo_id=str(self.hub_model_id),
            folder_path=folder,
            commit_message=message,
            revision=self.args.hub_revision,
            allow_patterns=names,
            run_as_future=in_background,
        )

    def push_model(self, folder: Path, names: list[str]) -> None:
        """Upload the finished model.

        Args:
            folder: Where it is; may hold other files, which stay here.
            names: Of its files.

        Raises:
            UserError: It cannot be uploaded; it is still in its folder.
        """
        if not self.is_world_process_zero():
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self._finish_current_push()
        shutil.rmtree(self._staging, ignore_errors=True)
        try:
            self._upload(folder, "End of training", names)
        except Exception as error:
            explained = explain(error, "--push_to_hub")
            reason = explained or f"--push_to_hub: {hide_token(str(error))}"
            raise UserError(
                f"{reason}. The model is saved in {folder}; to upload it later: hf upload {self.hub_model_id} {folder}",
                PAGE,
            ) from None
        logger.info("Uploaded to %s/%s", address(), self.hub_model_id)


def _link_files(folder: Path, source: Path, files: Iterable[Path]) -> None:
    for path in files:
        there = folder / path.relative_to(source)
        there.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, there)
        except OSError:  # another disk, or one without links
            shutil.copyfile(path, there)


def _tidy_up(done: Future[Any], folder: Path) -> None:
    error = done.exception()
    if error is not None:
        explained = explain(error, "an upload failed, training goes on")
        logger.warning("%s", explained or f"an upload failed, training goes on: {hide_token(str(error))}")
    shutil.rmtree(folder, ignore_errors=True)
