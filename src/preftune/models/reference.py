"""Log-probabilities of the frozen reference policy, computed once and kept by content."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from jaxtyping import Float32
from rich.progress import track
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedModel

from preftune.data.groups import TokenizedGroup
from preftune.data.packing import pack
from preftune.models.policy import Policy
from preftune.storage.files import replaced

logger = logging.getLogger(__name__)

TOKENS_PER_ROW = 4096
"""Tokens per forward pass: long rows keep the matrix products large."""
SECONDS_BETWEEN_SAVES = 60
"""A pass that is killed loses at most this much."""
SECONDS_BETWEEN_LINES = 30
"""Of the log, which says how far a long pass has come."""


@dataclass(frozen=True)
class KeptLogps:
    """Log-probabilities of responses by their keys, and of each one's trained tokens where those are kept."""

    sums: dict[bytes, float] = field(default_factory=dict)
    tokens: dict[bytes, Float32[np.ndarray, "_"]] = field(default_factory=dict)

    def __or__(self, other: "KeptLogps") -> "KeptLogps":
        return KeptLogps(self.sums | other.sums, self.tokens | other.tokens)

    def add(self, read: Iterable[tuple[bytes, float, Float32[np.ndarray, "_"] | None]]) -> None:
        """Add what a row gave; what is there already stays as it is."""
        for key, logp, tokens in read:
            self.sums.setdefault(key, logp)
            if tokens is not None:
                self.tokens.setdefault(key, tokens)


class ReferenceCache:
    """Reference log-probabilities on disk, one number for each prompt and response.

    The file's name is the reference's identity (its weights, its configuration and the precision of the
    computation) and each entry's key is made of the response's and its prompt's token ids, and of which
    are trained. A changed template, truncation or row is therefore another key; learning rate, seed and
    output folder are no part of any, nor is the objective, except that one which needs the numbers of tokens
    has a file of its own, with 4 bytes for each of them (here and in memory).
    """

    def __init__(self, folder: Path, identity: str, tokens: bool = False) -> None:
        """Read what is there.

        Args:
            folder: the cache.
            identity: `reference_identity`.
            tokens: keep log-probabilities of tokens as well.
        """
        self._keeps_tokens = tokens
        name = f"{identity}-tokens" if tokens else identity
        self._file = folder / "reference" / f"{name}.safetensors"
        self._kept = self._stored()

    def fill(
        self,
        policy: Policy,
        groups: Sequence[TokenizedGroup],
        autocast: AbstractContextManager[object] | None = None,
        progress: bool = False,
        adapters: bool = False,
        only: Set[int] | None = None,
    ) -> list[TokenizedGroup]:
        """The same groups, and what is mismatched to them, with `reference_logps`; what lacks is computed.

        Where tokens are kept they have `reference_token_logps` too. Several processes call it together, with
        the same groups, and compute a share each.

        Args:
            policy: the policy as the reference: before any update, or with its adapter off.
            groups: what to score; a response that is not packed is not, and gets NaN.
            autocast: the precision context of training.
            progress: show a bar.
            adapters: leave the model's adapters on.
            only: places of the groups that are wanted, others stay as they are; None wants all. Their numbers
                are bit for bit those of all, since whole rows of all are computed.
        """
        state = PartialState()
        # They may have read the file at different moments, and must agree on what lacks.
        (self._kept,) = broadcast_object_list([self._kept])
        every = _with_mismatched(groups)
        wanted = every if only is None else _with_mismatched([groups[place] for place in sorted(only)])
        missing = [group for group in wanted if not self._has(group)]
        found = len(wanted) - len(missing)
        if wanted:
            logger.info("Reference: %d of %d groups found in %s", found, len(wanted), self._file)
        if missing:
            # Rows of all groups, found or not: what stands together in a row decides its rounding, and is
            # the same for a pass that resumes a killed one.
            lacking = {key for group in missing for key in _keys(group)}
            rows = [row for row in _rows(every) if any(not lacking.isdisjoint(_keys(group)) for group in row)]
            share = rows[state.process_index :: state.num_processes]
            with _as_reference(policy, autocast or nullcontext(), adapters):
                self._compute(policy, share, progress)
            # A response in rows of two processes has the first one's number, in all of them.
            for found in reversed(gather_object([self._kept])):
                self._kept = self._kept | found
            if state.is_main_process:
                self._save()
        places = range(len(groups)) if only is None else only
        return [
            _completed(group, self._kept) if place in places else group for place, group in enumerate(groups)
        ]

    def _has(self, group: TokenizedGroup) -> bool:
        return self._kept.sums.keys() >= set(_keys(group))

    def _compute(
        self,
        policy: Policy,
        rows: list[list[TokenizedGroup]],
        progress: bool,
    ) -> None:
        started = saved = said = time.monotonic()
        bar = track(rows, "Reference log-probabilities", disable=not progress, transient=True)
        for done, row in enumerate(bar, 1):
            self._kept.add(_read(policy, row, self._keeps_tokens))
            now = time.monotonic()
            if now - saved > SECONDS_BETWEEN_SAVES:
                self._save()
                saved = now
            # A bar is drawn on a terminal alone.
            if progress and now - said > SECONDS_BETWEEN_LINES:
                left = (now - started) / done * (len(rows) - done)
                logger.info("Reference: %d of %d rows, about %.0f seconds left", done, len(rows), left)
                said = now

    def _stored(self) -> KeptLogps:
        if not self._file.exists():
            return KeptLogps()
        try:
            stored = load_file(self._file)
            keys = [key.tobytes() for key in stored["keys"]]
            sums = dict(zip(keys, stored["logps"].tolist(), strict=True))
            if not self._keeps_tokens:
                return KeptLogps(sums)
            each = np.split(stored["token_logps"], np.cumsum(stored["token_counts"]))[:-1]
            return KeptLogps(sums, dict(zip(keys, each, strict=True)))
        except (SafetensorError, KeyError, ValueError) as error:
            logger.warning("%s is damaged (%s) and is computed again", self._file, error)
            return KeptLogps()

    def _save(self) -> None:
        # Another run may have added to the file in the meantime.
        self._kept = self._stored() | self._kept
        sums = self._kept.sums
        keys = np.frombuffer(b"".join(sums), dtype=np.uint8).reshape(len(sums), -1)
        content: dict[str, np.ndarray] = {
            "keys": keys,
            "logps": np.array(list(sums.values()), dtype=np.float32),
        }
        if self._keeps_tokens:
            each = [self._kept.tokens[key] for key in sums]
            content["token_counts"] = np.array([len(tokens) for tokens in each], dtype=np.int64)
            content["token_logps"] = np.concatenate(each, dtype=np.float32)
        with replaced(self._file) as aside:
            save_file(content, aside)


