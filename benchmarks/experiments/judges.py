"""What samples are judged by: the demo's program, a reward model of other prompts, or measures."""

import fcntl
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.rows import Group
from experiments.sizes import Sizes
from experiments.variations import NEAR_TIE
from preftune import score, train
from preftune.measuring.statistics import mean_interval, named_interval
from preftune.models import load_tokenizer
from preftune.rewards.instructions import instruction_score
from preftune.rewards.measures.reading import reading_grade
from preftune.rewards.measures.toxicity import toxicity_words

Figures = dict[str, list[list[float]]]
"""Numbers of each response to each prompt, by name; `reward` is what arms are compared by."""
Judge = Callable[[Sequence[Group], Sequence[Sequence[str]]], Figures]

JUDGE_RESPONSES = 4
BATCH_TOKENS = 4096
LARGEST_GRADE = 20.0


def by_program(groups: Sequence[Group], responses: Sequence[Sequence[str]]) -> Figures:
    """How well each response keeps its prompt's instructions, and how hard it is to read."""
    rewards = [
        [instruction_score(text, group["instructions"]) for text in texts]
        for group, texts in zip(groups, responses, strict=True)
    ]
    return {"reward": rewards, "grade": _of_each(_grade, responses)}


def by_measures(groups: Sequence[Group], responses: Sequence[Sequence[str]]) -> Figures:
    """Toxicity, whose negative is the reward, and reading grade."""
    toxicity = _of_each(toxicity_words, responses)
    negative = [[-value for value in row] for row in toxicity]
    return {"reward": negative, "toxicity": toxicity, "grade": _of_each(_grade, responses)}


def _grade(text: str) -> float:
    return min(LARGEST_GRADE, max(0.0, reading_grade(text)))


def _of_each(measure: Callable[[str], float], responses: Sequence[Sequence[str]]) -> list[list[float]]:
    return [[float(measure(text)) for text in texts] for texts in responses]


def by_reward_model(model: Path) -> Judge:
    """The score that a reward model gives to each response."""

    def judge(groups: Sequence[Group], responses: Sequence[Sequence[str]]) -> Figures:
        asked = [
            {"prompt": group["prompt"], "responses": list(texts)}
            for group, texts in zip(groups, responses, strict=True)
        ]
        scored = score(asked, prior=f"hf:{model}:batch_tokens={BATCH_TOKENS}")
        return {"reward": [row["scores"] for row in scored], "grade": _of_each(_grade, responses)}

    return judge


# --- the reward model ---


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other process is in here."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".turn").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def cut_to(tokenizer: Any, texts: Sequence[str], tokens: int) -> list[str]:
    """Each text's first tokens: a judge of short samples learns from short responses."""
    cut = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        cut.append(text if len(ids) <= tokens else str(tokenizer.decode(ids[:tokens])))
    return cut


def spread(group: Group, count: int) -> list[int]:
    """Places of so many responses, evenly over their scores."""
    ranked = sorted(range(len(group["scores"])), key=lambda place: group["scores"][place])
    most = len(ranked) - 1
    return sorted({ranked[round(step * most / (count - 1))] for step in range(count)})


def train_reward_model(
    groups: Sequence[Group], model: str, output: Path, sizes: Sizes, training: dict[str, Any]
) -> Path:
    """Train on all pairs of a few responses to each prompt; one that is there is kept."""
    with one_at_a_time(output):
        if (output / "run" / "summary.json").exists():
            return output / "run" / "model"
        tokenizer = load_tokenizer(model)
        rows = []
        for group in groups:
            places = spread(group, JUDGE_RESPONSES)
            texts = cut_to(tokenizer, [group["responses"][place] for place in places], sizes.max_new_tokens)
            scores = [group["scores"][place] for place in places]
            if len(set(scores)) > 1:
                rows.append({"prompt": group["prompt"], "responses": texts, "scores": scores})
        resume = any((output / "run" / "checkpoints").glob("*"))
        train(
            model=model,
            train_dataset=rows,
            objective={"method": "bradley_terry", "center_weight": 0.01},
            data={"pair_rule": "all_pairs"},
            args=training
            | {
                "learning_rate": 1e-4,
                "warmup_steps": 3,
                "per_device_train_batch_size": 4,
                "num_train_epochs": 1,
                "eval_strategy": "no",
                "save_strategy": "steps",
                "save_steps": 10,
                "save_total_limit": 1,
                "seed": 0,
            },
            output=str(output / "run"),
            cache=str(output / "cache"),
            resume=resume,
            overwrite=not resume,
        )
        shutil.rmtree(output / "run" / "checkpoints", ignore_errors=True)
    return output / "run" / "model"


def accuracy_of(judge: Judge, groups: Sequence[Group], model: str, sizes: Sizes) -> dict[str, Any]:
    """Share of each prompt's pairs that the judge ranks as the scores do, over all and over clear ones."""
    tokenizer = load_tokenizer(model)
    texts = [cut_to(tokenizer, group["responses"], sizes.max_new_tokens) for group in groups]
    rewards = judge(groups, texts)["reward"]
    found: dict[str, Any] = {}
    for name, smallest in {"all pairs": 0.0, f"gap of {NEAR_TIE} or more": NEAR_TIE}.items():
        shares = [
            ranked_right(group["scores"], row, smallest) for group, row in zip(groups, rewards, strict=True)
        ]
        kept = [share for share in shares if share is not None]
        interval = named_interval(mean_interval(kept)) if len(kept) > 1 else None
        found[name] = {"prompts": len(kept), "accuracy": interval}
    return found


def ranked_right(scores: Sequence[float], rewards: Sequence[float], smallest: float) -> float | None:
    """Share of the pairs with so large a gap of scores that rewards rank alike; None where there are none."""
    right = []
    for one, two in combinations(range(len(scores)), 2):
        difference = scores[one] - scores[two]
        if difference and abs(difference) >= smallest:
            right.append((rewards[one] - rewards[two]) * difference > 0)
    return fmean(right) if right else None
