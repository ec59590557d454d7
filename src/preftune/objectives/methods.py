"""The published methods, one line each, and `build`: from the words of a configuration to an objective."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, cast

import torch
from torch import Tensor

from preftune.objectives.auxiliary import AdvantageLikelihood, Standardization, ValueRegression
from preftune.objectives.conditional import ConditionalLikelihood
from preftune.objectives.kto import LabelBalance, ProspectUtility
from preftune.objectives.links import Hinge, Logistic, Square
from preftune.objectives.offline_rl import (
    ClippedSurrogate,
    LeftoverLikelihood,
    RewardMargin,
    RewardRegression,
    SoftValueRegression,
)
from preftune.objectives.parts import Centring, ChosenLikelihood, Margin, Part, Reduction
from preftune.objectives.priors import PRIORS, Prior
from preftune.objectives.responses import Losses, Need, ScoredResponses
from preftune.objectives.router import RouterBalance
from preftune.objectives.scores import (
    log_likelihood,
    log_ratio,
    mean_log_likelihood,
    mean_log_ratio,
    reward_score,
)

Value = float | bool | str
"""What an option can be set to."""

Settings = dict[str, Value | dict[str, Value]]
"""An objective as words: options by name, and those of `auxiliary` by name in a mapping of their own."""

MEAN = 0.5
"""The expectile that is the mean."""

_FIELD_OF: dict[Need, str] = {
    "pairs": "chosen",
    "reference": "reference_logps",
    "prior_gap": "prior_gap",
    "router_loss": "router_loss",
    "labels": "labels",
    "divergence": "divergence",
    "auxiliary": "auxiliary",
    "value": "values",
    "score": "scores",
    "margin": "margins",
}


@dataclass(frozen=True)
class Objective:
    """A sum of parts. Calling it gives per-pair losses; the caller reduces them (`Losses.total`).

    Attributes:
        parts: the summands, each with its own name.

    Raises:
        ValueError: there are no parts, or two of the same name.
    """

    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"parts must have names of their own, at least one part; got {names}")

    @property
    def needs(self) -> frozenset[Need]:
        """What the responses must carry for every part to work."""
        return frozenset[Need]().union(*(part.needs for part in self.parts))

    def __call__(self, responses: ScoredResponses) -> Losses:
        """Terms with their gradient, and detached float32 metrics, one value per pair.

        Raises:
            ValueError: the responses lack something that `needs` names.
        """
        for need in sorted(self.needs):
            if getattr(responses, _FIELD_OF[need]) is None:
                raise ValueError(
                    f"{_FIELD_OF[need]} is None, but this objective needs {need!r}: give ScoredResponses "
                    f"its {_FIELD_OF[need]}, or choose settings that do without"
                )
        # Once and for all parts: autograd then adds up their gradients in float32 as well.
        responses = replace(
            responses,
            logps=_wide(responses.logps),
            reference_logps=_wide(responses.reference_logps),
            scores=_wide(responses.scores),
        )
        metrics = {}
        if "score" not in self.needs:
            logps = log_likelihood(responses)
            metrics = {
                "logps/chosen": logps[responses.chosen],
                "logps/rejected": logps[responses.rejected],
            }
        terms = {}
        for part in self.parts:
            terms[part.name], explained = part(responses)
            metrics.update(explained)
            metrics.setdefault(f"loss/{part.name}", terms[part.name].values)
        return Losses(terms, {name: _metric(values) for name, values in metrics.items()})


def label_balance(objective: Objective, desirable: int, undesirable: int) -> LabelBalance | None:
    """How a data set's labels weigh in an objective; None where it does not learn from labels.

    Raises:
        ValueError: there are responses of one kind only.
    """
    parts = (part for part in objective.parts if isinstance(part, ProspectUtility))
    return next((part.balance(desirable, undesirable) for part in parts), None)


def dpo(prior: Prior, *, beta: float) -> tuple[Part, ...]:
    """-log sigma(beta (h_w - delta h_l)): MaPPO Eq. 8."""
    return (Margin(log_ratio, Logistic(beta), prior),)


def ipo(prior: Prior, *, beta: float, length_normalized: bool) -> tuple[Part, ...]:
    """(h_w - delta h_l - 1 / (2 beta))^2: MaPPO Eq. 14, with h per token if `length_normalized`."""
    return (
        Margin(mean_log_ratio if length_normalized else log_ratio, Square(beta), prior, reward=log_ratio),
    )


def simpo(
    prior: Prior, *, beta: float, gamma: float | None = None, gamma_beta_ratio: float | None = None
) -> tuple[Part, ...]:
    """-log sigma(beta (lbar_w - delta lbar_l) - gamma): MaPPO Eq. 12; gamma = gamma_beta_ratio * beta."""
    offset = gamma if gamma_beta_ratio is None else gamma_beta_ratio * beta
    return (Margin(mean_log_likelihood, Logistic(beta, cast(float, offset)), prior),)


def cpo(
    prior: Prior, *, beta: float, likelihood_weight: float, likelihood_reduction: Reduction
) -> tuple[Part, ...]:
    """-log sigma(beta (l_w - delta l_l)) + lambda NLL_w: MaPPO Eq. 16."""
    return (
        Margin(log_likelihood, Logistic(beta), prior),
        ChosenLikelihood(likelihood_weight, likelihood_reduction),
    )


def hinge(prior: Prior, *, beta: float) -> tuple[Part, ...]:
    """max(0, 1 - beta (h_w - delta h_l)): SLiC's calibration loss on log-ratios."""
    return (Margin(log_ratio, Hinge(beta), prior),)


