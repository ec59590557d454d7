import string
from dataclasses import replace
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from preftune.data import (
    Asked,
    Group,
    LengthLimits,
    Message,
    Pair,
    Response,
    RowReport,
    RowRules,
    TokenizedGroup,
    fingerprint_groups,
    load_groups,
    tokenize_groups,
)
from preftune.errors import InputError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
PHI3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
NO_END = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
THINKING = CHATML.replace("assistant\n{% endif", "assistant\n<think>{{ effort }}\n{% endif")


def make_tokenizer(template: str | None, special: str, bos: str | None, eos: str) -> PreTrainedTokenizerFast:
    """One token per character and per special token; BOS before every text, as Llama's tokenizer does."""
    names = special.split()
    vocabulary = {token: i for i, token in enumerate([*names, *string.printable])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=names[0]))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=bos, eos_token=eos, chat_template=template
    )


def plain_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer with `<s>` and `</s>`, and a chat template that plain text must not meet."""
    return make_tokenizer(CHATML, "<unk> <s> </s> <|im_start|> <|im_end|>", "<s>", "</s>")


def user(content: str) -> Message:
    """Write a user's message."""
    return {"role": "user", "content": content}


def chat(prompt: str, *responses: str) -> Group:
    """Make a chat with one user message and one assistant message per response."""
    answers = tuple(Response(({"role": "assistant", "content": text},)) for text in responses)
    return Group((user(prompt),), answers, (Pair(0, 1),))


def text(prompt: str, *responses: str) -> Group:
    """Make a plain text group."""
    return Group(prompt, tuple(map(Response, responses)), (Pair(0, 1),))


def tokens(tokenizer: PreTrainedTokenizerBase, group: Group, **options: Any) -> tuple[list[str], ...]:
    """Tokenize one group: the prompt's tokens and those of every response, as strings."""
    (done,) = tokenize_groups([group], tokenizer, **options)
    return tuple(tokenizer.convert_ids_to_tokens(ids.tolist()) for ids in (done.prompt, *done.responses))


# --- template families ---


def test_chatml() -> None:
    """ChatML: the response ends with <|im_end|> once, and the newline after it is dropped."""
    tokenizer = make_tokenizer(CHATML, "<unk> <|im_start|> <|im_end|>", None, "<|im_end|>")
    assert tokens(tokenizer, chat("hi", "yes", "no ")) == (
        ["<|im_start|>", *"user\nhi", "<|im_end|>", "\n", "<|im_start|>", *"assistant\n"],
        [*"yes", "<|im_end|>"],
        [*"no ", "<|im_end|>"],
    )


def test_llama3() -> None:
    """Llama-3: the template's BOS stays alone, and <|eot_id|> ends the response, not EOS."""
    special = "<unk> <|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|>"
    tokenizer = make_tokenizer(LLAMA3, special, "<|begin_of_text|>", "<|end_of_text|>")
    header = ["<|start_header_id|>", *"user", "<|end_header_id|>", *"\n\n"]
    opening = ["<|start_header_id|>", *"assistant", "<|end_header_id|>", *"\n\n"]
    assert tokens(tokenizer, chat("hi", "yes", " no")) == (
        ["<|begin_of_text|>", *header, *"hi", "<|eot_id|>", *opening],
        [*"yes", "<|eot_id|>"],
        [*"no", "<|eot_id|>"],
    )


def test_gemma() -> None:
    """Gemma: one BOS, and <end_of_turn> is the last trained token."""
    special = "<unk> <bos> <eos> <start_of_turn> <end_of_turn>"
    tokenizer = make_tokenizer(GEMMA, special, "<bos>", "<eos>")
    assert tokens(tokenizer, chat("hi", "yes", "no")) == (
        ["<bos>", "<start_of_turn>", *"user\nhi", "<end_of_turn>", "\n", "<start_of_turn>", *"model\n"],
        [*"yes", "<end_of_turn>"],
        [*"no", "<end_of_turn>"],
    )


