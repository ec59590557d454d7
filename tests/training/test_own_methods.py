"""Methods and calibrations of the user's own, by `module:name`."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from preftune.data.groups import Group, Pair, Response
from preftune.errors import InputError
from preftune.objectives import METHODS, Margin, ScoredResponses, build, count_units, resolve
from preftune.rewards import Calibration, apply_prior, fit_calibration

MODULE = """
from dataclasses import dataclass
import torch
from preftune.objectives import Margin, Method, Logistic, log_ratio
from preftune.objectives.options import POSITIVE, option
from preftune.rewards.calibration import Kind

@dataclass(frozen=True)
class Quadratic:
    beta: float
    def __call__(self, margin):
        return (self.beta * margin - 1) ** 2

@dataclass(frozen=True)
class Mine(Method):
    beta: float = option(0.5, POSITIVE, "scale")
    learning_rate = 3e-6
    def parts(self, prior, _):
        return (Margin(log_ratio, Quadratic(self.beta), prior),)

@dataclass(frozen=True)
class SameAsDPO(Method):
    beta: float = option(0.1, POSITIVE, "scale")
    def parts(self, prior, _):
        return (Margin(log_ratio, Logistic(self.beta), prior),)

@dataclass(frozen=True)
class WithoutParts(Method):
    beta: float = option(0.1, POSITIVE, "scale")

class NoDataclass(Method):
    def parts(self, prior, _):
        return ()

@dataclass(frozen=True)
class PlainField(Method):
    beta: float = 0.1
    def parts(self, prior, _):
        return ()

class NotAMethod:
    pass

@dataclass(frozen=True)
class Smoothed(Method):
    sft: float = option(0.5, POSITIVE, "an option that is the name of something in other libraries")
    def parts(self, prior, _):
        return (Margin(log_ratio, Logistic(self.sft), prior),)

def of_ten(score):
    return score / 10

def softened(score, temperature):
    return score / (10 * temperature)

def broken(score):
    return {}[score]

halved = Kind("score over twice the largest", lambda scores: {"top": (float(scores.max()),)},
              lambda score, temperature, fitted: score / fitted["top"][0] / 2)
"""


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current directory, with a name that no other test has imported."""
    name = f"own_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def pair(gap: float) -> ScoredResponses:
    """h_w = 1 and h_l = -1."""
    return ScoredResponses(
        torch.tensor([-4.0, -6.0]),
        torch.tensor([2, 3]),
        torch.tensor([0]),
        torch.tensor([1]),
        reference_logps=torch.tensor([-5.0, -5.0]),
        prior_gap=torch.tensor([gap]),
    )


def test_an_own_method_by_hand(own: str) -> None:
    """With beta 0.5 and gap 0.5 the margin is 1 + 0.5, and the loss (0.75 - 1)^2; METHODS stay."""
    settings = {"method": f"{own}:Mine", "prior": "reward_gap"}
    assert resolve(settings) == {**settings, "beta": 0.5}
    assert resolve(resolve(settings)) == resolve(settings)
    objective = build(settings)
    assert objective.needs == {"pairs", "reference", "prior_gap"}
    assert objective(pair(0.5)).terms["preference"].values.item() == pytest.approx(0.0625)
    assert isinstance(objective.parts[0], Margin)
    assert f"{own}:Mine" not in METHODS


def test_an_own_method_without_a_name_is_named_in_messages(own: str) -> None:
    """What it does not take is refused by its class's name."""
    with pytest.raises(ValueError, match="prior = 'token_reward_gap' is not defined for method 'Mine'"):
        resolve({"method": f"{own}:Mine", "prior": "token_reward_gap"})


def test_an_own_option_may_have_any_name(own: str) -> None:
    """What others call something is no reason to refuse an option that the method has."""
    assert resolve({"method": f"{own}:Smoothed", "sft": 0.25})["sft"] == 0.25


