"""Every built-in measure by hand, and what it says of texts without words."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerBase

from preftune.errors import InputError
from preftune.rewards import MEASURES
from preftune.rewards.measures.diversity import lexical_diversity, repetition
from preftune.rewards.measures.formats import length, regex, valid_json
from preftune.rewards.measures.sentiment import sentiment
from preftune.rewards.measures.toxicity import profanity, toxicity, toxicity_words

WORDLESS = ["", " \n\t", "... !?", "1 2 3", "\U0001f600", "```\n```"]


@pytest.mark.parametrize("name", [name for name in MEASURES if name not in ("toxicity", "length", "regex")])
def test_a_text_without_words_measures_zero(name: str) -> None:
    """Empty texts, punctuation and emoji give a finite number, 0; digits are words to `lexical_diversity`."""
    texts = [text for text in WORDLESS if not (name == "lexical_diversity" and text == "1 2 3")]
    assert MEASURES[name].build()(texts) == [0.0] * len(texts)


@pytest.mark.parametrize("name", [name for name in MEASURES if name not in ("toxicity", "length", "regex")])
def test_every_measure_stays_in_its_range(name: str) -> None:
    """Long, repeated, foreign and broken texts stay finite and within the stated range."""
    texts = [
        "word " * 5000,
        "a",
        "Ünïcödé ᚠ 漢字。日本",
        "{" * 100_000,
        "x" * 10_000,
        "no\x00 \ud7ff end",
        "E! " * 999,
    ]
    low, high = MEASURES[name].range
    for value in MEASURES[name].build()(texts):
        assert math.isfinite(value)
        assert low is None or value >= low - 1e-9
        assert high is None or value <= high + 1e-9


@pytest.mark.parametrize(
    ("text", "window", "expected"),
    [
        # Shorter than the window: 3 different of 4.
        ("the cat The dog", 50, 3 / 4),
        # Windows of two: (a a) 1/2, (a b) 1, (b b) 1/2, (b a) 1; their mean.
        ("a a b b a", 2, 3 / 4),
        ("a b c", 3, 1.0),
        ("a a a a", 1, 1.0),
    ],
)
def test_lexical_diversity_by_hand(text: str, window: int, expected: float) -> None:
    """The moving-average type-token ratio, without regard to case."""
    assert lexical_diversity(text, window) == pytest.approx(expected)


def test_lexical_diversity_does_not_fall_with_length() -> None:
    """Saying as varied a text five times over keeps the average, where a plain ratio falls to a fifth."""
    text = " ".join(f"w{index}" for index in range(60))
    assert lexical_diversity(text) == lexical_diversity(" ".join([text] * 5)) == 1.0


@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [
        # Runs of two: ab bc ca ab bc, of which ab and bc come again.
        ("a b c a b c", 2, 2 / 5),
        ("A a a a a", 4, 1 / 2),
        ("a b c", 4, 0.0),
    ],
)
def test_repetition_by_hand(text: str, n: int, expected: float) -> None:
    """The share of runs of n words that were there before."""
    assert repetition(text, n) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("You idiot. Sit down, please.", 1 / 2),
        ("IDIOT!", 1.0),
        ("You idiot! You idiot, you damned fool! Thanks. Bye.", 2 / 4),
        ("An assistant assesses the class.", 0.0),
    ],
)
def test_toxicity_words_by_hand(text: str, expected: float) -> None:
    """The share of sentences with a listed word, whole and in any case."""
    assert toxicity_words(text) == expected


def test_the_word_list_is_lower_case_words() -> None:
    """Every entry can match: `words` would find it as it stands."""
    assert len(profanity()) > 50
    assert all(word.isalpha() and word == word.lower() for word in profanity())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": [1, null]}', 1.0),
        ("[]", 1.0),
        ('```json\n{"a": 1}\n```', 1.0),
        ('Here it is: {"a": 1}', 0.0),
        ('{"a": 1} {"b": 2}', 0.0),
        ("{'a': 1}", 0.0),
        ('{"a": NaN}', 0.0),
        ("42", 0.0),
        ("[" * 100_000, 0.0),
    ],
)
def test_valid_json_by_hand(text: str, expected: float) -> None:
    """One object or list and nothing else; Python's NaN is no JSON, and no depth is a crash."""
    assert valid_json(text) == expected


def test_regex_searches_the_whole_text() -> None:
    """1 where the pattern is found anywhere; flags stand in the pattern."""
    assert [regex(text, r"(?i)\bthanks\b") for text in ("Oh, THANKS.", "thanksgiving")] == [1.0, 0.0]


