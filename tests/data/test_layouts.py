"""Public preference sets in their own columns and nesting, with invented texts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest

from preftune.data import Asked, Pair, RowRules, load_groups
from preftune.data.layouts import LAYOUTS, transcript
from preftune.errors import InputError


def user(content: str) -> dict[str, str]:
    """Write a user's message."""
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    """Write an assistant's message."""
    return {"role": "assistant", "content": content}


def system(content: str) -> dict[str, str]:
    """Write a system message."""
    return {"role": "system", "content": content}


@dataclass(frozen=True)
class PublicSet:
    """Rows of a set, and the group of the first ones.

    Attributes:
        rows: in the set's columns.
        prompt: messages of the group.
        responses: texts of the assistant's answers.
        scores: of the responses, where the set has some.
        pairs: of the group.
        unused: columns that a run with a prior does not read.
        label: of the only response.
    """

    rows: list[dict[str, Any]]
    prompt: list[dict[str, str]]
    responses: list[str]
    scores: list[float] | None
    pairs: list[Pair]
    unused: tuple[str, ...]
    label: bool | None = None


def completion(response: str, overall: float, fine: float) -> dict[str, Any]:
    """One of the four completions in a row of openbmb/UltraFeedback."""
    aspect = {"Rating": "4", "Rationale": "It is clear."}
    return {
        "annotations": dict.fromkeys(("helpfulness", "honesty", "truthfulness"), aspect),
        "custom_system_prompt": "Be helpful.",
        "model": "alpaca-7b",
        "principle": "helpfulness",
        "response": response,
        "critique": "Name the unit.",
        "overall_score": overall,
        "fine-grained_score": fine,
    }


TALK = [user("How do I boil an egg?")]
BOILED = "Ten minutes in boiling water."
RAW = "Eat it raw."

