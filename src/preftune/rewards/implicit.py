"""`policy:` the implicit reward of a tuned model: log pi_theta(y given x) - log pi_ref(y given x)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated

from preftune.data import LengthLimits, RowReport, RowRules, TokenizedGroup, tokenize_groups
from preftune.errors import InputError
from preftune.models.content import model_content, scoring_precision
from preftune.rewards.rules import COUNT, MODEL, ScoringPrecision, TemplateSettings
from preftune.rewards.scoring import Answer, ScoreUnits, ScoringUnit, one_by_one

TRUNCATED = RowRules({"prompt_too_long": "truncate", "response_too_long": "truncate"})


class ImplicitReward:
    """h = l - rho of every response in nats, summed over its tokens; beta times h is DPO's reward.

    See `Scorer`. Text becomes tokens as in training, by the tuned model's tokenizer and template.
    """

    def __init__(
        self,
        model: str,
        *,
        reference: Annotated[str, MODEL, "what it was tuned from"],
        chat_template_kwargs: TemplateSettings = None,
        max_length: Annotated[int, COUNT, "prompt + response in tokens"] = 1024,
        max_prompt_length: Annotated[int | None, COUNT, "the prompt's tokens (max_length's)"] = None,
        precision: ScoringPrecision = None,
        row_tokens: Annotated[int, COUNT, "tokens in a packed row"] = 4096,
    ) -> None:
        """Read both configurations and tokenizers.

        Args:
            model: folder or hub name of the tuned model.
            reference: folder or hub name of the model that the tuning started from.
            chat_template_kwargs: passed to the tuned model's chat template, as in its training.
            max_length: prompt + response, in tokens; longer responses are truncated at the end.
            max_prompt_length: longer prompts are truncated at the start.
            precision: None is bf16 if that is fast.
            row_tokens: tokens of a packed row, unless one prompt with its responses has more.

        Raises:
            InputError: a model cannot be read, or the two do not share a vocabulary.
        """
        from preftune.models import load_model_config, load_tokenizer

        for name in (model, reference):
            load_model_config(name)
        self._models = (model, reference)
        self._tokenizer = load_tokenizer(model)
        if self._tokenizer.get_vocab() != load_tokenizer(reference).get_vocab():
            raise InputError(
                f"policy:{model} and reference={reference} have different vocabularies: set reference to the "
                "model that the tuning started from"
            )
        self._template_kwargs = dict(chat_template_kwargs or {})
        self._limits = LengthLimits(max_length, max_prompt_length)
        self._row_tokens = row_tokens
        self._device, self._dtype = scoring_precision(precision)
        settings = sorted(self._template_kwargs.items())
        self.identity = repr((*map(model_content, self._models), settings, str(self._dtype)))

    def plan(self, answers: Sequence[Answer]) -> list[ScoringUnit]:
        """Packed rows of groups of similar length, the longest first, each prompt once."""
        # All responses of a group without pairs are scored.
        groups = [replace(answer.group, pairs=()) for answer in answers if answer.place == 0]
        report = RowReport(rows=len(groups))
        tokenized = tokenize_groups(
            groups,
            self._tokenizer,
            self._limits,
            TRUNCATED,
            report,
            chat_template_kwargs=self._template_kwargs,
        )
        firsts = [place for place, answer in enumerate(answers) if answer.place == 0]
        rows: list[list[tuple[int, TokenizedGroup]]] = []
        room = 0
        for first, group in sorted(
            zip(firsts, tokenized, strict=True), key=lambda item: -item[1].packed_tokens
        ):
            if group.packed_tokens > room:
                rows.append([])
                room = self._row_tokens
            rows[-1].append((first, group))
            room -= group.packed_tokens
        return [
            ScoringUnit(
                tuple(first + place for first, group in row for place in range(len(group.responses))),
                [group for _, group in row],
            )
            for row in rows
        ]

    @contextmanager
    def ready(self) -> Iterator[ScoreUnits]:
        """Both models in memory."""
        import torch

        from preftune.data.packing import pack
        from preftune.models import Policy, load_language_model

        policy, reference = (
            Policy(load_language_model(name, self._dtype).to(self._device)).eval() for name in self._models
        )

        def score(unit: ScoringUnit) -> list[float]:
            batch = pack(unit.inputs).to(self._device)
            with torch.inference_mode():
                log_ratios = policy(batch).logps - reference(batch).logps
            return [float(log_ratio) for log_ratio in log_ratios.tolist()]

        yield one_by_one(score)
