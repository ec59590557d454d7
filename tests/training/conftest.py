"""What tests of bad input share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from preftune.models import loading

CommandLine = Callable[..., tuple[int, str]]


@pytest.fixture
def refused(
    preftune: CommandLine, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Run `preftune train`, which must refuse; returns its message, in one line."""

    def no_weights(*_: Any, **__: Any) -> None:
        pytest.fail("weights were loaded before the input was checked")

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", no_weights)

    def refuse(*arguments: str) -> str:
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        code, errors = preftune("train", str(file), *arguments)
        assert code == 2, errors
        assert "Traceback" not in errors
        assert not Path(config["output"]).exists()
        return " ".join(errors.split())

    return refuse
