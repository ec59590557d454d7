"""The demo's prompts: everyday topics crossed with instructions that a program can check."""

import random
from typing import Any, TypedDict

PROMPTS_PER_TRAIN_TOPIC = 4
PROMPTS_PER_HELD_OUT_TOPIC = 2

# What to write about, with two words that most answers contain and three that many do not.
TRAIN_TOPICS: dict[str, tuple[str, ...]] = {
    "how bread rises": ("bread", "dough", "yeast", "warm", "bubbles"),
    "why the sky is blue": ("sky", "blue", "light", "air", "short"),
    "how to make a cup of tea": ("tea", "water", "kettle", "steep", "leaves"),
    "what bees do all day": ("bees", "honey", "flowers", "queen", "wax"),
    "how to wash a wool sweater": ("water", "sweater", "cold", "gentle", "flat"),
    "why leaves change colour in autumn": ("leaves", "trees", "green", "sugar", "shorter"),
    "how a bicycle stays upright": ("bicycle", "rider", "wheel", "balance", "steer"),
    "packing for a weekend trip": ("trip", "bag", "socks", "list", "weather"),
    "how to calm down before an exam": ("exam", "calm", "breathe", "sleep", "notes"),
    "keeping a houseplant alive": ("plant", "water", "window", "soil", "roots"),
    "why we dream": ("dream", "sleep", "brain", "night", "memory"),
    "how to fix a flat tyre": ("tyre", "wheel", "pump", "patch", "tube"),
    "the best way to learn a language": ("language", "words", "daily", "listen", "mistakes"),
    "how rain forms": ("rain", "water", "vapour", "cloud", "drops"),
    "training a puppy to sit": ("puppy", "sit", "treat", "praise", "calm"),
    "how to cook rice": ("rice", "water", "rinse", "lid", "simmer"),
    "what makes a good friend": ("friend", "good", "trust", "laugh", "honest"),
    "saving money on groceries": ("money", "food", "list", "season", "freezer"),
    "how the moon moves the sea": ("moon", "sea", "tide", "pull", "shore"),
    "writing a thank-you note": ("note", "thank", "kind", "short", "gift"),
    "why cats purr": ("cats", "sound", "calm", "throat", "heal"),
    "how to start running": ("running", "day", "shoes", "slow", "rest"),
    "how glass is made": ("glass", "sand", "heat", "cool", "clear"),
    "a walk in the forest": ("forest", "trees", "birds", "moss", "path"),
    "how to sharpen a pencil": ("pencil", "sharp", "blade", "point", "turn"),
    "the job of a lighthouse": ("light", "sea", "ships", "lamp", "fog"),
    "how to choose a ripe melon": ("melon", "ripe", "heavy", "smell", "tap"),
    "why people tell stories": ("stories", "people", "listen", "fire", "children"),
    "growing tomatoes on a balcony": ("tomatoes", "plants", "sun", "pot", "water"),
    "how a library works": ("library", "books", "borrow", "shelf", "card"),
    "how to apologise": ("feelings", "person", "sorry", "listen", "honest"),
    "what a map can tell you": ("map", "place", "north", "scale", "river"),
    "how birds find their way": ("birds", "fly", "stars", "magnet", "coast"),
    "cleaning a kitchen quickly": ("kitchen", "clean", "sink", "cloth", "timer"),
    "how to swim": ("swim", "water", "float", "kick", "breathe"),
    "why the sea is salty": ("sea", "salt", "rivers", "rocks", "sun"),
    "hosting a dinner for friends": ("dinner", "friends", "candles", "soup", "music"),
    "how a train stops": ("train", "stop", "brakes", "steel", "driver"),
    "how to read more books": ("books", "read", "evening", "phone", "pages"),
    "making a paper boat": ("paper", "boat", "fold", "corner", "float"),
    "why onions make us cry": ("onions", "cry", "knife", "gas", "eyes"),
    "how to draw a face": ("face", "draw", "circle", "eyes", "pencil"),
    "a rainy day at home": ("rain", "home", "blanket", "window", "soup"),
    "how soap cleans hands": ("soap", "hands", "grease", "water", "rinse"),
    "taking care of a bicycle chain": ("chain", "bicycle", "oil", "rag", "dirt"),
    "why we yawn": ("yawn", "body", "tired", "air", "others"),
    "how to plant a tree": ("tree", "soil", "hole", "roots", "water"),
    "what a good breakfast is": ("breakfast", "food", "fruit", "eggs", "energy"),
    "how a candle burns": ("candle", "flame", "wick", "wax", "air"),
    "speaking in front of a group": ("group", "voice", "pause", "smile", "slow"),
}
HELD_OUT_TOPICS: dict[str, tuple[str, ...]] = {
    "how cheese is made": ("cheese", "milk", "curd", "salt", "age"),
    "why snow is white": ("snow", "white", "crystals", "light", "air"),
    "sleeping better at night": ("sleep", "night", "dark", "screen", "tea"),
    "how to fly a kite": ("kite", "wind", "string", "open", "tail"),
    "what ants carry home": ("ants", "food", "crumbs", "trail", "nest"),
    "how an umbrella works": ("umbrella", "rain", "cloth", "ribs", "spring"),
    "moving to a new city": ("city", "new", "boxes", "map", "neighbours"),
    "how to boil an egg": ("egg", "water", "pot", "minutes", "cold"),
    "why volcanoes erupt": ("volcanoes", "earth", "magma", "gas", "pressure"),
    "visiting a museum with children": ("museum", "children", "game", "snack", "quiet"),
    "how honey gets its taste": ("honey", "taste", "flowers", "bees", "sun"),
    "learning to play the guitar": ("guitar", "play", "chords", "fingers", "daily"),
    "why dogs wag their tails": ("dogs", "tail", "happy", "nervous", "smell"),
    "how to paint a room": ("room", "paint", "tape", "roller", "corners"),
    "what a clock maker does": ("clock", "time", "gears", "spring", "tiny"),
    "riding a bus in a strange town": ("bus", "town", "ticket", "driver", "stop"),
    "how seeds travel": ("seeds", "plants", "wind", "birds", "water"),
    "how to keep a diary": ("diary", "write", "evening", "honest", "pen"),
    "why bridges do not fall": ("bridges", "strong", "weight", "steel", "arch"),
    "sharing a flat with others": ("flat", "others", "rent", "dishes", "noise"),
    "how to make soup from leftovers": ("soup", "leftovers", "broth", "onion", "simmer"),
    "how echoes happen": ("echoes", "sound", "wall", "back", "valley"),
    "spending an afternoon without a phone": ("phone", "afternoon", "walk", "book", "bored"),
    "how to wrap a present": ("present", "wrap", "paper", "tape", "fold"),
    "why the wind blows": ("wind", "air", "warm", "cold", "pressure"),
}