def with_reference(
    policy: Policy,
    groups: Sequence[TokenizedGroup],
    autocast: AbstractContextManager[object],
    tokens: bool = False,
) -> list[TokenizedGroup]:
    """The same groups, and what is mismatched to them, with `reference_logps`; nothing is kept for later.

    Args:
        policy: as for `ReferenceCache.fill`.
        groups: what to score.
        autocast: the precision context of training.
        tokens: add `reference_token_logps` too.
    """
    kept = KeptLogps()
    with _as_reference(policy, autocast):
        for row in _rows(_with_mismatched(groups)):
            kept.add(_read(policy, row, tokens))
    return [_completed(group, kept) for group in groups]


@contextmanager
def _as_reference(
    policy: Policy, autocast: AbstractContextManager[object], adapters: bool = False
) -> Iterator[None]:
    off: Callable[[], AbstractContextManager[object]] = nullcontext
    if not adapters:
        off = getattr(policy.language_model, "disable_adapter", nullcontext)
    with torch.no_grad(), autocast, off():
        yield


def _read(
    policy: Policy, row: list[TokenizedGroup], tokens: bool
) -> Iterable[tuple[bytes, float, Float32[np.ndarray, "_"] | None]]:
    """Log-probability of every response of a row, and of its tokens where they are asked for, by its key."""
    batch = pack(row).to(next(policy.parameters()).device)
    keys = [key for group in row for key in _keys(group)]
    scored = policy(batch)
    each: Iterable[Float32[np.ndarray, _] | None] = repeat(None, len(keys))
    if tokens:
        each = np.split(scored.token_logps.cpu().numpy(), np.cumsum(batch.lengths.tolist()))[:-1]
    return zip(keys, scored.logps.tolist(), each, strict=True)


def _with_mismatched(groups: Sequence[TokenizedGroup]) -> list[TokenizedGroup]:
    return [*groups, *(group.mismatched for group in groups if group.mismatched)]


def _completed(group: TokenizedGroup, kept: KeptLogps) -> TokenizedGroup:
    """The group with `reference_logps`, NaN where a response is not packed, and its tokens' where kept."""
    keys = dict(zip(group.packed, _keys(group), strict=True))
    found = np.full(len(group.responses), np.nan, dtype=np.float32)
    found[group.packed] = [kept.sums[key] for key in keys.values()]
    per_token = group.per_token
    if kept.tokens:
        none = np.empty(0, dtype=np.float32)
        places = range(len(group.responses))
        tokens = tuple(kept.tokens[keys[place]] if place in keys else none for place in places)
        per_token = {**per_token, "reference_token_logps": tokens}
    return replace(
        group,
        per_response={**group.per_response, "reference_logps": found},
        per_token=per_token,
        mismatched=group.mismatched and _completed(group.mismatched, kept),
    )


def reference_identity(model: PreTrainedModel, precision: str, adapters: bool = False) -> str:
    """Hash of what decides a policy's log-probabilities: weights, configuration, precision.

    Args:
        model: the causal language model, without the `PeftModel` around it.
        precision: of the computation, such as `bf16` under autocast.
        adapters: whether LoRA weights count; where the reference is the model with its adapter off, they
            do not.
    """
    digest = hashlib.blake2b(digest_size=16)
    config = model.config.to_dict()
    for noise in ("_name_or_path", "transformers_version", "dtype", "use_cache"):
        config.pop(noise, None)
    digest.update(repr((precision, sorted(config.items(), key=lambda item: item[0]))).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if "lora_" in name and not adapters:
            continue
        digest.update(repr((name.replace(".base_layer", ""), tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _keys(group: TokenizedGroup) -> list[bytes]:
    """A key for each response that is packed, in packing order."""
    prompt = hashlib.blake2b(group.prompt.tobytes(), digest_size=16).digest()
    keys = []
    for index in group.packed:
        digest = hashlib.blake2b(group.responses[index].tobytes(), key=prompt, digest_size=16)
        if group.trained is not None and not group.trained[index].all():
            digest.update(b"trained" + np.packbits(group.trained[index]).tobytes())
        keys.append(digest.digest())
    return keys


def _rows(groups: list[TokenizedGroup]) -> list[list[TokenizedGroup]]:
    """Groups of like length together, in rows of about TOKENS_PER_ROW tokens."""
    rows: list[list[TokenizedGroup]] = []
    room = 0
    for group in sorted(groups, key=lambda group: group.packed_tokens, reverse=True):
        if group.packed_tokens > room:
            rows.append([])
            room = TOKENS_PER_ROW
        rows[-1].append(group)
        room -= group.packed_tokens
    return rows
