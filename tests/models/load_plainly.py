"""A process without preftune: loads saved models by transformers or peft alone, and writes their logits.

Called with a JSON file {name: folder}, the token ids as JSON, and the file to write.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, PeftConfig
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

# Any import of it fails from here on.
assert not [name for name in sys.modules if name.partition(".")[0] == "preftune"]
sys.modules["preftune"] = None  # type: ignore[assignment]


def load(folder: Path) -> Any:
    """The model by the class that its files name."""
    if (folder / "adapter_config.json").exists():
        scores = PeftConfig.from_pretrained(folder).task_type == "SEQ_CLS"
        # Its base model's head is not in the base's files.
        if scores:
            return AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1)
        return AutoPeftModelForCausalLM.from_pretrained(folder)
    scores = "SequenceClassification" in AutoConfig.from_pretrained(folder).architectures[0]
    kind = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype="auto")


def main() -> None:
    """Write the logits of every model, and what its tokenizer and generation settings say."""
    folders, ids, target = json.loads(Path(sys.argv[1]).read_text()), json.loads(sys.argv[2]), sys.argv[3]
    logits, said = {}, {}
    for name, place in folders.items():
        model = load(Path(place)).eval()
        with torch.no_grad():
            logits[name] = model(input_ids=torch.tensor([ids])).logits.float().contiguous()
        tokenizer = AutoTokenizer.from_pretrained(place)
        turn = [{"role": "user", "content": "2+2?"}]
        said[name] = json.dumps(
            {
                "chat": tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True),
                "ends": GenerationConfig.from_pretrained(place).eos_token_id
                if (Path(place) / "generation_config.json").exists()
                else None,
            }
        )
    save_file(logits, target, metadata=said)


if __name__ == "__main__":
    main()
