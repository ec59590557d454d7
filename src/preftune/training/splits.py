"""A split of the data: rows, prior, auxiliary rewards and tokens, read in one way."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Float64
from transformers import PreTrainedTokenizerBase

from preftune import objectives
from preftune.data import (
    Asked,
    Group,
    LengthLimits,
    LoadedGroups,
    MixtureSource,
    Pairing,
    RowReport,
    RowRules,
    TokenizedGroup,
    counted,
    fingerprint_groups,
    limit_groups,
    load_groups,
    load_mixture,
    mismatched,
    set_control,
    whole_groups,
)
from preftune.data.sources import GIVEN_ROWS
from preftune.data.stored import StoredGroups, with_mapped_tokens
from preftune.errors import InputError
from preftune.rewards import (
    AuxiliaryReward,
    Calibration,
    PriorReport,
    RewardReport,
    apply_prior,
    fit_calibration,
    measure_groups,
    with_margins,
    with_prior_rewards,
)
from preftune.training.configuration import RunConfig, SourceSection

logger = logging.getLogger(__name__)

USUAL_MEAN_WEIGHT = (0.5, 2.0)
"""A mean weight of pairs outside of this changes the scale of the loss so much that it is said."""


@dataclass(frozen=True)
class WholeSplit:
    """A split before its limits, for a look at it.

    Attributes:
        loaded: its groups as they were read.
        rows: the token ids of every row that the prior and the rewards left, whole.
    """

    loaded: LoadedGroups
    rows: list[list[TokenizedGroup]]


@dataclass(frozen=True)
class PreparedData:
    """One split, ready to pack, and what happened to its rows on the way.

    Attributes:
        groups: what is trained or evaluated on.
        rows: what became of the source's rows.
        prior: of the pairs, where the objective has one.
        rewards: what the auxiliary rewards measured, where the objective has some.
        scaled: the auxiliary rewards, with the scales that those have which are standardised.
        whole: the split before its limits, where the reader keeps it.
    """

    groups: list[TokenizedGroup]
    rows: RowReport
    prior: PriorReport | None = None
    rewards: RewardReport | None = None
    scaled: tuple[AuxiliaryReward, ...] = ()
    whole: WholeSplit | None = None

    @property
    def tokens(self) -> int:
        """Tokens of an epoch, each prompt counted once."""
        return sum(group.packed_tokens for group in self.groups)

    @cached_property
    def fingerprint(self) -> str:
        """What is trained on, in short; hashing a large split takes seconds, so it is done once."""
        return fingerprint_groups(self.groups)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its response."""
        return max(len(g.prompt) + len(response) for g in self.groups for response in g.responses)

    @cached_property
    def auxiliary(self) -> Float64[np.ndarray, "responses"]:
        """Auxiliary reward R of every response; empty if the objective uses none."""
        found = self._of_responses("auxiliary")
        return np.concatenate(found).astype(np.float64) if found else np.empty(0)

    @cached_property
    def bounded(self) -> Float64[np.ndarray, "responses bounds"]:
        """What was measured of every response for each bound; no columns without bounds."""
        found = self._of_responses("bounded")
        return np.concatenate(found).astype(np.float64) if found else np.empty((len(self.auxiliary), 0))

    def _of_responses(self, name: str) -> list[np.ndarray]:
        return [group.per_response[name] for group in self.groups if name in group.per_response]

    @property
    def labels(self) -> dict[str, int] | None:
        """Number of responses by label, where the objective learns from labels."""
        if not (found := self._of_responses("labels")):
            return None
        labels = np.concatenate(found)
        return {"desirable": int(labels.sum()), "undesirable": int((~labels).sum())}

    @property
    def weights(self) -> dict[str, float] | None:
        """Mean, lowest and highest weight of the pairs, where the data has weights."""
        found = [pair.weight for group in self.groups for pair in group.pairs if pair.weight is not None]
        return {"mean": fmean(found), "low": min(found), "high": max(found)} if found else None

    def summary(self) -> dict[str, Any]:
        """Counts for summary.json and --dry-run."""
        return {
            "groups": len(self.groups),
            "pairs": sum(len(group.pairs) for group in self.groups),
            "responses": sum(len(group.packed) for group in self.groups),
            "tokens": self.tokens,
            "rows": {
                "read": self.rows.rows,
                "dropped": self.rows.dropped,
                **{f"{rule}/{action}": count for (rule, action), count in self.rows.counts.items()},
                **({"notes": dict(self.rows.notes)} if self.rows.notes else {}),
            },
            "prior": asdict(self.prior) if self.prior else None,
            "labels": self.labels,
            "rewards": self.rewards.to_dict() if self.rewards else None,
            "fingerprint": self.fingerprint,
            **({"weights": self.weights} if self.weights else {}),
            **({"sources": self.rows.sources} if self.rows.sources else {}),
        }


