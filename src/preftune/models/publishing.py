"""A saved model on the hub: what is checked first, what is uploaded, and what a refusal means.

All of it by huggingface_hub, and nothing of it unless it is asked for. A token comes from the environment,
from `hf auth login`, or from a caller in Python, and is never written.
"""

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from preftune.errors import InputError
from preftune.models.config_files import ADAPTER_FILE, CONFIG_FILE
from preftune.storage.cards import CARD_FILE, is_replaceable
from preftune.storage.files import write_json

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_SNAPSHOT = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/[0-9a-f]+/?$")
_REFUSALS = {
    401: "the hub does not accept the token: set HF_TOKEN to one that may write, or run `hf auth login`",
    403: "the token may not write there: give one with the right to write, or a repository of your own",
    404: "the hub has no such repository or revision, or the token may not see it: check the name",
    413: "a file is larger than the hub takes: save with a smaller max_shard_size",
    429: "the hub has too many requests of this token: wait, and push again",
}


def hub_name(source: str) -> str | None:
    """The name on the hub that a model or data set was read by; None for what lies on this machine."""
    if found := _SNAPSHOT.search(source):
        return f"{found[1]}/{found[2]}"
    return source if _NAME.fullmatch(source) and not Path(source).exists() else None


@dataclass(frozen=True)
class HubRepository:
    """A model repository on the hub.

    Attributes:
        name: NAME, or OWNER/NAME; without an owner it is the token's.
        private: whether it is made private, if it is made; None leaves that to the owner's settings.
        revision: the branch that is written to; None for the main one.
        token: None takes HF_TOKEN, or what `hf auth login` has stored.
        key: what names it, for messages.
    """

    name: str
    private: bool | None = None
    revision: str | None = None
    token: str | None = field(default=None, repr=False)
    key: str = "repository"

    def checked(self) -> "HubRepository":
        """The same with its owner, once its name is valid and the hub knows the token.

        Raises:
            InputError: the name is not valid, there is no token, or the hub does not accept it or cannot be
                reached.
        """
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

        try:
            validate_repo_id(self.name)
        except HFValidationError as error:
            raise InputError(f"{self.key}={self.name}: {error}") from None
        if not (self.token or get_token()):
            raise InputError(
                f"{self.key}={self.name}: there is no token for the hub: set HF_TOKEN, or run `hf auth login`"
            )
        with self._clear_errors():
            user = HfApi().whoami(self.token)["name"]
        return self if "/" in self.name else replace(self, name=f"{user}/{self.name}")

    def create(self) -> None:
        """Make the repository and its branch, where they do not exist.

        Raises:
            InputError: the hub refuses, or cannot be reached.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=self.token)
        with self._clear_errors():
            api.create_repo(self.name, private=self.private, exist_ok=True)
            if self.revision and not self.revision.startswith("refs/"):
                api.create_branch(self.name, branch=self.revision, exist_ok=True)

    def upload(
        self,
        folder: Path,
        message: str,
        *,
        place: str | None = None,
        leave_out: Sequence[str] = (),
        kept: Path | None = None,
    ) -> str:
        """Upload a folder in one commit; the folder stays as it is.

        A card of the user's on the hub stays too, and what names a base model on this machine is uploaded
        without the path to it.

        Args:
            folder: holds a saved model.
            message: of the commit.
            place: folder of the repository; None for its root.
            leave_out: patterns of files that are not uploaded.
            kept: what can be pushed again after a refusal, for the message.

        Returns:
            The repository's address.

        Raises:
            InputError: the hub refuses, or cannot be reached.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=self.token)
        beside = folder.parent if os.access(folder.parent, os.W_OK) else None
        with tempfile.TemporaryDirectory(prefix=".push-", dir=beside) as aside, self._clear_errors(kept):
            staged = Path(aside) / "model"
            shutil.copytree(folder, staged, copy_function=link_or_copy)
            _without_local_base(staged)
            if place is None and (staged / CARD_FILE).exists() and self._has_own_card(Path(aside)):
                logger.info("%s has a model card of its own, which stays", self.name)
                leave_out = [*leave_out, CARD_FILE]
            api.upload_folder(
                repo_id=self.name,
                folder_path=staged,
                path_in_repo=place,
                commit_message=message,
                revision=self.revision,
                ignore_patterns=list(leave_out),
            )
        return f"{api.endpoint}/{self.name}"

    def _has_own_card(self, aside: Path) -> bool:
        """Whether the repository has a card that preftune did not write."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import RemoteEntryNotFoundError

        api = HfApi(token=self.token)
        try:
            card = api.hf_hub_download(self.name, CARD_FILE, revision=self.revision, local_dir=aside / "hub")
        except RemoteEntryNotFoundError:
            return False
        return not is_replaceable(Path(card).read_text(encoding="utf-8", errors="replace"))

    @contextmanager
    def _clear_errors(self, kept: Path | None = None) -> Iterator[None]:
        """Turn what huggingface_hub raises into one message.

        Args:
            kept: what was to be uploaded and stays on this machine.
        """
        from httpx2 import HTTPError

        try:
            yield
        # The uploads' own threads wrap what the hub said in a RuntimeError.
        except (HTTPError, OSError, RuntimeError, ValueError) as error:
            again = f"; {kept} is whole: `preftune push {kept} {self.name}` uploads it later" if kept else ""
            raise InputError(f"{self.key}={self.name}: {self._reason(error)}{again}") from None

    def _reason(self, error: BaseException) -> str:
        from huggingface_hub import constants, get_token
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        causes: list[BaseException] = []
        cause: BaseException | None = error
        while cause is not None:
            causes.append(cause)
            cause = cause.__cause__ or cause.__context__
        if any(isinstance(each, OfflineModeIsEnabled) for each in causes):
            return "HF_HUB_OFFLINE is set, which forbids the upload: unset it"
        refused = next((each for each in causes if isinstance(each, HfHubHTTPError)), None)
        if refused is not None:
            status = refused.response.status_code
            said = f": {refused.server_message.strip()}" if refused.server_message else ""
            text = f"{_REFUSALS.get(status, 'the hub refused')} (status {status}{said})"
        else:
            said = str(error).strip() or type(error).__name__
            text = f"the hub at {constants.ENDPOINT} did not answer as it should: {said.splitlines()[0]}"
        # A server may say the token back.
        for secret in filter(None, (self.token, get_token())):
            text = text.replace(secret, "***")
        return text


def model_folder(folder: Path) -> Path:
    """The folder of a saved model: that itself, or `model/` in a run's.

    Raises:
        InputError: there is no model.
    """
    for place in (folder / "model", folder):
        if (place / ADAPTER_FILE).is_file() or (place / CONFIG_FILE).is_file():
            return place
    raise InputError(
        f"{folder} holds no saved model: give a run folder, or a folder with {CONFIG_FILE} or {ADAPTER_FILE}"
    )


def link_or_copy(source: str, target: str) -> None:
    """A second name for a file, which stays when the first one goes; a copy where there are no such names."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)


def _without_local_base(folder: Path) -> None:
    """Name an adapter's base model by its name on the hub, or else by its folder's name alone."""
    file = folder / ADAPTER_FILE
    if not file.is_file():
        return
    content = json.loads(file.read_text(encoding="utf-8"))
    base = content.get("base_model_name_or_path") or ""
    named = hub_name(base)
    if base and named is None:
        named = Path(base).name
        logger.warning(
            "the adapter's base model is a folder of this machine and is named %s on the hub: others cannot "
            "load the adapter unless they give the base model themselves",
            named,
        )
    if named != base:
        # Written aside and renamed: the file itself has another name in the folder that stays.
        write_json(file, content | {"base_model_name_or_path": named})
