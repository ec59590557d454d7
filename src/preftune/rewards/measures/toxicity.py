"""Toxicity of a text, by a short list of words or by a classifier."""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any

from preftune.errors import InputError
from preftune.rewards.measures.measure import TextMeasure, built_in
from preftune.rewards.measures.words import sentences, words
from preftune.rewards.rules import LABEL_NAME, MODEL

if TYPE_CHECKING:
    import transformers

TEXTS_PER_BATCH = 32
TOXIC_LABELS = ("toxic", "toxicity")
"""Default labels, in lower case."""


@built_in("share of sentences with a word from a short list of profanity and insults", (0.0, 1.0), "minimise")
def toxicity_words(text: str) -> float:
    """Share of the sentences with a word of the list, in [0, 1]; 0 for a text without words.

    A crude substitute for a classifier: it finds some English profanity and insults by their spelling. It
    does not find slurs, and ignores the meaning of a sentence.
    """
    parts = sentences(text)
    listed = [any(word.lower() in profanity() for word in words(part)) for part in parts]
    return sum(listed) / len(parts) if parts else 0.0


@cache
def profanity() -> frozenset[str]:
    """The words of the list, in lower case."""
    return frozenset(files(__package__).joinpath("profanity.txt").read_text("utf-8").split())


@built_in("probability of a label by a text classifier", (0.0, 1.0), "minimise")
def toxicity(
    model: Annotated[str, MODEL, "the classifier"],
    label: Annotated[str | None, LABEL_NAME, "its only one, or toxic or toxicity"] = None,
) -> TextMeasure:
    """The probability of a label by a text classifier; 0 for a blank text.

    Configuration and tokenizer are read at once, the weights (safetensors only) with the first text.

    Args:
        model: folder or hub name of a sequence classification model.
        label: the label to use; by default the only one, or the one called toxic or toxicity.

    Raises:
        InputError: the model cannot be read, or does not have the label.
    """
    from preftune.models.loading import load_classifier_config, load_tokenizer

    config = load_classifier_config(model, what="a text classifier")
    tokenizer = load_tokenizer(model)
    if config.problem_type == "regression":
        raise InputError(f"model={model} is a regression model and gives no probability: give a classifier")
    if tokenizer.pad_token is None:
        raise InputError(f"model={model}: its tokenizer has no pad token: set one and save the tokenizer")
    classifier = _Classifier(model, tokenizer, config, _index(model, config, label))
    return classifier.probabilities


def _index(model: str, config: "transformers.PretrainedConfig", label: str | None) -> int:
    labels = {name.lower(): index for index, name in config.id2label.items()}
    wanted = [label.lower()] if label else [*TOXIC_LABELS, *(labels if len(labels) == 1 else [])]
    found = [labels[name] for name in wanted if name in labels]
    if not found:
        known = ", ".join(config.id2label.values())
        given = f"label={label} is not a label of {model}" if label else f"model={model} has several labels"
        raise InputError(f"{given}: set label to one of {known}")
    return int(found[0])


class _Classifier:
    """A classifier whose weights are on the accelerator only while it works: the policy needs the memory."""

    def __init__(
        self,
        name: str,
        tokenizer: "transformers.PreTrainedTokenizerBase",
        config: "transformers.PretrainedConfig",
        index: int,
    ) -> None:
        self._name = name
        self._tokenizer = tokenizer
        self._index = index
        self._is_multi_label = config.problem_type == "multi_label_classification" or config.num_labels == 1
        positions = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
        # RoBERTa counts positions from 2.
        self._max_tokens = min(tokenizer.model_max_length, positions - 2)
        self._model: Any = None

    def probabilities(self, texts: Sequence[str]) -> list[float]:
        """The label's probability for each text; texts too long for the model are truncated at the end."""
        import torch

        from preftune.models import generation_device

        places = [place for place, text in enumerate(texts) if text.strip()]
        if not places:
            return [0.0] * len(texts)
        ids = self._tokenizer([texts[p] for p in places], truncation=True, max_length=self._max_tokens)
        tokens = dict(zip(places, ids["input_ids"], strict=True))
        # Texts of similar length share a batch, to save padding.
        places.sort(key=lambda place: len(tokens[place]))
        found = [0.0] * len(texts)
        model = self._loaded().to(generation_device())
        with torch.inference_mode():
            for start in range(0, len(places), TEXTS_PER_BATCH):
                batch = places[start : start + TEXTS_PER_BATCH]
                padded = self._tokenizer.pad({"input_ids": [tokens[p] for p in batch]}, return_tensors="pt")
                logits = model(**padded.to(model.device)).logits.float()
                shares = logits.sigmoid() if self._is_multi_label else logits.softmax(dim=-1)
                for place, share in zip(batch, shares[:, self._index].tolist(), strict=True):
                    found[place] = share
        model.to("cpu")
        return found

    def _loaded(self) -> Any:
        import torch

        from preftune.models.loading import load_classifier

        if self._model is None:
            self._model = load_classifier(self._name, torch.float32).eval()
        return self._model
