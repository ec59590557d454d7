"""Chat templates of the field's families: what is trained, spelled out, and the same tokens as TRL."""

import json
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import datasets
import pytest
import trl
from tokenizers import AddedToken, Regex, pre_tokenizers
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from preftune.data import (
    Asked,
    LengthLimits,
    TokenizedGroup,
    encode_prompt,
    end_tokens,
    load_groups,
    tokenize_groups,
)
from preftune.data.template import ChatTemplate
from preftune.errors import InputError

PUBLISHED = Path(trl.__file__).parent / "chat_templates"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('no role ' + m.role) }}{% endif %}{% endfor %}"
)
FAMILIES: dict[str, tuple[str, str, str, list[str]]] = {
    # template, BOS, EOS, other special tokens
    "chatml": (CHATML, "<|im_start|>", "<|im_end|>", []),
    "mistral": (MISTRAL, "<s>", "</s>", ["[INST]", "[/INST]"]),
    "llama3": (
        (PUBLISHED / "llama3.jinja").read_text(),
        "<|begin_of_text|>",
        "<|eot_id|>",
        ["<|start_header_id|>", "<|end_header_id|>"],
    ),
    "llama3_1": (
        (PUBLISHED / "llama3_1.jinja").read_text(),
        "<|begin_of_text|>",
        "<|eot_id|>",
        ["<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>", "<|eom_id|>"],
    ),
    "qwen2_5": ((PUBLISHED / "qwen2_5.jinja").read_text(), "<|endoftext|>", "<|im_end|>", ["<|im_start|>"]),
    "qwen3": ((PUBLISHED / "qwen3.jinja").read_text(), "<|endoftext|>", "<|im_end|>", ["<|im_start|>"]),
    "gemma3": ((PUBLISHED / "gemma3.jinja").read_text(), "<bos>", "<end_of_turn>", ["<start_of_turn>"]),
}
TOOLS = ["llama3_1", "qwen2_5", "qwen3"]
WORDS = r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|[^\r\n\p{L}\p{N}]?\p{L}+|\s*[\r\n]+|\s+"
"""How these families cut text before they look for tokens: line breaks stay together."""
QUIET: dict[str, Any] = {"report_to": "none", "use_cpu": True, "bf16": False}


@pytest.fixture
def tokenizer_of(smollm2_dir: Path) -> Any:
    """SmolLM2's tokenizer with another family's template and special tokens."""
    from transformers import AutoTokenizer

    def build(family: str) -> PreTrainedTokenizerBase:
        template, bos, eos, others = FAMILIES[family]
        tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
        names = [AddedToken(name, special=True, normalized=False) for name in (bos, eos, *others)]
        tokenizer.add_special_tokens({"additional_special_tokens": names})
        tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = bos, eos, eos
        tokenizer.chat_template = template
        core = tokenizer.backend_tokenizer
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        return tokenizer

    return build


def user(content: str) -> dict[str, Any]:
    """A user's message."""
    return {"role": "user", "content": content}


def assistant(content: str, **others: Any) -> dict[str, Any]:
    """A message of the model."""
    return {"role": "assistant", "content": content, **others}


def call(name: str, **arguments: Any) -> dict[str, Any]:
    """A message of the model that only calls a tool."""
    return assistant(
        "", tool_calls=[{"type": "function", "function": {"name": name, "arguments": arguments}}]
    )


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a town.",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
    },
}
DIALOGUE = {
    "prompt": [user("Hi"), assistant("Hello!"), user("Name a fruit.")],
    "chosen": [assistant("An apple.")],
    "rejected": [assistant("A stone, which is no fruit.")],
}
CALLING = {
    "prompt": [user("How is the weather in Oslo?")],
    "chosen": [call("weather", town="Oslo")],
    "rejected": [assistant("I do not know.")],
    "tools": [WEATHER],
}
WORKING = {
    **CALLING,
    "chosen": [call("weather", town="Oslo"), {"role": "tool", "content": "rain"}, assistant("It rains.")],
}


def tokenized(
    rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, **asked: Any
) -> list[TokenizedGroup]:
    """Rows as we read them."""
    return tokenize_groups(load_groups(rows, asked=Asked(**asked)).groups, tokenizer)