def test_mistral() -> None:
    """Mistral: no generation prompt, one BOS, and the EOS the template writes is not doubled."""
    tokenizer = make_tokenizer(MISTRAL, "<unk> <s> </s> [INST] [/INST]", "<s>", "</s>")
    assert tokens(tokenizer, chat("hi", "yes", "no")) == (
        ["<s>", "[INST]", *" hi ", "[/INST]"],
        [*" yes", "</s>"],
        [*" no", "</s>"],
    )


def test_phi3() -> None:
    """A template that closes the turn and then the text has both closings trained."""
    special = "<unk> <|endoftext|> <|end|> <|user|> <|assistant|>"
    tokenizer = make_tokenizer(PHI3, special, None, "<|endoftext|>")
    # Without the generation prompt the text ends in EOS, so only the response's rendering has it.
    assert tokens(tokenizer, chat("hi", "yes", "no")) == (
        ["<|user|>", *"\nhi", "<|end|>", "\n", "<|assistant|>", "\n"],
        [*"yes", "<|end|>", "\n", "<|endoftext|>"],
        [*"no", "<|end|>", "\n", "<|endoftext|>"],
    )


def test_template_without_end() -> None:
    """Where the template writes no end of turn, EOS is appended."""
    tokenizer = make_tokenizer(NO_END, "<unk> <s> </s>", "<s>", "</s>")
    prompt, chosen, _ = tokens(tokenizer, chat("hi", "yes", "no"))
    assert "".join(prompt) == "user: hi\nassistant: "
    assert chosen == [*"yes\n", "</s>"]


def test_response_with_its_own_end() -> None:
    """A response that already ends with the end of turn still ends with it once."""
    tokenizer = make_tokenizer(CHATML, "<unk> <|im_start|> <|im_end|>", None, "<|im_end|>")
    assert tokens(tokenizer, chat("hi", "yes<|im_end|>", "no<|im_end|> \n"))[1:] == (
        [*"yes", "<|im_end|>"],
        [*"no", "<|im_end|>"],
    )
    assert tokens(plain_tokenizer(), text("hi", "yes</s>", "no"))[1] == [*"yes", "</s>"]


def test_template_that_does_not_write_its_generation_prompt() -> None:
    """Such a template trains the response's text and its end of turn, and the report counts them."""
    tokenizer = make_tokenizer(THINKING, "<unk> <|im_start|> <|im_end|> </s>", None, "</s>")
    report = RowReport(rows=1)
    prompt, chosen, rejected = tokens(
        tokenizer, chat("hi", "yes", "no"), report=report, chat_template_kwargs={"effort": "low"}
    )
    assert "".join(prompt).endswith("<|im_start|>assistant\n<think>low\n")
    assert (chosen, rejected) == ([*"yes", "<|im_end|>"], [*"no", "<|im_end|>"])
    assert report.notes == {"responses that follow '<think>low' of the generation prompt": 2}


def test_response_of_several_messages() -> None:
    """Of several messages the model's own are trained; refused where the template hides where one starts."""
    turns = ({"role": "assistant", "content": "a"}, user("b"), {"role": "assistant", "content": "c"})
    group = Group((user("hi"),), (Response(turns), Response("d")), (Pair(0, 1),))
    tokenizer = make_tokenizer(CHATML, "<unk> <|im_start|> <|im_end|>", None, "<|im_end|>")
    _, chosen, rejected = tokens(tokenizer, group)
    assert "".join(chosen) == "a<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\nc<|im_end|>"
    (done,) = tokenize_groups([group], tokenizer)
    assert done.trained is not None
    ids = [*zip(chosen, done.trained[0].tolist(), strict=True)]
    assert "".join(token for token, is_trained in ids if is_trained) == "a<|im_end|>c<|im_end|>"
    assert done.trained[1].all()
    assert rejected == ["d", "<|im_end|>"]
    thinking = make_tokenizer(THINKING, "<unk> <|im_start|> <|im_end|>", None, "<|im_end|>")
    with pytest.raises(InputError, match=r"row 0, .*writes this turn differently once others follow it"):
        tokenize_groups([group], thinking)


# --- plain text ---


def test_plain_text() -> None:
    """Plain text: the tokenizer's BOS once, EOS once on every response, and no chat template."""
    assert tokens(plain_tokenizer(), text("Q: hi", " yes", "no")) == (
        ["<s>", *"Q: hi"],
        [*" yes", "</s>"],
        [*"no", "</s>"],
    )


