"""Messages about a configuration, said in the keywords of the Python API."""

import pytest

from preftune.api.keywords import as_keywords


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("set data.max_length=512", 'set data={"max_length": 512}'),
        ("set data.rules.empty_prompt=drop.", 'set data={"rules": {"empty_prompt": "drop"}}.'),
        ("data.train has 3 rows", "train_dataset has 3 rows"),
        ("data.evaluation: x", "eval_dataset: x"),
        ("data.train_split=test", 'data={"train_split": "test"}'),
        ("/tmp/data.train.jsonl row 3", "/tmp/data.train.jsonl row 3"),
        ("training.bf16=true is slow", "args.bf16=true is slow"),
        ("objective.auxiliary.weight=0.1", 'objective={"auxiliary": {"weight": 0.1}}'),
        ("objective.beta is wrong", 'objective["beta"] is wrong'),
        ("or lora.rank=16", "or peft_config.r=16"),
        ("pass --overwrite to replace it", "overwrite=True to replace it"),
    ],
)
def test_keys_become_keywords(message: str, said: str) -> None:
    """Each kind of key has a keyword, and paths that look alike stay as they are."""
    assert as_keywords(message) == said
