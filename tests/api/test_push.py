"""Pushing to the hub: what arrives, what stays, and what a refusal says and loses."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from huggingface_hub import ModelCard
from transformers import TrainingArguments

import preftune
from preftune import InputError, PreferenceTrainer, Run
from preftune.storage.cards import seal

from ..conftest import CommandLine, rows
from ..hub import TOKEN, Hub


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file's bytes, by its path in the folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def pushed(config: dict[str, Any]) -> dict[str, Any]:
    """A run that is pushed at its end; tests change what they are about."""
    del config["data"]["evaluation"]
    config["training"] |= {
        "push_to_hub": True,
        "hub_model_id": "tuned",
        "hub_strategy": "end",
        "max_steps": 1,
    }
    return config


def test_a_pushed_run_arrives_byte_for_byte(pushed: dict[str, Any], hub: Hub) -> None:
    """`training.push_to_hub` makes OWNER/NAME and uploads the model folder, and nothing else of the run."""
    run = preftune.train(pushed)
    assert hub.files["me/tuned"]["main"] == content_of(run.folder / "model")
    assert hub.commits == [("me/tuned", "main", "End of training")]
    assert TOKEN not in (run.folder / "config.yaml").read_text(encoding="utf-8")
    assert {"model.safetensors", "README.md", "tokenizer.json"} <= set(hub.files["me/tuned"]["main"])


def test_the_fields_of_the_trainer_decide_where_it_goes(pushed: dict[str, Any], hub: Hub) -> None:
    """`hub_private_repo` and `hub_revision` are the repository's."""
    pushed["training"] |= {"hub_model_id": "team/tuned", "hub_private_repo": True, "hub_revision": "v2"}
    run = preftune.train(pushed)
    assert hub.private == {"team/tuned": "private"}
    assert hub.files["team/tuned"]["v2"] == content_of(run.folder / "model")
    assert hub.files["team/tuned"]["main"] == {}


@pytest.mark.parametrize(
    ("strategy", "folders"),
    [
        pytest.param("every_save", set(), marks=pytest.mark.slow),
        pytest.param("checkpoint", {"last-checkpoint"}, marks=pytest.mark.slow),
        ("all_checkpoints", {"checkpoint-2", "checkpoint-4"}),
    ],
)
def test_checkpoints_are_pushed_as_the_strategy_says(
    strategy: str, folders: set[str], pushed: dict[str, Any], hub: Hub
) -> None:
    """The model goes to the root at every save, the optimizer's state only inside of a pushed checkpoint."""
    pushed["training"] |= {"hub_strategy": strategy, "hub_always_push": True, "max_steps": -1}
    run = preftune.train(pushed)
    arrived = hub.files["me/tuned"]["main"]
    assert {path.partition("/")[0] for path in arrived if "/" in path} == folders
    assert {path: arrived[path] for path in arrived if "/" not in path} == content_of(run.folder / "model")
    for folder in folders:
        assert f"{folder}/optimizer.pt" in arrived
    messages = [message for _, _, message in hub.commits]
    for epoch in (1, 2):
        assert messages.count(f"Training in progress, epoch {epoch}") == 1
    assert messages[-1] == "End of training"
    # What was copied for the uploads is gone.
    assert not list((run.folder / "checkpoints").glob(".push-*"))


def test_a_checkpoint_that_cannot_be_pushed_is_a_warning(
    pushed: dict[str, Any], hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    """Training goes on where an upload in its course is refused, and says so."""
    pushed["training"] |= {"hub_strategy": "every_save", "hub_always_push": True}
    hub.faults["/preupload/"] = 403
    with pytest.raises(InputError, match="status 403"):
        preftune.train(pushed)
    assert "a checkpoint was not pushed, and training goes on" in caplog.text
    assert (Path(pushed["output"]) / "summary.json").exists()


def test_a_refusal_at_the_end_loses_nothing(pushed: dict[str, Any], hub: Hub) -> None:
    """The run folder is whole by then, and one message says how to go on."""
    hub.faults["/commit/"] = 403
    with pytest.raises(InputError) as refused:
        preftune.train(pushed)
    assert f"`preftune push {pushed['output']} me/tuned` uploads it later" in str(refused.value)
    before = content_of(Path(pushed["output"]) / "model")
    assert hub.files["me/tuned"]["main"] == {}
    hub.faults.clear()
    assert preftune.push(pushed["output"], "me/tuned") == f"{hub.address}/me/tuned"
    assert hub.files["me/tuned"]["main"] == before == content_of(Path(pushed["output"]) / "model")


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/commit/", 401, "does not accept the token"),
        ("/commit/", 403, "the token may not write there"),
        ("/commit/", 0, "did not answer as it should"),
        ("/preupload/", 413, "a file is larger than the hub takes"),
        ("/lfs/", 403, "the token may not write there"),
        ("/branch/", 404, "no such repository or revision"),
    ],
)
def test_a_refusal_is_one_message(path: str, status: int, said: str, tiny_model_dir: Path, hub: Hub) -> None:
    """It has no key, though the server says that back, and nothing arrives or changes."""
    hub.faults[path] = status
    before = content_of(tiny_model_dir)
    with pytest.raises(InputError) as refused:
        preftune.push(tiny_model_dir, "me/tuned", revision="v2")
    message = str(refused.value)
    assert said in message
    assert "\n" not in message
    assert TOKEN not in message
    assert not any(hub.files["me/tuned"].values())
    assert content_of(tiny_model_dir) == before