def test_plain_prompt_with_its_own_bos() -> None:
    """A prompt that starts with the BOS text still has one BOS."""
    assert tokens(plain_tokenizer(), text("<s>hi", "a", "b"))[0] == ["<s>", *"hi"]


def test_tokenizer_that_ends_every_text() -> None:
    """A tokenizer that appends EOS to every text does not end the prompt with it."""
    tokenizer = plain_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert tokens(tokenizer, text("hi", "a", "b")) == (["<s>", *"hi"], ["a", "</s>"], ["b", "</s>"])


def test_chat_and_text_together_keep_their_order() -> None:
    """Chats and texts in one list come back in order, each with its own pairs, as int32."""
    groups = [text("a", "b", "c"), chat("d", "e", "f"), text("g", "h", "i", "j"), chat("k", "l", "m")] * 100
    groups = [replace(group, pairs=(Pair(0, 1, margin=float(i)),)) for i, group in enumerate(groups)]
    tokenizer = plain_tokenizer()
    done = tokenize_groups(groups, tokenizer)
    assert [group.pairs for group in done] == [group.pairs for group in groups]
    for i in (0, 1, 2, 3, 255, 256, 257, 399):
        (alone,) = tokenize_groups([groups[i]], tokenizer)
        for ids, expected in zip(
            (done[i].prompt, *done[i].responses), (alone.prompt, *alone.responses), strict=True
        ):
            assert ids.dtype == np.int32
            assert ids.tolist() == expected.tolist()


# --- what is refused ---


def test_messages_without_chat_template() -> None:
    """Messages need a chat template, and the message says where there are some and what to do."""
    tokenizer = make_tokenizer(None, "<unk> </s>", None, "</s>")
    with pytest.raises(
        InputError, match=r"pairs\.jsonl row 3: there are messages.*no chat template.*plain text"
    ):
        tokenize_groups(
            [replace(chat("a", "b", "c"), row=3)],
            tokenizer,
            report=RowReport("pairs.jsonl row {}".format, rows=1),
        )


def test_template_that_refuses_a_role() -> None:
    """What a template refuses is the user's error, with the row, the roles and the template's reason."""
    tokenizer = make_tokenizer(GEMMA, "<unk> <bos> <eos> <end_of_turn>", "<bos>", "<eos>")
    group = chat("a", "b", "c")
    group = replace(group, prompt=({"role": "system", "content": "s"}, *group.prompt))
    with pytest.raises(InputError, match=r"row 0, .*roles system, user: System role not supported"):
        tokenize_groups([group], tokenizer)


def test_text_prompt_with_messages() -> None:
    """A text prompt before messages, built by hand, is refused rather than rendered as a Python object."""
    with pytest.raises(InputError, match=r"row 0: the prompt is text and a response is messages"):
        tokenize_groups([replace(chat("a", "b", "c"), prompt="a")], plain_tokenizer())


def test_tokenizer_without_eos() -> None:
    """A tokenizer without EOS is refused: no response could learn to end."""
    tokenizer = plain_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="no EOS token"):
        tokenize_groups([text("a", "b", "c")], tokenizer)


@pytest.mark.parametrize(("longest", "prompt"), [(10, 10), (10, 11), (10, 0), (1, 1)])
def test_limits_that_leave_no_room(longest: int, prompt: int) -> None:
    """Limits without room for a prompt and a response are refused with both keys and values."""
    with pytest.raises(
        InputError, match=rf"max_prompt_length={prompt}, data\.max_length={longest}: .*at least 1"
    ):
        LengthLimits(max_length=longest, max_prompt_length=prompt)


# --- limits ---

LONG = [text("0123456789", "a", "b"), text("012", "abcdefghij", "abcde"), text("012", "a", "b")]


def limited(**rules: str) -> tuple[list[TokenizedGroup], RowReport]:
    """LONG under limits that the first prompt and the second group's chosen response exceed."""
    report = RowReport(rows=3)
    groups = [replace(group, row=row) for row, group in enumerate(LONG)]
    limits = LengthLimits(max_length=10, max_prompt_length=5)
    return tokenize_groups(groups, plain_tokenizer(), limits, RowRules(rules), report), report


