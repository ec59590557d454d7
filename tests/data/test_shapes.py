from dataclasses import fields
from pathlib import Path
from typing import Any

import datasets
import pytest

from preftune.data import Asked, Group, LoadedGroups, Pair, Pairing, Response, fingerprint_rows, load_groups
from preftune.data.columns import SCORE_COLUMNS, detect_columns
from preftune.data.shapes import separate_prompt
from preftune.errors import InputError

ASKED = {each.name for each in fields(Asked)}


def user(content: str) -> dict[str, str]:
    """Write a user's message."""
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    """Write an assistant's message."""
    return {"role": "assistant", "content": content}


def system(content: str) -> dict[str, str]:
    """Write a system message."""
    return {"role": "system", "content": content}


def load(row: dict[str, Any], **options: Any) -> LoadedGroups:
    """Load a data set of one row."""
    asked = {name: options.pop(name) for name in list(options) if name in ASKED}
    rule = {"pairing": Pairing(options.pop("pair_rule"))} if "pair_rule" in options else {}
    return load_groups(datasets.Dataset.from_list([row]), asked=Asked(**asked), **rule, **options)


def load_one(row: dict[str, Any], **options: Any) -> Group:
    """Load the group of one row."""
    (group,) = load(row, **options).groups
    return group


def contents(group: Group) -> list[Any]:
    """List the responses' contents."""
    return [response.content for response in group.responses]


# --- pairwise ---


def test_plain_text() -> None:
    """Text stays text, untouched: a group of two with one pair."""
    group = load_one({"prompt": "Hi ", "chosen": " yes", "rejected": "no\n"})
    assert group == Group("Hi ", (Response(" yes"), Response("no\n")), (Pair(0, 1),), row=0)


