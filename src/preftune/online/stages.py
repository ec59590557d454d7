"""The stages between two policies that are no training: samples, their rewards, and pairs of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from preftune.data.groups import as_answer, as_text
from preftune.data.pairing import Pairing
from preftune.measuring.held_out import PromptRow
from preftune.measuring.statistics import mean_interval, named_interval
from preftune.models.allocator import free_memory
from preftune.online.configuration import SamplingSection
from preftune.rewards.policy_reward import AnsweredRow, PolicyReward
from preftune.sampling.sample_file import ABOUT_RESPONSES, sample_file
from preftune.storage.files import as_lines, read_lines, write_whole
from preftune.storage.manifest import Figures
from preftune.storage.processes import run_verb

PROMPTS_FILE, SAMPLES_FILE = "prompts.jsonl", "samples.jsonl"
SAMPLE_LOG_FILE, SCORE_LOG_FILE = "sampling.log", "scoring.log"
SCORED_FILE, PAIRS_FILE = "scored.jsonl", "pairs.jsonl"


def sample_round(
    folder: Path,
    model: str,
    prompts: Sequence[PromptRow],
    settings: SamplingSection,
    seed: int,
    launch: Sequence[str],
) -> Figures:
    """Write the round's prompts, and n responses to each.

    Args:
        folder: where both go.
        model: what answers.
        prompts: what is asked.
        settings: how.
        seed: of the draws.
        launch: words before `-m -- preftune`; none samples in this process.
    """
    asked, sampled = folder / PROMPTS_FILE, folder / SAMPLES_FILE
    write_whole(asked, as_lines(prompts))
    if not sampled.exists():
        options = settings.model_dump() | {"seed": seed}
        # Other engines keep the device's memory until their process ends.
        if launch or settings.engine != "transformers":
            flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
            # vLLM starts its own processes.
            words = launch if settings.engine == "transformers" else ()
            run_verb(
                words, ["sample", model, str(asked), f"--output={sampled}", *flags], folder / SAMPLE_LOG_FILE
            )
        else:
            sample_file(model, asked, sampled, **options)
            free_memory()
    rows = read_lines(sampled)
    counts = [count for row in rows for count in row["response_tokens"]]
    return {
        "prompts": len(rows),
        "responses": len(counts),
        "tokens": None if None in counts else sum(counts),
    }


def score_round(folder: Path, reward: PolicyReward, model: str, launch: Sequence[str]) -> Figures:
    """Write the samples with their `scores`.

    Args:
        folder: where they are.
        reward: what scores them.
        model: whose tokenizer counts tokens, where a measure does.
        launch: words before `-m -- preftune`, of processes that score a share each; none scores here.
    """
    samples, scored = folder / SAMPLES_FILE, folder / SCORED_FILE
    rows = read_lines(samples)
    if launch:
        words = ["score-samples", str(samples), str(scored), reward.specification, model]
        run_verb(launch, words, folder / SCORE_LOG_FILE)
    scores = reward.score(rows, scored)
    write_whole(scored, as_lines(row | {"scores": own} for row, own in zip(rows, scores, strict=True)))
    reward.forget(rows, scored)
    return {"reward": reward_of_samples(scores)}


def reward_of_samples(scores: Sequence[Sequence[float]]) -> Figures:
    """Mean and 95% interval, in which a prompt counts once."""
    means = [fmean(own) for own in scores]
    interval = mean_interval(means) if len(means) > 1 else (means[0],) * 3
    return named_interval(interval)


@dataclass(frozen=True)
class PairSettings:
    """Which responses are trained on.

    Attributes:
        pairing: the rule.
        keeps_all: whether responses without a pair are trained on too, by their rewards.
        keeps_equal: whether a text that was sampled twice counts twice, as means over samples have it.
    """

    pairing: Pairing
    keeps_all: bool
    keeps_equal: bool = False


def pair_round(folder: Path, own: Path, earlier: Sequence[Path], settings: PairSettings) -> Figures:
    """Write the groups that training reads: this round's, and those of earlier rounds that are replayed.

    A group keeps the responses that the rule pairs, with their scores, so that training finds the same pairs.

    Args:
        folder: where `PAIRS_FILE` goes.
        own: this round's scored samples.
        earlier: those of the rounds to replay.
        settings: what is kept.
    """
    rows = read_lines(own)
    found = paired_groups(rows, settings)
    replayed = [row for path in earlier for row in paired_groups(read_lines(path), settings)]
    write_whole(folder / PAIRS_FILE, as_lines([*found, *replayed]))
    gaps = [row["scores"][one] - row["scores"][two] for row in found for one, two in _pairs(row, settings)]
    return {
        "prompts": len(rows),
        "groups": len(found),
        "pairs": len(gaps),
        "replayed": len(replayed),
        "unusable": sum(len(row["responses"]) - len(_usable(row, settings)) for row in rows),
        "gap": fmean(gaps) if gaps else None,
    }


def paired_groups(rows: Sequence[AnsweredRow], settings: PairSettings) -> list[dict[str, Any]]:
    """Each row that the rule makes a pair of, with the responses that are trained on."""
    groups = []
    for row in rows:
        usable = _usable(row, settings)
        group = {
            **{column: value for column, value in row.items() if column not in ABOUT_RESPONSES},
            "responses": [row["responses"][place] for place in usable],
            "scores": [row["scores"][place] for place in usable],
        }
        in_pairs = {place for pair in _pairs(group, settings) for place in pair}
        if not in_pairs:
            continue
        if not settings.keeps_all:
            for column in ("responses", "scores"):
                group[column] = [group[column][place] for place in sorted(in_pairs)]
        groups.append(group)
    return groups


def usable_scores(rows: Sequence[AnsweredRow], settings: PairSettings) -> list[list[float]]:
    """The rewards of the responses that can be trained on, by prompt."""
    return [[row["scores"][place] for place in _usable(row, settings)] for row in rows]


def _usable(row: Mapping[str, Any], settings: PairSettings) -> list[int]:
    """Places of the responses that say something, each text once unless equal ones are kept."""
    places = [place for place, text in enumerate(row["responses"]) if text.strip()]
    if settings.keeps_equal:
        return places
    firsts: dict[str, int] = {}
    for place in places:
        firsts.setdefault(row["responses"][place], place)
    return list(firsts.values())


def _pairs(group: Mapping[str, Any], settings: PairSettings) -> list[tuple[int, int]]:
    if len(group["responses"]) < 2:
        return []
    contents = [as_answer(text, group["prompt"]) for text in group["responses"]]
    return settings.pairing.choose(as_text(group["prompt"]), contents, group["scores"])