def test_long_prompt_error() -> None:
    """A long prompt can stop the run, with its length, the limit and what the other actions cost."""
    message = (
        r"row 0, column `prompt`: 11: 11 tokens, and max_prompt_length is 5\n"
        r"Fix the data, or set data\.rules\.prompt_too_long=truncate \(shortens 1\) or "
        r"data\.rules\.prompt_too_long=drop \(drops 1\)\."
    )
    with pytest.raises(InputError, match=message):
        limited(prompt_too_long="error")


def test_a_prompt_without_room_is_dropped_and_counted() -> None:
    """Without a limit of its own, a prompt is whole; where it fills max_length, its group is left out."""
    report = RowReport(rows=3)
    groups = [replace(group, row=row) for row, group in enumerate(LONG)]
    kept = tokenize_groups(groups, plain_tokenizer(), LengthLimits(max_length=11), report=report)
    assert len(kept) == 2
    assert report.counts["no_room", "drop"] == report.dropped == 1
    kept = tokenize_groups(groups, plain_tokenizer(), LengthLimits(max_length=12))
    assert [ids.tolist() for ids in kept[0].responses] == [
        [ids] for ids in plain_tokenizer()("ab")["input_ids"][1:]
    ]


def test_pairs_of_equal_tokens_are_no_pairs() -> None:
    """Responses that max_length cuts to the same tokens are equal: left out where pairs are needed."""
    groups = [text("012", "abcdx", "abcdy"), text("012", "a", "b")]
    report = RowReport(rows=2)
    limits = LengthLimits(max_length=8)
    kept = tokenize_groups(groups, plain_tokenizer(), limits, report=report, needs_pairs=True)
    assert [len(group.pairs) for group in kept] == [1]
    assert report.counts["equal_responses", "drop"] == 1
    kept = tokenize_groups(groups, plain_tokenizer(), limits)
    assert [len(group.pairs) for group in kept] == [0, 1]


def test_long_prompt_drop() -> None:
    """A long prompt's group can be dropped and counted."""
    groups, report = limited(prompt_too_long="drop")
    assert len(groups) == 2
    assert report.counts["prompt_too_long", "drop"] == report.dropped == 1


def test_long_prompt_truncate() -> None:
    """A long prompt keeps BOS and its end; it is counted."""
    groups, report = limited(prompt_too_long="truncate")
    assert plain_tokenizer().decode(groups[0].prompt.tolist()) == "<s>6789"
    assert report.counts["prompt_too_long", "truncate"] == 1
    assert report.dropped == 0


def test_long_chatml_prompt_keeps_its_end_only() -> None:
    """Where BOS is ChatML's start of turn, a truncated prompt does not begin with a stray one."""
    tokenizer = make_tokenizer(CHATML, "<unk> <|im_start|> <|im_end|>", "<|im_start|>", "<|im_end|>")
    rules = RowRules({"prompt_too_long": "truncate"})
    limits = LengthLimits(max_length=20, max_prompt_length=14)
    prompt, *_ = tokens(tokenizer, chat("hi", "yes", "no"), limits=limits, rules=rules)
    assert prompt == ["i", "<|im_end|>", "\n", "<|im_start|>", *"assistant\n"]


def test_long_response_truncate() -> None:
    """A long response keeps its beginning, loses EOS and is counted; the others are whole."""
    groups, report = limited(prompt_too_long="drop")
    decoded = [plain_tokenizer().decode(ids.tolist()) for group in groups for ids in group.responses]
    assert decoded == ["abcdef", "abcde</s>", "a</s>", "b</s>"]
    assert report.counts["response_too_long", "truncate"] == 1


def test_long_response_drop() -> None:
    """A group with a long response can be dropped and counted once."""
    groups, report = limited(prompt_too_long="drop", response_too_long="drop")
    assert len(groups) == 1
    assert report.counts["response_too_long", "drop"] == 1
    assert report.dropped == 2


def test_long_response_error() -> None:
    """A long response can stop the run, with the lengths and the limit."""
    message = (
        r"row 1, column `response`: 11: 4 \+ 11 tokens, and max_length is 10\n.*"
        r"response_too_long=truncate \(shortens 1\) or data\.rules\.response_too_long=drop \(drops 1\)\."
    )
    with pytest.raises(InputError, match=message):
        limited(prompt_too_long="drop", response_too_long="error")