def test_an_own_method_in_a_mix(own: str) -> None:
    """It takes prior, likelihood and a weight as others do: with h of 1 and -1 and gap 0.5, by hand.

    Its margin is 1.5, and its loss (0.75 - 1)^2; the one of dpo is log(1 + exp(-0.15)). 4 nats on 2 tokens.
    """
    mix = {"mine": {"method": f"{own}:Mine", "weight": 2.0}, "dpo": 1.0}
    settings = {"mix": mix, "prior": "reward_gap", "likelihood_weight": 0.5}
    assert resolve(resolve(settings)) == resolve(settings)
    losses = build(settings)(pair(0.5))
    total = losses.total(count_units(torch.tensor([2, 3]), torch.tensor([0])))
    assert total.item() == pytest.approx(2 * 0.0625 + math.log1p(math.exp(-0.15)) + 0.5 * 2, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_module:Mine", "the module 'no_such_module' cannot be imported"),
        ("OWN:Mina", r"has no method 'Mina' \(did you mean 'Mine'\?\)"),
        ("OWN:NotAMethod", "has no method 'NotAMethod'.*a subclass of preftune.objectives.Method"),
        ("OWN:of_ten", "has no method 'of_ten'"),
        ("OWN:WithoutParts", "has no `parts`"),
        ("OWN:NoDataclass", r"write @dataclass\(frozen=True\)"),
        ("OWN:PlainField", "the field beta has no rule"),
        ("own.Mine", "is unknown; there are dpo"),
    ],
)
def test_what_is_no_method_is_refused(own: str, name: str, said: str) -> None:
    """The message names what was written, and what a method is."""
    with pytest.raises(ValueError, match=rf"^method = '.*{said}"):
        resolve({"method": name.replace("OWN", own)})


def test_options_of_an_own_method_are_checked(own: str) -> None:
    """Its rules hold, and its name stands in messages."""
    with pytest.raises(ValueError, match=r"beta = -1 must be a finite number > 0"):
        resolve({"method": f"{own}:Mine", "beta": -1})
    with pytest.raises(ValueError, match=f"gamma = 1 is not an option of {own}:Mine"):
        resolve({"method": f"{own}:Mine", "gamma": 1})


def groups(chosen: float, rejected: float) -> list[Group]:
    """One scored pair."""
    responses = (Response("good", score=chosen), Response("bad", score=rejected))
    return [Group("asked", responses, (Pair(0, 1),), row=3)]


def test_own_calibrations_by_hand(own: str) -> None:
    """Scores 8 and 2 of ten give 0.8 - 0.2, half of that at temperature 2, and (1 - 0.25) / 2 when fitted."""
    scored = groups(8.0, 2.0)
    found = {}
    for name, temperature in (("of_ten", 1.0), ("softened", 2.0), ("halved", 1.0)):
        calibration = fit_calibration(f"{own}:{name}", temperature, scored)
        assert Calibration.from_dict(calibration.to_dict()) == calibration
        (group,), _ = apply_prior(scored, calibration, "error")
        found[name] = group.pairs[0].gap
    assert found == pytest.approx({"of_ten": 0.6, "softened": 0.3, "halved": 0.375})


@pytest.mark.parametrize(
    ("name", "temperature", "said"),
    [
        ("no_such_module:f", 1.0, "calibration = 'no_such_module:f': the module .* cannot be imported"),
        ("OWN:of_tenn", 1.0, r"has no calibration 'of_tenn' \(did you mean 'of_ten'\?\)"),
        ("OWN:of_ten", 2.0, "temperature = 2.0 has no effect on calibration"),
        ("OWN:broken", 1.0, "broken failed on the score 80.0: KeyError"),
        ("OWN:of_ten", 1.0, "row 3: calibration 'OWN:of_ten' gives 8.0 for the score 80.0: let it return"),
    ],
)
def test_what_is_no_calibration_is_refused(own: str, name: str, temperature: float, said: str) -> None:
    """The message names the calibration and, where it has been called, the score."""
    scored = groups(80.0, 2.0)
    with pytest.raises(InputError, match=said.replace("OWN", own)):
        apply_prior(scored, fit_calibration(name.replace("OWN", own), temperature, scored), "error")


def test_a_run_with_both_is_kept_and_resumed(
    own: str, config: dict[str, Any], train: Callable[..., Path], killed_behind: Any, tmp_path: Path
) -> None:
    """`dpo` written as one's own gives dpo's weights; a resume finds both by their names."""
    rows = Path(config["data"]["train"]).read_text(encoding="utf-8")
    assert '"score_chosen"' in rows
    plain = load_file(train(config) / "model" / "model.safetensors")
    config["objective"]["method"] = f"{own}:SameAsDPO"
    run = train(config, f"output={tmp_path / 'own_run'}")
    written = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert written["objective"] == {"method": f"{own}:SameAsDPO", "prior": "reward_gap", "beta": 0.1}
    config["prior"]["calibration"] = f"{own}:of_ten"
    whole = train(config, f"output={tmp_path / 'whole'}")
    killed = killed_behind(whole, 2)
    train(config, f"output={killed}", "--resume")
    own_weights = load_file(run / "model" / "model.safetensors")
    resumed, uninterrupted = (load_file(each / "model" / "model.safetensors") for each in (killed, whole))
    for name, weight in plain.items():
        assert torch.equal(own_weights[name], weight), name
        assert torch.equal(resumed[name], uninterrupted[name]), name
    assert not np.allclose(resumed["model.norm.weight"], plain["model.norm.weight"], atol=0, rtol=0)