TASKS = (
    "Explain {topic}.",
    "Describe {topic}.",
    "Tell me about {topic}.",
    "Write a few sentences about {topic}.",
    "I would like to know more about {topic}.",
    "Write something short about {topic}.",
)

# Which instructions go together; a mix that stands here twice is drawn twice as often.
MIXES: tuple[tuple[str, ...], ...] = (
    ("max_words", "mention", "end_with_question"),
    ("max_words", "mention", "lower_case"),
    ("max_words", "mention", "first_word"),
    ("max_words", "mention"),
    ("max_words", "mention"),
    ("max_words", "lower_case"),
    ("max_words", "first_word"),
    ("max_words", "end_with_question"),
    ("mention", "end_with_question", "lower_case"),
    ("mention", "lower_case"),
    ("bullets", "no_digits", "mention"),
    ("bullets", "max_words"),
    ("json_keys", "mention"),
)

PHRASINGS: dict[str, tuple[str, ...]] = {
    "max_words": (
        "use at most {} words",
        "stay within {} words",
        "write no more than {} words",
        "keep it under {} words",
    ),
    "mention": ("mention {}", "use the words {}", "include {}", "bring in {}"),
    "bullets": (
        "answer in exactly {} bullet points",
        "give {} points, each on its own line with a bullet",
        "write a list of {} bullets",
    ),
    "end_with_question": (
        "end with a question",
        "finish with a question",
        "let your last sentence be a question",
        "close with a question to the reader",
    ),
    "no_digits": ("use no digits", "write without any digits", "avoid digits"),
    "first_word": ("start with the word '{}'", "let '{}' be your first word", "begin with '{}'"),
    "lower_case": (
        "write everything in lower case",
        "use only lower-case letters",
        "use no capital letters",
    ),
    "json_keys": (
        "answer only with a JSON object that has the keys {}",
        "reply as one JSON object with the keys {}",
    ),
}