def test_all_groups_too_long() -> None:
    """Where the limits drop every group, the run stops and says which rule did it."""
    with pytest.raises(InputError, match=r"No row is left.*\n  prompt_too_long: 1 row dropped"):
        tokenize_groups(
            LONG[:1], plain_tokenizer(), LengthLimits(10, 5), RowRules({"prompt_too_long": "drop"})
        )


letters = st.text(string.ascii_letters, min_size=1, max_size=30)


@given(
    rows=st.lists(st.tuples(letters, letters, letters), min_size=1, max_size=5),
    prompt_limit=st.integers(1, 20),
    room=st.integers(1, 20),
)
@settings(max_examples=50, deadline=None)
def test_limits_hold_and_counts_are_exact(
    rows: list[tuple[str, str, str]], prompt_limit: int, room: int
) -> None:
    """No group exceeds a limit, every response keeps a token, and each cut is counted once."""
    tokenizer, report = plain_tokenizer(), RowReport(rows=len(rows))
    limits = LengthLimits(max_length=prompt_limit + room, max_prompt_length=prompt_limit)
    rules = RowRules({"prompt_too_long": "truncate"})
    groups = tokenize_groups([text(*row) for row in rows], tokenizer, limits, rules, report)
    cut_prompts = cut_responses = 0
    for (prompt, *responses), group in zip(rows, groups, strict=True):
        kept = min(len(prompt) + 1, prompt_limit)
        assert len(group.prompt) == kept
        cut_prompts += len(prompt) + 1 > prompt_limit
        for response, ids in zip(responses, group.responses, strict=True):
            assert len(ids) == min(len(response) + 1, limits.max_length - kept) >= 1
            cut_responses += len(response) + 1 > limits.max_length - kept
    assert report.counts["prompt_too_long", "truncate"] == cut_prompts
    assert report.counts["response_too_long", "truncate"] == cut_responses
    assert report.dropped == 0


# --- the real thing: SmolLM2 ---


