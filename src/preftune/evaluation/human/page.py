"""People as judges: a page that does not tell whose answer is whose, and the figures of what they chose."""

import base64
import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

from preftune.errors import InputError
from preftune.evaluation.files import read_json
from preftune.evaluation.model_outputs import ModelOutputs, check_complete, read_outputs
from preftune.evaluation.questions import Question, read_questions
from preftune.evaluation.verdicts import as_shown
from preftune.storage.files import write_json, write_whole

MODEL, BASELINE = "model", "baseline"
KEY_SUFFIX = ".key.json"


@dataclass(frozen=True)
class ShownTurn:
    """What the page shows of one turn: the user's message and both answers."""

    prompt: str
    left: str
    right: str


@dataclass(frozen=True)
class RatedPair:
    """One pair on the page.

    Attributes:
        name: its id, which says nothing but its place on the page.
        question: key of the prompt.
        left: whose answers stand on the left: MODEL or BASELINE.
        turns: what is shown.
    """

    name: str
    question: str
    left: str
    turns: tuple[ShownTurn, ...]


@dataclass(frozen=True)
class Key:
    """What the page keeps quiet about.

    Attributes:
        page: id of the page, made of the texts it shows.
        model: whose win rate is asked for.
        baseline: the other.
        items: for each item its prompt and whose answers stand on the left.
        identical: prompts that both answered with the same text; nobody is asked, and they are ties.
    """

    page: str
    model: str
    baseline: str
    items: Mapping[str, tuple[str, str]]
    identical: tuple[str, ...]


def make_page(
    model: Path, baseline: Path, output: Path, *, questions: Path | None = None, n: int = 50, seed: int = 0
) -> Key:
    """Write the page to rate two models' answers on, and its key beside it.

    Prompts are drawn and shuffled, and each model stands on the left for half of them, to within one. The key
    is OUTPUT with the suffix `.key.json`; who rates must not have it.

    Args:
        model: answers of the one whose win rate is asked for, in any shape that `read_outputs` takes.
        baseline: answers of the other.
        output: the page, one HTML file that needs no network.
        questions: the prompts, where the answers name them by an id.
        n: most prompts to show.
        seed: of draw, order and sides.

    Returns:
        The key.

    Raises:
        InputError: n is below 1, the models share no prompt, give only the same answers, or have one name.
    """
    if n < 1:
        raise InputError(f"--n {n} must be >= 1: set a number from 1 on")
    if output.suffix not in (".html", ".htm"):
        raise InputError(f"--output {output} must end in .html: rename it, since browsers need that ending")
    ours, theirs = read_outputs(model), read_outputs(baseline)
    if ours.model == theirs.model:
        raise InputError(
            f"{model} and {baseline} both have answers of {ours.model!r}: results are by name, so rename one "
            "(generator, model_id or model in its rows; if they have none, the file's name)"
        )
    shared = _shared_questions(questions or model, ours, theirs, given=questions is not None)
    generator = random.Random(seed)
    drawn = generator.sample(shared, min(n, len(shared)))
    different = [question for question in drawn if ours[question] != theirs[question]]
    if not different:
        raise InputError(
            f"{model} and {baseline} give the same answers to all prompts: give answers that differ"
        )
    sides = [MODEL if place % 2 else BASELINE for place in range(len(different))]
    generator.shuffle(sides)
    items = [
        _item(f"item-{place}", question, left, ours, theirs)
        for place, (question, left) in enumerate(zip(different, sides, strict=True), 1)
    ]
    identical = tuple(question.key for question in drawn if ours[question] == theirs[question])
    key = Key(
        _page_id(items),
        ours.model,
        theirs.model,
        {item.name: (item.question, item.left) for item in items},
        identical,
    )
    write_whole(output, _render(items, key.page))
    write_json(key_path(output), asdict(key))
    return key


def key_path(page: Path) -> Path:
    """Where the key of a page is written."""
    return page.with_suffix(KEY_SUFFIX)


def _shared_questions(path: Path, ours: ModelOutputs, theirs: ModelOutputs, *, given: bool) -> list[Question]:
    try:
        questions = read_questions(path)
    except InputError as error:
        if given:
            raise
        raise InputError(
            f"{path} does not hold the prompts themselves ({error}): give their file with --questions"
        ) from None
    shared = [
        question for question in questions if question.key in ours.turns and question.key in theirs.turns
    ]
    if not shared:
        raise InputError(
            f"{ours.model} and {theirs.model} answer no prompt of {path} in common: give answers to the same "
            "prompts"
        )
    for answers in (ours, theirs):
        check_complete(answers, shared)
    return shared


def _item(name: str, question: Question, left: str, ours: ModelOutputs, theirs: ModelOutputs) -> RatedPair:
    sides = as_shown(ours, theirs, left == MODEL)
    turns = zip(question.turns, *(answers[question] for answers in sides), strict=False)
    return RatedPair(name, question.key, left, tuple(ShownTurn(*texts) for texts in turns))


def _page_id(items: Iterable[RatedPair]) -> str:
    """Of what is shown and nothing else, so that it gives nothing away."""
    shown = json.dumps([[asdict(turn) for turn in item.turns] for item in items])
    return hashlib.sha256(shown.encode()).hexdigest()[:16]


def _render(items: Sequence[RatedPair], page: str) -> str:
    from jinja2 import Environment, StrictUndefined

    folder = files("preftune.evaluation.human")
    script = folder.joinpath("page.js").read_text("utf-8")
    # Only this script may run: whatever a model wrote, it cannot.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(folder.joinpath("page.html").read_text("utf-8"))
    return template.render(items=items, page=page, script=script, script_hash=f"sha256-{digest}")


def read_key(path: Path) -> Key:
    """Read a key.

    Raises:
        InputError: the file is none.
    """
    content = read_json(path)
    try:
        return Key(
            content["page"],
            content["model"],
            content["baseline"],
            {name: (question, left) for name, (question, left) in content["items"].items()},
            tuple(content["identical"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(
            f"{path} is not a key: give the *{KEY_SUFFIX} file that `preftune evaluate human page` wrote"
        ) from None