@pytest.mark.parametrize(
    ("changed", "fault", "said"),
    [
        ({"hub_model_id": "a/b/c"}, {}, "training.hub_model_id=a/b/c"),
        ({"hub_model_id": "no spaces"}, {}, "training.hub_model_id=no spaces"),
        ({}, {"whoami": 401}, "does not accept the token"),
        ({}, {"whoami": 0}, "did not answer as it should"),
        ({}, {"repos/create": 403}, "the token may not write there"),
    ],
)
def test_what_is_wrong_with_the_hub_is_said_before_weights_load(
    changed: dict[str, Any],
    fault: dict[str, int],
    said: str,
    pushed: dict[str, Any],
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wrong name, a token that is not accepted and a repository of others end a run that has not begun."""
    pushed["training"] |= changed
    hub.faults |= fault
    monkeypatch.setattr("preftune.training.run.build_policy", lambda _: pytest.fail("weights loaded"))
    with pytest.raises(InputError) as refused:
        preftune.train(pushed)
    assert said in str(refused.value)
    assert not Path(pushed["output"]).exists()


def test_a_run_without_a_token_is_refused(
    pushed: dict[str, Any], hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is asked for a token that is not there."""
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(InputError, match="there is no token for the hub: set HF_TOKEN"):
        preftune.check(pushed)
    assert hub.asked == []


def test_offline_is_said(pushed: dict[str, Any], hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HUB_OFFLINE and a push exclude each other."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        preftune.check(pushed)


def test_nothing_is_pushed_without_being_asked(pushed: dict[str, Any], hub: Hub) -> None:
    """A run asks the hub for nothing unless push_to_hub is set."""
    pushed["training"]["push_to_hub"] = False
    preftune.train(pushed)
    assert hub.asked == []


def test_a_card_of_the_users_on_the_hub_stays(pushed: dict[str, Any], hub: Hub) -> None:
    """A README.md that preftune did not write is not overwritten; its own is."""
    own = b"# My model\n"
    hub.files["me/tuned"] = {"main": {"README.md": own, "old.txt": b"kept"}}
    run = preftune.train(pushed)
    arrived = hub.files["me/tuned"]["main"]
    assert arrived["README.md"] == own
    assert arrived["model.safetensors"] == (run.folder / "model" / "model.safetensors").read_bytes()
    arrived["README.md"] = seal("an older card").encode()
    run.push_to_hub("me/tuned")
    assert arrived["README.md"] == (run.folder / "model" / "README.md").read_bytes()
    assert arrived["old.txt"] == b"kept"


def test_an_adapters_base_goes_without_its_path(
    pushed: dict[str, Any], hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    """No file that arrives names a folder of this machine, and the saved adapter still does."""
    run = preftune.train(pushed | {"lora": {"rank": 4}})
    arrived = hub.files["me/tuned"]["main"]
    base = Path(pushed["model"])
    assert json.loads(arrived["adapter_config.json"])["base_model_name_or_path"] == base.name
    saved = json.loads((run.folder / "model" / "adapter_config.json").read_text(encoding="utf-8"))
    assert saved["base_model_name_or_path"] == str(base)
    assert "others cannot load the adapter" in caplog.text
    assert not [path for path, content in arrived.items() if str(base.parent).encode() in content]


def test_the_verb_pushes_a_run_and_a_model(
    tiny_model_dir: Path, tmp_path: Path, hub: Hub, preftune: CommandLine
) -> None:
    """`preftune push` takes a run folder or a model folder, and ends with one message where it is refused."""
    run = tmp_path / "run"
    shutil.copytree(tiny_model_dir, run / "model")
    assert preftune("push", str(run), "me/a", "--private")[0] == 0
    assert preftune("push", str(run / "model"), "b", "--revision", "v1", "--message", "Try")[0] == 0
    whole = content_of(run / "model")
    assert hub.files["me/a"]["main"] == hub.files["me/b"]["v1"] == whole
    assert hub.private == {"me/a": "private", "me/b": None}
    assert hub.commits[-1] == ("me/b", "v1", "Try")
    code, errors = preftune("push", str(tmp_path), "me/a")
    assert code == 2
    assert "holds no saved model" in errors


@pytest.fixture
def trainer(config: dict[str, Any], tmp_path: Path) -> PreferenceTrainer:
    """A trainer that has a name on the hub."""
    return PreferenceTrainer(
        config["model"],
        args=TrainingArguments(
            str(tmp_path / "out"),
            hub_model_id="me/mine",
            hub_private_repo=True,
            report_to="none",
            use_cpu=True,
        ),
        train_dataset=rows(4, seed=1),
        cache=tmp_path / "cache",
    )


@pytest.mark.parametrize("blocking", [True, False])
def test_a_trainer_pushes_what_it_saves(
    trainer: PreferenceTrainer, hub: Hub, tmp_path: Path, blocking: bool
) -> None:
    """`trainer.push_to_hub()` uploads the files of `save_model`, with the licence that the caller names."""
    pushed: Any = trainer.push_to_hub(commit_message="Mine", license="apache-2.0", blocking=blocking)
    assert (pushed if blocking else pushed.result()) == f"{hub.address}/me/mine"
    trainer.save_model(str(tmp_path / "saved"))
    arrived, saved = hub.files["me/mine"]["main"], content_of(tmp_path / "saved")
    assert arrived.keys() == saved.keys()
    card = arrived.pop("README.md").decode()
    saved.pop("README.md")
    assert arrived == saved
    assert ModelCard(card).data.license == "apache-2.0"
    assert hub.private == {"me/mine": "private"}
    assert hub.commits == [("me/mine", "main", "Mine")]


def test_saving_never_overwrites_a_card_of_the_users(trainer: PreferenceTrainer, tmp_path: Path) -> None:
    """A folder with a card of its own is refused before a file of it changes; preftune's own is replaced."""
    folder = tmp_path / "saved"
    trainer.save_model(str(folder))
    trainer.save_model(str(folder))
    (folder / "README.md").write_text("# Mine\n", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"README\.md is a model card that preftune did not write"):
        trainer.save_model(str(folder))
    assert (folder / "model.safetensors").read_bytes() == b""
    assert (folder / "README.md").read_text(encoding="utf-8") == "# Mine\n"


def test_overwriting_a_run_keeps_a_card_that_was_changed(pushed: dict[str, Any]) -> None:
    """`overwrite` is refused where it would remove a card with the user's words, before weights load."""
    pushed["training"]["push_to_hub"] = False
    card = preftune.train(pushed).folder / "model" / "README.md"
    preftune.train(pushed, overwrite=True)
    card.write_text(card.read_text(encoding="utf-8") + "\nMore on it.\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"--overwrite: .* was changed since"):
        preftune.train(pushed, overwrite=True)
    assert card.exists()


def test_a_token_in_a_file_is_refused(pushed: dict[str, Any], tmp_path: Path) -> None:
    """A key never reaches a file of a run."""
    pushed["training"]["hub_token"] = TOKEN
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(pushed), encoding="utf-8")
    with pytest.raises(InputError, match="a token must not stand in a configuration"):
        preftune.train(file)


def test_many_runs_are_not_pushed_to_one_place(
    pushed: dict[str, Any], tmp_path: Path, preftune: CommandLine
) -> None:
    """A sweep with push_to_hub is refused."""
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(pushed), encoding="utf-8")
    code, errors = preftune("sweep", str(file), "objective.beta=0.1,0.2")
    assert code == 2
    assert "every point would be pushed to one repository" in errors


def test_a_run_of_an_earlier_process_is_pushed_by_its_folder(
    tiny_model_dir: Path, tmp_path: Path, hub: Hub
) -> None:
    """`Run.push_to_hub` needs nothing in memory."""
    shutil.copytree(tiny_model_dir, tmp_path / "run" / "model")
    assert Run(tmp_path / "run", {}).push_to_hub("later") == f"{hub.address}/me/later"
    assert hub.files["me/later"]["main"] == content_of(tiny_model_dir)
