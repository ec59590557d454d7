"""`preftune methods`: the family as METHODS has it."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from preftune.cli import app
from preftune.objectives import METHODS, PRIORS, Margin, Method, log_ratio, options_of, overview
from preftune.objectives.links import Hinge
from preftune.objectives.options import POSITIVE, option

OWN = """
from dataclasses import dataclass
from preftune.objectives import Logistic, Margin, Method, log_ratio
from preftune.objectives.options import POSITIVE, option

@dataclass(frozen=True)
class Mine(Method):
    beta: float = option(0.5, POSITIVE, "scale")
    learning_rate = 3e-6
    def parts(self, prior, _):
        return (Margin(log_ratio, Logistic(self.beta), prior),)
"""
"""A method of the user's own, in a module."""


def printed(*arguments: str) -> str:
    """What the verb prints."""
    done = CliRunner().invoke(app, ["methods", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_every_method_has_a_line_that_fits() -> None:
    """A line each, its summary whole, 80 characters wide at most, under what it learns from."""
    lines = printed().splitlines()
    assert max(map(len, lines)) <= 80
    named = [line for line in lines if line.startswith("  ") and line[2] != " "]
    assert sorted(line.split()[0] for line in named) == sorted(METHODS)
    text = " ".join(" ".join(lines).split())
    assert all(method.summary in text for method in METHODS.values())
    marks = {line.split()[0]: line.split()[1:4] for line in named}
    assert (marks["dpo"], marks["simpo"], marks["kto"]) == (["x"] * 3, ["-", "x", "x"], ["x", "-", "x"])
    assert lines.index("from labels:") < next(i for i, line in enumerate(lines) if line.startswith("  kto"))


def test_json_has_everything() -> None:
    """Needs, priors, rate, and each option with default and rule."""
    found = {each["name"]: each for each in json.loads(printed("--json"))}
    assert list(found) == list(METHODS)
    assert found["modpo"]["data"] == ["pairs", "auxiliary"]
    assert found["bradley_terry"]["learning_rate"] == 1e-5
    beta = {"default": 0.1, "rule": "a finite number > 0", "what": options_of(METHODS["dpo"])["beta"].summary}
    dpo = found["dpo"]
    assert (dpo["data"], dpo["needs_reference"], dpo["priors"]) == (
        ["pairs"],
        True,
        ["reward_gap", "token_reward_gap"],
    )
    assert [name for name, each in found.items() if each["on_policy"]] == ["rloo", "grpo"]
    assert dpo["options"] == {"beta": beta} | {
        key: dpo["options"][key] for key in list(options_of(METHODS["dpo"]))[1:]
    }


def test_one_method_with_its_options() -> None:
    """A name shows source, needs and options; an unknown one is answered with the nearest."""
    said = printed("simpo")
    assert "source: SimPO, arXiv 2405.14734" in said
    assert "gamma: target margin (1.0); a finite number >= 0" in said
    assert "learns from: pairs\nresponses: of anyone\nreference policy: no\n" in said
    assert "learns from: pairs and reward gaps\nresponses: of anyone\n" in printed("odpo")
    assert all(len(line) <= 80 for line in said.splitlines())
    done = CliRunner().invoke(app, ["methods", "simpoo"])
    assert "did you mean 'simpo'?" in str(done.exception)


def test_a_method_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`module:Class` is shown with its options, as a run takes it; a class that is not there is named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "shown_method.py").write_text(OWN, encoding="utf-8")
    said = printed("shown_method:Mine")
    assert "shown_method:Mine: a method of your own, without a summary\nsource: not given\n" in said
    assert "learns from: pairs\n" in said
    assert "learning rate of all weights unless given: 3e-06" in said
    assert "beta: scale (0.5); a finite number > 0" in said
    (shown,) = json.loads(printed("shown_method:Mine", "--json"))
    assert (shown["name"], list(shown["options"])) == ("shown_method:Mine", ["beta"])
    done = CliRunner().invoke(app, ["methods", "shown_method:Mime"])
    assert "has no method 'Mime' (did you mean 'Mine'?)" in str(done.exception)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("sigmoid", "did you mean 'dpo'?"),
        ("slic", "did you mean 'hinge'?"),
        ("cdpo", "dpo with label_smoothing"),
        ("aot_unpaired", "is not offered: it sorts the log-ratios of a whole batch"),
        ("TR-DPO", "is not offered: its reference follows the policy"),
    ],
)
def test_names_elsewhere_are_answered(name: str, meant: str) -> None:
    """As a run answers them: what TRL and papers call a method, with its name here."""
    done = CliRunner().invoke(app, ["methods", name])
    assert meant in str(done.exception)


def test_methods_for_own_samples_stand_apart() -> None:
    """Under their own heading, and in the details of one; others take anyone's responses."""
    lines = printed().splitlines()
    heading = "from prior rewards of the policy's own samples (iterate update_every=batch):"
    under = lines[lines.index(heading) + 1 :]
    names = [line.split()[0] for line in under[: under.index("")] if line[2] != " "]
    assert names == ["rloo", "grpo"]
    assert "responses: the policy's own, new for every step" in printed("rloo")
    assert "responses: of anyone" in printed("qrpo")


def test_a_new_method_appears_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is added to METHODS is listed with its needs, and nothing else has to be touched."""

    @dataclass(frozen=True)
    class Added(Method):
        """A method of a test."""

        name = "added"
        summary = "hinge loss, for a test"
        source = "none"
        priors = ("none",)
        learning_rate = 2e-6
        beta: float = option(0.1, POSITIVE, "scale")

        def parts(self, prior: object, _: object) -> tuple[Margin, ...]:
            """A margin."""
            return (Margin(log_ratio, Hinge(self.beta)),)

    monkeypatch.setitem(METHODS, "added", Added)
    (added,) = [each for each in overview() if each.name == "added"]
    assert (added.needs, added.priors, added.learning_rate) == (("pairs", "reference"), (), 2e-6)
    assert "hinge loss, for a test" in printed()


def test_train_list_prints_them_too() -> None:
    """It lists every method with its options as `preftune methods NAME`, and the priors."""
    done = CliRunner().invoke(app, ["train", "--list"])
    assert done.exit_code == 0
    assert printed("simpo") in done.stdout
    assert all(f"\n{name}: " in f"\n{done.stdout}" for name in METHODS)
    assert all(f"prior {name}: " in done.stdout for name in PRIORS)
    assert max(map(len, done.stdout.splitlines())) <= 80