def trained_text(group: TokenizedGroup, place: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """What of a response is trained, in text."""
    ids = group.responses[place]
    return str(tokenizer.decode(ids[group.trained[place]] if group.trained else ids))


def without_line_ends(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Without what follows the last special token: TRL trains the line break behind an end of turn."""
    special = set(tokenizer.all_special_ids)
    last = max((place for place, token in enumerate(ids) if token in special), default=len(ids) - 1)
    return ids[: last + 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_have_the_tokens_that_trl_gives_them(
    family: str, tokenizer_of: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Prompt and responses have TRL's ids, but for line breaks behind an end of turn, which none samples.

    TRL trains what tools and users say inside of a response too; we train the model's own turns. And where a
    family writes no calls, TRL drops them without a word.
    """
    tokenizer = tokenizer_of(family)
    rows = [DIALOGUE, WORKING] if family in TOOLS else [DIALOGUE]
    groups = tokenized(rows, tokenizer)
    for row, group in zip(rows, groups, strict=True):
        tools = {"tools": json.dumps(row["tools"])} if "tools" in row else {}
        trainer = DPOTrainer(
            str(tiny_model_dir),
            args=DPOConfig(output_dir=str(tmp_path), max_length=None, **QUIET),
            train_dataset=datasets.Dataset.from_list([row | tools]),
            processing_class=tokenizer,
        )
        (theirs,) = trainer.train_dataset
        assert group.prompt.tolist() == theirs["prompt_ids"]
        for ids, name in zip(group.responses, ("chosen_ids", "rejected_ids"), strict=True):
            assert ids.tolist() == without_line_ends(theirs[name], tokenizer)


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - TOOLS))
def test_a_template_without_tools_is_refused_where_there_are_some(family: str, tokenizer_of: Any) -> None:
    """What it would leave out without a word is an error."""
    with pytest.raises(InputError, match=r"template_refuses(.|\n)*it never looks at `tool"):
        tokenized([CALLING], tokenizer_of(family))


