"""A model hub that needs no network: the packaged model under its name on the hub."""

import json
from pathlib import Path

import pytest

from preftune.demo.data import demo_rows

REVISION = "0" * 40


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory, smollm2_dir: Path) -> dict[str, str]:
    """The environment in which `HuggingFaceTB/SmolLM2-135M-Instruct` is found without a network."""
    home = tmp_path_factory.mktemp("hub")
    folder = home / "hub" / "models--HuggingFaceTB--SmolLM2-135M-Instruct"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(REVISION, encoding="utf-8")
    (folder / "snapshots").mkdir()
    (folder / "snapshots" / REVISION).symlink_to(smollm2_dir)
    return {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with the files that the pages speak of: scored pairs and prompts, all short."""
    short = [row for row in demo_rows("train") if all(len(text) < 300 for text in row["responses"])][:12]
    pairs = []
    for row in short:
        ranked = sorted(zip(row["scores"], row["responses"], strict=True))
        (low, worst), (high, best) = ranked[0], ranked[-1]
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in (best, worst))
        scores = {"score_chosen": high, "score_rejected": low}
        pairs.append({"prompt": row["prompt"], "chosen": chosen, "rejected": rejected, **scores})
    files = {
        "pairs.jsonl": pairs,
        "prompts.jsonl": [{"prompt": row["prompt"]} for row in short[:4]],
        "held_out.jsonl": [{"prompt": row["prompt"]} for row in short[4:7]],
    }
    for name, rows in files.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path
