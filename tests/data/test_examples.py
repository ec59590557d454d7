"""Examples say of every token what becomes of it."""

from dataclasses import replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from preftune.data import Pair, TokenizedGroup
from preftune.data.examples import TokenRun, show_group


def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> np.ndarray:
    """Token ids of a text."""
    return np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)


def texts(runs: tuple[TokenRun, ...]) -> list[tuple[str, str]]:
    """Kind and text of runs."""
    return [(run.kind, "".join(text for text, _ in run.pieces)) for run in runs]


def group(tokenizer: PreTrainedTokenizerBase) -> TokenizedGroup:
    """A prompt of four tokens and two responses of three."""
    answers = (ids(tokenizer, " red green blue"), ids(tokenizer, " one two three"))
    found = TokenizedGroup(ids(tokenizer, "tell me a story"), answers, (Pair(1, 0, gap=0.25),))
    assert [len(found.prompt), *map(len, answers)] == [4, 3, 3]
    return found


def test_an_example_names_chosen_and_rejected_with_their_gap(
    smollm2_tokenizer: PreTrainedTokenizerBase,
) -> None:
    """The second response is chosen here, and nothing is cut."""
    whole = group(smollm2_tokenizer)
    example = show_group(whole, whole, smollm2_tokenizer, "x row 0")
    assert texts(example.prompt) == [("prompt", "tell me a story")]
    assert [response.title for response in example.responses] == ["rejected, gap 0.250", "chosen, gap 0.250"]
    assert texts(example.responses[0].runs) == [("trained", " red green blue")]


def test_cuts_are_shown_where_they_were_made(smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    """A prompt loses its beginning, a response its end."""
    whole = group(smollm2_tokenizer)
    cut = replace(whole, prompt=whole.prompt[-2:], responses=tuple(each[:2] for each in whole.responses))
    example = show_group(whole, cut, smollm2_tokenizer, "x row 0")
    assert texts(example.prompt) == [("cut", "tell me"), ("prompt", " a story")]
    assert texts(example.responses[1].runs) == [("trained", " one two"), ("cut", " three")]
    assert [example.responses[1].count(kind) for kind in ("trained", "context", "cut")] == [2, 0, 1]


def test_a_kept_bos_stands_before_the_cut(smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    """Of a prompt that begins with BOS the tokens behind it are cut."""
    whole = group(smollm2_tokenizer)
    bos = np.array([1], dtype=np.int32)
    begun = replace(whole, prompt=np.concatenate([bos, whole.prompt]))
    kept = replace(whole, prompt=np.concatenate([bos, whole.prompt[-1:]]))
    example = show_group(begun, kept, smollm2_tokenizer, "x row 0")
    assert texts(example.prompt) == [("prompt", "<|im_start|>"), ("cut", "tell me a"), ("prompt", " story")]
    assert example.prompt[0].pieces == (("<|im_start|>", True),)


def test_masked_tokens_are_context(smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    """Another's turn within a response is read and not trained."""
    whole = group(smollm2_tokenizer)
    masks = (np.array([True, False, True]), np.array([True, True, True]))
    masked = replace(whole, trained=masks)
    example = show_group(masked, masked, smollm2_tokenizer, "x row 0")
    assert texts(example.responses[0].runs) == [
        ("trained", " red"),
        ("context", " green"),
        ("trained", " blue"),
    ]


def test_labels_and_unpaired_responses_are_told(smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    """Without pairs every response says its label; beside a pair, one in none is left out."""
    whole = group(smollm2_tokenizer)
    labelled = replace(whole, pairs=(), per_response={"labels": np.array([True, False])})
    titles = [each.title for each in show_group(labelled, labelled, smollm2_tokenizer, "x").responses]
    assert titles == ["response 0, desirable", "response 1, undesirable"]
    one = replace(whole, responses=(*whole.responses, whole.responses[0]), pairs=(Pair(2, 1),))
    titles = [each.title for each in show_group(one, one, smollm2_tokenizer, "x").responses]
    assert titles == ["response 1, rejected", "response 2, chosen"]
    third = replace(whole, responses=(*whole.responses, whole.responses[0]), pairs=(Pair(2, 1), Pair(2, 1)))
    example = show_group(third, third, smollm2_tokenizer, "x")
    assert example.left_out == 1
    assert example.responses[-1].title == "response 2, chosen in 2 and rejected in 0 pairs"


def test_a_part_of_a_character_is_shown_as_the_vocabulary_has_it(
    smollm2_tokenizer: PreTrainedTokenizerBase,
) -> None:
    """A character of several tokens is whole as text, and no token of it is a question mark in a box."""
    whole = group(smollm2_tokenizer)
    astronaut = ids(smollm2_tokenizer, "\N{BLACK SQUARE BUTTON}\N{ASTRONOMICAL SYMBOL FOR URANUS}")
    assert len(astronaut) > 2
    shown = show_group(
        replace(whole, prompt=astronaut), replace(whole, prompt=astronaut), smollm2_tokenizer, "x"
    )
    assert texts(shown.prompt)[0][1] == "\N{BLACK SQUARE BUTTON}\N{ASTRONOMICAL SYMBOL FOR URANUS}"
    assert all("\N{REPLACEMENT CHARACTER}" not in token.text for token in shown.prompt[0].tokens)
