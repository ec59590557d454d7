"""The model card: metadata that the hub understands, what the run's files say, and nothing that leaks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load

import preftune
from preftune.objectives import METHODS
from preftune.report.card import as_code, card_metadata, formula_of, model_card, without_path, write_run_card
from preftune.report.citations import PAPERS, arxiv_numbers, bibtex
from preftune.report.folders import RunRecord, read_run
from preftune.storage.cards import is_replaceable, seal

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A finished run with a prior, an auxiliary reward and an adapter, whose files are in odd places."""
    from ..conftest import rows, write_rows

    place = tmp_path_factory.mktemp("secret-user") / "`rm` | <b>x"
    place.mkdir()
    base = place / "base"
    base.symlink_to(tiny_model_dir)
    configuration = {
        "model": str(base),
        "data": {
            "train": str(write_rows(place / "pairs `|`.jsonl", rows(8, seed=1))),
            "evaluation": str(write_rows(place / "held_out.jsonl", rows(5, seed=2))),
        },
        "objective": {"method": "dpo", "beta": 0.2, "prior": "reward_gap", "auxiliary": {"weight": 0.25}},
        "prior": {"calibration": "identity"},
        "rewards": {"reading_grade": {"goal": "minimise"}},
        "lora": {"rank": 4},
        "training": {"learning_rate": 3e-3, "max_steps": 1, "use_cpu": True, "report_to": "none"},
        "output": str(place / "run"),
        "cache": str(place / "cache"),
    }
    return preftune.train(configuration).folder


def changed(record: RunRecord, **config: Any) -> RunRecord:
    """The same run with other keys of its configuration."""
    return RunRecord(**vars(record) | {"config": record.config | config})


def test_the_hub_reads_the_metadata(run: Path) -> None:
    """huggingface_hub finds library, task and tags; a base without a name on the hub is left out."""
    assert metadata_load(run / "model" / "README.md") == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["preftune", "preference-tuning", "dpo", "mappo", "upo", "lora"],
    }


@pytest.mark.parametrize(
    ("folder", "relation", "library"),
    [("model", "adapter", "peft"), ("merged", "finetune", "transformers")],
)
def test_names_on_the_hub_are_metadata(
    folder: str, relation: str, library: str, run: Path, tmp_path: Path
) -> None:
    """The base model with its relation, and the data sets without their configuration; files are left out."""
    sources = [{"source": "trl-lib/ultrafeedback_binarized:default"}, {"source": str(tmp_path / "own.jsonl")}]
    record = read_run("run", 0, run)
    record = changed(record, model="org/base", data=record.config["data"] | {"train": sources})
    found = card_metadata(run / folder, record)
    assert found["base_model"] == "org/base"
    assert (found["base_model_relation"], found["library_name"]) == (relation, library)
    assert found["datasets"] == ["trl-lib/ultrafeedback_binarized"]
    data = ModelCard(model_card(run / folder, record)).data
    assert (data.base_model, data.datasets) == ("org/base", ["trl-lib/ultrafeedback_binarized"])


def test_the_base_of_an_adapter_that_is_trained_further_is_the_adapters(run: Path, tmp_path: Path) -> None:
    """The name on the hub that its configuration has, and not the adapter's folder."""
    stored = json.loads((run / "model" / "adapter_config.json").read_text(encoding="utf-8"))
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(stored | {"base_model_name_or_path": "org/base"}), encoding="utf-8")
    record = changed(read_run("run", 0, run), model=str(tmp_path), lora={"start": "continue"})
    assert card_metadata(run / "model", record)["base_model"] == "org/base"
    card = model_card(run / "model", record)
    assert "An adapter that makes a language model of `org/base` with" in card
    assert "read from a folder" not in card
    # Of these the configuration says nothing: the adapter's own file does.
    assert "| lora.rank | `4` |" in card
    assert "| lora.target_modules | `down_proj, gate_proj, k_proj, " in card


def test_the_licence_is_the_base_cards_or_left_out(run: Path, tmp_path: Path) -> None:
    """Nothing is guessed: without a card there is no licence, and the text says so."""
    record = read_run("run", 0, run)
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert ModelCard(card).data.license is None
    assert "it is not known here: see its card" in card
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: mine\n---\n", encoding="utf-8")
    known = model_card(run / "model", changed(record, model=str(tmp_path)))
    assert ModelCard(known).data.to_dict()["license_name"] == "mine"
    assert "its card says `other`" in known


