"""`preftune inspect` on a terminal of 80 columns, and as a page."""

import json
from html.parser import HTMLParser
from pathlib import Path

import yaml

from ..forks import Forks

ROW = {
    "prompt": [{"role": "user", "content": "[bold]Say[/] <b>hi</b> \x1b[31mnow"}],
    "chosen": [{"role": "assistant", "content": "Hi there, " + "and hello again, " * 12}],
    "rejected": [{"role": "assistant", "content": "No."}],
    "score_chosen": 0.9,
    "score_rejected": 0.2,
}


def run(forks: Forks, tmp_path: Path, model: Path, *arguments: str) -> str:
    """The command's output in plain text, at 80 columns, with the file of its run."""
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(ROW) + "\n" for _ in range(3)), encoding="utf-8")
    config = {
        "model": str(model),
        "data": {"train": str(data), "max_length": 60},
        "objective": {"method": "dpo", "prior": "reward_gap"},
        "prior": {"calibration": "identity"},
        "training": {"use_cpu": True},
        "output": str(tmp_path / "run"),
    }
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    narrow = {"COLUMNS": "80", "NO_COLOR": "1"}
    done = forks.run(["preftune", "inspect", str(file), *arguments], environment=narrow)
    assert done.status == 0, done.errors
    return done.output


def test_a_look_fits_80_columns_and_hides_nothing(forks: Forks, smollm2_dir: Path, tmp_path: Path) -> None:
    """Markup, HTML and control characters of the data are text; the cut and the figures are there."""
    out = run(forks, tmp_path, smollm2_dir, "--rows", "1")
    assert max(map(len, out.splitlines())) <= 80
    assert r"[bold]Say[/] <b>hi</b> \x1b[31mnow<|im_end|>" in out
    assert "\x1b" not in out
    assert "chosen, gap 0.700:" in out
    assert "cut off, " in out
    # 134,515,008 weights of 4 bytes each.
    assert "513.1 MiB" in out
    assert "0.7 to 0.8" in out
    assert out.count("row 0") == 1
    assert not (tmp_path / "run").exists()


def test_tokens_are_listed_one_by_one(forks: Forks, smollm2_dir: Path, tmp_path: Path) -> None:
    """Id, text and whether it is trained: `No.` and the end of its turn."""
    out = run(forks, tmp_path, smollm2_dir, "--row", "2", "--tokens")
    lines = [line.split() for line in out.splitlines()]
    start = next(place for place, line in enumerate(lines) if line[:1] == ["rejected,"])
    assert [line[1:] for line in lines[start + 1 : start + 4]] == [
        ["'No'", "trained"],
        ["'.'", "trained"],
        ["'<|im_end|>'", "trained"],
    ]
    assert lines[start + 3][0] == "2"


class Texts(HTMLParser):
    """The page's text, and the tags that it is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.tags = "", set[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the name."""
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        """Keep the text."""
        self.text += data


def test_the_page_escapes_what_the_data_say(forks: Forks, smollm2_dir: Path, tmp_path: Path) -> None:
    """The row's tags are text, nothing is loaded from elsewhere, and the figures are there too."""
    page = tmp_path / "look.html"
    run(forks, tmp_path, smollm2_dir, "--rows", "1", "--page", str(page))
    found = Texts()
    found.feed(page.read_text(encoding="utf-8"))
    assert "<b>hi</b>" in found.text
    assert not {"b", "script", "img"} & found.tags
    assert "http" not in found.text
    assert "Memory and time" in found.text