def kto(_: Prior, *, beta: float, desirable_weight: float, undesirable_weight: float) -> tuple[Part, ...]:
    """lambda_D (1 - sigma(beta (h - z0))), lambda_U (1 - sigma(beta (z0 - h))): KTO Eq. 7."""
    return (ProspectUtility(beta, desirable_weight, undesirable_weight),)


def csft(_: Prior) -> tuple[Part, ...]:
    """-log pi(y given x, c), where c says good or bad: CSFT."""
    return (ConditionalLikelihood(),)


def offline_ppo(
    _: Prior, *, standardization: Standardization, clip: float, value_weight: float
) -> tuple[Part, ...]:
    """-min(q A, clip(q, 1 - eps, 1 + eps) A), and V the mean of R: PPO Eq. 7, offline as in KTO's paper."""
    return (
        ClippedSurrogate(clip, standardization),
        ValueRegression(value_weight, MEAN, standardization),
    )


def alol(
    _: Prior, *, standardization: Standardization, clip: float, reference_free: bool, value_weight: float
) -> tuple[Part, ...]:
    """-sg(clip(q, 1 - eps, 1 + eps) max(A, 0)) l, and V the mean of R: A-LoL, q = 1 if `reference_free`."""
    return (
        LeftoverLikelihood(clip, reference_free, standardization),
        ValueRegression(value_weight, MEAN, standardization),
    )


def dro_v(_: Prior, *, standardization: Standardization, tau: float, value_weight: float) -> tuple[Part, ...]:
    """(A - tau h)^2 / 2, for the policy over tau and for V: DRO-V Eq. 7 and 8."""
    return (
        RewardRegression(tau, standardization),
        SoftValueRegression(value_weight, tau, standardization),
    )


def modpo(
    _: Prior, *, standardization: Standardization, beta: float, preference_weight: float
) -> tuple[Part, ...]:
    """-log sigma(beta / w (h_w - h_l) - (1 - w) / w (R_w - R_l)): MODPO Eq. 11."""
    return (RewardMargin(beta, preference_weight, standardization),)


def bradley_terry(_: Prior, *, margin: bool, center_weight: float) -> tuple[Part, ...]:
    """-log sigma(s_w - s_l - m) + c (s_w + s_l)^2, with m = 0 unless `margin`."""
    preference = Margin(reward_score, Logistic(beta=1.0), data_margin=margin)
    return (preference, Centring(center_weight)) if center_weight else (preference,)


@dataclass(frozen=True)
class Rule:
    """Which values an option takes: `holds` decides, `text` says it to people."""

    text: str
    holds: Callable[[object], bool]


