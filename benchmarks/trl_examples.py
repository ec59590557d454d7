"""Groups as TRL's collator takes them."""

from collections.abc import Sequence
from typing import Any

from preftune.data import TokenizedGroup

Example = dict[str, Any]
"""A pair, as token ids."""


def trl_examples(groups: Sequence[TokenizedGroup]) -> list[Example]:
    """Every pair with its own copy of the prompt, and the reference's log-probabilities where known."""
    examples = []
    for group in groups:
        for pair in group.pairs:
            example: Example = {"prompt_ids": group.prompt.tolist()}
            for name, index in (("chosen", pair.chosen), ("rejected", pair.rejected)):
                example[f"{name}_ids"] = group.responses[index].tolist()
                if "reference_logps" in group.per_response:
                    example[f"ref_{name}_logps"] = float(group.per_response["reference_logps"][index])
            examples.append(example)
    return examples