PUBLIC: dict[str, PublicSet] = {
    "HuggingFaceH4/ultrafeedback_binarized": PublicSet(
        [
            {
                "prompt": "How do I boil an egg?",
                "prompt_id": "5f1d",
                "chosen": [*TALK, assistant(BOILED)],
                "rejected": [*TALK, assistant(RAW)],
                "messages": [*TALK, assistant(BOILED)],
                "score_chosen": 8.5,
                "score_rejected": 3.0,
            }
        ],
        TALK,
        [BOILED, RAW],
        [8.5, 3.0],
        [Pair(0, 1)],
        ("prompt_id", "messages"),
    ),
    "openbmb/UltraFeedback": PublicSet(
        [
            {
                "source": "evol_instruct",
                "instruction": "How do I boil an egg?",
                "models": ["alpaca-7b", "pythia-12b", "vicuna-33b"],
                "completions": [
                    completion(RAW, 2.0, 1.5),
                    completion(BOILED, 8.5, 4.75),
                    completion("Ask.", 5.0, 3.0),
                ],
                "correct_answers": ["None"],
                "incorrect_answers": ["None"],
            }
        ],
        TALK,
        [RAW, BOILED, "Ask."],
        [2.0, 8.5, 5.0],
        [Pair(1, 0)],
        ("source", "models", "correct_answers", "incorrect_answers"),
    ),
    "argilla/ultrafeedback-binarized-preferences": PublicSet(
        [
            {
                "source": "evol_instruct",
                "instruction": "How do I boil an egg?",
                "chosen_response": BOILED,
                "rejected_response": RAW,
                "chosen_avg_rating": 4.75,
                "rejected_avg_rating": 1.5,
                "chosen_model": "vicuna-33b",
            }
        ],
        TALK,
        [BOILED, RAW],
        [4.75, 1.5],
        [Pair(0, 1)],
        ("source", "chosen_model"),
    ),
    "argilla/ultrafeedback-binarized-preferences-cleaned": PublicSet(
        [
            {
                "source": "evol_instruct",
                "prompt": "How do I boil an egg?",
                "chosen": [*TALK, assistant(BOILED)],
                "chosen-rating": 4.75,
                "chosen-model": "vicuna-33b",
                "rejected": [*TALK, assistant(RAW)],
                "rejected-rating": 1.5,
                "rejected-model": "alpaca-7b",
            }
        ],
        TALK,
        [BOILED, RAW],
        [4.75, 1.5],
        [Pair(0, 1)],
        ("source", "chosen-model", "rejected-model"),
    ),
    "princeton-nlp/llama3-ultrafeedback-armorm": PublicSet(
        [
            {
                "prompt_id": "5f1d",
                "prompt": "How do I boil an egg?",
                "all_generated_responses": ["Ask.", BOILED, RAW],
                "all_rm_scores": [0.125, 0.1875, 0.0625],
                "chosen": [*TALK, assistant(BOILED)],
                "rejected": [*TALK, assistant(RAW)],
            }
        ],
        TALK,
        ["Ask.", BOILED, RAW],
        [0.125, 0.1875, 0.0625],
        [Pair(1, 2)],
        ("prompt_id",),
    ),
    "RLHFlow/UltraFeedback-preference-standard": PublicSet(
        [
            {
                "chosen": [*TALK, assistant(BOILED)],
                "rejected": [*TALK, assistant(RAW)],
                "chosen_score": 4.75,
                "rejected_score": 1.5,
            }
        ],
        TALK,
        [BOILED, RAW],
        [4.75, 1.5],
        [Pair(0, 1)],
        (),
    ),
    "nvidia/HelpSteer2": PublicSet(
        [
            {
                "prompt": "Hi\n<extra_id_1>Assistant\nHello!\n<extra_id_1>User\nHow do I boil an egg?",
                "response": response,
                "helpfulness": helpfulness,
                "correctness": 3,
                "coherence": 4,
                "complexity": 1,
                "verbosity": 1,
            }
            for response, helpfulness in ((RAW, 1), (BOILED, 4))
        ],
        [user("Hi"), assistant("Hello!"), *TALK],
        [RAW, BOILED],
        [1.0, 4.0],
        [Pair(1, 0)],
        ("correctness", "coherence", "complexity", "verbosity"),
    ),
    "nvidia/HelpSteer2, preference": PublicSet(
        [
            {
                "split": "train",
                "prompt": "How do I boil an egg?",
                "response_1": BOILED,
                "response_2": RAW,
                "preference_strength": -2,
                "preference_statement": "Response 1 is better than Response 2.",
                "preference_elaboration": "It boils the egg.",
                "three_most_similar_preferences": [
                    {"statement": "Better.", "elaboration": "Boils.", "strength": -2}
                ],
                "all_preferences_unprocessed": [
                    {"statement": "Better.", "elaboration": "Boils.", "strength": -2}
                ],
            }
        ],
        TALK,
        [BOILED, RAW],
        None,
        [Pair(0, 1, margin=2.0)],
        (
            "split",
            "preference_statement",
            "preference_elaboration",
            "three_most_similar_preferences",
            "all_preferences_unprocessed",
        ),
    ),
    "nvidia/HelpSteer3": PublicSet(
        [
            {
                "domain": "general",
                "language": "english",
                "context": TALK,
                "response1": RAW,
                "response2": BOILED,
                "overall_preference": 3,
                "individual_preference": [
                    {"score": 3, "reasoning": "It boils.", "feedback1": "Raw.", "feedback2": "Boiled."}
                ],
            }
        ],
        TALK,
        [RAW, BOILED],
        None,
        [Pair(1, 0, margin=3.0)],
        ("domain", "language", "individual_preference"),
    ),
    "berkeley-nest/Nectar": PublicSet(
        [
            {
                "prompt": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: How do I boil an egg?\n\nAssistant: ",
                "answers": [
                    {"answer": BOILED, "model": "gpt-4", "rank": 1.0},
                    {"answer": "Ask.", "model": "llama-2-7b-chat", "rank": 2.0},
                    {"answer": RAW, "model": "anthropic", "rank": 3.0},
                ],
                "turns": 2,
                "num_responses": 3,
                "source": ["sharegpt"],
                "good_natured": True,
            }
        ],
        [user("Hi"), assistant("Hello!"), *TALK],
        [BOILED, "Ask.", RAW],
        [-1.0, -2.0, -3.0],
        [Pair(0, 2)],
        ("turns", "num_responses", "source", "good_natured"),
    ),
    "stanfordnlp/SHP": PublicSet(
        [
            {
                "post_id": "qt3nxl",
                "domain": "askculinary_train",
                "upvote_ratio": 0.98,
                "history": "How do I boil an egg?",
                "c_root_id_A": "hkh25sc",
                "c_root_id_B": "hkh25lp",
                "created_at_utc_A": 1636822112,
                "created_at_utc_B": 1636822110,
                "score_A": 17,
                "score_B": 340,
                "human_ref_A": RAW,
                "human_ref_B": BOILED,
                "labels": 0,
                "seconds_difference": 2.0,
                "score_ratio": 20.0,
            }
        ],
        TALK,
        [RAW, BOILED],
        [17.0, 340.0],
        [Pair(1, 0)],
        (
            *("post_id", "domain", "upvote_ratio", "c_root_id_A", "c_root_id_B", "created_at_utc_A"),
            *("created_at_utc_B", "labels", "seconds_difference", "score_ratio"),
        ),
    ),
    "Skywork/Skywork-Reward-Preference-80K-v0.2": PublicSet(
        [
            {
                "chosen": [*TALK, assistant(BOILED)],
                "rejected": [*TALK, assistant(RAW)],
                "source": "magpie_pro",
            }
        ],
        TALK,
        [BOILED, RAW],
        None,
        [Pair(0, 1)],
        ("source",),
    ),
    "Anthropic/hh-rlhf": PublicSet(
        [
            {
                "chosen": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: An egg?\n\nAssistant: Ten minutes.",
                "rejected": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: An egg?\n\nAssistant: Ten years.",
            }
        ],
        [user("Hi"), assistant("Hello!"), user("An egg?")],
        ["Ten minutes.", "Ten years."],
        None,
        [Pair(0, 1)],
        (),
    ),
    "Intel/orca_dpo_pairs": PublicSet(
        [
            {
                "system": "You are a cook.",
                "question": "How do I boil an egg?",
                "chosen": BOILED,
                "rejected": RAW,
            }
        ],
        [system("You are a cook."), *TALK],
        [BOILED, RAW],
        None,
        [Pair(0, 1)],
        (),
    ),
    "argilla/distilabel-intel-orca-dpo-pairs": PublicSet(
        [
            {
                "system": "",
                "input": "How do I boil an egg?",
                "chosen": BOILED,
                "rejected": RAW,
                "generations": [RAW, BOILED],
                "order": ["rejected", "chosen"],
                "labelling_model": "gpt-4-1106-preview",
                "labelling_prompt": [system("You judge."), user("Rate these.")],
                "raw_labelling_response": "2 9\nThe second boils it.",
                "rating": [2.0, 9.0],
                "rationale": "The second boils it.",
                "status": "unchanged",
                "original_chosen": BOILED,
                "original_rejected": RAW,
                "chosen_score": 9.0,
                "in_gsm8k_train": False,
            }
        ],
        TALK,
        [RAW, BOILED],
        [2.0, 9.0],
        [Pair(1, 0)],
        (
            *("order", "labelling_model", "labelling_prompt", "raw_labelling_response", "rationale"),
            *("status", "original_chosen", "original_rejected", "chosen_score", "in_gsm8k_train"),
        ),
    ),
    "trl-lib/kto-mix-14k": PublicSet(
        [{"prompt": TALK, "completion": [assistant(RAW)], "label": False}],
        TALK,
        [RAW],
        None,
        [],
        (),
        label=False,
    ),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_set(name: str) -> None:
    """Prompt, responses, scores and pairs are those of the set, and all else is named as unused."""
    known = PUBLIC[name]
    loaded = load_groups(
        datasets.Dataset.from_list(known.rows),
        asked=Asked(
            needs_prior=known.scores is not None or any(pair.margin for pair in known.pairs),
            needs_pairs=bool(known.pairs),
            needs_labels=known.label is not None,
        ),
    )
    (group,) = loaded.groups
    assert group.prompt == tuple(known.prompt)
    assert [response.content for response in group.responses] == [(assistant(r),) for r in known.responses]
    assert [response.score for response in group.responses] == (known.scores or [None] * len(known.responses))
    assert list(group.pairs) == known.pairs
    assert loaded.unused_columns == known.unused
    assert group.responses[0].label == known.label
    assert (loaded.report.rows, loaded.report.dropped) == (1, 0)


def test_every_public_set_is_documented() -> None:
    """The table of docs/data.md has a line for every set that is tested here."""
    lines = (Path(__file__).parents[2] / "docs" / "data.md").read_text().splitlines()
    documented = [
        line.split("`")[1] for line in lines if line.startswith("| `") and "/" in line.split("`")[1]
    ]
    assert {name.partition(",")[0] for name in PUBLIC} <= set(documented)


@pytest.mark.parametrize("layout", LAYOUTS, ids=", ".join)
def test_a_plain_shape_with_a_prompt_comes_first(layout: tuple[str, ...]) -> None:
    """Columns of a plain shape with a prompt are read as it, whatever other columns there are."""
    row: dict[str, Any] = dict.fromkeys(layout, "other") | {"prompt": "p", "chosen": "a", "rejected": "b"}
    (group,) = load_groups(datasets.Dataset.from_list([row])).groups
    assert (group.prompt, [response.content for response in group.responses]) == ("p", ["a", "b"])


def test_what_is_no_text_breaks_a_rule() -> None:
    """Where a layout's cells are null or of another type, the row and the set's own column are named."""
    for name, broken in {
        "openbmb/UltraFeedback": {"completions": None},
        "argilla/ultrafeedback-binarized-preferences": {"instruction": None},
        "nvidia/HelpSteer2": {"prompt": None},
        "nvidia/HelpSteer3": {"response2": None},
        "berkeley-nest/Nectar": {"answers": [{"answer": None, "rank": 1.0}]},
        "stanfordnlp/SHP": {"history": None},
        "Intel/orca_dpo_pairs": {"question": None},
    }.items():
        rows = [row | broken for row in PUBLIC[name].rows]
        (column,) = broken
        with pytest.raises(InputError, match=rf"row 0, column `{column}`: None: "):
            load_groups(datasets.Dataset.from_list(rows))


def test_responses_without_a_score_break_a_rule() -> None:
    """A completion without a score and an answer without a rank are named by the column that lacks it."""
    (row,) = PUBLIC["openbmb/UltraFeedback"].rows
    unscored = {**row, "completions": [completion("a", 1.0, 1.0), completion("b", float("nan"), 1.0)]}
    with pytest.raises(InputError, match=r"column `overall_score`: nan: a score is NaN"):
        load_groups(datasets.Dataset.from_list([unscored]))
    (row,) = PUBLIC["berkeley-nest/Nectar"].rows
    unranked = {**row, "answers": [{"answer": "a", "rank": 1.0}, {"answer": "b", "rank": None}]}
    with pytest.raises(InputError, match=r"column `rank`: None: a score is null"):
        load_groups(datasets.Dataset.from_list([unranked]))


def test_no_preference_is_a_tie() -> None:
    """A preference of 0 gives no pair: dropped and counted, or kept where no pairs are needed."""
    (row,) = PUBLIC["nvidia/HelpSteer3"].rows
    data = datasets.Dataset.from_list([{**row, "overall_preference": 0}, row])
    loaded = load_groups(data)
    assert [group.row for group in loaded.groups] == [1]
    assert loaded.report.counts == {("tied_scores", "drop"): 1}
    assert [len(group.pairs) for group in load_groups(data, asked=Asked(needs_pairs=False)).groups] == [0, 1]


def test_scores_of_a_layout_are_read_only_where_they_are_needed() -> None:
    """Without a prior the ratings of a pair are named as unused, as they are in the plain shapes."""
    known = PUBLIC["argilla/ultrafeedback-binarized-preferences"]
    loaded = load_groups(datasets.Dataset.from_list(known.rows))
    assert loaded.groups[0].responses[0].score is None
    assert {"chosen_avg_rating", "rejected_avg_rating"} < set(loaded.unused_columns)
    with pytest.raises(InputError, match=r"The prior needs a score per response"):
        load_groups(
            datasets.Dataset.from_list(PUBLIC["Intel/orca_dpo_pairs"].rows), asked=Asked(needs_prior=True)
        )


# --- rows that belong together ---


def helpsteer(prompt: str, response: str, helpfulness: int) -> dict[str, Any]:
    """A row of HelpSteer2."""
    return {
        "prompt": prompt,
        "response": response,
        "helpfulness": helpfulness,
        "verbosity": helpfulness + 10,
    }


SINGLES = [
    helpsteer("p", "a", 1),
    helpsteer("p", "b", 2),
    helpsteer("q", "c", 3),
    helpsteer("q", "d", 3),
    helpsteer("p", "e", 0),
    helpsteer("p", "f", 4),
]


def test_rows_with_one_prompt_are_a_group() -> None:
    """Wherever they stand: they keep the first one's number and each response's other columns as a list."""
    loaded = load_groups(datasets.Dataset.from_list(SINGLES), keep_columns=True)
    assert [group.row for group in loaded.groups] == [0]
    assert [[r.score for r in group.responses] for group in loaded.groups] == [[1, 2, 0, 4]]
    assert loaded.groups[0].columns == {"helpfulness": [1, 2, 0, 4], "verbosity": [11, 12, 10, 14]}
    assert (loaded.report.rows, loaded.report.counts) == (2, {("tied_scores", "drop"): 1})
    labels = load_groups(
        datasets.Dataset.from_list(SINGLES), asked=Asked(needs_pairs=False, needs_labels=True)
    )
    assert [[r.label for r in group.responses] for group in labels.groups] == [[None, None, False, True]]


def test_single_responses_stay_single_where_no_pair_is_needed() -> None:
    """Then every row is a group of one with its own number, score and columns, as its file has it."""
    loaded = load_groups(
        datasets.Dataset.from_list(SINGLES), asked=Asked(needs_pairs=False), keep_columns=True
    )
    assert [group.row for group in loaded.groups] == [0, 1, 2, 3, 4, 5]
    assert [[r.score for r in group.responses] for group in loaded.groups] == [[1], [2], [3], [3], [0], [4]]
    assert loaded.groups[5].columns == {"helpfulness": 4, "verbosity": 14}
    assert loaded.columns.shape == "labelled"


def test_a_score_comes_before_the_ratings() -> None:
    """A column `score` that was added to HelpSteer2 is read in place of the helpfulness."""
    rows = [row | {"score": -row["helpfulness"]} for row in SINGLES[:2]]
    (group,) = load_groups(datasets.Dataset.from_list(rows)).groups
    assert [response.score for response in group.responses] == [-1.0, -2.0]
    assert group.pairs == (Pair(0, 1),)


# --- transcripts ---


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("\n\nHuman: a\n\nAssistant: b", [user("a"), assistant("b")]),
        ("\n\nHuman: a\n\nmore: c\n\nAssistant:b ", [user("a\n\nmore: c"), assistant("b")]),
        ("\n\nHuman: a\n\nAssistant:", [user("a"), assistant("")]),
        ("Human: a\n\nAssistant: b", None),
        ("\n\nHuman: a", None),
        (None, None),
    ],
)
def test_transcript(text: Any, messages: Any) -> None:
    """Turns begin after an empty line, and a text that does not begin with one is no transcript."""
    assert transcript(text) == messages


def test_transcripts_that_part_earlier() -> None:
    """Dialogues are split after the last turn they share, as messages are, and not inside a word."""
    before = "\n\nHuman: a\n\nAssistant: "
    row = {"chosen": f"{before}yes\n\nHuman: b\n\nAssistant: c", "rejected": f"{before}yesterday"}
    (group,) = load_groups(datasets.Dataset.from_list([row])).groups
    assert group.prompt == (user("a"),)
    assert [response.content for response in group.responses] == [
        (assistant("yes"), user("b"), assistant("c")),
        (assistant("yesterday"),),
    ]


def test_a_transcript_without_an_answer_breaks_a_rule() -> None:
    """A last turn without text is an empty response."""
    row = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant:"}
    rows = [row, {**row, "rejected": "\n\nHuman: a\n\nAssistant: c"}]
    loaded = load_groups(datasets.Dataset.from_list(rows), rules=RowRules({"empty_response": "drop"}))
    assert loaded.report.counts == {("empty_response", "drop"): 1}