def _is_number(value: object) -> bool:
    # Not isfinite, which refuses whole numbers that no float can hold.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


POSITIVE = Rule("a finite number > 0", lambda value: _is_number(value) and cast(float, value) > 0)
BELOW_ONE = Rule(
    "a number between 0 and 1, without them", lambda value: _is_number(value) and 0 < cast(float, value) < 1
)
SHARE = Rule("a number > 0 and at most 1", lambda value: _is_number(value) and 0 < cast(float, value) <= 1)
NOT_NEGATIVE = Rule("a finite number >= 0", lambda value: _is_number(value) and cast(float, value) >= 0)
SWITCH = Rule("true or false", lambda value: isinstance(value, bool))
REDUCTION = Rule(
    "'token_mean' or 'sum'", lambda value: isinstance(value, str) and value in ("token_mean", "sum")
)


@dataclass(frozen=True)
class Option:
    """A method's setting.

    Attributes:
        default: the value when it is not given; None for an option that is then absent.
        rule: which values it takes.
        summary: one line for people.
        instead_of: the option that must not be given beside this one.
    """

    default: Value | None
    rule: Rule
    summary: str
    instead_of: str | None = None


@dataclass(frozen=True)
class Method:
    """A published loss.

    Attributes:
        summary: one line for people.
        source: the paper, and the equation with the prior.
        options: its settings by name.
        compose: prior and settings to parts; a method of auxiliary rewards also takes `standardization`.
        priors: names of the priors it is defined with.
        learns_auxiliary: it learns from auxiliary rewards itself, so that `auxiliary` cannot be added.
        trains_policy: it trains a policy, and not a reward model, whose likelihood `auxiliary` could weigh.
        reads_control: a text in front of each response says whether it is desirable.
    """

    summary: str
    source: str
    options: Mapping[str, Option]
    compose: Callable[..., tuple[Part, ...]]
    priors: tuple[str, ...] = tuple(PRIORS)
    learns_auxiliary: bool = False
    trains_policy: bool = True
    reads_control: bool = False


_BETA = "scale of the implicit reward; a larger one keeps the policy closer to where it started"
_VALUE_WEIGHT = Option(1.0, POSITIVE, "weight of the value's regression")