def test_length_counts_the_tokens_of_the_text_alone(smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    """Tokens by the policy's tokenizer, without BOS or an end of turn."""
    texts = ["", "rain", "rain rain", "<|im_end|>"]
    assert length(smollm2_tokenizer)(texts) == [0.0, 1.0, 2.0, 1.0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # VADER's own README; the second and third are averages of it and of a neutral sentence's 0.
        ("VADER is smart, handsome, and funny.", 0.8316),
        ("VADER is smart, handsome, and funny. The table is brown.", 0.4158),
        ("- VADER is smart, handsome, and funny.\n- The table is brown.", 0.4158),
        ("Today SUX!", -0.5461),
    ],
)
def test_sentiment_is_vaders(text: str, expected: float) -> None:
    """The published compound scores, averaged over sentences."""
    assert sentiment(text) == pytest.approx(expected, abs=1e-4)


# --- the classifier ---

TEXTS = ["rain", "the old roof sings while the kettle falls on bread", "", "a", "rain falls on rain " * 60]


@pytest.fixture
def classifier_dir(tmp_path: Path, smollm2_tokenizer: PreTrainedTokenizerBase) -> Path:
    """A random classifier of three labels, with SmolLM2's tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=len(smollm2_tokenizer),
        max_position_embeddings=64,
        pad_token_id=2,
        initializer_range=0.5,
        id2label={0: "fine", 1: "Toxic", 2: "threat"},
        label2id={"fine": 0, "Toxic": 1, "threat": 2},
    )
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    smollm2_tokenizer.save_pretrained(tmp_path)
    return tmp_path


def one_by_one(folder: Path, tokenizer: PreTrainedTokenizerBase, text: str) -> torch.Tensor:
    """Logits of one text, cut to the model's positions."""
    model = LlamaForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([tokenizer(text)["input_ids"][:62]])).logits[0]


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "single_label_classification"])
def test_classifier_gives_the_labels_probability(
    classifier_dir: Path, smollm2_tokenizer: PreTrainedTokenizerBase, problem_type: str
) -> None:
    """Sigmoid for several labels at once, else softmax; batches change nothing, and a blank text is 0."""
    config = json.loads((classifier_dir / "config.json").read_text())
    (classifier_dir / "config.json").write_text(json.dumps({**config, "problem_type": problem_type}))
    expected = []
    for text in TEXTS:
        logits = one_by_one(classifier_dir, smollm2_tokenizer, text) if text else None
        shares = (
            None if logits is None else logits.sigmoid() if "multi" in problem_type else logits.softmax(0)
        )
        expected.append(0.0 if shares is None else float(shares[1]))
    assert len(set(expected)) == len(TEXTS)
    found = toxicity(str(classifier_dir))(TEXTS)
    assert found == pytest.approx(expected, abs=1e-5)
    other = toxicity(str(classifier_dir), label="threat")(TEXTS)
    assert other != pytest.approx(found, abs=1e-3)


def test_classifier_refuses_before_the_weights(classifier_dir: Path, tiny_model_dir: Path) -> None:
    """An unknown label, and a folder without a model, are named at once."""
    file = classifier_dir / "model.safetensors"
    # Weights that loading would refuse.
    save_file({name: weight * torch.nan for name, weight in load_file(file).items()}, file)
    with pytest.raises(InputError, match=r"label=rude is not a label of.*fine, Toxic, threat"):
        toxicity(str(classifier_dir), label="rude")
    with pytest.raises(InputError, match=r"has no weights for score\.weight"):
        toxicity(str(tiny_model_dir))
    config = json.loads((classifier_dir / "config.json").read_text(encoding="utf-8"))
    unnamed = {str(index): f"LABEL_{index}" for index in range(len(config["id2label"]))}
    config |= {"id2label": unnamed, "label2id": {label: int(index) for index, label in unnamed.items()}}
    (classifier_dir / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(InputError, match=r"model=.* has several labels: set label to one of LABEL_0"):
        toxicity(str(classifier_dir))
    with pytest.raises(InputError, match="nothing cannot be loaded: it must be a folder with a complete"):
        toxicity(str(classifier_dir / "nothing"))


def test_runs_longer_than_the_text_repeat_nothing() -> None:
    """However long a run is asked for, a shorter text has none, and it takes no time to say so."""
    assert repetition("a b a b", n=10**20) == 0.0
