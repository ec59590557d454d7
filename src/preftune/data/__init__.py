"""Sources to groups, groups to tokens: everything between a data set and a batch."""

from preftune.data.control import ControlTexts, set_control
from preftune.data.groups import Group, Message, Pair, Response, Text, TokenizedGroup
from preftune.data.mismatch import mismatched
from preftune.data.pairing import PAIR_RULES
from preftune.data.rules import RULES, RowReport, RowRules
from preftune.data.shapes import LoadedGroups, fingerprint_rows, load_groups
from preftune.data.sources import read_rows
from preftune.data.tokenization import LengthLimits, fingerprint_groups, tokenize_groups

__all__ = [
    "PAIR_RULES",
    "RULES",
    "ControlTexts",
    "Group",
    "LengthLimits",
    "LoadedGroups",
    "Message",
    "Pair",
    "Response",
    "RowReport",
    "RowRules",
    "Text",
    "TokenizedGroup",
    "fingerprint_groups",
    "fingerprint_rows",
    "load_groups",
    "mismatched",
    "read_rows",
    "set_control",
    "tokenize_groups",
]
