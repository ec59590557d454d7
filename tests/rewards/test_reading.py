"""Reading level against published values, and the parts it is made of."""

import pytest

from preftune.rewards.measures.reading import reading_ease, reading_grade, syllables
from preftune.rewards.measures.words import sentences, words

GETTYSBURG = """Four score and seven years ago our fathers brought forth on this continent, a new nation, \
conceived in Liberty, and dedicated to the proposition that all men are created equal.

Now we are engaged in a great civil war, testing whether that nation, or any nation so conceived and \
so dedicated, can long endure. We are met on a great battle-field of that war. We have come to \
dedicate a portion of that field, as a final resting place for those who here gave their lives that \
that nation might live. It is altogether fitting and proper that we should do this.

But, in a larger sense, we can not dedicate — we can not consecrate — we can not hallow — this \
ground. The brave men, living and dead, who struggled here, have consecrated it, far above our poor \
power to add or detract. The world will little note, nor long remember what we say here, but it can \
never forget what they did here. It is for us the living, rather, to be dedicated here to the \
unfinished work which they who fought here have thus far so nobly advanced. It is rather for us to \
be here dedicated to the great task remaining before us — that from these honored dead we take \
increased devotion to that cause for which they gave the last full measure of devotion — that we \
here highly resolve that these dead shall not have died in vain — that this nation, under God, shall \
have a new birth of freedom — and that government of the people, by the people, for the people, \
shall not perish from the earth."""
"""The Bliss copy, in the public domain."""

SHARKS = """Though amid all the smoking horror and diabolism of a sea-fight, sharks will be seen longingly \
gazing up to the ship's decks, like hungry dogs round a table where red meat is being carved, ready \
to bolt down every killed man that is tossed to them; and though, while the valiant butchers over \
the deck-table are thus cannibally carving each other's live meat with carving-knives all gilded and \
tasselled, the sharks, also, with their jewel-hilted mouths, are quarrelsomely carving away under \
the table at the dead meat; and though, were you to turn the whole affair upside down, it would \
still be pretty much the same thing, that is to say, a shocking sharkish business enough for all \
parties; and though sharks also are the invariable outriders of all slave ships crossing the \
Atlantic, systematically trotting alongside, to be handy in case a parcel is to be carried anywhere, \
or a dead slave to be decently buried; and though one or two other like instances might be set down, \
touching the set terms, places, and occasions, when sharks do most socially congregate, and most \
hilariously feast; yet is there no conceivable time or occasion when you will find them in such \
countless numbers, and in gayer or more jovial spirits, than around a dead sperm whale, moored by \
night to a whaleship at sea."""
"""Moby-Dick, chapter 64, in the public domain."""

PLATYPUS = "The Australian platypus is seemingly a hybrid of a mammal and reptilian creature."


@pytest.mark.parametrize(
    ("text", "published", "tolerance"),
    [
        ("The cat sat on the mat.", 116, 0.5),
        ("This sentence, taken as a reading passage unto itself, is being used to prove a point.", 69, 0.5),
        (PLATYPUS, 37.5, 0.1),
        (SHARKS, -146.77, 3),
        (GETTYSBURG, 65, 0.5),
    ],
)
def test_reading_ease_is_the_published_one(text: str, published: float, tolerance: float) -> None:
    """Wikipedia's examples ("Flesch-Kincaid readability tests", 2023), and Microsoft Word's for Gettysburg.

    The sharks are one sentence of 224 words, where a hyphen read as a space or a syllable more in a hundred
    words moves the number by one to two.
    """
    assert reading_ease(text) == pytest.approx(published, abs=tolerance)


@pytest.mark.parametrize(
    ("text", "published", "tolerance"),
    [
        # Wikipedia, and the Boston Globe's "11th-grade level" (2015). GNU style says 10.2 for Gettysburg:
        # programs differ by their syllables, here by 17 of 367.
        (PLATYPUS, 11.3, 0.05),
        (GETTYSBURG, 11, 0.5),
        # The lowest there is: a sentence of one word of one syllable, 0.39 + 11.8 - 15.59.
        ("Go.", -3.4, 1e-9),
    ],
)
def test_grade_is_the_published_one(text: str, published: float, tolerance: float) -> None:
    """The Flesch-Kincaid grade agrees with published values, and at its end with the formula."""
    assert reading_grade(text) == pytest.approx(published, abs=tolerance)


def test_counts_of_gettysburg_are_words_own() -> None:
    """Microsoft Word counts 271 words and 10 sentences; a compound is one word, a dash ends none."""
    assert len(words(GETTYSBURG)) == 271
    assert len(sentences(GETTYSBURG)) == 10


@pytest.mark.parametrize(
    ("word", "count"),
    [
        ("open", 2),  # hyphenation alone: 1
        ("only", 2),
        ("create", 2),  # vowel groups alone: 1
        ("being", 2),
        ("australian", 3),
        ("made", 1),
        ("named", 1),
        ("wanted", 2),
        ("table", 2),
        ("horses", 2),
        ("Names", 1),
        ("don't", 1),
        ("you're", 1),
        ("battle-field", 3),
        ("1863", 1),
        ("hmm", 1),
    ],
)
def test_syllables_of_a_word(word: str, count: int) -> None:
    """Silent e's are silent, compounds add up, and nothing has less than one."""
    assert syllables(word) == count


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("It is 3.5 metres, e.g. this one.", ["It is 3.5 metres, e.g. this one."]),
        ("Dr. No met Mrs. Peel. They left.", ["Dr. No met Mrs. Peel.", "They left."]),
        ('He said "Go." She went.', ['He said "Go.', "She went."]),
        ("# A list\n\n- first thing\n2. second thing\n---\n", ["A list", "first thing", "second thing"]),
        ("?! 1 2 3\n\n...", []),
    ],
)
def test_sentences_end_where_a_reader_stops(text: str, expected: list[str]) -> None:
    """At full stops and line breaks, not inside numbers and titles; what has no letter is no sentence."""
    assert sentences(text) == expected
