"""`hf:` a sequence classification model as a reward model: one score for each response."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from preftune.data import RULES, ChatTemplate, LengthLimits, RowReport, tokenize_groups
from preftune.data.rules import BadRow, shorten
from preftune.errors import InputError
from preftune.models.config_files import check_token_ids
from preftune.models.content import TEMPLATE_KEY, model_content, scoring_precision
from preftune.objectives.options import one_of
from preftune.rewards.rules import COUNT, LABEL, SETTINGS, ScoringPrecision
from preftune.rewards.scoring import Answer, ScoreUnits, ScoringUnit, one_by_one

if TYPE_CHECKING:
    import transformers

logger = logging.getLogger(__name__)

TOKENS_KEY = "preftune_tokens"
"""Key of a model's configuration that says how its text was tokenised: a name in `TOKENS`."""
ANSWERS_PER_CALL = 1024
NO_LIMITS = LengthLimits(max_length=2**31, max_prompt_length=2**30)
Truncation = Literal["start", "end", "error"]


class RewardModelScorer:
    """A reward model that reads each prompt with one response. See `Scorer`.

    Configuration and tokenizer are read at once, the weights (safetensors only) when scoring starts.
    """

    def __init__(
        self,
        model: str,
        *,
        label: Annotated[int | str | None, LABEL, "the score (the only output)"] = None,
        tokens: Annotated[
            str | None,
            one_of("template", "training"),
            "the whole chat template, or as in training (what the model says, else template)",
        ] = None,
        chat_template_kwargs: Annotated[
            Mapping[str, Any] | None, SETTINGS, "passed to its chat template (as in training, or none)"
        ] = None,
        max_length: Annotated[int | None, COUNT, "longest conversation in tokens (the model's)"] = None,
        truncation: Annotated[Truncation, one_of("start", "end", "error"), "what longer ones lose"] = "start",
        precision: ScoringPrecision = None,
        batch_tokens: Annotated[int, COUNT, "tokens in a batch"] = 16_384,
        trust_remote_code: bool = False,
    ) -> None:
        """Read configuration and tokenizer.

        Args:
            model: folder or hub name.
            label: number or name of the output that is the score; optional if there is only one.
            tokens: a name in `TOKENS`; None is the one in the model's configuration, else `template`.
            chat_template_kwargs: passed to its chat template; None is those in the model's configuration.
            max_length: longest conversation, in tokens; None is the longest that model and tokenizer allow.
            truncation: cut a longer one at its start (BOS stays) or its end, or raise an error.
            precision: None is bf16 if that is fast.
            batch_tokens: tokens in a batch, including padding.
            trust_remote_code: run the model's own code.

        Raises:
            InputError: the model cannot be read or is not a reward model, or an option does not fit it.
        """
        self._name = model
        self._trust = trust_remote_code
        config, self._tokenizer = self._read()
        self._label = _label_index(model, config, label)
        self._vocabulary = getattr(config.get_text_config(), "vocab_size", None)
        found = tokens or getattr(config, TOKENS_KEY, "template")
        if found not in TOKENS:
            raise InputError(f"hf:{model}: {TOKENS_KEY}={found!r} must be {' or '.join(TOKENS)}: set tokens")
        self._tokens = TOKENS[found]
        if chat_template_kwargs is None:
            chat_template_kwargs = getattr(config, TEMPLATE_KEY, None)
        self._template_kwargs = dict(chat_template_kwargs or {})
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        longest = min(positions or 2**30, self._tokenizer.model_max_length)
        if max_length is not None and max_length > longest:
            raise InputError(
                f"hf:{model}: max_length={max_length} exceeds the model's {longest} tokens: lower it"
            )
        self._max_length = max_length or longest
        self._truncation = truncation
        self._batch_tokens = batch_tokens
        self._device, self._dtype = scoring_precision(precision)
        given = (self._label, found, sorted(self._template_kwargs.items()), self._max_length, batch_tokens)
        self.identity = repr((model_content(model), *given, str(self._dtype)))

    def plan(self, answers: Sequence[Answer]) -> list[ScoringUnit]:
        """Batches of distinct conversations of similar length, the longest first."""
        whole = self._tokens(self._tokenizer, answers, self._template_kwargs)
        if self._vocabulary is not None:
            check_token_ids(f"hf:{self._name}: a conversation", whole, self._vocabulary)
        encoded = [self._cut(ids, answer) for ids, answer in zip(whole, answers, strict=True)]
        too_long = sum(len(ids) > self._max_length for ids in whole)
        if too_long:
            logger.warning(
                "hf:%s: %d of %d conversations are longer than %d tokens and are truncated at the %s",
                *(self._name, too_long, len(answers), self._max_length, self._truncation),
            )
        # Pairs of one prompt often share a response, which is read once.
        places: dict[tuple[int, ...], list[int]] = {}
        for place, ids in enumerate(encoded):
            places.setdefault(tuple(ids), []).append(place)
        batches: list[list[tuple[int, ...]]] = []
        for row in sorted(places, key=len, reverse=True):
            if not batches or len(batches[-1][0]) * (len(batches[-1]) + 1) > self._batch_tokens:
                batches.append([])
            batches[-1].append(row)
        return [
            ScoringUnit(
                tuple(chain(*(places[ids] for ids in batch))), {ids: len(places[ids]) for ids in batch}
            )
            for batch in batches
        ]

    @contextmanager
    def ready(self) -> Iterator[ScoreUnits]:
        """The model in memory."""
        model = self._load().to(self._device).eval()

        def score(unit: ScoringUnit) -> list[float]:
            scores = self._scores(model, list(unit.inputs))
            return list(chain(*([score] * n for score, n in zip(scores, unit.inputs.values(), strict=True))))

        yield one_by_one(score)

    def _scores(self, model: Any, rows: Sequence[Sequence[int]]) -> list[float]:
        import torch

        width = max(map(len, rows))
        text_config = model.config.get_text_config()
        own_pad = text_config.pad_token_id
        # The score is read at the last token that is not the pad token. A model without a pad token reads the
        # last token of all, so it needs a padding token that no row has.
        pad = own_pad if own_pad is not None else _absent(rows)
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        text_config.pad_token_id = pad
        try:
            with torch.inference_mode():
                logits = model(input_ids=ids.to(self._device), attention_mask=mask.to(self._device)).logits
        finally:
            text_config.pad_token_id = own_pad
        return [float(score) for score in logits.float().reshape(len(rows), -1)[:, self._label].tolist()]

    def _cut(self, ids: list[int], answer: Answer) -> list[int]:
        if len(ids) <= self._max_length:
            return ids
        if self._truncation == "error":
            raise InputError(
                f"hf:{self._name}: row {answer.group.row}, response {answer.place} "
                f"({shorten(answer.content)}) has {len(ids)} tokens with its prompt, which exceeds "
                f"{self._max_length}: shorten it, or set truncation=start or truncation=end"
            )
        if self._truncation == "end":
            return ids[: self._max_length]
        # In ChatML every turn may start with the BOS token: it needs no separate place.
        bos = self._tokenizer.bos_token_id
        kept = 1 if ids[0] == bos and ids.count(bos) == 1 else 0
        return ids[:kept] + ids[len(ids) - self._max_length + kept :]

    def _read(self) -> "tuple[transformers.PretrainedConfig, transformers.PreTrainedTokenizerBase]":
        from preftune.models.loading import load_classifier_config, load_tokenizer

        said, trust, what = f"hf:{self._name}", self._trust, "a sequence classification model"
        config = load_classifier_config(self._name, what=what, said=said, trust_remote_code=trust)
        return config, load_tokenizer(self._name, said=said, trust_remote_code=trust)

    def _load(self) -> Any:
        from preftune.models.loading import load_classifier

        said = f"hf:{self._name}"
        return load_classifier(self._name, self._dtype, said=said, trust_remote_code=self._trust)


