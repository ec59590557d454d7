"""`hf:` a reward model reads a conversation as its template writes it, and batches change nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from preftune.data import Group, Response
from preftune.errors import InputError
from preftune.rewards.reward_model import RewardModelScorer, template_tokens, training_tokens
from preftune.rewards.scoring import Answer
from preftune.rewards.sources import resolve_source

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nhelp<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n"
    "{{ m['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m['role'] == 'assistant' else 'user' }}\n"
    "{{ m['content'] }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
WORDS = ["\n", "system", "user", "assistant", "model", "help", "hi", "yes", "no"]


def tokenizer_of(
    template: str | None, special: list[str], bos: str | None, eos: str
) -> PreTrainedTokenizerFast:
    """A word to a token, special tokens first; BOS before plain text, as the families with one do."""
    vocabulary = {token: index for index, token in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|[^\s]+"), "removed", invert=True)
    tokenizer.add_special_tokens(special)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
        )
    built = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)
    built.chat_template = template
    return built


def answers(prompt: object, *contents: object) -> list[Answer]:
    """The responses of one group."""
    group = Group(prompt, tuple(map(Response, contents)), ())  # type: ignore[arg-type]
    return [Answer(group, place) for place in range(len(contents))]


# Each expected row is the rendered conversation, user "hi" and assistant "yes", token by token.
FAMILIES = {
    # <|im_start|>0 <|im_end|>1 \n2 system3 user4 assistant5 model6 help7 hi8 yes9
    "chatml": (
        CHATML,
        ["<|im_start|>", "<|im_end|>"],
        None,
        "<|im_end|>",
        [0, 4, 2, 8, 1, 2, 0, 5, 2, 9, 1, 2],
    ),
    # the same vocabulary; the template puts its own system message first, and no BOS exists
    "qwen": (
        QWEN,
        ["<|im_start|>", "<|im_end|>"],
        None,
        "<|im_end|>",
        [0, 3, 2, 7, 1, 2, 0, 4, 2, 8, 1, 2, 0, 5, 2, 9, 1, 2],
    ),
    # <|begin_of_text|>0 <|start_header_id|>1 <|end_header_id|>2 <|eot_id|>3 \n4 user6 assistant7 hi10 yes11
    "llama-3": (
        LLAMA3,
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|begin_of_text|>",
        "<|eot_id|>",
        [0, 1, 6, 2, 4, 10, 3, 1, 7, 2, 4, 11, 3],
    ),
    # <s>0 </s>1 [INST]2 [/INST]3 \n4 .. hi10 yes11
    "mistral": (MISTRAL, ["<s>", "</s>", "[INST]", "[/INST]"], "<s>", "</s>", [0, 2, 10, 3, 11, 1]),
    # <bos>0 <eos>1 <start_of_turn>2 <end_of_turn>3 \n4 system5 user6 assistant7 model8 help9 hi10 yes11
    "gemma": (
        GEMMA,
        ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"],
        "<bos>",
        "<eos>",
        [0, 2, 6, 4, 10, 3, 4, 2, 8, 4, 11, 3, 4],
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_template_is_applied_with_one_bos(family: str) -> None:
    """Every token is the template's, to its last; BOS stands once where the family has one.

    A text prompt and its response are the same conversation as the messages.
    """
    *setup, expected = FAMILIES[family]
    tokenizer = tokenizer_of(*setup)  # type: ignore[arg-type]
    chat = answers(({"role": "user", "content": "hi"},), ({"role": "assistant", "content": "yes"},))
    assert template_tokens(tokenizer, chat) == [expected]
    assert template_tokens(tokenizer, answers("hi", "yes")) == [expected]


def test_bos_that_the_template_leaves_to_the_tokenizer() -> None:
    """A template without BOS gets the one that the tokenizer puts before plain text."""
    _, special, bos, eos, expected = FAMILIES["gemma"]
    tokenizer = tokenizer_of(GEMMA.removeprefix("{{ bos_token }}"), special, bos, eos)
    assert template_tokens(tokenizer, answers("hi", "yes")) == [expected]


def test_text_without_a_template() -> None:
    """Prompt and response are joined between one BOS, even where the text has its own, and one EOS."""
    _, special, bos, eos, _ = FAMILIES["mistral"]
    tokenizer = tokenizer_of(None, special, bos, eos)
    assert template_tokens(tokenizer, answers("hi", " yes", " no</s>")) == [[0, 10, 11, 1], [0, 10, 12, 1]]
    assert template_tokens(tokenizer, answers("<s> hi", " yes")) == [[0, 10, 11, 1]]
    with pytest.raises(InputError, match="has no chat template"):
        template_tokens(tokenizer, answers(({"role": "user", "content": "hi"},), "yes"))


def test_training_tokens_end_at_the_end_of_turn() -> None:
    """As in training a response ends with its end of turn, not with the newline after it in ChatML."""
    *setup, expected = FAMILIES["chatml"]
    tokenizer = tokenizer_of(*setup)  # type: ignore[arg-type]
    chat = answers(({"role": "user", "content": "hi"},), ({"role": "assistant", "content": "yes"},), "no")
    assert training_tokens(tokenizer, chat) == [expected[:-1], [0, 4, 2, 8, 1, 2, 0, 5, 2, 10, 1]]


# --- scores ---


def reward_model_dir(folder: Path, tokenizer: PreTrainedTokenizerBase, **settings: object) -> Path:
    """Folder of a random Llama with a score head."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        **{"num_labels": 1, "pad_token_id": None} | settings,  # type: ignore[arg-type]
    )
    model = LlamaForSequenceClassification(config)
    torch.nn.init.normal_(model.score.weight, std=1.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def llama3() -> PreTrainedTokenizerFast:
    """Its vocabulary and template."""
    return tokenizer_of(*FAMILIES["llama-3"][:4])


def scores_of(model: RewardModelScorer, asked: list[Answer]) -> list[float]:
    """Scores in the order of the answers."""
    found: dict[int, float] = {}
    with model.ready() as score:
        score(
            model.plan(asked),
            lambda unit, scores: found.update(zip(unit.places, scores, strict=True)),
        )
    return [found[place] for place in range(len(asked))]


UNEQUAL = [answer for n in range(1, 13) for answer in answers("hi " * n, "yes " * (13 - n), "no yes " * n)]


@pytest.mark.parametrize("pad", [None, 3, 12], ids=["no-pad", "pad-is-eos", "pad"])
def test_batches_equal_one_by_one(pad: int | None, tmp_path: Path) -> None:
    """In float32 a batch gives each conversation what plain transformers gives it alone, to 1e-4.

    Also where the model has no pad token, or one that the conversations end with.
    """
    folder = reward_model_dir(tmp_path, llama3(), pad_token_id=pad)
    model = RewardModelScorer(str(folder), precision="fp32", batch_tokens=200)
    units = model.plan(UNEQUAL)
    assert 1 < len(units) < len(UNEQUAL)
    assert all(max(map(len, unit.inputs)) * len(unit.inputs) <= 200 for unit in units)
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        alone = [
            plain(input_ids=torch.tensor([ids])).logits.item() for ids in template_tokens(llama3(), UNEQUAL)
        ]
    assert len({round(score, 3) for score in alone}) > 12
    assert scores_of(model, UNEQUAL) == pytest.approx(alone, abs=1e-4)


def test_what_comes_again_is_read_once(tmp_path: Path) -> None:
    """Pairs that share a response cost one reading of it, and every place gets its score."""
    model = RewardModelScorer(str(reward_model_dir(tmp_path, llama3())), precision="fp32")
    asked = [*answers("hi", "yes", "no"), *answers("hi hi", "yes"), *answers("hi", "no", "yes yes")]
    (unit,) = model.plan(asked)
    assert len(unit.inputs) == 4
    assert sorted(unit.places) == list(range(5))
    scores = scores_of(model, asked)
    assert scores[1] == scores[3]
    assert len(set(scores)) == 4
    alone = [scores_of(model, [answer])[0] for answer in asked]
    assert scores == pytest.approx(alone, abs=1e-5)


def test_label_by_number_and_name(tmp_path: Path) -> None:
    """Of several outputs the chosen one is the score, and which must be said."""
    folder = reward_model_dir(tmp_path, llama3(), num_labels=2, id2label={0: "helpful", 1: "brief"})
    first, second = (scores_of(RewardModelScorer(str(folder), label=label), UNEQUAL) for label in (0, 1))
    assert first != second
    assert scores_of(RewardModelScorer(str(folder), label="brief"), UNEQUAL) == second
    for label in (None, 2, "kind"):
        with pytest.raises(InputError, match=r"0 \(helpful\), 1 \(brief\)"):
            RewardModelScorer(str(folder), label=label)


def test_what_is_longer_than_the_model_is_cut_by_the_rule(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`start` keeps BOS and the end, `end` the beginning, both counted in the log; `error` names the row."""
    folder = reward_model_dir(tmp_path, llama3())
    asked = answers("hi hi hi", "yes", "yes no")
    # BOS, header, "user", header, \n, hi, hi, hi, eot, header, "assistant", header, \n, yes, (no,) eot
    whole = [0, 1, 6, 2, 4, 10, 10, 10, 3, 1, 7, 2, 4, 11, 12, 3]
    (start,) = RewardModelScorer(str(folder), max_length=15).plan(asked)
    assert start.places == (0, 1)
    assert start.inputs == {(*whole[:14], 3): 1, (0, *whole[2:]): 1}
    assert "1 of 2 conversations are longer than 15 tokens and are truncated at the start" in caplog.text
    (end,) = RewardModelScorer(str(folder), max_length=15, truncation="end").plan(asked)
    assert list(end.inputs)[1] == tuple(whole[:15])
    with pytest.raises(InputError, match=r"row 0, response 1 .* has 16 tokens"):
        RewardModelScorer(str(folder), max_length=15, truncation="error").plan(asked)
    with pytest.raises(InputError, match="max_length=65 exceeds the model's 64"):
        RewardModelScorer(str(folder), max_length=65)


def test_a_model_without_a_score_head_is_refused(tmp_path: Path) -> None:
    """A language model would be scored by a random head."""
    folder = reward_model_dir(tmp_path, llama3())
    LlamaForCausalLM(LlamaConfig.from_pretrained(folder)).save_pretrained(folder)
    with pytest.raises(InputError, match=r"no weights for score\.weight"):
        scores_of(RewardModelScorer(str(folder)), UNEQUAL)
    with pytest.raises(InputError, match="must be a folder with a complete model"):
        RewardModelScorer(str(tmp_path / "nowhere" / "at" / "all"))


def test_the_configuration_says_how_text_was_given(tmp_path: Path) -> None:
    """A model trained here names its tokens in its configuration, and that is another identity."""
    template = RewardModelScorer(str(reward_model_dir(tmp_path / "a", llama3())))
    trained = RewardModelScorer(str(reward_model_dir(tmp_path / "b", llama3(), preftune_tokens="training")))
    assert trained.plan(answers("hi", "yes"))[0].inputs == {(0, 10, 11, 3): 1}
    assert template.plan(answers("hi", "yes"))[0].inputs == {tuple(FAMILIES["llama-3"][4]): 1}
    assert trained.identity != template.identity


def test_settings_of_the_template(tmp_path: Path) -> None:
    """They reach the template however text is given, and another setting is another identity.

    A model's own configuration may say which it was trained with; those that are given come first.
    """
    *setup, expected = FAMILIES["chatml"]
    tokenizer = tokenizer_of("{% if polite %}help\n{% endif %}" + str(setup[0]), *setup[1:])  # type: ignore[arg-type]
    polite, plain = [7, 2, *expected], expected
    folder = reward_model_dir(tmp_path / "a", tokenizer)
    trained = reward_model_dir(tmp_path / "b", tokenizer, preftune_chat_template_kwargs={"polite": True})
    chat = answers(({"role": "user", "content": "hi"},), ({"role": "assistant", "content": "yes"},))

    def read(folder: Path, **options: Any) -> tuple[int, ...]:
        (unit,) = RewardModelScorer(str(folder), **options).plan(chat)
        (ids,) = unit.inputs
        return tuple(ids)

    assert read(folder) == tuple(plain)
    assert read(folder, chat_template_kwargs={"polite": True}) == tuple(polite)
    assert read(folder, chat_template_kwargs={"polite": True}, tokens="training") == tuple(polite[:-1])
    assert read(trained) == tuple(polite)
    assert read(trained, chat_template_kwargs={}) == tuple(plain)
    named = f"hf:{folder}:tokens=training,chat_template_kwargs={{polite: yes, more: [1, 2]}},batch_tokens=64"
    scorings = [resolve_source("--prior", text) for text in (f"hf:{folder}:tokens=training", named)]
    assert scorings[0].scorer.identity != scorings[1].scorer.identity
    assert list(scorings[1].scorer.plan(chat)[0].inputs) == [tuple(polite[:-1])]
    with pytest.raises(InputError, match="chat_template_kwargs = 'low' must be a mapping"):
        resolve_source("--prior", f"hf:{folder}:chat_template_kwargs=low")


def test_identity_is_the_content(tmp_path: Path) -> None:
    """A copy is the same model; other weights, another template or truncation length are others."""
    first = reward_model_dir(tmp_path / "first", llama3())
    copy = reward_model_dir(tmp_path / "copy", llama3())
    identity = RewardModelScorer(str(first)).identity
    assert RewardModelScorer(str(copy)).identity == identity
    assert RewardModelScorer(str(copy), max_length=32).identity != identity
    (copy / "chat_template.jinja").write_text(LLAMA3 + " ", encoding="utf-8")
    assert RewardModelScorer(str(copy)).identity != identity
    model = LlamaForSequenceClassification.from_pretrained(first)
    torch.nn.init.ones_(model.score.weight)
    model.save_pretrained(first)
    assert RewardModelScorer(str(first)).identity != identity
