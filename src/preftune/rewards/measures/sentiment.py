"""Sentiment of English text by VADER's lexicon and rules."""

from functools import cache
from statistics import fmean
from typing import Any

from preftune.rewards.measures.measure import built_in
from preftune.rewards.measures.words import sentences


@built_in("VADER's compound score, averaged over sentences", (-1.0, 1.0), "maximise")
def sentiment(text: str) -> float:
    """VADER's compound score, averaged over sentences, in [-1, 1]; 0 for a text without words.

    C. J. Hutto and E. Gilbert, "VADER: a parsimonious rule-based model for sentiment analysis of social media
    text" (2014). They average over sentences for longer texts too: the compound score of many sentences at
    once is almost always near -1 or 1.
    """
    parts = sentences(text)
    return fmean(_analyzer().polarity_scores(part)["compound"] for part in parts) if parts else 0.0


@cache
def _analyzer() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