def _label_index(model: str, config: "transformers.PretrainedConfig", label: int | str | None) -> int:
    names = [str(config.id2label[index]) for index in range(config.num_labels)]
    if label is None and len(names) == 1:
        return 0
    if isinstance(label, int) and 0 <= label < len(names):
        return label
    if label in names:
        return names.index(str(label))
    given = f"label={label} is not an output" if label is not None else "it has several outputs"
    listed = ", ".join(f"{index} ({name})" for index, name in enumerate(names))
    raise InputError(f"hf:{model}: {given}: set label to one of {listed}")


def _absent(rows: Sequence[Sequence[int]]) -> int:
    """The smallest token id that does not occur in any row."""
    used = {token for row in rows for token in row}
    return next(token for token in range(len(used) + 1) if token not in used)


# --- conversations to tokens ---


def template_tokens(
    tokenizer: "transformers.PreTrainedTokenizerBase",
    answers: Sequence[Answer],
    kwargs: Mapping[str, Any] | None = None,
) -> list[list[int]]:
    """Whole conversations as the tokenizer's chat template writes them, up to its last token.

    A text prompt becomes a user message. Without a template, text is prompt and response joined, and EOS.
    There is one BOS: the template's; if it writes none, the tokenizer's, if that adds one to text.

    Raises:
        InputError: there are messages and no template, or the template raises an error.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    is_chat = bool(tokenizer.chat_template)
    adds_bos = bos is not None and list(tokenizer("a")["input_ids"])[:1] == [bos]
    found: list[list[int]] = []
    for start in range(0, len(answers), ANSWERS_PER_CALL):
        chunk = answers[start : start + ANSWERS_PER_CALL]
        texts = [_written(tokenizer, answer, kwargs) for answer in chunk]
        for ids in tokenizer(texts, add_special_tokens=not is_chat, verbose=False)["input_ids"]:
            row = list(ids)
            if adds_bos and row[:1] != [bos]:
                row = [bos, *row]
            elif adds_bos and row[:2] == [bos, bos]:
                row = row[1:]
            if not is_chat and eos is not None and row[-1:] != [eos]:
                row.append(eos)
            found.append(row)
    return found


def _written(
    tokenizer: "transformers.PreTrainedTokenizerBase", answer: Answer, kwargs: Mapping[str, Any] | None
) -> str:
    """The conversation as text."""
    prompt, response = answer.group.prompt, answer.content
    if not tokenizer.chat_template:
        if isinstance(prompt, str) and isinstance(response, str):
            return prompt + response
        raise InputError(
            f"row {answer.group.row} has messages, and the reward model's tokenizer has no chat template: "
            "set its chat_template, or give plain text"
        )
    asked = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
    given = ({"role": "assistant", "content": response},) if isinstance(response, str) else response
    try:
        return ChatTemplate(tokenizer, kwargs).conversation((*asked, *given), answer.group.tools)
    except BadRow as bad:
        raise InputError(
            f"row {answer.group.row}: {RULES[bad.rule].what} (the reward model's): {bad.why}"
        ) from bad


def training_tokens(
    tokenizer: "transformers.PreTrainedTokenizerBase",
    answers: Sequence[Answer],
    kwargs: Mapping[str, Any] | None = None,
) -> list[list[int]]:
    """Prompt and response as in `preftune train`: text stays text, and the end of the turn is last.

    Raises:
        InputError: as `tokenize_groups`.
    """
    # All responses of a group without pairs are scored.
    groups = [replace(answer.group, pairs=()) for answer in answers if answer.place == 0]
    report = RowReport(rows=len(groups))
    tokenized = tokenize_groups(groups, tokenizer, NO_LIMITS, report=report, chat_template_kwargs=kwargs)
    return [np.concatenate((group.prompt, ids)).tolist() for group in tokenized for ids in group.responses]


TOKENS: dict[str, Callable[..., list[list[int]]]] = {
    "template": template_tokens,
    "training": training_tokens,
}
"""Ways to turn a conversation into token ids."""
