"""What `build` accepts, what it refuses, and what its messages say."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from preftune.objectives import METHODS, Auxiliary, Objective, ScoredResponses, build, options_of, resolve

DEFAULTS: dict[str, dict[str, Any]] = {
    "dpo": {"beta": 0.1, "label_smoothing": 0.0, "length_normalized": False},
    "ipo": {"beta": 0.1, "length_normalized": True},
    "simpo": {"beta": 2.0, "gamma": 1.0, "label_smoothing": 0.0},
    "cpo": {
        "beta": 0.1,
        "likelihood_weight": 0.2,
        "likelihood_reduction": "token_mean",
        "label_smoothing": 0.0,
    },
    "hinge": {"beta": 0.1, "length_normalized": False},
    "robust": {"beta": 0.1, "label_smoothing": 0.1, "length_normalized": False},
    "orpo": {"beta": 0.1, "likelihood_reduction": "token_mean"},
    "r_dpo": {"beta": 0.1, "alpha": 0.05},
    "exo": {"beta": 0.1, "label_smoothing": 0.001},
    "discopop": {"beta": 0.05, "tau": 0.05},
    "dpop": {"beta": 0.3, "penalty": 50.0},
    "f_dpo": {"beta": 0.1, "f_divergence_type": "js_divergence"},
    "ld_dpo": {"beta": 0.1, "alpha": 0.5},
    "wpo": {"beta": 0.1},
    "apo_zero": {"beta": 0.1},
    "apo_down": {"beta": 0.1},
    "nca": {"beta": 0.01},
    "sppo": {"beta": 0.001},
    "bco": {"beta": 0.01},
    "kto": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    "csft": {},
    "offline_ppo": {"clip": 0.5, "value_weight": 1.0},
    "alol": {"clip": 0.9, "reference_free": False, "value_weight": 1.0},
    "dro_v": {"tau": 1.0, "value_weight": 1.0},
    "modpo": {"beta": 0.1, "preference_weight": 0.5},
    "bradley_terry": {"margin": False, "center_weight": 0.0, "label_smoothing": 0.0},
    "odpo": {"beta": 0.1, "alpha": 1.0, "scaling": "log", "reward_scale": 1.0},
    "rpo": {"beta": 0.1, "distance": "backward_kl", "reward_scale": 1.0},
    "distilled_dpo": {"beta": 0.1, "reward_scale": 1.0},
    "mmpo": {"beta": 0.1, "label": "sigmoid", "reward_scale": 1.0},
    "scaled_dpo": {"beta": 0.1, "reward_scale": 1.0},
    "madpo": {"beta": 0.1, "c_max": 2.0, "c_min": 0.5, "steepness": 1.0, "tau": 2.0, "reward_scale": 1.0},
    "hypo": {"beta": 0.1},
    "infonca": {"beta": 0.1, "reward_scale": 1.0},
    "reward_nca": {"beta": 0.1, "reward_scale": 1.0},
    "plackett_luce": {"beta": 0.1},
    "qrpo": {"beta": 0.003},
    "ddo_rm": {"eta": 1.0, "temperature": 1.0},
    "rloo": {"beta": 0.05},
    "grpo": {"scale_rewards": True},
}

AUXILIARY_DEFAULTS = {
    "weight": 0.1,
    "temperature": 1 / 3,
    "expectile": 0.7,
    "value_weight": 1.0,
    "reduction": "token_mean",
    "cap": 20.0,
    "multiplier_rate": 0.1,
    "largest_multiplier": 10.0,
}

NEEDS: dict[str, set[str]] = {
    "dpo": {"pairs", "reference"},
    "ipo": {"pairs", "reference"},
    "simpo": {"pairs"},
    "cpo": {"pairs"},
    "hinge": {"pairs", "reference"},
    "robust": {"pairs", "reference"},
    "orpo": {"pairs"},
    "r_dpo": {"pairs", "reference"},
    "exo": {"pairs", "reference"},
    "discopop": {"pairs", "reference"},
    "dpop": {"pairs", "reference"},
    "f_dpo": {"pairs", "reference"},
    "apo_zero": {"pairs", "reference"},
    "apo_down": {"pairs", "reference"},
    "nca": {"pairs", "reference"},
    "sppo": {"pairs", "reference"},
    "bco": {"pairs", "reference"},
    "ld_dpo": {"pairs", "reference", "token_logps", "reference_tokens"},
    "wpo": {"pairs", "reference", "collisions"},
    "kto": {"reference", "labels", "divergence"},
    "csft": {"labels"},
    "offline_ppo": {"reference", "auxiliary", "value"},
    "alol": {"reference", "auxiliary", "value"},
    "dro_v": {"reference", "auxiliary", "value"},
    "modpo": {"pairs", "reference", "auxiliary"},
    "bradley_terry": {"pairs", "score"},
    "odpo": {"pairs", "reference", "prior_gap"},
    "rpo": {"pairs", "reference", "prior_gap"},
    "distilled_dpo": {"pairs", "reference", "prior_gap"},
    "mmpo": {"pairs", "reference", "prior_gap"},
    "scaled_dpo": {"pairs", "reference", "prior_gap"},
    "madpo": {"pairs", "reference", "prior_gap"},
    "hypo": {"pairs", "reference"},
    "infonca": {"reference", "prior_reward", "groups"},
    "reward_nca": {"reference", "prior_reward", "groups"},
    "plackett_luce": {"reference", "prior_reward", "groups"},
    "qrpo": {"reference", "prior_reward", "groups"},
    "ddo_rm": {"prior_reward", "groups"},
    "rloo": {"reference", "prior_reward", "groups"},
    "grpo": {"prior_reward", "groups"},
}

TAKE_THE_PRIOR = ["dpo", "ipo", "simpo", "cpo", "hinge", "robust", "orpo", "r_dpo", "exo", "discopop", "dpop"]
TAKE_THE_PRIOR += ["f_dpo", "ld_dpo", "wpo"]

TAKERS = ", ".join([*TAKE_THE_PRIOR, "rloo", "grpo"])
"""How a message lists the methods that take the prior."""

OF_AUXILIARY_REWARDS = ["offline_ppo", "alol", "dro_v", "modpo"]

REFUSE_AUXILIARY = {
    **dict.fromkeys(OF_AUXILIARY_REWARDS, "learns from the auxiliary rewards itself"),
    "bradley_terry": "trains no policy",
}


@pytest.mark.parametrize("method", METHODS)
def test_defaults(method: str) -> None:
    """A method alone takes the published defaults and no prior."""
    expected = {"method": method, "prior": "none", **DEFAULTS[method]}
    assert resolve({"method": method}) == expected
    assert build({"method": method}) == build(expected)


def test_method_is_dpo_unless_given() -> None:
    """Nothing at all means DPO with its published options."""
    assert resolve({}) == resolve({"method": "dpo"})


@pytest.mark.parametrize("method", METHODS)
def test_resolving_twice_changes_nothing(method: str) -> None:
    """A resolved configuration can be written down and read back."""
    prior = "reward_gap" if method in TAKE_THE_PRIOR else "none"
    weight = 0 if method in REFUSE_AUXILIARY else 1
    number = [name for name, value in DEFAULTS[method].items() if isinstance(value, float)][:1]
    auxiliary = {"temperature": 1, "weight": weight}
    given = {"method": method, "prior": prior, **dict.fromkeys(number, 0.25), "auxiliary": auxiliary}
    resolved = resolve(given)
    assert resolved.items() >= {"method": method, "prior": prior, **dict.fromkeys(number, 0.25)}.items()
    assert resolve(resolved) == resolved


@pytest.mark.parametrize("method", METHODS)
def test_needs(method: str) -> None:
    """Methods of pairs need pairs, those with log-ratios the reference, kto labels and the divergence.

    Those of auxiliary rewards need them, and the value unless the rewards are compared within a pair.
    """
    assert build({"method": method}).needs == NEEDS[method]


@pytest.mark.parametrize("method", TAKE_THE_PRIOR)
def test_the_prior_needs_the_gap(method: str) -> None:
    """The reward-gap prior adds the gap to what any method of pairs needs."""
    assert build({"method": method, "prior": "reward_gap"}).needs == {*NEEDS[method], "prior_gap"}


@pytest.mark.parametrize("method", [name for name in METHODS if name not in REFUSE_AUXILIARY])
def test_auxiliary_goes_with_any_method(method: str) -> None:
    """An empty `auxiliary` has all its defaults and adds rewards and their value to what is needed."""
    settings = {"method": method, "auxiliary": {}}
    assert resolve(settings) == {**resolve({"method": method}), "auxiliary": AUXILIARY_DEFAULTS}
    assert build(settings).needs == {*NEEDS[method], "auxiliary", "value"}


@pytest.mark.parametrize("method", REFUSE_AUXILIARY)
def test_auxiliary_is_refused_where_it_has_no_place(method: str) -> None:
    """The rewards would be learned from twice, or there is no policy; weight 0 is none.

    The message names the method, the reason and the methods that take it.
    """
    refused = f"auxiliary cannot be added to method '{method}', which {REFUSE_AUXILIARY[method]}"
    with pytest.raises(ValueError, match=refused) as caught:
        resolve({"method": method, "auxiliary": {}})
    takers = ", ".join(name for name in METHODS if name not in REFUSE_AUXILIARY)
    assert str(caught.value).endswith(f"remove auxiliary, or use one of {takers}")
    assert build({"method": method, "auxiliary": {"weight": 0}}) == build({"method": method})


def test_a_reward_model_needs_margins_only_if_asked() -> None:
    """`margin` adds the pair's margin to what is needed, and a weight the term that centres scores."""
    assert build({"method": "bradley_terry", "margin": True}).needs == {"pairs", "score", "margin"}
    centred = build({"method": "bradley_terry", "center_weight": 0.01})
    assert [part.name for part in centred.parts] == ["preference", "centring"]
    assert [part.name for part in build({"method": "bradley_terry"}).parts] == ["preference"]


