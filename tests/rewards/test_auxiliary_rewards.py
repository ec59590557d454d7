"""Auxiliary rewards: from a configuration to numbers on a data set, and every way that can go wrong."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from preftune.data import Group, Pair, Response
from preftune.errors import InputError
from preftune.rewards import (
    AuxiliaryReward,
    Spread,
    auxiliary_rewards,
    combine,
    measure_groups,
)
from preftune.rewards.policy_reward import PolicyReward
from preftune.rewards.score_file import score_file

FUNCTIONS = """
import numpy as np

not_callable = 3

def politeness(prompts, completions, **columns):
    return [float("please" in str(completion)) for completion in completions]

def only_completions(completions):
    return np.array([len(completion) for completion in completions])

def echo(prompts, completions, tone, **columns):
    seen.append((prompts, completions, tone, sorted(columns)))
    return [1] * len(prompts)

seen = []

async def later(prompts, completions, **columns):
    return []

def no_completions(texts):
    return []

def dislikes_rain(prompts, completions, **columns):
    if any("rain" in str(completion) for completion in completions):
        raise KeyError("rain")
    return [0.0] * len(completions)

def dislikes_company(prompts, completions, **columns):
    return [1 / (2 - len(completions))]

def nothing(prompts, completions, **columns):
    return None

def too_few(prompts, completions, **columns):
    return [1.0]

def words(prompts, completions, **columns):
    return ["good"] * len(completions)

def nan(prompts, completions, **columns):
    return [float("nan")] * len(completions)

def no_opinion(prompts, completions, **columns):
    return [None] * len(completions)

def huge(prompts, completions, **columns):
    return [10**400] * len(completions)

