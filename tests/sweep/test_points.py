"""Which points a sweep has, and what their folders are called."""

import pytest

from preftune.errors import InputError
from preftune.sweep.points import LONGEST_NAME, Point, Shard, sweep_points


def test_all_combinations_in_the_order_given() -> None:
    """Two keys of two values are four points; a key with one value is in each, at its place."""
    points = sweep_points(["objective.beta=0.1,0.3", "data.train=a.jsonl", "training.seed=1, 2"])
    assert [point.overrides for point in points] == [
        ("objective.beta=0.1", "data.train=a.jsonl", "training.seed=1"),
        ("objective.beta=0.1", "data.train=a.jsonl", "training.seed=2"),
        ("objective.beta=0.3", "data.train=a.jsonl", "training.seed=1"),
        ("objective.beta=0.3", "data.train=a.jsonl", "training.seed=2"),
    ]
    assert points[1].name == "objective.beta=0.1,training.seed=2"
    assert points[1].label == "0.1, 2"


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("a=1,2", ["1", "2"]),
        ("a=[1,2],[3,4]", ["[1,2]", "[3,4]"]),
        ("a={b: 1, c: [2, 3]},none", ["{b: 1, c: [2, 3]}", "none"]),
        ("a='x, y',z", ["'x, y'", "z"]),
        ('a="x\\", y",z', ['"x\\", y"', "z"]),
        ("a=it's,that's", ["it's", "that's"]),
        ("a=b=c,d", ["b=c", "d"]),
    ],
)
def test_only_commas_outside_brackets_and_quotes_separate(override: str, values: list[str]) -> None:
    """A list, a mapping or a quoted text is one value; an apostrophe inside a word quotes nothing."""
    assert [point.values["a"] for point in sweep_points([override])] == values


@pytest.mark.parametrize("override", ["a=[1,2]", "a='1,2'", "a=[1,2", "a=", "a=1"])
def test_a_single_value_is_not_swept(override: str) -> None:
    """A list alone is a value of every point, so that nothing is left to sweep."""
    assert [point.overrides for point in sweep_points([override, "b=1,2"])] == [
        (override, "b=1"),
        (override, "b=2"),
    ]
    with pytest.raises(InputError, match="nothing is swept; give a key several values"):
        sweep_points([override])


@pytest.mark.parametrize("override", ["a=1,,2", "a=,1", "a=1,", "a=,"])
def test_an_empty_value_is_refused(override: str) -> None:
    """A comma too many is a mistake, and the message says how a text with commas is quoted."""
    with pytest.raises(InputError, match=f"'{override}' has an empty value.*quote a text"):
        sweep_points([override])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["a=1,2", "a=3,4"], "a is swept 2 times; give all its values at once"),
        (["output=x,y"], "output cannot be swept: every point gets a folder"),
        (["rewards.short.weight=1,2"], "sweep objective.auxiliary.weight"),
        (["data={train: a},{train: b}"], "data cannot be swept: .*same prompts"),
        (["data.evaluation_split=a,b"], "same prompts"),
        (["model=a,b"], "one starting model"),
    ],
)
def test_what_must_be_the_same_is_not_swept(overrides: list[str], message: str) -> None:
    """Points are compared with one another, so that neither prompts nor rewards nor the start may differ."""
    with pytest.raises(InputError, match=message):
        sweep_points(overrides)


def test_keys_that_only_begin_alike_are_swept() -> None:
    """`model_dtype` is not `model`, and `data.train` not `data.evaluation`."""
    assert len(sweep_points(["model_dtype=float32,bfloat16", "data.train=a,b"])) == 4


def test_folders_stay_inside_the_output_and_apart() -> None:
    """Paths, blanks and overlong texts give names without separators, different for different values."""
    values = ["../../etc/x", "/etc_x", "/etc x", "ä", "é", "x" * 300, "x" * 301, "1\n2"]
    names = [Point({"data.train": value}, ()).name for value in values]
    assert len(set(names)) == len(values)
    for name in names:
        assert name.startswith("data.train=")
        assert "/" not in name
        assert name.isascii()
        assert name.isprintable()
        assert " " not in name
        assert len(name) <= LONGEST_NAME


def test_shards_share_the_points_out() -> None:
    """Of five points the first of two shards has three, the second the other two."""
    points = sweep_points(["a=1,2,3,4,5"])
    shares = [[point.label for point in Shard.parse(text).of(points)] for text in ("1/2", "2/2")]
    assert shares == [["1", "3", "5"], ["2", "4"]]


@pytest.mark.parametrize("text", ["2", "0/2", "3/2", "1/0", "-1/2", "a/b", "1/2/3", ""])
def test_an_impossible_shard_is_refused(text: str) -> None:
    """The message says how a shard is written."""
    with pytest.raises(InputError, match=r"--shard 1/2"):
        Shard.parse(text)


def test_a_shard_without_points_is_refused() -> None:
    """A third shard of two points has nothing to do."""
    with pytest.raises(InputError, match="has 2 runs"):
        Shard(3, 3).of(sweep_points(["a=1,2"]))