def test_messages() -> None:
    """Prompt, chosen and rejected as messages map to messages."""
    group = load_one({"prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]})
    assert group.prompt == (user("q"),)
    assert contents(group) == [(assistant("a"),), (assistant("b"),)]


def test_chat_prompt_with_text_responses() -> None:
    """Text after a chat prompt is an assistant message."""
    group = load_one({"prompt": [user("q")], "chosen": "a", "rejected": "b"})
    assert contents(group) == [(assistant("a"),), (assistant("b"),)]


def test_text_prompt_with_message_responses() -> None:
    """A text prompt before assistant messages is a user message."""
    group = load_one({"prompt": "q", "chosen": [assistant("a")], "rejected": [assistant("b")]})
    assert group.prompt == (user("q"),)
    assert contents(group) == [(assistant("a"),), (assistant("b"),)]


@pytest.mark.parametrize("prompt", ["q", [user("q")], [system("s"), user("q")], None])
def test_responses_that_repeat_the_prompt(prompt: Any) -> None:
    """Where chosen and rejected hold the whole conversation, a response is only what follows the prompt."""
    before = [system("s")] if prompt == [system("s"), user("q")] else []
    row = {
        "chosen": [*before, user("q"), assistant("a")],
        "rejected": [*before, user("q"), assistant("b")],
        **({} if prompt is None else {"prompt": prompt}),
    }
    group = load_one(row)
    assert group.prompt == (*before, user("q"))
    assert contents(group) == [(assistant("a"),), (assistant("b"),)]


def test_text_prompt_equal_to_first_user_message_of_a_long_chat() -> None:
    """The prompt is everything the conversations share, not just the message the prompt column repeats."""
    shared = [system("s"), user("q"), assistant("a"), user("and?")]
    group = load_one(
        {"prompt": "q", "chosen": [*shared, assistant("x")], "rejected": [*shared, assistant("y")]}
    )
    assert group.prompt == tuple(shared)
    assert contents(group) == [(assistant("x"),), (assistant("y"),)]


def test_each_conversation_keeps_a_response() -> None:
    """A conversation that continues the other one is not swallowed by the prompt."""
    prompt, responses = separate_prompt(
        None, [(user("q"), assistant("a")), (user("q"), assistant("a"), user("r"), assistant("c"))], "cr"
    )
    assert prompt == (user("q"),)
    assert responses == [(assistant("a"),), (assistant("a"), user("r"), assistant("c"))]


def test_other_keys_of_messages_are_not_read() -> None:
    """Only role and content of a message count, so a per-message id does not hide the shared prompt."""
    group = load_one(
        {
            "chosen": [{**user("q"), "id": 1}, assistant("a")],
            "rejected": [{**user("q"), "id": 2}, assistant("b")],
        }
    )
    assert group.prompt == (user("q"),)


def test_implicit_text_prompt() -> None:
    """Texts are split where they first differ, and the space before that goes to the responses."""
    group = load_one({"chosen": "The sky is blue.", "rejected": "The sky is green."})
    assert group.prompt == "The sky is"
    assert contents(group) == [" blue.", " green."]


def test_implicit_text_prompt_as_trl() -> None:
    """The split of texts is the one TRL makes."""
    trl = pytest.importorskip("trl")
    for chosen, rejected in [("a b c", "a b d"), ("ab", "ac"), ("Q:\n\nyes", "Q:\n\nno"), ("x  y", "x  z")]:
        theirs = trl.extract_prompt({"chosen": chosen, "rejected": rejected})
        group = load_one({"chosen": chosen, "rejected": rejected})
        assert (group.prompt, *contents(group)) == (theirs["prompt"], theirs["chosen"], theirs["rejected"])


def test_no_shared_beginning() -> None:
    """Without a prompt column and a shared beginning, the message says that there is no prompt."""
    with pytest.raises(InputError, match=r"column `chosen`: '': there is no `prompt`"):
        load_one({"chosen": "x", "rejected": "y"})


# --- scores ---


@pytest.mark.parametrize("names", SCORE_COLUMNS[:-1])
def test_score_aliases(names: tuple[str, str]) -> None:
    """Every alias of the two scores is read as the scores of chosen and rejected."""
    group = load_one(
        {"prompt": "p", "chosen": "a", "rejected": "b", names[0]: 7, names[1]: 2.5}, needs_prior=True
    )
    assert [response.score for response in group.responses] == [7.0, 2.5]
    assert group.pairs == (Pair(0, 1),)


def test_score_aliases_are_the_promised_ones() -> None:
    """The table holds the names seen in public sets."""
    assert {"_".join(sorted(names)) for names in SCORE_COLUMNS} == {
        "score_chosen_score_rejected",
        "chosen_score_rejected_score",
        "chosen-rating_rejected-rating",
        "chosen_rating_rejected_rating",
        "chosen_avg_rating_rejected_avg_rating",
        "chosen_reward_rejected_reward",
        "margin",
    }


def test_margin() -> None:
    """A margin is the pair's, and leaves the responses without a score."""
    group = load_one({"prompt": "p", "chosen": "a", "rejected": "b", "margin": -1}, needs_prior=True)
    assert group.pairs == (Pair(0, 1, margin=-1.0),)
    assert [response.score for response in group.responses] == [None, None]


def test_scores_come_before_margin() -> None:
    """Where both are given the scores are read, and the margin is named as unused."""
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "margin": 1, "score_chosen": 3, "score_rejected": 2}
    loaded = load(row, needs_prior=True)
    assert loaded.groups[0].pairs[0].margin is None
    assert loaded.groups[0].responses[0].score == 3.0
    assert loaded.unused_columns == ("margin",)


def test_unused_columns() -> None:
    """Columns the run does not read are given back in their order; scores too, where no prior needs them."""
    row = {"id": 1, "prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": None, "score_rejected": 2}
    loaded = load(row)
    assert loaded.unused_columns == ("id", "score_chosen", "score_rejected")
    assert loaded.groups[0].responses[1].score is None


@pytest.mark.parametrize(
    ("extra", "hint"),
    [
        ([], r"Add them, or choose an objective without a prior"),
        (["score_chosen"], r"`score_chosen` was found without `score_rejected`"),
        (["margins"], r"'margins' was found: was `margin` meant\?"),
    ],
)
def test_prior_without_scores(extra: list[str], hint: str) -> None:
    """A prior without scores is refused, with every alias and the nearest fix."""
    with pytest.raises(InputError, match=rf"score_chosen and score_rejected; .*; margin\. {hint}"):
        detect_columns(["prompt", "chosen", "rejected", *extra], Asked(needs_prior=True))


# --- groups ---


@pytest.mark.parametrize(
    ("responses", "scores"),
    [
        ("responses", "scores"),
        ("responses", "rewards"),
        ("completions", "scores"),
        ("all_generated_responses", "all_rm_scores"),
    ],
)
def test_groups(responses: str, scores: str) -> None:
    """N scored responses are one group, whose pair is the best over the worst."""
    row = {"prompt": "p", responses: ["a", "b", "c", "d"], scores: [0.5, 2, -1, 1]}
    loaded = load(row, needs_prior=True)
    (group,) = loaded.groups
    assert group.prompt == "p"
    assert group.responses == (
        Response("a", 0.5),
        Response("b", 2.0),
        Response("c", -1.0),
        Response("d", 1.0),
    )
    assert group.pairs == (Pair(1, 2),)
    assert loaded.unused_columns == ()


def test_best_worst_takes_the_first_of_equals() -> None:
    """Among equally good or bad responses the first is taken, so a run repeats."""
    group = load_one({"prompt": "p", "responses": ["a", "b", "c", "d"], "scores": [1, 2, 1, 2]})
    assert group.pairs == (Pair(1, 0),)


def test_all_pairs_prefer_every_higher_score() -> None:
    """Of scores 1, 3, 2, 3 come five pairs: equals make none, and neither do equal texts."""
    row = {"prompt": "p", "responses": ["a", "b", "c", "d"], "scores": [1, 3, 2, 3]}
    pairs = (Pair(1, 0), Pair(1, 2), Pair(2, 0), Pair(3, 0), Pair(3, 2))
    assert load_one(row, pair_rule="all_pairs").pairs == pairs
    same_text = row | {"responses": ["a", "b", "b", "d"]}
    assert load_one(same_text, pair_rule="all_pairs").pairs == (
        Pair(1, 0),
        Pair(2, 0),
        Pair(3, 0),
        Pair(3, 2),
    )


def test_labels_of_all_pairs() -> None:
    """Where labels are needed, what only won is desirable, what only lost is not, and the middle has none."""
    row = {"prompt": "p", "responses": ["a", "b", "c"], "scores": [1, 3, 2]}
    group = load_one(row, pair_rule="all_pairs", needs_labels=True)
    assert [response.label for response in group.responses] == [False, True, None]


def test_groups_of_messages() -> None:
    """Responses as messages, with or without the prompt before them, become what follows the prompt."""
    with_prompt = [[user("q"), assistant("a")], [user("q"), assistant("b")]]
    for prompt, responses in [("q", with_prompt), ([user("q")], with_prompt), ([user("q")], ["a", "b"])]:
        group = load_one({"prompt": prompt, "responses": responses, "scores": [1, 2]})
        assert group.prompt == (user("q"),)
        assert contents(group) == [(assistant("a"),), (assistant("b"),)]


def test_responses_without_scores() -> None:
    """Where neither pairs nor labels are needed, responses without scores are a group without a pair."""
    row = {"prompt": "p", "responses": ["a", "b"], "id": 1}
    loaded = load(row, needs_pairs=False)
    assert list(loaded.groups) == [Group("p", (Response("a"), Response("b")), ())]
    assert (loaded.columns.shape, loaded.unused_columns) == ("groups", ("id",))
    for needs in ({"needs_labels": True}, {"needs_prior": True}):
        with pytest.raises(InputError, match=r"No `scores` column\. Without scores no pair can be built"):
            load(row, needs_pairs=False, **needs)


BOTH = {
    "prompt": "q",
    "all_generated_responses": ["a", "b", "c"],
    "all_rm_scores": [1, 3, 2],
    "chosen": [user("q"), assistant("b")],
    "rejected": [user("q"), assistant("a")],
}


def test_both_shapes_without_prior() -> None:
    """Where a source has pairs and scored groups, a run without a prior takes the pairs as they are."""
    loaded = load(BOTH)
    assert contents(loaded.groups[0]) == [(assistant("b"),), (assistant("a"),)]
    assert loaded.unused_columns == ("all_generated_responses", "all_rm_scores")


def test_both_shapes_with_prior() -> None:
    """A prior that finds scores only in the group takes it, as the chat that chosen and rejected show."""
    loaded = load(BOTH, needs_prior=True)
    (group,) = loaded.groups
    assert group.prompt == (user("q"),)
    assert contents(group) == [(assistant("a"),), (assistant("b"),), (assistant("c"),)]
    assert group.pairs == (Pair(1, 0),)
    assert loaded.unused_columns == ()


def test_pair_scores_come_before_groups() -> None:
    """Scored pairs are taken as they are, even where the source has scored groups too."""
    group = load_one({**BOTH, "score_chosen": 3, "score_rejected": 1}, needs_prior=True)
    assert len(group.responses) == 2


# --- labels ---


def labelled(row: dict[str, Any], **options: Any) -> Group:
    """Load a row for a method that learns from labels."""
    return load_one(row, needs_pairs=False, needs_labels=True, **options)


@pytest.mark.parametrize(
    ("written", "label"),
    [
        *((True, True), (1, True), (1.0, True), ("true", True), (" TRUE\n", True)),
        *((False, False), (0, False), (-1, False), ("False", False)),
    ],
)
def test_label(written: Any, label: bool) -> None:
    """A labelled response is a group of one without pairs, and its label a truth value however written."""
    group = labelled({"prompt": "p", "completion": "a", "label": written})
    assert group == Group("p", (Response("a", label=label),), ())


@pytest.mark.parametrize(
    ("prompt", "completion", "read"),
    [
        ([user("q")], [assistant("a")], ((user("q"),), (assistant("a"),))),
        ([user("q")], "a", ((user("q"),), (assistant("a"),))),
        ("q", [assistant("a")], ((user("q"),), (assistant("a"),))),
        ("q", [user("q"), assistant("a")], ((user("q"),), (assistant("a"),))),
        ([user("q")], [user("q"), assistant("a")], ((user("q"),), (assistant("a"),))),
        (
            [user("q")],
            [assistant("a"), user("r"), assistant("b")],
            ((user("q"),), (assistant("a"), user("r"), assistant("b"))),
        ),
    ],
)
def test_labelled_messages(prompt: Any, completion: Any, read: tuple[Any, Any]) -> None:
    """A completion is messages or text as the responses of a pair are, with or without its prompt."""
    group = labelled({"prompt": prompt, "completion": completion, "label": True})
    assert (group.prompt, group.responses[0].content) == read


def test_labels_of_a_pair() -> None:
    """The chosen response is desirable, the rejected one is not, and they stay a pair of one prompt."""
    group = labelled({"prompt": "p", "chosen": "a", "rejected": "b"})
    assert group == Group("p", (Response("a", label=True), Response("b", label=False)), (Pair(0, 1),))
    assert [r.label for r in load_one({"prompt": "p", "chosen": "a", "rejected": "b"}).responses] == [
        None
    ] * 2


def test_labels_of_scored_responses() -> None:
    """Best and worst get a label; the others stay without, for rewards that count over all of them."""
    group = labelled({"prompt": "p", "responses": ["a", "b", "c"], "scores": [2, 1, 3]})
    assert [response.label for response in group.responses] == [None, False, True]


def test_pairs_come_before_labels() -> None:
    """Where a source has both, the pairs are read, and the labelled response is named as unused."""
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "completion": "c", "label": False}
    loaded = load(row, needs_pairs=False, needs_labels=True)
    assert contents(loaded.groups[0]) == ["a", "b"]
    assert loaded.unused_columns == ("completion", "label")