@pytest.mark.parametrize("family", ["chatml", "llama3", "gemma3"])
def test_labelled_responses_have_the_tokens_that_trl_gives_them(
    family: str, tokenizer_of: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """KTO's rows too."""
    tokenizer = tokenizer_of(family)
    rows = [
        {"prompt": DIALOGUE["prompt"], "completion": DIALOGUE[name], "label": name == "chosen"}
        for name in ("chosen", "rejected")
    ]
    groups = tokenized(rows, tokenizer, needs_pairs=False, needs_labels=True)
    trainer = KTOTrainer(
        str(tiny_model_dir),
        args=KTOConfig(output_dir=str(tmp_path), max_length=None, **QUIET),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    for group, theirs in zip(groups, trainer.train_dataset, strict=True):
        assert group.prompt.tolist() == theirs["prompt_ids"]
        assert group.responses[0].tolist() == without_line_ends(theirs["completion_ids"], tokenizer)


TRAINED = {
    "llama3_1": (
        '{"name": "weather", "parameters": {"town": "Oslo"}}<|eot_id|>',
        "It rains.<|eot_id|>",
    ),
    "qwen2_5": (
        '<tool_call>\n{"name": "weather", "arguments": {"town": "Oslo"}}\n</tool_call><|im_end|>',
        "It rains.<|im_end|>",
    ),
    "qwen3": (
        '<tool_call>\n{"name": "weather", "arguments": {"town": "Oslo"}}\n</tool_call><|im_end|>',
        "<think>\n\n</think>\n\nIt rains.<|im_end|>",
    ),
}


@pytest.mark.parametrize("family", TOOLS)
def test_the_models_own_turns_are_trained(family: str, tokenizer_of: Any) -> None:
    """Of a call, its result and an answer, the call and the answer with their ends, and nothing else."""
    tokenizer = tokenizer_of(family)
    (group,) = tokenized([WORKING], tokenizer)
    assert trained_text(group, 0, tokenizer) == "".join(TRAINED[family])
    assert "rain" in tokenizer.decode(group.responses[0][~group.trained[0]])  # type: ignore[index]


@pytest.mark.parametrize("family", ["chatml", "llama3", "qwen2_5", "gemma3"])
def test_a_turn_that_brings_its_end_along_has_it_once(family: str, tokenizer_of: Any) -> None:
    """The data's own end and the template's are one, in a response of one message and in one of several."""
    tokenizer = tokenizer_of(family)
    end = str(tokenizer.eos_token)
    several = [assistant(f"One.{end}"), user("More?"), assistant(f"Two.{end}")]
    row = {"prompt": [user("Count.")], "chosen": several, "rejected": [assistant(f"No.{end}")]}
    (group,) = tokenized([row], tokenizer)
    assert trained_text(group, 0, tokenizer) == f"One.{end}Two.{end}"
    assert tokenizer.decode(group.responses[1]) == f"No.{end}"


@pytest.mark.parametrize("family", TOOLS)
def test_real_conversations_with_tools_are_read(family: str, tokenizer_of: Any) -> None:
    """ShareGPT's function_call and observation turns, and tools as JSON text, under three families."""
    path = Path(__file__).parents[3] / "shared/fixtures/preferences/llama_factory/glaive_toolcall_20.json"
    if not path.exists():
        pytest.skip("the real data is not here")
    tokenizer = tokenizer_of(family)
    loaded = load_groups(str(path), asked=Asked(needs_pairs=False))
    groups = tokenize_groups(loaded.groups, tokenizer, LengthLimits(4096))
    assert len(groups) == 20
    answers = [item["conversations"][-1]["value"] for item in json.loads(path.read_text())]
    for group, answer in zip(groups, answers, strict=True):
        assert trained_text(group, 0, tokenizer).endswith(answer.strip() + str(tokenizer.eos_token))
    assert any("search_recipes" in tokenizer.decode(group.prompt) for group in groups)


def test_a_begun_turn_is_continued(tokenizer_of: Any) -> None:
    """A prompt that ends in the model's words goes on from there, in training and where one samples."""
    tokenizer = tokenizer_of("chatml")
    prompt = [user("Name a fruit."), assistant("I would say")]
    (group,) = tokenized([{"prompt": prompt, "chosen": " an apple.", "rejected": " a stone."}], tokenizer)
    assert str(tokenizer.decode(group.prompt)).endswith("<|im_start|>assistant\nI would say")
    assert trained_text(group, 0, tokenizer) == " an apple.<|im_end|>"
    assert encode_prompt(tokenizer, prompt) == group.prompt.tolist()


def test_reasoning_that_a_template_strips_is_trained_as_the_row_has_it(tokenizer_of: Any) -> None:
    """Where the generation prompt opens the thinking, the response's own opening goes; nothing is lost."""
    tokenizer = tokenizer_of("chatml")
    stripping = CHATML.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")
    for opening, expected in (
        ("", "<think>\nwhy\n</think>\nan apple"),
        ("<think>\n", "why\n</think>\nan apple"),
    ):
        tokenizer.chat_template = stripping.replace("assistant\n{% endif", f"assistant\n{opening}{{% endif")
        rows = [
            {
                "prompt": [user("q")],
                "chosen": [assistant("<think>\nwhy\n</think>\nan apple")],
                "rejected": [assistant("<think>\nhm\n</think>\na stone")],
            }
        ]
        (group,) = tokenized(rows, tokenizer)
        assert trained_text(group, 0, tokenizer) == expected + "<|im_end|>"


def test_reasoning_that_a_template_does_not_know_is_refused(tokenizer_of: Any) -> None:
    """What stands under `reasoning_content` is written, or the row says that it is not."""
    row = {
        "prompt": [user("q")],
        "chosen": [assistant("an apple", reasoning_content="because")],
        "rejected": [assistant("a stone")],
    }
    (group,) = tokenized([row], tokenizer_of("qwen3"))
    assert trained_text(group, 0, tokenizer_of("qwen3")) == "<think>\nbecause\n</think>\n\nan apple<|im_end|>"
    with pytest.raises(InputError, match=r"template_loses(.|\n)*'because': it is not in what the template"):
        tokenized([row], tokenizer_of("chatml"))


def test_a_template_that_writes_the_date_writes_the_runs(tokenizer_of: Any) -> None:
    """The same text tomorrow, so that a resumed run is the same run."""
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + CHATML
    template = ChatTemplate(tokenizer, today=date(2026, 2, 3))
    assert template.writes_date
    assert template.prompt((user("q"),)).startswith("03 Feb 2026<|im_start|>user")


def test_a_template_that_is_not_valid_is_said_to_be(tokenizer_of: Any) -> None:
    """A syntax error is the template's, and no role is refused."""
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = "{% for m in %}"
    with pytest.raises(InputError, match=r"chat template is not valid: line 1: "):
        tokenized([DIALOGUE], tokenizer)


def test_the_end_of_turn_stops_sampling(tokenizer_of: Any) -> None:
    """A base model's EOS stays an end, and its template's end of turn is one too."""
    tokenizer = tokenizer_of("chatml")
    tokenizer.eos_token = "<|endoftext|>"
    ends = end_tokens(tokenizer, is_chat=True)
    assert set(tokenizer.convert_ids_to_tokens(sorted(ends))) == {"<|endoftext|>", "<|im_end|>"}
    assert tokenizer.convert_ids_to_tokens(sorted(end_tokens(tokenizer, is_chat=False))) == ["<|endoftext|>"]


def test_notes_count_what_a_template_does(tokenizer_of: Any) -> None:
    """The report says how many prompts are continued."""
    notes: Counter[str] = Counter()
    template = ChatTemplate(tokenizer_of("chatml"), notes=notes)
    (group,) = load_groups([{"prompt": [user("q"), assistant("I")], "chosen": " a", "rejected": " b"}]).groups
    prompt = template.prompt(group.prompt)
    for response in group.responses:
        template.response(group.prompt, prompt, response)
    assert notes == {"prompts that end in a begun turn of the model, which is continued": 2}