def test_auxiliary_of_weight_zero_needs_nothing() -> None:
    """Weight 0, null and no `auxiliary` at all are the same objective; the weight of 0 is kept in words."""
    plain = build({"method": "dpo"})
    assert build({"method": "dpo", "auxiliary": {"weight": 0}}) == plain
    assert build({"method": "dpo", "auxiliary": None}) == plain
    assert resolve({"auxiliary": {"weight": 0}})["auxiliary"] == {**AUXILIARY_DEFAULTS, "weight": 0.0}


def test_cap_may_be_null() -> None:
    """Null is the paper's objective without a cap, is kept in words, and differs from the default of 20."""
    uncapped = {"auxiliary": {"cap": None}}
    assert resolve(uncapped)["auxiliary"] == {**AUXILIARY_DEFAULTS, "cap": None}
    assert [getattr(part, "cap", 0) for part in build(uncapped).parts] == [0, None, 0]
    assert build({"auxiliary": {"cap": 20}}) == build({"auxiliary": {}})


def test_gamma_beta_ratio_stands_in_for_gamma() -> None:
    """SimPO's ratio gives gamma = ratio * beta; it may be null, as a fully written configuration has it."""
    ratio = {"method": "simpo", "beta": 2.0, "gamma_beta_ratio": 0.25}
    assert build(ratio) == build({"method": "simpo", "beta": 2.0, "gamma": 0.5})
    assert resolve(ratio) == {**ratio, "label_smoothing": 0.0, "prior": "none"}
    assert build({"method": "simpo", "gamma": 0.5, "gamma_beta_ratio": None}) == build(
        {"method": "simpo", "gamma": 0.5}
    )


