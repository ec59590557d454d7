"""Sources to groups, groups to tokens: everything between a data set and a batch."""

from preftune.data.columns import Asked
from preftune.data.control import ControlTexts, set_control
from preftune.data.groups import Group, Message, Pair, Response, Text, TokenizedGroup
from preftune.data.mismatch import mismatched
from preftune.data.mixture import MixtureSource, hold_out, load_mixture
from preftune.data.pairing import PAIR_RULES, Pairing
from preftune.data.rules import RULES, RowReport, RowRules, counted
from preftune.data.shapes import LoadedGroups, fingerprint_rows, load_groups
from preftune.data.sources import read_rows
from preftune.data.template import ChatTemplate
from preftune.data.tokenization import (
    LengthLimits,
    encode_prompt,
    end_tokens,
    fingerprint_groups,
    limit_groups,
    tokenize_groups,
    whole_groups,
)

__all__ = [
    "PAIR_RULES",
    "RULES",
    "Asked",
    "ChatTemplate",
    "ControlTexts",
    "Group",
    "LengthLimits",
    "LoadedGroups",
    "Message",
    "MixtureSource",
    "Pair",
    "Pairing",
    "Response",
    "RowReport",
    "RowRules",
    "Text",
    "TokenizedGroup",
    "counted",
    "encode_prompt",
    "end_tokens",
    "fingerprint_groups",
    "fingerprint_rows",
    "hold_out",
    "limit_groups",
    "load_groups",
    "load_mixture",
    "mismatched",
    "read_rows",
    "set_control",
    "tokenize_groups",
    "whole_groups",
]
