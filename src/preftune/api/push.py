"""`preftune.push`: a saved model to a repository on the hub."""

from pathlib import Path

from preftune.models.publishing import HubRepository, model_folder


def push(
    folder: str | Path,
    repository: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload model",
    token: str | None = None,
) -> str:
    """Upload the model of a run, or a saved model's folder, by huggingface_hub.

    A model card of the user's on the hub stays as it is. Nothing on this machine changes.

    Args:
        folder: a run folder, or one that `save_model`, `save_pretrained` or `preftune merge` wrote.
        repository: OWNER/NAME, or NAME for one of the token's owner; it is made if it does not exist.
        private: whether a new repository is private; None leaves that to the owner's settings.
        revision: the branch; the main one unless given.
        commit_message: of the commit.
        token: of the hub; HF_TOKEN, or what `hf auth login` has stored, unless given.

    Returns:
        The repository's address.

    Raises:
        InputError: there is no model, the name or token is not valid, or the hub refuses or cannot be
            reached.
    """
    model = model_folder(Path(folder))
    target = HubRepository(repository, private, revision, token).checked()
    target.create()
    return target.upload(model, commit_message, kept=Path(folder))