def test_the_card_says_what_was_trained_on_what(run: Path) -> None:
    """Formula, options, counts, held-out figures with an interval, hyperparameters and versions."""
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    for text in (
        "loss = -log sigma(beta (h_w - delta h_l))\n     + 0.25 * ( -sg(exp(A / tau)) log pi",
        "- dpo (MaPPO Eq. 8, with h per token if `length_normalized`): beta = `0.2`",
        "- prior `reward_gap`, by the calibration `identity`",
        "| training | 8 | 8 | 0 | 8 | 8 | 16 |",
        "| held out | 5 | 5 | 0 | 5 | 5 | 10 |",
        "| learning_rate | `0.003` |",
        "| lora.rank | `4` |",
        f"preftune {preftune.__version__}, torch ",
        "eprint = {2507.21183}",
        "eprint = {2405.17956}",
        "eprint = {2106.09685}",
    ):
        assert text in card
    # Of five pairs, by Wilson.
    intervals = {
        0.0: "0.000 (0.000 to 0.434)",
        0.2: "0.200 (0.036 to 0.624)",
        0.4: "0.400 (0.118 to 0.769)",
        0.6: "0.600 (0.231 to 0.882)",
        0.8: "0.800 (0.376 to 0.964)",
        1.0: "1.000 (0.566 to 1.000)",
    }
    assert intervals[round(summary["accuracy"], 3)] in card


def test_no_path_of_this_machine_is_in_the_card(run: Path) -> None:
    """Folders and users' names stay here; the names of files remain, as text."""
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert "secret-user" not in card
    assert str(run.parent) not in card
    assert "<b>" not in card
    # A code span with backticks in it has a longer fence, and a table's bar is escaped.
    assert "Trained on ``pairs `\\|`.jsonl``." in card


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "`plain`"),
        ("a`b", "``a`b``"),
        ("``", "``` `` ```"),
        ("a\n# b\x1b[0m | c", "`a # b [0m \\| c`"),
        ("", "`  `"),
    ],
)
def test_text_of_the_users_is_never_markup(text: str, expected: str) -> None:
    """It stays one code span on one line."""
    assert as_code(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/data", "org/data"),
        ("org/data:config", "org/data:config"),
        ("/home/somebody/pairs.jsonl", "pairs.jsonl"),
        ("~/runs/dpo/model/", "model"),
        ("../a/b/c.jsonl", "c.jsonl"),
        ("<train_dataset: list, 3 rows>", "<train_dataset: list, 3 rows>"),
        ("reading_grade", "reading_grade"),
    ],
)
def test_paths_lose_their_folders(text: str, expected: str) -> None:
    """A name on the hub is whole."""
    assert without_path(text) == expected


def test_a_card_that_was_changed_is_the_users(run: Path) -> None:
    """It is left as it is; preftune's own, and the empty forms of others, are replaced."""
    card = run / "model" / "README.md"
    own = card.read_text(encoding="utf-8")
    assert is_replaceable(own)
    assert is_replaceable("")
    assert is_replaceable("# Model Card for Model ID\n\n[More Information Needed]\n")
    assert not is_replaceable(own.replace("tuned", "trained").replace("Trained", "Tuned"))
    assert not is_replaceable("# My model\n")
    card.write_text("# My model\n", encoding="utf-8")
    write_run_card(run)
    assert card.read_text(encoding="utf-8") == "# My model\n"
    card.write_text(seal("an older one"), encoding="utf-8")
    write_run_card(run)
    assert card.read_text(encoding="utf-8") == own


def test_checkpoints_have_no_form_to_fill_in(run: Path) -> None:
    """The card that peft leaves beside an adapter, with the base model's path in it, is taken away."""
    checkpoints = list((run / "checkpoints").glob("checkpoint-*"))
    assert checkpoints
    assert not [path for path in checkpoints if (path / "README.md").exists()]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_formula_and_papers(name: str) -> None:
    """What the card quotes of a method is there, and its papers become BibTeX."""
    formula, _ = formula_of(METHODS[name])
    assert formula
    numbers = arxiv_numbers([METHODS[name].source])
    assert numbers
    for number in numbers:
        assert f"eprint = {{{number}}}" in bibtex(number)


def test_papers_are_cited_by_author_and_title() -> None:
    """An entry has what BibTeX needs; the year is that of the first version."""
    assert bibtex("2305.18290") == (
        "@misc{arxiv2305_18290,\n"
        "  title = {{Direct Preference Optimization: Your Language Model is Secretly a Reward Model}},\n"
        "  author = {Rafailov, Rafael and others},\n"
        "  year = {2023},\n"
        "  eprint = {2305.18290},\n"
        "  archivePrefix = {arXiv},\n"
        "  url = {https://arxiv.org/abs/2305.18290},\n"
        "}"
    )
    assert arxiv_numbers(PAPERS) == list(PAPERS)


def test_a_mix_is_one_formula(run: Path) -> None:
    """Each method with its weight, and those without one left out."""
    objective = {
        "mix": {
            "dpo": {"method": "dpo", "weight": 0.8, "beta": 0.1},
            "hinge": {"method": "hinge", "weight": 0.2, "beta": 0.05},
            "ipo": {"method": "ipo", "weight": 0},
        },
        "prior": "none",
        "likelihood_weight": 0.5,
    }
    card = model_card(run / "model", changed(read_run("run", 0, run), objective=objective))
    assert (
        "loss = 0.8 * ( -log sigma(beta (h_w - delta h_l)) )\n"
        "     + 0.2 * ( max(0, 1 - beta (h_w - delta h_l)) )\n"
        "     + 0.5 * NLL_w\n"
    ) in card
    assert "2507.21183" not in card