def test_smollm2_chat(smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    """SmolLM2's own template: its default system prompt, the question, and the answer up to <|im_end|>."""
    (group,) = tokenize_groups([chat("What is 2+2?", "Four.", "Five.")], smollm2_tokenizer)
    assert smollm2_tokenizer.decode(group.prompt.tolist()) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [smollm2_tokenizer.decode(ids.tolist()) for ids in group.responses] == [
        "Four.<|im_end|>",
        "Five.<|im_end|>",
    ]
    assert [ids.tolist().count(smollm2_tokenizer.eos_token_id) for ids in group.responses] == [1, 1]


def test_smollm2_plain_text(smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    """SmolLM2's tokenizer adds no BOS to plain text, and neither do we."""
    prompt, chosen, _ = tokens(smollm2_tokenizer, text("The sky is", " blue.", " green."))
    assert prompt == ["The", "Ġsky", "Ġis"]
    assert chosen == ["Ġblue", ".", "<|im_end|>"]


# SmolLM2's vocabulary lacks some bytes of control characters and of unassigned planes.
assigned = st.characters(exclude_categories=("C",)) | st.sampled_from("\n\t")
visible = st.text(assigned, max_size=40).filter(str.strip)


@given(prompt=visible, chosen=visible, rejected=visible)
@settings(max_examples=40, deadline=None)
def test_any_text_survives(
    smollm2_tokenizer: PreTrainedTokenizerBase, prompt: str, chosen: str, rejected: str
) -> None:
    """For any text the prompt's ids do not depend on the responses, and all decodes to what was written."""
    for make in (chat, text):
        (group,) = tokenize_groups([make(prompt, chosen, rejected)], smollm2_tokenizer)
        (swapped,) = tokenize_groups([make(prompt, rejected, chosen)], smollm2_tokenizer)
        assert group.prompt.tolist() == swapped.prompt.tolist()
        for response, ids in zip((chosen, rejected), group.responses, strict=True):
            whole = smollm2_tokenizer.decode([*group.prompt.tolist(), *ids.tolist()])
            assert whole.endswith(response + "<|im_end|>")
            assert prompt in whole


# --- labels and auxiliary rewards ---


def test_labels_and_rewards_of_responses_are_kept() -> None:
    """Labels become truth values and rewards float32, one per response, and neither where none has any."""
    responses = (Response("a", label=False, auxiliary=0.1), Response("b", label=True, auxiliary=-2.0))
    (group,) = tokenize_groups([Group("p", responses, (Pair(1, 0),))], plain_tokenizer())
    labels, auxiliary = group.per_response["labels"], group.per_response["auxiliary"]
    assert labels.dtype == np.bool_
    assert labels.tolist() == [False, True]
    assert auxiliary.dtype == np.float32
    assert auxiliary.tolist() == [np.float32(0.1), -2]
    (plain,) = tokenize_groups([text("p", "a", "b")], plain_tokenizer())
    assert plain.per_response == {}


def test_a_pair_with_labels_is_two_labelled_rows(smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    """A pair's responses have the tokens and labels that they have as rows of their own."""
    prompt = [user("2+2?")]
    pair = {"prompt": prompt, "chosen": "Four.", "rejected": "Five, I think."}
    rows = [
        {"prompt": prompt, "completion": "Four.", "label": True},
        {"prompt": prompt, "completion": "Five, I think.", "label": False},
    ]
    (together,), apart = (
        tokenize_groups(
            load_groups(
                datasets.Dataset.from_list(source), asked=Asked(needs_pairs=False, needs_labels=True)
            ).groups,
            smollm2_tokenizer,
        )
        for source in ([pair], rows)
    )
    labels = together.per_response["labels"].tolist()
    assert [label for group in apart for label in group.per_response["labels"]] == labels == [True, False]
    for group, response in zip(apart, together.responses, strict=True):
        assert group.prompt.tolist() == together.prompt.tolist()
        assert [ids.tolist() for ids in group.responses] == [response.tolist()]


def test_only_labelled_responses_are_kept() -> None:
    """Where others of a group have a label, responses without one go, and the pair's indices follow."""
    responses = (Response("a"), Response("b", label=False), Response("c"), Response("d", label=True))
    tokenizer = plain_tokenizer()
    (group,) = tokenize_groups([Group("p", responses, (Pair(3, 1), Pair(3, 0)))], tokenizer)
    assert [tokenizer.decode(ids.tolist()) for ids in group.responses] == ["b</s>", "d</s>"]
    assert group.pairs == (Pair(1, 0),)
    assert group.per_response["labels"].tolist() == [False, True]


# --- fingerprint ---


def test_fingerprint_groups() -> None:
    """The fingerprint follows ids, their order, where one text ends, pairs, gaps, labels and rewards.

    It does not follow the reference, and is what it was before groups had labels and rewards.
    """

    def group(*ids: list[int]) -> TokenizedGroup:
        prompt, *responses = (np.array(i, dtype=np.int32) for i in ids)
        return TokenizedGroup(prompt, tuple(responses), (Pair(0, 1),))

    base = group([1, 2], [3], [4, 5])
    same = replace(base, per_response={"reference_logps": np.array([-1, -2], dtype=np.float32)})
    assert fingerprint_groups([base]) == fingerprint_groups([same])
    assert fingerprint_groups([base]).startswith("d4f19c16fccb4e90")
    others = [
        [base],
        [],
        [base, base],
        [group([1, 2], [4, 5], [3])],
        [group([1], [2, 3], [4, 5])],
        [group([1, 2], [3, 4], [5])],
        [group([1, 2], [3]), group([4, 5])],
        [replace(base, pairs=(Pair(1, 0),))],
        [replace(base, pairs=(Pair(0, 1, gap=0.5),))],
        [replace(base, per_response={"labels": np.array([True, False])})],
        [replace(base, per_response={"labels": np.array([False, True])})],
        [replace(base, per_response={"auxiliary": np.array([1, 0], dtype=np.float32)})],
        [replace(base, per_response={"auxiliary": np.array([1, 0.5], dtype=np.float32)})],
    ]
    assert len({fingerprint_groups(groups) for groups in others}) == len(others)