def test_every_method_is_described() -> None:
    """Each method names its source, with equation or what has it, unless it is likelihood.

    Each option says what it is.
    """
    for name, method in METHODS.items():
        assert "arXiv" in method.source
        assert re.search(r"Eq\.|Table|Theorem| code|abstract", method.source) or name == "csft"
        assert method.summary
        assert all(option.summary for option in options_of(method).values())
    assert all(option.summary for option in options_of(Auxiliary).values())


REFUSED: dict[str, tuple[dict[Any, Any], list[str]]] = {
    "misspelt method key": ({"metod": "simpo"}, ["metod = 'simpo'", "did you mean 'method'?"]),
    "misspelt method": ({"method": "dpoo"}, ["method = 'dpoo'", "did you mean 'dpo'?"]),
    "capitals": ({"method": "SimPO"}, ["method = 'SimPO'", "did you mean 'simpo'?"]),
    "method of later": (
        {"method": "reinforce"},
        ["method = 'reinforce'", "unknown", ", ".join(DEFAULTS)],
    ),
    "method is no text": ({"method": 3}, ["method = 3", "choose one of them"]),
    "TRL's name": ({"method": "exo_pair"}, ["method = 'exo_pair'", "did you mean 'exo'?"]),
    "TRL's other names": ({"method": "sppo_hard"}, ["method = 'sppo_hard'", "did you mean 'sppo'?"]),
    "the model's name": ({"method": "Smaug"}, ["method = 'Smaug'", "did you mean 'dpop'?"]),
    "alpha of no divergence": (
        {"method": "f_dpo", "alpha": 0.3},
        ["alpha = 0.3", "f_divergence_type = 'alpha_divergence'", "remove alpha"],
    ),
    "unknown divergence": (
        {"method": "f_dpo", "f_divergence_type": "hellinger"},
        ["f_divergence_type = 'hellinger'", "reverse_kl, forward_kl, js_divergence or alpha_divergence"],
    ),
    "label that is certain": (
        {"method": "exo", "label_smoothing": 0},
        ["label_smoothing = 0", "> 0 and < 0.5", "to use 0.001"],
    ),
    "tau above one": ({"method": "discopop", "tau": 2}, ["tau = 2", "> 0 and <= 1", "to use 0.05"]),
    "prior without one margin": (
        {"method": "apo_down", "prior": "reward_gap"},
        ["not defined for method 'apo_down'", f"one of {TAKERS}"],
    ),
    "misspelt prior": (
        {"method": "dpo", "prior": "reward-gap"},
        ["prior = 'reward-gap'", "none, reward_gap", "did you mean 'reward_gap'?"],
    ),
    "prior is null": ({"method": "dpo", "prior": None}, ["prior = None", "did you mean 'none'?"]),
    "prior without pairs": (
        {"method": "kto", "prior": "reward_gap"},
        [
            "prior = 'reward_gap'",
            "not defined for method 'kto'",
            "remove prior",
            f"choose one of {TAKERS}",
        ],
    ),
    "prior without a rejected score alone": (
        {"method": "modpo", "prior": "reward_gap"},
        ["not defined for method 'modpo'", f"one of {TAKERS}"],
    ),
    "prior where the loss has the gap": (
        {"method": "odpo", "prior": "reward_gap"},
        [
            "prior = 'reward_gap'",
            "not defined for method 'odpo'",
            "remove prior",
            "one of dpo, ipo, simpo, cpo",
        ],
    ),
    "prior of a group": (
        {"method": "infonca", "prior": "reward_gap"},
        ["not defined for method 'infonca'", "remove prior"],
    ),
    "unknown distance": (
        {"method": "rpo", "distance": "kl"},
        ["distance = 'kl'", "backward_kl, forward_kl or squared", "to use 'backward_kl'"],
    ),
    "scale of nothing": ({"method": "mmpo", "reward_scale": 0}, ["reward_scale = 0", "> 0", "to use 1.0"]),
    "factor that dampens everywhere": ({"method": "madpo", "c_max": 0.9}, ["c_max = 0.9", ">= 1"]),
    "rebel": ({"method": "rebel"}, ["did you mean 'distilled_dpo'?"]),
    "ppo": ({"method": "PPO"}, ["method = 'PPO'", "did you mean 'offline_ppo'?"]),
    "clip of one": ({"method": "offline_ppo", "clip": 1}, ["clip = 1", "> 0 and < 1", "to use 0.5"]),
    "no clip": ({"method": "alol", "clip": None}, ["clip = None", "> 0 and < 1", "to use 0.9"]),
    "reference_free": ({"method": "alol", "reference_free": "yes"}, ["reference_free = 'yes'", "true or"]),
    "zero tau": ({"method": "dro_v", "tau": 0}, ["tau = 0", "> 0", "remove tau to use 1.0"]),
    "no preference": (
        {"method": "modpo", "preference_weight": 0},
        ["preference_weight = 0", "> 0 and <= 1", "to use 0.5"],
    ),
    "more than the preference": ({"method": "modpo", "preference_weight": 1.5}, ["preference_weight = 1.5"]),
    "value's weight": ({"method": "alol", "value_weight": 0}, ["value_weight = 0", "> 0"]),
    "reward model's name": ({"method": "reward_model"}, ["did you mean 'bradley_terry'?"]),
    "margin as a number": ({"method": "bradley_terry", "margin": 1.0}, ["margin = 1.0", "true or false"]),
    "negative centring": (
        {"method": "bradley_terry", "center_weight": -0.01},
        ["center_weight = -0.01", ">= 0", "remove center_weight to use 0.0"],
    ),
    "reward model with a prior": (
        {"method": "bradley_terry", "prior": "reward_gap"},
        ["not defined for method 'bradley_terry'", f"one of {TAKERS}"],
    ),
    "misspelt option": (
        {"method": "cpo", "likelihood_wieght": 0.1},
        ["likelihood_wieght = ", "not an option of cpo", "did you mean 'likelihood_weight'?"],
    ),
    "misspelt prior key": ({"method": "dpo", "priors": "none"}, ["priors = 'none'", "did you mean 'prior'?"]),
    "another's option": (
        {"method": "dpo", "desirable_weight": 0.1},
        ["desirable_weight = ", "not an option of dpo", "beta", "remove it"],
    ),
    "key is no text": ({"method": "dpo", 1: 2}, ["1", "is not an option of dpo"]),
    "misspelt auxiliary key": (
        {"method": "dpo", "auxilary": {}},
        ["auxilary = ", "did you mean 'auxiliary'?"],
    ),
    "auxiliary is no mapping": (
        {"method": "dpo", "auxiliary": 0.1},
        ["auxiliary = 0.1", "must be a mapping", "auxiliary.weight = 0.1"],
    ),
    "misspelt auxiliary option": (
        {"method": "dpo", "auxiliary": {"temprature": 1.0}},
        ["auxiliary.temprature = ", "not an option of auxiliary", "did you mean 'temperature'?"],
    ),
    "auxiliary key is no text": (
        {"method": "dpo", "auxiliary": {1: 2}},
        ["auxiliary.1", "is not an option of auxiliary"],
    ),
    "another's option in auxiliary": (
        {"method": "dpo", "auxiliary": {"beta": 1.0}},
        ["auxiliary.beta = ", "weight, temperature, expectile", "remove it"],
    ),
    "negative auxiliary weight": (
        {"method": "dpo", "auxiliary": {"weight": -0.1}},
        ["auxiliary.weight = -0.1", ">= 0", "remove auxiliary.weight to use 0.1"],
    ),
    "zero temperature": (
        {"method": "dpo", "auxiliary": {"temperature": 0}},
        ["auxiliary.temperature = 0", "> 0"],
    ),
    "expectile of zero": ({"method": "dpo", "auxiliary": {"expectile": 0}}, ["auxiliary.expectile = 0"]),
    "expectile of one": (
        {"method": "dpo", "auxiliary": {"expectile": 1.0}},
        ["auxiliary.expectile = 1.0", "> 0 and < 1", "remove auxiliary.expectile to use 0.7"],
    ),
    "expectile is true": (
        {"method": "dpo", "auxiliary": {"expectile": True}},
        ["auxiliary.expectile = True"],
    ),
    "value without weight": (
        {"method": "dpo", "auxiliary": {"value_weight": 0}},
        ["auxiliary.value_weight = 0", "> 0"],
    ),
    "auxiliary reduction": (
        {"method": "dpo", "auxiliary": {"reduction": "mean"}},
        ["auxiliary.reduction = 'mean'", "token_mean or sum"],
    ),
    "zero cap": (
        {"method": "dpo", "auxiliary": {"cap": 0}},
        ["auxiliary.cap = 0", "> 0", "remove auxiliary.cap"],
    ),
    "negative kto weight": (
        {"method": "kto", "desirable_weight": -1},
        ["desirable_weight = -1", ">= 0", "remove desirable_weight to use 1.0"],
    ),
    "zero beta": (
        {"method": "dpo", "beta": 0},
        ["beta = 0", "a finite number > 0", "remove beta to use 0.1"],
    ),
    "negative beta": ({"method": "ipo", "beta": -0.1}, ["beta = -0.1", "> 0"]),
    "infinite beta": ({"method": "dpo", "beta": float("inf")}, ["beta = inf", "finite"]),
    "nan beta": ({"method": "dpo", "beta": float("nan")}, ["beta = nan", "finite"]),
    "true beta": ({"method": "dpo", "beta": True}, ["beta = True", "a finite number > 0"]),
    "null beta": ({"method": "dpo", "beta": None}, ["beta = None", "a finite number > 0"]),
    "text beta": ({"method": "dpo", "beta": "small"}, ["beta = 'small'", "a finite number > 0"]),
    "number as text": ({"method": "dpo", "beta": "1e-1"}, ["beta = '1e-1'", "it is text", "beta: 0.1"]),
    "switch": (
        {"method": "ipo", "length_normalized": 1},
        ["length_normalized = 1", "true or false", "remove length_normalized to use True"],
    ),
    "reduction": (
        {"method": "cpo", "likelihood_reduction": "mean"},
        ["likelihood_reduction = 'mean'", "token_mean or sum"],
    ),
    "reduction is a list": (
        {"method": "cpo", "likelihood_reduction": ["sum"]},
        ["likelihood_reduction = ['sum']"],
    ),
    "negative weight": ({"method": "cpo", "likelihood_weight": -1}, ["likelihood_weight = -1", ">= 0"]),
    "negative gamma": ({"method": "simpo", "gamma": -1}, ["gamma = -1", ">= 0"]),
    "negative ratio": (
        {"method": "simpo", "gamma_beta_ratio": -1},
        ["gamma_beta_ratio = -1", ">= 0", "remove gamma_beta_ratio"],
    ),
    "both gammas": (
        {"method": "simpo", "gamma": 1.0, "gamma_beta_ratio": 0.5},
        ["gamma = 1.0", "gamma_beta_ratio = 0.5", "remove one of them"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    """A setting that cannot be used is refused: key, value, rule and fix are in the message."""
    settings, fragments = REFUSED[name]
    with pytest.raises(ValueError, match=r".") as caught:
        build(settings)
    for fragment in fragments:
        assert fragment in str(caught.value)


RESPONSES = ScoredResponses(
    logps=torch.tensor([-1.0, -2.0]),
    lengths=torch.tensor([1, 2]),
    chosen=torch.tensor([0]),
    rejected=torch.tensor([1]),
    reference_logps=torch.tensor([-1.0, -2.0]),
    prior_gap=torch.tensor([0.5]),
)


@pytest.mark.parametrize("field", ["reference_logps", "prior_gap"])
def test_missing_input_is_named(field: str) -> None:
    """Responses without what the objective needs are refused, and the message names the field."""
    objective = build({"method": "dpo", "prior": "reward_gap"})
    with pytest.raises(ValueError, match=f"{field} is None"):
        objective(replace(RESPONSES, **{field: None}))


def test_unneeded_input_is_ignored() -> None:
    """Without the prior, the gap changes nothing and is not reported."""
    objective = build({"method": "simpo"})
    with_gap = objective(RESPONSES)
    without = objective(replace(RESPONSES, prior_gap=None, reference_logps=None))
    assert torch.equal(with_gap.terms["preference"].values, without.terms["preference"].values)
    assert "prior/gap" not in with_gap.metrics


def test_parts_have_names_of_their_own() -> None:
    """An objective without parts, or with two of one name, is refused: a term would be lost."""
    part = build({"method": "dpo"}).parts[0]
    for parts in [(), (part, part)]:
        with pytest.raises(ValueError, match="distinct names"):
            Objective(parts)


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        ({"method": "f_dpo", "alpha": 0.3}, "alpha = 0.3 .*f_divergence_type = 'alpha_divergence'"),
        ({"mix": {"f_dpo": {"alpha": 0.3}, "dpo": 1}}, r"mix\.f_dpo: alpha = 0.3 .*f_divergence_type"),
        ({"method": "mmpo", "label": "linear", "reward_scale": 2.0}, "reward_scale = 2.0 .*label = 'linear'"),
        ({"method": "alol", "reference_free": True, "clip": 0.5}, "clip = 0.5 .*reference_free = True"),
        ({"method": "dpo", "credit_temperature": 2.0}, "credit_temperature = 2.0 .*'token_reward_gap'"),
        (
            {"method": "dpo", "prior": "reward_gap", "credit_temperature": 2.0},
            "credit_temperature = 2.0 .*prior is 'reward_gap'",
        ),
    ],
)
def test_options_that_leave_each_other_without_effect_are_refused(
    settings: dict[str, Any], keys: str
) -> None:
    """Where words are resolved already, with both keys; a resolved objective has defaults of both."""
    with pytest.raises(ValueError, match=keys):
        resolve(settings)
    plain = resolve({"method": "mmpo", "label": "linear"})
    assert resolve(plain) == plain