METHODS: Mapping[str, Method] = {
    "dpo": Method(
        "logistic loss on the difference of log-ratios to the reference",
        "DPO, arXiv 2305.18290; MaPPO, arXiv 2507.21183, Eq. 8",
        {"beta": Option(0.1, POSITIVE, _BETA)},
        dpo,
    ),
    "ipo": Method(
        "squared distance of the log-ratio difference from 1 / (2 beta)",
        "IPO, arXiv 2310.12036; MaPPO, arXiv 2507.21183, Eq. 14",
        {
            "beta": Option(0.1, POSITIVE, "a larger one asks for a smaller difference"),
            "length_normalized": Option(True, SWITCH, "log-ratios per token instead of summed"),
        },
        ipo,
    ),
    "simpo": Method(
        "logistic loss on mean log-likelihoods with a target margin; no reference",
        "SimPO, arXiv 2405.14734; MaPPO, arXiv 2507.21183, Eq. 12",
        {
            "beta": Option(2.0, POSITIVE, "scale of the mean log-likelihood"),
            "gamma": Option(1.0, NOT_NEGATIVE, "target margin"),
            "gamma_beta_ratio": Option(
                None, NOT_NEGATIVE, "target margin as a multiple of beta", instead_of="gamma"
            ),
        },
        simpo,
    ),
    "cpo": Method(
        "logistic loss on log-likelihoods plus likelihood of the chosen response; no reference",
        "CPO, arXiv 2401.08417; MaPPO, arXiv 2507.21183, Eq. 16",
        {
            "beta": Option(0.1, POSITIVE, "scale of the log-likelihood"),
            "likelihood_weight": Option(0.2, NOT_NEGATIVE, "lambda, the weight of the likelihood term"),
            "likelihood_reduction": Option(
                "token_mean", REDUCTION, "mean over all chosen tokens, or sums per pair"
            ),
        },
        cpo,
    ),
    "hinge": Method(
        "hinge loss on the difference of log-ratios to the reference",
        "SLiC-HF, arXiv 2305.10425; the prior enters as in MaPPO Eq. 8",
        {"beta": Option(0.1, POSITIVE, _BETA)},
        hinge,
    ),
    "kto": Method(
        "saturating gain or loss of single responses, desirable or not, against the divergence so far",
        "KTO, arXiv 2402.01306, Eq. 7",
        {
            "beta": Option(0.1, POSITIVE, _BETA),
            "desirable_weight": Option(1.0, NOT_NEGATIVE, "lambda_D, weight of desirable responses"),
            "undesirable_weight": Option(1.0, NOT_NEGATIVE, "lambda_U, weight of undesirable responses"),
        },
        kto,
        # MaPPO weighs a rejected response against its chosen one, and here is no pair.
        priors=("none",),
    ),
    "csft": Method(
        "likelihood of single responses behind a text that says whether they are desirable; no reference",
        "conditional training, arXiv 2302.08582; CSFT of KTO's code, arXiv 2402.01306",
        {},
        csft,
        priors=("none",),
        reads_control=True,
    ),
    # Of the methods of auxiliary rewards, three have no pairs, and the margin of modpo has R beside the
    # rejected score: no paper says whether a prior would weigh that too.
    "offline_ppo": Method(
        "policy gradient with the clipped ratio to the reference, on the advantage of auxiliary rewards",
        "offline PPO of KTO, arXiv 2402.01306, Section 3.3; PPO, arXiv 1707.06347, Eq. 7",
        {
            "clip": Option(0.5, BELOW_ONE, "how far a whole response's ratio may leave 1"),
            "value_weight": _VALUE_WEIGHT,
        },
        offline_ppo,
        priors=("none",),
        learns_auxiliary=True,
    ),
    "alol": Method(
        "likelihood of responses with a positive advantage, weighted by it and the ratio to the reference",
        "A-LoL, arXiv 2305.14718, Section 2; the clipping of PPO, arXiv 1707.06347, Eq. 7",
        {
            "clip": Option(0.9, BELOW_ONE, "how far a whole response's ratio may leave 1"),
            "reference_free": Option(False, SWITCH, "leave the ratio, and the reference, out"),
            "value_weight": _VALUE_WEIGHT,
        },
        alol,
        priors=("none",),
        learns_auxiliary=True,
    ),
    "dro_v": Method(
        "squared distance of the log-ratio to the reference from the advantage of auxiliary rewards",
        "DRO-V, arXiv 2405.19107, Eq. 7 and 8",
        {
            "tau": Option(1.0, POSITIVE, "weight of the log-ratio; a larger one keeps the policy closer"),
            "value_weight": _VALUE_WEIGHT,
        },
        dro_v,
        priors=("none",),
        learns_auxiliary=True,
    ),
    "modpo": Method(
        "dpo with a margin from the pair's auxiliary rewards",
        "MODPO, arXiv 2310.03708, Eq. 11",
        {
            "beta": Option(0.1, POSITIVE, _BETA),
            "preference_weight": Option(0.5, SHARE, "w, of the preference; 1 - w is the auxiliary rewards'"),
        },
        modpo,
        priors=("none",),
        learns_auxiliary=True,
    ),
    "bradley_terry": Method(
        "a reward model: logistic loss on the difference of the scores it gives",
        "InstructGPT, arXiv 2203.02155, Eq. 1; margin: Llama 2, arXiv 2307.09288, Eq. 2; centring: arXiv "
        "2312.09244, Eq. 2",
        {
            "margin": Option(False, SWITCH, "the chosen score must be higher by the pair's own margin"),
            "center_weight": Option(0.0, NOT_NEGATIVE, "weight of the squared sum of a pair's scores"),
        },
        bradley_terry,
        # The prior is what a reward model is trained for.
        priors=("none",),
        trains_policy=False,
    ),
}


OF_EVERY_METHOD: Mapping[str, Option] = {
    "router_loss_weight": Option(None, NOT_NEGATIVE, "weight of a mixture-of-experts' load-balancing loss"),
}
"""Options that go with any method."""