@pytest.mark.parametrize(
    ("methods", "setting"),
    [(["kto", "csft"], r"Set objective\.method to kto or csft, or give"), ([], "Give")],
)
def test_labels_where_pairs_are_needed(methods: list[str], setting: str) -> None:
    """Labelled rows are refused by a method of pairs, with the methods that read them."""
    row = {"prompt": "p", "completion": "a", "label": True}
    with pytest.raises(
        InputError, match=rf"`label`: .* no pair, .* learns from pairs\. {setting} chosen and"
    ):
        load(row, label_methods=methods)


# --- columns that rewards read ---


@pytest.mark.parametrize(
    ("row", "kept"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": "b", "id": 7, "score_chosen": 2}, ["id", "score_chosen"]),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [1, 2], "help": [3, 4]}, ["scores", "help"]),
        ({"prompt": "p", "completion": "a", "label": True, "help": None}, ["label", "help"]),
    ],
)
def test_kept_columns(row: dict[str, Any], kept: list[str]) -> None:
    """On request a group keeps its row's columns as they are, but for the prompt's and the responses'."""
    loaded = load(row, needs_pairs=False, keep_columns=True)
    assert loaded.groups[0].columns == {name: row[name] for name in kept}
    assert loaded.unused_columns == ()
    assert load(row, needs_pairs=False).groups[0].columns == {}


