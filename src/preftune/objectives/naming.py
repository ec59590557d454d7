"""What a configuration calls methods and priors, and what others call them."""

from collections.abc import Mapping

from preftune.objectives.imports import REFERENCE
from preftune.objectives.methods import METHODS, Method
from preftune.objectives.methods.own import import_method
from preftune.objectives.options import nearest

_NAMES_ELSEWHERE = {
    "sigmoid": "dpo",
    "slic": "hinge",
    "exo_pair": "exo",
    "nca_pair": "nca",
    "bco_pair": "bco",
    "sppo_hard": "sppo",
    "smaug": "dpop",
    "dpo_positive": "dpop",
    "apo": "apo_zero",
    "lr_dpo": "r_dpo",
    "mappo": "reward_gap",
    "ppo": "offline_ppo",
    "a_lol": "alol",
    "dro": "dro_v",
    "reward": "bradley_terry",
    "reward_model": "bradley_terry",
    "conditional_sft": "csft",
    "rebel": "distilled_dpo",
    "rpo_bwd_kl": "rpo",
    "rpo_fwd_kl": "rpo",
    "rpo_sq": "rpo",
    "scale": "scaled_dpo",
    "hybrid_dpo": "hypo",
    "listnet": "infonca",
}
"""What other libraries and papers call things, by our names."""

_OF_A_BATCH = "it sorts the log-ratios of a whole batch, which micro-batches and processes do not have"
LEFT_OUT = {
    "aot": _OF_A_BATCH,
    "aot_pair": _OF_A_BATCH,
    "aot_unpaired": _OF_A_BATCH,
    "tdpo": "it sums over the vocabulary under the reference, of which a token's own log-probability is kept",
    "beta_dpo": "its beta follows a running mean over all steps so far, a state beside the weights",
    "tr_dpo": "its reference follows the policy; preftune iterate has reference=previous, anew each round",
}
"""Published methods that there are not, each with the reason."""

MIX_EXAMPLE = "mix: {dpo: 0.8, hinge: {weight: 0.2, beta: 0.05}}"
"""A mix as a configuration has it."""

SETTINGS_ELSEWHERE = {
    "sigmoid_norm": "method dpo with length_normalized: true",
    "cdpo": "method dpo with label_smoothing",
    "rdpo": "r_dpo (length) or robust (wrong labels)",
    "sft": "likelihood_weight, beside a method or a mix of some",
    "rpo_alpha": "likelihood_weight",
    "cpo_alpha": "likelihood_weight",
    "simpo_gamma": "gamma",
    "loss_type": "method, or mix for several losses",
    "loss_weights": f"the weight of each method in mix ({MIX_EXAMPLE})",
}
"""What other libraries call what is no single name here."""


def method_named(name: object, key: str = "method") -> type[Method]:
    """A published method, or one of the user's as `module:Class`.

    Args:
        name: what is written.
        key: where, for messages.

    Raises:
        ValueError: there is none of this name, the module cannot be imported, or the class is no method.
    """
    if isinstance(name, list | tuple):
        raise ValueError(f"{key} = {name!r} is a list: for several losses write {MIX_EXAMPLE}")
    if isinstance(name, str) and REFERENCE.fullmatch(name):
        return import_method(name)
    if reason := LEFT_OUT.get(str(name).lower().replace("-", "_")):
        raise ValueError(f"{key} = {name!r} is not offered: {reason}; `preftune methods` lists the others")
    if name not in METHODS and (meant := SETTINGS_ELSEWHERE.get(str(name))):
        raise ValueError(f"{key} = {name!r}: what others call {name} is {meant} here")
    return METHODS[one_named(key, name, METHODS)]


def one_named(key: str, value: object, table: Mapping[str, object]) -> str:
    """The value, if the table has it.

    Raises:
        ValueError: it has not; the message names what is near.
    """
    if isinstance(value, str) and value in table:
        return value
    hint = nearest(value, table, _NAMES_ELSEWHERE) or "choose one of them"
    raise ValueError(f"{key} = {value!r} is unknown; there are {', '.join(table)}: {hint}")
