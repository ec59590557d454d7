"""Control texts: behind which prompt each response is read, and what a saved template asks for."""

from dataclasses import replace

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from preftune.data import (
    Group,
    LengthLimits,
    Pair,
    Response,
    RowReport,
    RowRules,
    TokenizedGroup,
    fingerprint_groups,
    set_control,
    tokenize_groups,
)

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTROL = {True: "[good]", False: "[bad]"}
ASKED = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
CHAT = ({"role": "user", "content": "hi"},)


def make_tokenizer(template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token per character and per special token; BOS before plain text."""
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    characters = [chr(code) for code in range(10, 127)]
    vocabulary = {token: index for index, token in enumerate([*special, *characters])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    built = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    built.chat_template = template
    return built


def labelled(prompt: object, *responses: tuple[str, bool | None]) -> Group:
    """A group with the first pair of its responses, as pairs that were labelled have it."""
    given = tuple(Response(text, label=label) for text, label in responses)
    return Group(prompt, given, (Pair(0, 1),))  # type: ignore[arg-type]


def written(groups: list[TokenizedGroup]) -> list[tuple[str, list[str]]]:
    """Prompt and responses of each group, as the tokens' own text."""
    tokenizer = make_tokenizer()

    def text(ids: list[int]) -> str:
        return "".join(tokenizer.convert_ids_to_tokens(ids))

    return [(text(g.prompt.tolist()), [text(ids.tolist()) for ids in g.responses]) for g in groups]


def test_a_prompt_for_each_label() -> None:
    """The prompt ends with the text of the label and the response begins behind it, so it is not learned.

    What has no label is left out, and where all responses are alike there is one group.
    """
    pair = labelled(CHAT, ("no", False), ("yes", True), ("so", None), ("yea", True))
    single = labelled(CHAT, ("nay", False))
    groups = tokenize_groups([pair, single], make_tokenizer(), control=CONTROL)
    assert written(groups) == [
        (f"{ASKED}[good]", ["yes<|im_end|>", "yea<|im_end|>"]),
        (f"{ASKED}[bad]", ["no<|im_end|>"]),
        (f"{ASKED}[bad]", ["nay<|im_end|>"]),
    ]
    assert [group.per_response["labels"].tolist() for group in groups] == [
        [True, True],
        [False],
        [False],
    ]
    assert all(group.pairs == () for group in groups)


def test_plain_text_and_what_is_trained_on() -> None:
    """Text gets the control behind its only BOS and prompt; other control texts are other training data."""
    group = labelled("hi ", ("yes", True), ("no", False))
    groups = tokenize_groups([group], make_tokenizer(), control=CONTROL)
    assert written(groups) == [("<s>hi [good]", ["yes</s>"]), ("<s>hi [bad]", ["no</s>"])]
    others = tokenize_groups([group], make_tokenizer(), control={**CONTROL, False: "[poor]"})
    assert fingerprint_groups(others) != fingerprint_groups(groups)


def test_rewards_stay_with_their_responses() -> None:
    """An auxiliary reward goes where its response goes."""
    group = labelled(CHAT, ("no", False), ("yes", True))
    rewarded = replace(
        group, responses=tuple(replace(r, auxiliary=float(i)) for i, r in enumerate(group.responses))
    )
    good, bad = tokenize_groups([rewarded], make_tokenizer(), control=CONTROL)
    assert good.per_response["auxiliary"].tolist() == [1.0]
    assert bad.per_response["auxiliary"].tolist() == [0.0]


def test_limits_count_rows() -> None:
    """A truncated prompt keeps its control; a row is dropped with both its parts, and counted once.

    "[good]" is a token longer than "[bad]": with 10 tokens for prompts, "<s>1234[good]" of 11 is too long.
    """
    row = labelled("1234", ("yes", True), ("no", False))
    limits = LengthLimits(max_length=20, max_prompt_length=10)
    rules = RowRules({"prompt_too_long": "truncate"})
    groups = tokenize_groups([row], make_tokenizer(), limits, rules, control=CONTROL)
    assert [prompt for prompt, _ in written(groups)] == ["<s>234[good]", "<s>1234[bad]"]
    report = RowReport(rows=2)
    rules = RowRules({"prompt_too_long": "drop"})
    kept = labelled("1", ("yes", True), ("no", False))
    longer = replace(row, prompt="123456789")
    groups = tokenize_groups([longer, kept], make_tokenizer(), limits, rules, report, control=CONTROL)
    assert [prompt for prompt, _ in written(groups)] == ["<s>1[good]", "<s>1[bad]"]
    assert (report.dropped, report.counts) == (1, {("prompt_too_long", "drop"): 1})


@pytest.mark.parametrize("template", [TEMPLATE, TEMPLATE + "\n", TEMPLATE + "{{ '' }}\n"])
@pytest.mark.parametrize("text", ["[good]", "\n", 'say "yes" {{ x }} \\n ü 🙂'])
def test_the_saved_template_asks_for_good(template: str, text: str) -> None:
    """Its generation prompt is the prompt of good responses in training, and conversations stay as they were.

    A second text replaces the first, and no text is the template without one.
    """
    tokenizer = make_tokenizer(template)

    def rendered(*, ask: bool) -> str:
        return str(tokenizer.apply_chat_template(list(CHAT), tokenize=False, add_generation_prompt=ask))

    plain = rendered(ask=False)
    for control in ("[old]", text):
        set_control(tokenizer, control)
        assert rendered(ask=True) == ASKED + control
        assert rendered(ask=False) == plain
    set_control(tokenizer, "")
    assert (rendered(ask=True), rendered(ask=False)) == (ASKED, plain)


def test_a_tokenizer_without_a_template_stays_without() -> None:
    """There is nothing to end: whoever samples from text ends the prompt himself."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    set_control(tokenizer, "[good]")
    assert tokenizer.chat_template is None