AUXILIARY: Mapping[str, Option] = {
    "weight": Option(0.1, NOT_NEGATIVE, "weight of the advantage-weighted likelihood; 0 is the plain method"),
    "temperature": Option(1 / 3, POSITIVE, "of the advantage, in standard deviations of the reward"),
    "expectile": Option(0.7, BELOW_ONE, "of the value; 0.5 is the mean"),
    "value_weight": Option(1.0, POSITIVE, "weight of the value's regression"),
    "reduction": Option("token_mean", REDUCTION, "mean over all response tokens, or sums per response"),
    "cap": Option(None, POSITIVE, "largest factor exp(advantage / temperature)"),
}
"""Options of `auxiliary`: HPO's terms (arXiv 2405.17956), which go with any method without its own."""


def resolve(settings: Mapping[str, object]) -> Settings:
    """The settings with every default filled in, checked; resolving them again changes nothing.

    Args:
        settings: `method` (default "dpo"), `prior` (default "none"), the method's options, those of every
            method, and `auxiliary`, a mapping of AUXILIARY's options, where there are auxiliary rewards.

    Raises:
        ValueError: a key or a value is not allowed; the message names it, the rule and the fix.
    """
    method_name = _one_of("method", settings.get("method", "dpo"), METHODS)
    prior_name = _one_of("prior", settings.get("prior", "none"), PRIORS)
    method = METHODS[method_name]
    if prior_name not in method.priors:
        takers = [name for name, other in METHODS.items() if prior_name in other.priors]
        raise ValueError(
            f"prior = {prior_name!r} is not defined for method {method_name!r}: remove prior, or choose one "
            f"of {', '.join(takers)}"
        )
    own = {key: value for key, value in settings.items() if key not in ("method", "prior", "auxiliary")}
    resolved: Settings = {"method": method_name, "prior": prior_name}
    resolved |= _resolved(own, {**method.options, **OF_EVERY_METHOD}, f"{method_name} (and prior, auxiliary)")
    auxiliary = settings.get("auxiliary")
    if isinstance(auxiliary, Mapping):
        resolved["auxiliary"] = _resolved(auxiliary, AUXILIARY, "auxiliary", "auxiliary.")
    elif auxiliary is not None:
        raise ValueError(
            f"auxiliary = {auxiliary!r} must be a mapping: write auxiliary.weight = {auxiliary!r}, or leave "
            "auxiliary out"
        )
    takes_auxiliary = method.trains_policy and not method.learns_auxiliary
    if not takes_auxiliary and cast(dict[str, Value], resolved.get("auxiliary", {})).get("weight"):
        others = [
            name for name, other in METHODS.items() if other.trains_policy and not other.learns_auxiliary
        ]
        learns = "learns from the auxiliary rewards itself" if method.learns_auxiliary else "trains no policy"
        raise ValueError(
            f"auxiliary cannot be added to method {method_name!r}, which {learns}: remove auxiliary, or "
            f"choose one of {', '.join(others)}"
        )
    return resolved


def _resolved(
    settings: Mapping[Any, object], options: Mapping[str, Option], owner: str, prefix: str = ""
) -> dict[str, Value]:
    """Every option of a table with its value, given or default; keys in messages begin with `prefix`."""
    for key in settings:
        if key not in options:
            known = ("method", "prior", "auxiliary", *options) if not prefix else tuple(options)
            raise ValueError(
                f"{prefix + str(key)!r} is not an option of {owner}, which takes {', '.join(options)}: "
                f"{_near(key, known) or 'remove it'}"
            )
    # An option without a default is absent when None, as a fully written configuration has it.
    given = {
        key: value for key, value in settings.items() if not (value is None and options[key].default is None)
    }
    resolved: dict[str, Value] = {}
    replaced = {options[key].instead_of for key in given}
    for key, option in options.items():
        if key in given and key in replaced:
            other = next(name for name in given if options[name].instead_of == key)
            raise ValueError(
                f"{key} = {given[key]!r} and {other} = {given[other]!r} are two ways to set the same "
                "number: remove one of them"
            )
        if key in given:
            resolved[key] = _checked(prefix + key, given[key], option)
        elif option.default is not None and key not in replaced:
            resolved[key] = option.default
    return resolved


