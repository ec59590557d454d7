"""The verifier of checkable instructions: every expected value is derived in the test."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.errors import InputError
from preftune.rewards.instructions import CHECKS, instruction_score, instructions_kept

ARGUMENTS = {
    "max_words": 5,
    "mention": ["tea", "honey"],
    "bullets": 2,
    "end_with_question": True,
    "no_digits": True,
    "first_word": "well",
    "lower_case": True,
    "json_keys": ["title", "tip"],
}


@pytest.mark.parametrize(
    ("instruction", "response", "expected"),
    [
        # Words: 5 of 10, 10 of 10, then 15 = 10 + half the limit, then past twice the limit.
        ({"max_words": 10}, "one two three four five", 1.0),
        ({"max_words": 10}, "a b c d e f g h i j", 1.0),
        ({"max_words": 10}, "a b c d e f g h i j k l m n o", 0.5),
        ({"max_words": 4}, "a b c d e f g h i", 0.0),
        # Two of three; case and endings do not matter, but "steam" does not mention "tea".
        ({"mention": ["tea", "pot", "leaf"]}, "Teas go into a hot pot", 2 / 3),
        ({"mention": ["tea"]}, "steam comes out of there", 0.0),
        # One bullet of two; three where two are wanted; numbers count; a dash inside a line does not.
        ({"bullets": 2}, "a list of things\n- soap", 0.5),
        ({"bullets": 2}, "- soap\n* water\n• a towel and time", 0.5),
        ({"bullets": 2}, "1. warm soap\n2) cold water now", 1.0),
        ({"bullets": 2}, "soap - or plain water - for hands", 0.0),
        ({"bullets": 1}, "- a\n- b\n- c\n- d\n- e", 0.0),
        ({"end_with_question": True}, "shall we go there now?", 1.0),
        ({"end_with_question": True}, 'she said: "shall we go?"\n', 1.0),
        ({"end_with_question": True}, "Why? Because it rains today.", 0.5),
        ({"end_with_question": True}, "it rains nearly every day.", 0.0),
        # Two numbers, 12 and 30, cost a quarter each; five numbers cost all.
        ({"no_digits": True}, "from 12 to 30 it rains", 0.5),
        ({"no_digits": True}, "from noon to night it rains", 1.0),
        ({"no_digits": True}, "1 2 3 4 5", 0.0),
        # First, and first met as the fourth word.
        ({"first_word": "Well"}, "well, that depends on you", 1.0),
        ({"first_word": "Well"}, "That is very well known", 0.25),
        ({"first_word": "Well"}, "farewell to all of you", 0.0),
        # Three words with a capital cost a tenth each.
        ({"lower_case": True}, "In May it rains in PARIS", 0.7),
        ({"lower_case": True}, "in may it rains in paris", 1.0),
        # Valid JSON is a half, one key of two another quarter; the code fence is no harm.
        ({"json_keys": ["title", "tip"]}, '{"title": "a b", "other": "c d e"}', 0.75),
        ({"json_keys": ["title", "tip"]}, '```json\n{"title": "a b", "tip": "c d e"}\n```', 1.0),
        # No JSON: a quarter for the quoted keys, of which there is one of two. A list is no object.
        ({"json_keys": ["title", "tip"]}, 'here: {"title": a b c', 0.125),
        ({"json_keys": ["title", "tip"]}, '["title", "tip", "a", "b", "c"]', 0.25),
    ],
)
def test_each_check_gives_the_hand_derived_share(instruction, response, expected):
    """Every check grades a response of at least five distinct words as its docstring says."""
    assert instruction_score(response, [instruction]) == pytest.approx(expected)


def test_the_score_is_the_mean_over_instructions():
    """One kept and one broken instruction make a half, whether in one mapping or in two."""
    response = "it rains nearly every day."
    assert instruction_score(response, [{"max_words": 9}, {"end_with_question": True}]) == 0.5
    assert instruction_score(response, [{"max_words": 9, "end_with_question": True}]) == 0.5


def test_keys_without_a_value_are_absent():
    """A row of an Arrow table, where every instruction has all keys, scores as it did before."""
    row = [{"max_words": 9, "mention": None}, {"max_words": None, "mention": ["snow"]}]
    assert instruction_score("it rains nearly every day.", row) == 0.5


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("response", ["", "  \n", "?!"])
def test_an_answer_without_words_scores_zero(check, response):
    """Nothing is no answer, although it has no digits, no capitals and few words."""
    assert instruction_score(response, [{check: ARGUMENTS[check]}]) == 0.0


def test_few_distinct_words_keep_a_part_of_the_score():
    """Three distinct words, however often said, keep three fifths of a full score."""
    assert instruction_score("tea now please tea tea", [{"no_digits": True}]) == pytest.approx(0.6)


@pytest.mark.parametrize("check", CHECKS)
@settings(deadline=None)
@given(response=st.text(alphabet=st.sampled_from('aB1 -*\n?."{}:é,')) | st.text())
def test_scores_stay_in_the_unit_interval(check, response):
    """Whatever the response, every check's score lies in [0, 1]."""
    assert 0.0 <= instruction_score(response, [{check: ARGUMENTS[check]}]) <= 1.0


def test_an_unknown_instruction_is_refused_by_name():
    """The error quotes the unknown check and lists the known ones."""
    with pytest.raises(InputError, match=r"'min_words' is unknown: use one of max_words, mention"):
        instruction_score("five words are standing here", [{"min_words": 3}])


def test_no_instruction_is_an_error():
    """A row without instructions cannot be scored and says so."""
    with pytest.raises(InputError, match="at least one instruction"):
        instruction_score("five words are standing here", [{"mention": None}])


def test_the_reward_function_takes_strings_and_messages():
    """In TRL's signature, a message list scores as its content does; other columns are ignored."""
    text = "it rains nearly every day."
    scores = instructions_kept(
        prompts=["p", "q"],
        completions=[text, [{"role": "assistant", "content": text}]],
        instructions=[[{"max_words": 9}, {"end_with_question": True}]] * 2,
        split=["train", "train"],
    )
    assert scores == [0.5, 0.5]