def test_kept_columns_are_the_rows_own(tmp_path: Path) -> None:
    """A row without a column that others have keeps what it has."""
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        '{"prompt": "p", "chosen": "a", "rejected": "b", "help": 1}\n'
        '{"prompt": "p", "chosen": "a", "rejected": "b"}\n'
    )
    loaded = load_groups(path, keep_columns=True)
    assert [group.columns for group in loaded.groups] == [{"help": 1}, {}]


# --- what is refused ---


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["prompt", "choosen", "rejected"], r"No `chosen` column; found 'choosen': was it meant\?"),
        (["prompt", "chosen"], r"No `rejected` column\."),
        (
            ["prompt", "Chosen", "Rejected"],
            r"found 'Chosen': was it meant\? Set data\.columns\.chosen=Chosen\. .*found 'Rejected'",
        ),
        (
            ["promt", "chosen", "rejected"],
            r"No `prompt` column; found 'promt': was it meant\? Set data\.columns\.prompt=promt",
        ),
        (["prompt", "responses"], r"No `scores` column\. Without scores no pair can be built"),
        (["prompt", "responses", "score"], r"No `scores` column; found 'score': was it meant\?"),
        (["responses", "scores"], r"No `prompt` column\."),
        (["prompt", "scores"], r"No `responses` column\."),
        (["text"], r"columns `text` are no shape of preference data"),
        (["prompt", "completion", "labels"], r"No `label` column; found 'labels': was it meant\?"),
        (["prompt", "completion"], "a row has one response and no pair"),
        (["completion", "label"], r"No `prompt` column\."),
        (["text", "label"], r"No `prompt` column\. No `completion` column\."),
        (["prompt", "responses", "label"], r"No `scores` column\. Without scores no pair can be built"),
    ],
)
def test_other_columns(columns: list[str], message: str) -> None:
    """Any other columns are refused, with the columns found and the closest fix."""
    with pytest.raises(InputError, match=message):
        detect_columns(columns)


