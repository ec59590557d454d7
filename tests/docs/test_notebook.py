"""The notebook runs from top to bottom in a kernel of its own."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four steps of a real model leave an adapter, two sampled responses and the callback's margins."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    done = client.execute()
    outputs = [cell.outputs[-1] for cell in done.cells if cell.cell_type == "code" and cell.outputs]
    sampled = outputs[-2]["data"]["text/plain"]
    assert sampled.startswith("[")
    assert outputs[-1]["data"]["text/plain"].count(",") == 3
    assert (tmp_path / "runs" / "notebook" / "model" / "adapter_config.json").is_file()


def test_the_notebook_is_kept_without_outputs() -> None:
    """Outputs would show one machine's figures as if they were everybody's."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code")