def booleans(prompts, completions, **columns):
    return [np.bool_(True), True, np.float32(0.5), 2][: len(completions)]
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with the user's module `my_rewards`, which is forgotten afterwards."""
    (tmp_path / "my_rewards.py").write_text(FUNCTIONS, encoding="utf-8")
    (tmp_path / "broken_rewards.py").write_text("def f(:", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("my_rewards", "broken_rewards"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def one(options: dict[str, Any] | None = None, name: str = "reading_grade") -> AuxiliaryReward:
    """A single reward of a configuration."""
    (reward,) = auxiliary_rewards({name: options})
    return reward


def pair(chosen: str, rejected: str, row: int = 0, **columns: Any) -> Group:
    """A prompt with two text responses."""
    return Group("ask", (Response(chosen), Response(rejected)), (Pair(0, 1),), row, columns)


# --- goals and weights ---


@pytest.mark.parametrize(
    ("options", "measurement", "expected"),
    [
        ({"goal": "maximise"}, 7.0, 7.0),
        ({"goal": "minimise"}, 7.0, -7.0),
        ({"target": 5}, 7.0, -2.0),
        ({"target": 5}, 4.5, -0.5),
        ({"target": [20, 60]}, 7.0, -13.0),
        ({"target": [20, 60]}, 20.0, 0.0),
        ({"target": [20, 60]}, 61.0, -1.0),
        ({}, 7.0, -7.0),  # the grade's own goal
        ({"goal": "maximise", "clip": [0, 5]}, 7.0, 5.0),
        ({"clip": [0, 5]}, -2.0, 0.0),
        ({"clip": [0, 5]}, 3.0, -3.0),
        ({"target": 1, "clip": [0, 5]}, 7.0, -4.0),
    ],
)
def test_goal_turns_a_measurement_into_a_reward(
    options: dict[str, Any], measurement: float, expected: float
) -> None:
    """+x, -x, or minus the distance to the target, of x within what it is clipped to."""
    assert one(options).reward(measurement) == expected


def test_rewards_add_up_by_weight() -> None:
    """R = sum of w_k R_k: 2 * (-3) + 0.5 * (-1) and 2 * (-1) + 0.5 * 0."""
    rewards = auxiliary_rewards(
        {"reading_grade": {"weight": 2}, "short": {"measure": "column:n", "target": [0, 9], "weight": 0.5}}
    )
    measurements = {"reading_grade": np.array([3.0, 1.0]), "short": np.array([10.0, 4.0])}
    assert combine(rewards, measurements).tolist() == [-6.5, -2.0]


def test_a_name_is_its_measure_unless_said(smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    """A free name takes a measure and its options; a bare one is measured as itself."""
    rewards = auxiliary_rewards(
        {
            "long": {"measure": "length", "goal": "maximise"},
            "polite": {"measure": "regex", "pattern": "(?i)^RAIN$"},
            "valid_json": None,
        },
        smollm2_tokenizer,
    )
    texts = ["rain", "rain rain rain", "[]"]
    assert {each.name: each.measurements(["ask"] * 3, texts, {}) for each in rewards} == {
        "long": [1.0, 3.0, 2.0],
        "polite": [1.0, 0.0, 0.0],
        "valid_json": [0.0, 0.0, 1.0],
    }


def test_messages_are_measured_by_what_the_model_wrote() -> None:
    """The contents of its messages; a user's turn inside a response does not count."""
    turns = (
        {"role": "assistant", "content": "{"},
        {"role": "user", "content": "Go on."},
        {"role": "assistant", "content": '"a": 1}'},
    )
    assert one(name="valid_json").measurements(["ask"], [turns], {}) == [1.0]


# --- the user's functions ---


def test_a_function_is_called_as_trl_calls_it(here: Path) -> None:
    """Lists of messages for chat, the row's columns repeated for each completion, by keyword."""
    chat = Group(
        ({"role": "user", "content": "ask"},),
        (
            Response(({"role": "assistant", "content": "a"},)),
            Response(({"role": "assistant", "content": "b"},)),
        ),
        (Pair(0, 1),),
        columns={"tone": "kind", "prompt": "x", "source": 7},
    )
    measured = measure_groups([chat], [one(name="my_rewards:echo")])
    assert measured.measurements["my_rewards:echo"].tolist() == [1.0, 1.0]
    (call,) = sys.modules["my_rewards"].seen
    asked = [{"role": "user", "content": "ask"}]
    answers = [[{"role": "assistant", "content": text}] for text in "ab"]
    assert call == ([asked, asked], answers, ["kind", "kind"], ["source"])


def test_a_function_without_columns_gets_none(here: Path) -> None:
    """It is called with what it names, and any library's numbers will do."""
    groups = [pair("a", "bbb", tone="kind")]
    assert measure_groups(groups, [one(name="my_rewards:only_completions")]).measurements[
        "my_rewards:only_completions"
    ].tolist() == [1.0, 3.0]
    four = ["a"] * 4
    assert one(name="my_rewards:booleans").measurements(four, four, {}) == [
        1.0,
        1.0,
        0.5,
        2.0,
    ]


def seen_by(groups: list[Group], column: str) -> list[Any]:
    """What a function that names a column gets, with a value for each completion."""
    seen: list[Any] = []

    def function(completions: list[str], **given: Any) -> list[float]:
        seen.extend(given[column])
        return [0.0] * len(completions)

    measure_groups(groups, auxiliary_rewards({"own": {"measure": function}}))
    return seen


def test_a_column_of_responses_gives_each_completion_its_own() -> None:
    """A list of a group, and NAME_chosen and NAME_rejected of a pair, as `column:NAME` reads them."""
    three = tuple(map(Response, "abc"))
    groups = [Group("ask", three, (), 0, {"kind": [1, 2, 3]}), pair("a", "b", 1, kind=["x", "y"])]
    assert seen_by(groups, "kind") == [1, 2, 3, "x", "y"]
    assert seen_by([pair("a", "b", kind_chosen=3, kind_rejected=1)], "kind") == [3, 1]
    assert seen_by([pair("a", "b", kind=[1, 2]), pair("c", "d", 1)], "kind") == [1, 2, None, None]


def test_a_column_of_the_row_is_the_same_for_all_its_completions() -> None:
    """Text, a number, and a list that is not one of values for the responses in every row."""
    assert seen_by([pair("a", "b", tone="ab")], "tone") == ["ab", "ab"]
    tags = [pair("a", "b", tags=["x", "y"]), pair("c", "d", 1, tags=["x", "y", "z"])]
    assert seen_by(tags, "tags") == [["x", "y"]] * 2 + [["x", "y", "z"]] * 2
    alone = Group("ask", (Response("a", label=True),), (), 0, {"tags": ["x"]})
    assert seen_by([alone], "tags") == [["x"]]
    told = Group("ask", tuple(map(Response, "ab")), (), 0, {"tags": ["x", "y"]}, frozenset())
    assert seen_by([told], "tags") == [["x", "y"]] * 2


def test_a_function_sees_the_same_in_score_and_in_rounds(
    here: Path, smollm2_tokenizer: PreTrainedTokenizerBase
) -> None:
    """A prompt's list stays whole in rounds, where only what sampling writes is of single responses."""
    source = "def own(completions, tags, response_tokens): return [len(tags) * n for n in response_tokens]"
    (here / "per_response.py").write_text(source, encoding="utf-8")
    row = {"prompt": "ask", "tags": ["x", "y"], "responses": ["a", "b"], "response_tokens": [3, 5]}
    reward = PolicyReward("per_response:own", smollm2_tokenizer)
    assert reward.score([row], here / "scored.jsonl") == [[6.0, 10.0]]
    source = "def own(completions, kind): return kind"
    (here / "of_groups.py").write_text(source, encoding="utf-8")
    data = here / "groups.jsonl"
    groups = {"prompt": "ask", "responses": ["a", "b", "c"], "scores": [1, 2, 3], "kind": [7, 8, 9]}
    data.write_text(json.dumps(groups) + "\n", encoding="utf-8")
    score_file(str(data), here / "out.jsonl", ["of_groups:own"])
    assert json.loads((here / "out.jsonl").read_text(encoding="utf-8"))["own"] == [7.0, 8.0, 9.0]


def test_nothing_in_the_current_directory_hides_a_package(here: Path) -> None:
    """The directory is searched last."""
    (here / "yaml.py").write_text("def safe_load(prompts, completions): ...", encoding="utf-8")
    one(name="my_rewards:politeness")
    assert sys.path[-1] == str(here)


# --- columns ---


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        (pair("a", "b", kind_chosen=3, kind_rejected=1), [3.0, 1.0]),
        (pair("a", "b", kind=[3, 1.5]), [3.0, 1.5]),
        (Group("ask", tuple(map(Response, "abc")), (Pair(2, 0),), 0, {"kind": [1, 2, 3]}), [1.0, 2.0, 3.0]),
        (Group("ask", (Response("a", label=True),), (), 0, {"kind": 4}), [4.0]),
        (Group("ask", (Response("a", label=True),), (), 0, {"kind": [4]}), [4.0]),
    ],
)
def test_a_column_has_a_number_for_each_response(group: Group, expected: list[float]) -> None:
    """A list for a group, NAME_chosen and NAME_rejected for a pair, a number for one response."""
    measured = measure_groups([group], auxiliary_rewards({"column:kind": {"weight": 2}}))
    assert [response.auxiliary for response in measured.groups[0].responses] == [2 * x for x in expected]


def test_groups_without_the_column_are_dropped_where_that_is_asked_for() -> None:
    """Missing and null rows go, with the rest in order, and the report counts them."""
    groups = [
        pair("a", "b", 0, kind_chosen=3, kind_rejected=1),
        pair("c", "d", 1, kind_chosen=3, kind_rejected=None),
        pair("e", "f", 2),
        pair("g", "h", 3, kind_chosen=-1, kind_rejected=5),
    ]
    rewards = auxiliary_rewards({"column:kind": {"goal": "minimise"}})
    measured = measure_groups(groups, rewards, missing="drop")
    assert [group.row for group in measured.groups] == [0, 3]
    assert [r.auxiliary for group in measured.groups for r in group.responses] == [-3.0, -1.0, 1.0, -5.0]
    assert measured.report.dropped == 2
    with pytest.raises(InputError) as caught:
        measure_groups(groups, rewards, "pairs.jsonl row {}".format)
    for fragment in ("'column:kind'", "2 of 4 rows", "pairs.jsonl row 1", "data.rules.missing_reward=drop"):
        assert fragment in str(caught.value)


def test_the_report_is_of_raw_measurements() -> None:
    """Measurements 1, 3, 5, 7: mean 4, variance (9 + 1 + 1 + 9) / 4 = 5; R is their negative, halved."""
    groups = [pair("a", "b", 0, n=[1, 3]), pair("c", "d", 1, n=[5, 7])]
    report = measure_groups(
        groups, auxiliary_rewards({"column:n": {"goal": "minimise", "weight": 0.5}})
    ).report
    assert report.measurements == {"column:n": Spread(4.0, math.sqrt(5), 1.0, 7.0)}
    assert report.combined == Spread(-2.0, math.sqrt(5) / 2, -3.5, -0.5)


# --- refusals ---

CONFIGURATIONS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "misspelt measure": ({"reading_grad": {}}, ["rewards.reading_grad", "did you mean 'reading_grade'"]),
    "a name that is no measure": (
        {"short": {"target": 5}},
        ["no measure 'short'", "length", "module:function"],
    ),
    "no column name": ({"column:": {}}, ["no measure 'column:'"]),
    "misspelt option": (
        {"reading_grade": {"weigth": 1}},
        ["rewards.reading_grade.weigth = 1", "'weight'"],
    ),
    "another measure's option": ({"reading_grade": {"n": 1}}, ["not an option of reading_grade"]),
    "zero weight": ({"reading_grade": {"weight": 0}}, ["weight = 0", "not 0"]),
    "text weight": ({"reading_grade": {"weight": "1"}}, ["weight = '1'", "finite number"]),
    "true weight": ({"reading_grade": {"weight": True}}, ["weight = True"]),
    "nan weight": ({"reading_grade": {"weight": math.nan}}, ["weight = nan"]),
    "goal": ({"reading_grade": {"goal": "up"}}, ["goal = 'up'", "maximise or minimise"]),
    "goal list": ({"reading_grade": {"goal": ["up"]}}, ["goal = ['up']"]),
    "two aims": ({"reading_grade": {"goal": "maximise", "target": 5}}, ["two ways", "remove one"]),
    "no aim": ({"length": {}}, ["rewards.length.target", "goal"]),
    "reversed target": ({"reading_grade": {"target": [6, 4]}}, ["target = [6, 4]", "low <= high"]),
    "three targets": ({"reading_grade": {"target": [1, 2, 3]}}, ["target = [1, 2, 3]"]),
    "text target": ({"reading_grade": {"target": "5"}}, ["target = '5'"]),
    "clip to a number": ({"reading_grade": {"clip": 5}}, ["clip = 5", "low <= high"]),
    "reversed clip": ({"reading_grade": {"clip": [20, 0]}}, ["clip = [20, 0]", "low <= high"]),
    "no tokenizer": ({"length": {"target": 5}}, ["rewards.length", "tokenizer"]),
    "no pattern": ({"regex": {}}, ["regex.pattern is missing", "regular expression"]),
    "broken pattern": ({"regex": {"pattern": "("}}, ["regex.pattern = '('", "regular expression"]),
    "no window": ({"lexical_diversity": {"window": 0}}, ["window = 0", ">= 1"]),
    "half a word": ({"repetition": {"n": 2.5}}, ["n = 2.5", "whole number"]),
    "no mapping": ({"reading_grade": 1.0}, ["rewards.reading_grade=1.0", "mapping"]),
    "no model": ({"toxicity": {}}, ["toxicity.model is missing"]),
    "no such model": ({"toxicity": {"model": "/nowhere"}}, ["rewards.toxicity: model=/nowhere"]),
    "no module": (
        {"my_reward:politeness": {}},
        ["'my_reward'", "ModuleNotFoundError", "run in the folder that has it"],
    ),
    "broken module": ({"broken_rewards:f": {}}, ["'broken_rewards'", "SyntaxError"]),
    "no function": ({"my_rewards:polite": {}}, ["no function 'polite'", "did you mean 'politeness'"]),
    "no callable": ({"my_rewards:not_callable": {}}, ["no function 'not_callable'"]),
    "async": ({"my_rewards:later": {}}, ["async"]),
    "signature": ({"my_rewards:no_completions": {}}, ["function(prompts, completions, **columns)"]),
    "a function's option": ({"my_rewards:politeness": {"n": 1}}, ["not an option"]),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_bad_configuration_is_refused_before_data_are_read(name: str, here: Path) -> None:
    """Every mistake is named with its key, value, rule and fix."""
    section, fragments = CONFIGURATIONS[name]
    with pytest.raises(InputError) as caught:
        auxiliary_rewards(section)
    for fragment in fragments:
        assert fragment in str(caught.value)


RAIN = [pair("a", "b", 0), pair("c", "rain", 1), pair("rain", "d", 2)]
MISMEASURED: dict[str, tuple[str, list[Group], list[str]]] = {
    "raises": ("my_rewards:dislikes_rain", RAIN, ["failed at row 1", "KeyError"]),
    "raises together": (
        "my_rewards:dislikes_company",
        RAIN[:1],
        ["failed at row 0 to row 0", "ZeroDivision"],
    ),
    "lacks a column": ("my_rewards:echo", RAIN, ["failed at row 0", "'tone'"]),
    "no list": ("my_rewards:nothing", RAIN, ["TypeError"]),
    "count": ("my_rewards:too_few", RAIN, ["1 numbers for 6 completions", "row 0 to row 2"]),
    "text": ("my_rewards:words", RAIN, ["returned 'good' at row 0", "finite number"]),
    "nan": ("my_rewards:nan", RAIN, ["returned nan at row 0"]),
    "none": ("my_rewards:no_opinion", RAIN, ["returned None at row 0"]),
    "beyond float": ("my_rewards:huge", RAIN, ["returned 1000", "at row 0"]),
    "column nowhere": (
        "column:kind",
        [pair("a", "b", 0, king_chosen=1, king_rejected=2)],
        [
            "no row has the column 'kind'",
            "did you mean 'king'",
            "kind_chosen and kind_rejected",
            "king_chosen",
        ],
    ),
    "column of one number": ("column:n", [pair("a", "b", 0, n=1)], ["row 0", "'n': 1", "each of the 2"]),
    "column too long": ("column:n", [pair("a", "b", 0, n=[1, 2, 3])], ["row 0", "[1, 2, 3]"]),
    "column of text": ("column:n", [pair("a", "b", 7, n=["1", 2])], ["returned '1' at row 7"]),
    "infinite column": ("column:n", [pair("a", "b", 7, n=[1, math.inf])], ["returned inf at row 7"]),
}


@pytest.mark.parametrize("name", MISMEASURED)
def test_a_measurement_that_is_no_number_names_reward_and_row(name: str, here: Path) -> None:
    """Whatever a function or a column gives but one finite number for each response stops the run."""
    reward, groups, fragments = MISMEASURED[name]
    with pytest.raises(InputError) as caught:
        measure_groups(groups, auxiliary_rewards({reward: {}}))
    for fragment in (repr(reward), *fragments):
        assert fragment in str(caught.value)


def test_a_column_says_nothing_of_new_text() -> None:
    """Sampled text has no column, and the message says what to do."""
    with pytest.raises(InputError, match=r"'column:kind' reads the column 'kind'.*remove this reward"):
        one(name="column:kind").measurements(["ask"], ["answer"], {})


def test_the_failing_row_is_found_in_few_calls() -> None:
    """Of 1,000 completions the one that raises is found by halving, in at most twelve calls."""
    calls: list[int] = []

    def fragile(prompts: Any, completions: Any, columns: Any) -> list[float]:
        calls.append(len(completions))
        return [1 / int(completion) for completion in completions]

    texts = ["1"] * 700 + ["0"] + ["1"] * 299
    with pytest.raises(InputError, match="failed at completion 700: ZeroDivisionError"):
        AuxiliaryReward("fragile", fragile).measurements(texts, texts, {})
    assert len(calls) <= 12
