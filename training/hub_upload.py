"""Uploading a finished model to the Hugging Face Hub: all of it in one commit, or nothing."""

from __future__ import annotations

from pathlib import Path

import httpx2
import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError
from transformers import Seq2SeqTrainingArguments

from common.errors import UserError, one_line

UPLOADED = ("*.json", "*.safetensors", "*.txt", "README.md")
"""Of the output folder: the model, its tokenizer and its card."""
KEPT_HERE = ("trainer_*.json", "producer_*.json", "rejected*", "checkpoint-*", "all_results.json")
"""What these patterns hold besides: paths of this machine, the state of the run."""


def upload_model(folder: Path, arguments: Seq2SeqTrainingArguments) -> str:
    """Uploads the finished model of an output folder, to `hub_model_id` at `hub_revision`.

    Checkpoints are never uploaded: a reader of the repository would find a model that is half old and half new.

    Returns:
        The address of the commit.

    Raises:
        UserError: the Hub can't be reached, or refuses. The model is in the folder all the same.
    """
    api = huggingface_hub.HfApi(token=arguments.hub_token)
    try:
        name = api.create_repo(
            arguments.hub_model_id or folder.resolve().name, private=arguments.hub_private_repo, exist_ok=True
        ).repo_id
        if arguments.hub_revision:
            api.create_branch(name, branch=arguments.hub_revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            revision=arguments.hub_revision,
            commit_message="Model and card of a finished run",
            allow_patterns=list(UPLOADED),
            ignore_patterns=list(KEPT_HERE),
        )
    except (HfHubHTTPError, httpx2.HTTPError, OSError, ValueError) as error:
        raise UserError(
            f"cannot push to the Hub: {one_line(error)}. The model is complete in {folder}; upload it with: hf upload "
            f"{arguments.hub_model_id or 'NAME'} {folder} --exclude 'checkpoint-*'"
        ) from error
    return str(commit.commit_url)