@dataclass(frozen=True)
class SplitReader:
    """Reads splits the same way: rows, prior, auxiliary rewards, tokens.

    Attributes:
        config: the run.
        needs: of the objective.
        tokenizer: of the model.
        rewards: those that are measured.
        seed: decides who gets which mismatched response.
        context: positions of the model, where it says so.
        progress: show bars.
        keeps_whole: keep each split before its limits too.
    """

    config: RunConfig
    needs: frozenset[objectives.Need]
    tokenizer: PreTrainedTokenizerBase
    rewards: tuple[AuxiliaryReward, ...]
    seed: int
    context: int | None
    progress: bool
    keeps_whole: bool = False

    def read(
        self, source: Any, split: str, pair_rule: str, calibration: Calibration | None = None
    ) -> tuple[PreparedData, Calibration | None]:
        """A split, and the calibration of its scores: the one given, or else one fitted here."""
        return self.finish(title_of(source), self.load(source, split, pair_rule), calibration)

    def finish(
        self, title: str, loaded: LoadedGroups, calibration: Calibration | None = None
    ) -> tuple[PreparedData, Calibration | None]:
        """Loaded groups with prior, rewards and tokens.

        Raises:
            NothingLeftError: every row was dropped.
            InputError: a row is wrong.
        """
        report = loaded.report
        scaled = self.rewards
        with _naming(title):
            groups, prior, calibration = self._with_prior(loaded.groups, calibration)
        if prior:
            self._describe(prior)
        measured = None
        if self.rewards:
            missing = RowRules(self.config.data.rules)["missing_reward"]
            found = measure_groups(groups, self.rewards, report.locate, missing, progress=self.progress)
            groups, measured, scaled = found.groups, found.report, found.rewards
            report.drop("missing_reward", measured.dropped)
        rows: Iterable[list[TokenizedGroup]] = self._whole(groups, report)
        if self.keeps_whole:
            rows = _stored(rows)
        tokenized = self._limited(rows, report)
        (logger.warning if report.dropped else logger.info)("%s: %s", title, report.summary())
        self._note_unlabelled(groups, tokenized)
        if "divergence" in self.needs:
            with _naming(title):
                tokenized = mismatched(tokenized, self.seed, self._most_tokens(tokenized))
        whole = WholeSplit(loaded, rows) if isinstance(rows, list) else None
        data = PreparedData(tokenized, report, prior, measured, scaled, whole)
        _check_weights(title, data.weights)
        return data, calibration

    def _with_prior(
        self, groups: Sequence[Group], calibration: Calibration | None
    ) -> tuple[Sequence[Group], PriorReport | None, Calibration | None]:
        """The groups with their gaps and margins, where the objective needs them."""
        prior, prior_config = None, self.config.prior
        groups = _weigh_all(groups)
        if not self.needs.isdisjoint({"prior_gap", "prior_reward"}):
            calibration = calibration or fit_calibration(
                prior_config.calibration, prior_config.temperature, groups
            )
            if "prior_gap" in self.needs:
                groups, prior = apply_prior(groups, calibration, prior_config.negative_gap)
            if "prior_reward" in self.needs:
                groups = with_prior_rewards(groups, calibration)
        if "margin" in self.needs:
            groups = with_margins(groups)
        return groups, prior, calibration

    def whole(self, loaded: LoadedGroups, calibration: Calibration | None) -> WholeSplit:
        """A split before its limits, for who has not kept it; of its rewards nothing is measured."""
        groups, _, _ = self._with_prior(loaded.groups, calibration)
        return WholeSplit(loaded, _stored(self._whole(groups, loaded.report)))

    def _whole(self, groups: Sequence[Group], report: RowReport) -> Iterator[list[TokenizedGroup]]:
        with self._uncontrolled():
            yield from whole_groups(
                groups, self.tokenizer, RowRules(self.config.data.rules), report, **self._rendering()
            )

    def _limited(self, rows: Iterable[Sequence[TokenizedGroup]], report: RowReport) -> list[TokenizedGroup]:
        data = self.config.data
        limits = LengthLimits(data.max_length, data.max_prompt_length)
        needs_pairs = "pairs" in self.needs
        return limit_groups(
            rows, self.tokenizer, limits, RowRules(data.rules), report, needs_pairs=needs_pairs
        )

    def _rendering(self) -> dict[str, Any]:
        """How groups become text."""
        data, control = self.config.data, self.config.data.control
        return {
            "progress": self.progress,
            "chat_template_kwargs": data.chat_template_kwargs,
            "today": data.template_date,
            "control": {True: control.good, False: control.bad} if control else None,
        }

    @contextmanager
    def _uncontrolled(self) -> Iterator[None]:
        """The tokenizer without a control text in its template; afterwards it asks for good responses."""
        control = self.config.data.control
        if control:
            # A model that was trained so before brings its text along.
            set_control(self.tokenizer, "")
        try:
            yield
        finally:
            if control:
                # Whoever asks the saved model through its template asks for good responses.
                set_control(self.tokenizer, control.good)

    def load(self, source: Any, split: str, pair_rule: str) -> LoadedGroups:
        """A split's groups, of one source or of a mixture."""
        data = self.config.data
        asked = Asked(
            needs_prior=not self.needs.isdisjoint({"prior_gap", "prior_reward", "margin"}),
            needs_pairs="pairs" in self.needs,
            needs_labels="labels" in self.needs,
            label_methods=objectives.methods_of_labels(),
        )
        common: dict[str, Any] = {
            "pairing": Pairing(pair_rule, data.pairs_per_prompt, data.pair_seed, data.length_penalty),
            "keep_columns": bool(self.rewards),
            "rules": RowRules(data.rules),
        }
        if mixed := _mixture(source):
            loaded = load_mixture(mixed, asked=asked, seed=data.pair_seed, **common)
        else:
            loaded = load_groups(source, split=split, asked=replace(asked, mapping=data.columns), **common)
        for line in loaded.read_as.splitlines():
            logger.info("read %s", line)
        if loaded.unused_columns:
            logger.info("%s: columns not used: %s", title_of(source), ", ".join(loaded.unused_columns))
        is_said = "weight" in data.columns
        if "pairs" not in self.needs and "weight" in loaded.unused_columns and not is_said:
            logger.warning(
                "%s: the column `weight` is not read: it weighs pairs, and the objective learns from "
                "responses without pairs",
                title_of(source),
            )
        return loaded

    def _note_unlabelled(self, groups: Sequence[Group], tokenized: Sequence[TokenizedGroup]) -> None:
        """A method of labels leaves out responses without one, from the auxiliary terms too."""
        if self.rewards and "labels" in self.needs:
            before = sum(len(group.responses) for group in groups)
            after = sum(len(group.responses) for group in tokenized)
            if after < before:
                logger.warning(
                    "%d of %d responses are not trained on: they have no label, and the objective learns "
                    "from labels",
                    before - after,
                    before,
                )

    def _most_tokens(self, groups: Sequence[TokenizedGroup]) -> int:
        """Tokens that a prompt and a foreign response may have: what the model reads and the run allows."""
        longest = max(len(group.prompt) + len(response) for group in groups for response in group.responses)
        context = self.context or self.config.data.max_length
        # Own rows that are longer than the context are refused later, by their own message.
        return min(self.config.data.max_length, max(context, longest))

    def _describe(self, prior: PriorReport) -> None:
        negative = f"; {prior.negative} had a negative gap ({prior.negative_gap})" * bool(prior.negative)
        pairs = counted(prior.pairs, "pair")
        logger.info("prior: %s, mean gap %.3f%s", pairs, prior.mean_gap, negative)
        if prior.warning:
            logger.warning(prior.warning)