def build(settings: Mapping[str, object], standardization: Standardization | None = None) -> Objective:
    """An objective from settings such as {"method": "dpo", "beta": 0.1, "prior": "reward_gap"}.

    Args:
        settings: see `resolve`.
        standardization: of the auxiliary reward, once the training set is known.

    Raises:
        ValueError: a key or a value is not allowed; the message names it, the rule and the fix.
    """
    resolved = resolve(settings)
    method = METHODS[cast(str, resolved.pop("method"))]
    prior = PRIORS[cast(str, resolved.pop("prior"))]
    auxiliary = cast(dict[str, Any], resolved.pop("auxiliary", {}))
    router_loss_weight = cast(float, resolved.pop("router_loss_weight", 0.0))
    standardization = standardization or Standardization()
    own = {"standardization": standardization} if method.learns_auxiliary else {}
    parts = [*method.compose(prior, **resolved, **own)]
    if auxiliary.get("weight"):
        parts += _auxiliary(standardization, **auxiliary)
    if router_loss_weight:
        parts.append(RouterBalance(router_loss_weight))
    return Objective(tuple(parts))


def methods_without_pairs() -> list[str]:
    """Names of the methods that learn from single responses."""
    return [name for name in METHODS if "pairs" not in build({"method": name}).needs]


def _auxiliary(
    standardization: Standardization,
    *,
    weight: float,
    temperature: float,
    expectile: float,
    value_weight: float,
    reduction: Reduction,
    cap: float | None = None,
) -> tuple[Part, Part]:
    """-sg(exp(A / tau)) log pi, and the expectile regression of the value in A = R - V (HPO)."""
    return (
        AdvantageLikelihood(weight, temperature, reduction, cap, standardization),
        ValueRegression(value_weight, expectile, standardization),
    )


def _wide(values: Tensor | None) -> Tensor | None:
    """Half precision leaves too few bits of a sum over hundreds of tokens to subtract it from another."""
    return None if values is None else values.to(torch.promote_types(values.dtype, torch.float32))


def _metric(values: Tensor) -> Tensor:
    """A metric keeps no graph, whatever precision the loss has."""
    return values.detach().to(torch.float32)


def _one_of(key: str, value: object, table: Mapping[str, object]) -> str:
    if isinstance(value, str) and value in table:
        return value
    hint = _near(value, tuple(table)) or "choose one of them"
    raise ValueError(f"{key} = {value!r} is unknown; there are {', '.join(table)}: {hint}")


def _checked(key: str, value: object, option: Option) -> Value:
    if option.rule.holds(value):
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else cast(Value, value)
    raise ValueError(f"{key} = {value!r} must be {option.rule.text}: {_fix(key, value, option)}")


def _fix(key: str, value: object, option: Option) -> str:
    """YAML reads 1e-1 as text; such a value only has to be written differently."""
    try:
        number = float(value) if isinstance(value, str) else None
    except ValueError:
        number = None
    if number is not None and option.rule.holds(number):
        return f"it is text; write {key}: {number!r} without quotes and with a decimal point"
    if option.default is None:
        return f"set a value that is, or remove {key}"
    return f"set a value that is, or leave {key} out for {option.default!r}"


_NAMES_ELSEWHERE = {
    "sigmoid": "dpo",
    "slic": "hinge",
    "mappo": "reward_gap",
    "ppo": "offline_ppo",
    "a_lol": "alol",
    "dro": "dro_v",
    "reward": "bradley_terry",
    "reward_model": "bradley_terry",
    "conditional_sft": "csft",
}
"""What other libraries and papers call things, by our names."""


def _near(word: object, candidates: tuple[str, ...]) -> str | None:
    known = _NAMES_ELSEWHERE.get(str(word).lower())
    matches = [known] if known in candidates else get_close_matches(str(word).lower(), candidates, n=1)
    return f"did you mean {matches[0]!r}?" if matches else None
