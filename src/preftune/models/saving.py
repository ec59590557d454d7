"""The files of a saved model: all that plain transformers or peft needs, and no form to fill in."""

from pathlib import Path
from typing import Any

from preftune.models.config_files import GENERATION_FILE
from preftune.models.weights import without_bars
from preftune.storage.cards import CARD_FILE


def save_model_files(model: Any, folder: Path, **options: Any) -> None:
    """Save a language model, a reward model, or an adapter, with its generation settings.

    Args:
        model: of transformers, or a `PeftModel`.
        folder: where to.
        **options: of `save_pretrained`, such as `max_shard_size`.
    """
    card = folder / CARD_FILE
    before = card.read_bytes() if card.exists() else None
    with without_bars():
        model.save_pretrained(folder, **options)
    # With an adapter peft writes a card to be filled in, or changes the one that is there.
    if before is not None:
        card.write_bytes(before)
    else:
        card.unlink(missing_ok=True)
    generation = getattr(model, "generation_config", None)
    if generation is not None and not (folder / GENERATION_FILE).exists():
        generation.save_pretrained(folder)