def test_refusal_lists_the_shapes() -> None:
    """A refusal lists the columns found and the shapes accepted."""
    with pytest.raises(InputError) as caught:
        detect_columns(["text", "id"])
    assert "`text`, `id`" in str(caught.value)
    for shape in ("prompt, chosen, rejected", "score_chosen, score_rejected", "prompt, responses, scores"):
        assert shape in str(caught.value)
    assert "prompt, completion, label" in str(caught.value)


def test_prompt_id_is_not_a_misspelt_prompt() -> None:
    """An implicit prompt is accepted beside a prompt_id column."""
    assert detect_columns(["prompt_id", "chosen", "rejected"]).prompt is None


def test_unknown_pair_rule() -> None:
    """A pair rule that does not exist is refused before anything is read."""
    with pytest.raises(InputError, match=r"data\.pair_rule=best_wrost: .*did you mean 'best_worst'\?"):
        load_groups("no/such/source", pairing=Pairing(rule="best_wrost"))


# --- fingerprint ---


def test_fingerprint_rows() -> None:
    """The fingerprint follows content and order, and not the row numbers or the order of a message's keys."""
    a = Group("p", (Response("x", 1.0), Response("y", 0.0)), (Pair(0, 1),), row=0)
    b = Group("p", (Response("x", 1.0), Response("y", 0.5)), (Pair(0, 1),), row=0)
    moved = Group(a.prompt, a.responses, a.pairs, row=9)
    assert fingerprint_rows([a, b]) == fingerprint_rows([moved, b])
    swapped = Group("p", a.responses, (Pair(1, 0),), row=0)
    assert len({fingerprint_rows(groups) for groups in ([a, b], [b, a], [a], [swapped, b], [])}) == 5
    labels = [Group("p", (Response("x", label=label),), ()) for label in (None, True, False)]
    assert len({fingerprint_rows([group]) for group in labels}) == 3
    one = Group(({"role": "user", "content": "q"},), a.responses, a.pairs)
    other = Group(({"content": "q", "role": "user"},), a.responses, a.pairs)
    assert fingerprint_rows([one]) == fingerprint_rows([other])