def _stored(rows: Iterable[list[TokenizedGroup]]) -> list[list[TokenizedGroup]]:
    """The groups of every row, with the token ids of a large set outside of memory."""
    sizes: list[int] = []

    def one_by_one() -> Iterator[TokenizedGroup]:
        for parts in rows:
            sizes.append(len(parts))
            yield from parts

    stored = iter(with_mapped_tokens(one_by_one()))
    return [list(islice(stored, size)) for size in sizes]


def _weigh_all(groups: Sequence[Group]) -> Sequence[Group]:
    """Where some pairs have a weight, as those of one source of a mixture, the others have 1."""
    found = {pair.weight is None for group in groups for pair in group.pairs}
    if found != {True, False}:
        return groups
    return StoredGroups(
        replace(
            group,
            pairs=tuple(replace(pair, weight=1.0) if pair.weight is None else pair for pair in group.pairs),
        )
        for group in groups
    )


def _check_weights(title: str, weights: Mapping[str, float] | None) -> None:
    """Refuse weights that leave nothing, and say so where they scale the loss."""
    if weights is None:
        return
    if weights["high"] == 0:
        raise InputError(f"{title}: all pairs have the weight 0, so nothing is learned: correct the column")
    logger.info("%s: weights of pairs: mean %.3g, from %.3g to %.3g", title, *weights.values())
    low, high = USUAL_MEAN_WEIGHT
    if not low <= weights["mean"] <= high:
        logger.warning(
            "%s: the mean weight of pairs is %.3g, and losses and gradients are so many times those of pairs "
            "without weights: divide the weights by their mean, or change the learning rate to match",
            title,
            weights["mean"],
        )


def _mixture(source: Any) -> list[MixtureSource]:
    """The sources of a mixture; none where there is one source.

    Raises:
        InputError: a source of a mixture that a caller gives has unknown or wrong settings.
    """
    if isinstance(source, list) and source and isinstance(source[0], SourceSection):
        return [
            MixtureSource(
                each.name or each.source, each.source, each.split, each.weight, each.limit, each.columns
            )
            for each in source
        ]
    if type(source) is not dict:
        return []
    mixed = []
    for name, each in source.items():
        settings = each if type(each) is dict else {"source": each}
        try:
            mixed.append(MixtureSource(name, **settings))
        except TypeError as error:
            raise InputError(
                f"train_dataset[{name!r}]: {error}: give source, split, weight, limit, mapping"
            ) from None
    return mixed


@contextmanager
def _naming(title: str) -> Iterator[None]:
    """Say which file an error about a row is about."""
    try:
        yield
    except InputError as error:
        raise type(error)(f"{title}: {error}") from None


def title_of(source: Any) -> str:
    """A source by its name, where it has one."""
    if mixed := _mixture(source):
        return ", ".join(each.name for each in mixed)
    return str(source) if isinstance(source, str | Path) else GIVEN_ROWS