WORD_LIMITS = (20, 25, 30, 35, 40)
BULLET_COUNTS = (2, 3, 4)
FIRST_WORDS = ("The", "A", "To", "When", "In", "It", "Every", "Here")
JSON_KEYS = ("title", "summary", "steps", "tip", "reason", "example")


class DemoPrompt(TypedDict):
    """A chat prompt, the instructions in it, and the split it belongs to: "train" or "held_out"."""

    prompt: list[dict[str, str]]
    instructions: list[dict[str, Any]]
    split: str


def demo_prompts(seed: int = 0) -> list[DemoPrompt]:
    """The demo's 200 prompts for training, then its 50 held-out ones on other topics."""
    rng = random.Random(seed)
    splits = (
        ("train", TRAIN_TOPICS, PROMPTS_PER_TRAIN_TOPIC),
        ("held_out", HELD_OUT_TOPICS, PROMPTS_PER_HELD_OUT_TOPIC),
    )
    return [
        _prompt(rng, topic, words, mix, split)
        for split, topics, count in splits
        for topic, words in topics.items()
        for mix in rng.sample(MIXES, count)
    ]


def _prompt(
    rng: random.Random, topic: str, words: tuple[str, ...], mix: tuple[str, ...], split: str
) -> DemoPrompt:
    instructions = [{check: _argument(rng, check, words)} for check in mix]
    clauses = [
        rng.choice(PHRASINGS[check]).format(_spoken(argument))
        for instruction in instructions
        for check, argument in instruction.items()
    ]
    content = f"{rng.choice(TASKS).format(topic=topic)} {_sentences(rng, clauses)}"
    return {"prompt": [{"role": "user", "content": content}], "instructions": instructions, "split": split}


def _argument(rng: random.Random, check: str, words: tuple[str, ...]) -> Any:
    """The argument of a check: True if the check takes none."""
    match check:
        case "max_words":
            return rng.choice(WORD_LIMITS)
        case "mention":
            return [*rng.sample(words[:2], rng.choice((1, 2))), rng.choice(words[2:])]
        case "bullets":
            return rng.choice(BULLET_COUNTS)
        case "first_word":
            return rng.choice(FIRST_WORDS)
        case "json_keys":
            return rng.sample(JSON_KEYS, 3)
        case _:
            return True


def _spoken(argument: Any) -> str:
    return _listed([f"'{word}'" for word in argument]) if isinstance(argument, list) else str(argument)


def _sentences(rng: random.Random, clauses: list[str]) -> str:
    """The clauses in one sentence, or each in its own."""
    if rng.random() < 0.5:
        clauses = [_listed(clauses)]
    return " ".join(f"{clause[0].upper()}{clause[1:]}." for clause in clauses)


def _listed(items: list[str]) -> str:
    """Three items as "a, b, and c", two as "a and b"."""
    *front, last = items
    if not front:
        return last
    return f"{', '.join(front)}{',' if len(front) > 1 else ''} and {last}"