def rated(response: str, helpfulness: float, **more: Any) -> dict[str, Any]:
    """A row of HelpSteer2, which is joined with others by its prompt."""
    return {"prompt": "2+2?", "response": response, "helpfulness": helpfulness, **more}


def test_joined_rows_ask_the_same() -> None:
    """Rows are joined by prompt where their system message and tools are the same too, and keep both."""
    tool = {"name": "add", "parameters": {}}
    rows = [
        *(rated(text, score, system="Be brief.", tools=[tool]) for text, score in (("4", 4), ("5", 0))),
        *(rated(text, score, system="Be kind.", tools=None) for text, score in (("4!", 3), ("6", 1))),
    ]
    brief, kind = load_groups(rows).groups
    assert (brief.prompt, brief.tools) == ((system("Be brief."), user("2+2?")), (tool,))
    assert contents(brief) == [(assistant("4"),), (assistant("5"),)]
    assert (kind.prompt, kind.tools) == ((system("Be kind."), user("2+2?")), ())
    assert contents(kind) == [(assistant("4!"),), (assistant("6"),)]


def test_joined_rows_keep_columns_that_the_first_lacks() -> None:
    """Of rows that differ in their columns, each response has its own cell, or null."""
    (group,) = load_groups([rated("4", 4), rated("5", 0, length=7)], keep_columns=True).groups
    assert group.columns["length"] == [None, 7]


def test_joined_rows_have_no_weight() -> None:
    """A weight is of one pair, and a joined row's is of one response."""
    with pytest.raises(
        InputError, match="'weight' holds a weight for every row, and rows with the same prompt"
    ):
        load_groups([rated("4", 4, weight=1), rated("5", 0, weight=2)])


def test_tools_beside_plain_text_are_refused() -> None:
    """Only a chat template writes tools, so plain text would lose them without a word."""
    row = {"prompt": "2+2?", "chosen": "4", "rejected": "5", "tools": [{"name": "add"}]}
    with pytest.raises(InputError, match=r"row 0: the column `tools` has tools, the prompt is plain text"):
        load_groups([row])
    assert load_groups([row | {"tools": []}]).groups[0].tools == ()
    mapped = row | {"how": "Be brief."}
    (group,) = load_groups([mapped], asked=Asked(mapping={"system": "how"})).groups
    assert group.tools == ({"name": "add"},)


def test_brackets_without_an_end_are_text() -> None:
    """Text that begins as JSON nested too deeply is text; tools written so, or calls, are an error."""
    deep = "[" * 100_000
    row: dict[str, Any] = {"prompt": "2+2?", "chosen": deep, "rejected": "5"}
    assert contents(load_groups([row]).groups[0]) == [deep, "5"]
    with pytest.raises(InputError, match=r"rule bad_tools .*\n.*column `tools`.*not valid JSON"):
        load_groups([row | {"tools": deep}])


@pytest.mark.parametrize("column", ["tools", "system"])
def test_half_a_surrogate_pair_beside_the_prompt(column: str) -> None:
    """What the template writes into the prompt is text that a tokenizer must read too."""
    half = {"tools": [{"name": "\ud83d"}], "system": "\ud83d"}[column]
    row = {"prompt": [user("2+2?")], "chosen": "4", "rejected": "5", column: half}
    with pytest.raises(
        InputError, match=rf"rule missing_field .*\n.*column `{column}`.*half a surrogate pair"
    ):
        load_groups([row])
