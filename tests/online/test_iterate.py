"""`preftune iterate`: what rounds leave, keep, make again, and stop at."""

import fcntl
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from preftune.data import Asked, load_groups
from preftune.errors import InputError
from preftune.measuring.held_out import win_rate
from preftune.measuring.statistics import mean_interval
from preftune.online import plan
from preftune.online.configuration import read_iterate_config
from preftune.sampling.sampler import sample_responses

from .conftest import FILE, artifacts, iterate

CommandLine = Callable[..., tuple[int, str]]
SLOW = pytest.mark.slow


def read(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def stamps(output: Path) -> dict[str, int]:
    """When each file was written that a second call may keep."""
    kept = ("summary.json", "report.html", "config.yaml", "sources.json", "timing.jsonl", ".lock")
    files = [path for path in output.rglob("*") if path.is_file() and not path.is_symlink()]
    return {
        str(path): path.stat().st_mtime_ns for path in files if path.parent != output or path.name not in kept
    }


# --- what they leave ---


def test_rounds_get_equal_disjoint_parts_of_the_prompts(finished: Path) -> None:
    """Of 13 prompts three rounds get four each, none twice."""
    parts = [lines(finished / "out" / f"round-{number}" / "prompts.jsonl") for number in (1, 2, 3)]
    assert [len(part) for part in parts] == [4, 4, 4]
    assert len({row["prompt"][0]["content"] for part in parts for row in part}) == 12


def test_the_best_and_the_worst_sample_become_a_pair_with_their_scores(finished: Path) -> None:
    """Less reading grade is better; of three samples the first best and the first worst are trained on."""
    folder = finished / "out" / "round-2"
    scored = {row["prompt"][0]["content"]: row for row in lines(folder / "scored.jsonl")}
    pairs = lines(folder / "pairs.jsonl")
    assert len(pairs) == 4
    for row in pairs:
        every = scored[row["prompt"][0]["content"]]
        assert sorted(row["scores"]) == [min(every["scores"]), max(every["scores"])]
        for text, score in zip(row["responses"], row["scores"], strict=True):
            assert every["scores"][every["responses"].index(text)] == score
    groups = load_groups(str(folder / "pairs.jsonl"), asked=Asked(needs_prior=True)).groups
    for group, row in zip(groups, pairs, strict=True):
        (pair,) = group.pairs
        assert group.responses[pair.chosen].score == max(row["scores"])


def test_each_round_starts_where_the_last_ended_and_is_compared_with_the_start(
    finished: Path, tiny_model_dir: Path
) -> None:
    """By default the policy goes on from the last round's model, and the reference stays the initial one."""
    started = []
    for number in (1, 2, 3):
        config = yaml.safe_load((finished / "out" / f"round-{number}/training/config.yaml").read_text())
        started.append((config["model"], config["reference"], config["training"]["seed"]))
    start = str(tiny_model_dir)
    assert started == [(start, None, 1), ("out/round-1/model", start, 2), ("out/round-2/model", start, 3)]


def test_figures_are_those_of_the_answers(finished: Path) -> None:
    """A round's held-out reward, drift and win rate are means over prompts of what its answers hold."""
    output = finished / "out"
    start = lines(output / "start" / "held_out.jsonl")
    for number in (1, 3):
        rows = lines(output / f"round-{number}" / "held_out.jsonl")
        found = read(output / "summary.json")["figures"][f"round {number}"]["evaluation"]
        assert found == read(output / f"round-{number}" / "evaluation.json")
        expected = {
            "reward": [sum(row["scores"]) / 2 for row in rows],
            "drift": [sum(row["drift"]) / 2 for row in rows],
            "win_rate": [
                win_rate(row["scores"], first["scores"]) for row, first in zip(rows, start, strict=True)
            ],
        }
        for name, values in expected.items():
            ends = [found[name][end] for end in ("mean", "low", "high")]
            assert ends == pytest.approx(list(mean_interval(values)), rel=1e-6)
    assert abs(found["drift"]["mean"]) > 1e-3


def test_the_model_is_the_last_rounds(finished: Path) -> None:
    """`model` is a link to it, a whole model, and another one than each round before."""
    output = finished / "out"
    assert (output / "model").resolve() == (output / "round-3" / "model").resolve()
    weights = [load_file(output / f"round-{n}/model/model.safetensors") for n in (1, 2)]
    weights.append(load_file(output / "model" / "model.safetensors"))
    name = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(weights[0][name], weights[1][name])
    assert not torch.equal(weights[1][name], weights[2][name])


def test_the_page_has_a_run_for_each_round(finished: Path) -> None:
    """The report shows every round, the start, and the rounds' figures."""
    page = (finished / "out" / "report.html").read_text(encoding="utf-8")
    for text in ("Online rounds: 3 of 3", "round 1", "round 3", "starting model", "win rate", "entropy"):
        assert text in page


def test_seconds_stand_in_a_file_of_their_own(finished: Path) -> None:
    """Every stage of every round has its seconds in timing.jsonl, and no manifest has any."""
    timed = [(line["round"], line["stage"]) for line in lines(finished / "out" / "timing.jsonl")]
    stages = ("sample", "score", "pair", "train", "evaluate")
    assert timed == [(0, "evaluate"), *((number, stage) for number in (1, 2, 3) for stage in stages)]
    manifests = list((finished / "out").rglob("*.manifest.json"))
    assert len(manifests) == 16
    assert not any("seconds" in path.read_text(encoding="utf-8") for path in manifests)


# --- what is kept and what is made again ---


def test_finished_rounds_are_kept(output: Path) -> None:
    """Called again, with another guard too, only the summary and the page are written anew."""
    before, summary = stamps(output), (output / "summary.json").read_bytes()
    assert iterate("guards.max_drift=1e6").last_good == 3
    assert stamps(output) == before
    assert (output / "summary.json").read_bytes() == summary


@pytest.mark.parametrize(
    "damage", ["cut", pytest.param("changed", marks=SLOW), pytest.param("gone", marks=SLOW)]
)
def test_a_damaged_artifact_is_made_again(
    output: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named in the log and comes out the same, so that what was made from it is kept."""
    expected, before = artifacts(output), stamps(output)
    file = output / "round-2" / "scored.jsonl"
    content = file.read_bytes()
    file.write_bytes(content[:-40] if damage == "cut" else content.replace(b"a", b"b", 1))
    if damage == "gone":
        file.unlink()
    assert iterate().last_good == 3
    assert f"scored.jsonl is {'missing' if damage == 'gone' else 'damaged'}: score of round-2" in caplog.text
    assert artifacts(output) == expected
    changed = {name for name, stamp in stamps(output).items() if before[name] != stamp}
    assert changed == {str(output / "round-2" / name) for name in ("scored.jsonl", "score.manifest.json")}


@pytest.mark.slow
def test_a_damaged_model_is_trained_again(output: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Weights with a changed byte are noticed, and training gives the same again."""
    expected = artifacts(output)
    file = output / "round-1" / "model" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert iterate().last_good == 3
    assert "model.safetensors is damaged: train of round-1" in caplog.text
    assert artifacts(output) == expected


@pytest.mark.slow
def test_a_reward_that_fails_in_the_middle(empty: Path) -> None:
    """The error names round, stage and reward; the samples are kept, and the rerun goes on from them."""
    (empty / "own_reward.py").write_text(
        "from pathlib import Path\n"
        "def of_length(completions, **columns):\n"
        "    if Path('out/round-1/samples.jsonl').exists() and not Path('mended').exists():\n"
        "        raise RuntimeError('the reward is out of order')\n"
        "    return [len(completion[0]['content']) / 1000 for completion in completions]\n"
    )
    settings = ("reward=own_reward:of_length", "rounds=1", "train.training.max_steps=1")
    with pytest.raises(InputError) as failed:
        iterate(*settings)
    for word in ("round-1, score", "of_length", "out of order", "to resume"):
        assert word in str(failed.value)
    samples = empty / "out" / "round-1" / "samples.jsonl"
    before = samples.stat().st_mtime_ns
    (empty / "mended").touch()
    assert iterate(*settings).last_good == 1
    assert samples.stat().st_mtime_ns == before


def test_another_configuration_is_refused(output: Path) -> None:
    """The message names the key and both ways out."""
    before = stamps(output)
    with pytest.raises(InputError, match=r"another configuration \(sampling\).*--overwrite"):
        iterate("sampling.n=4")
    assert stamps(output) == before


def test_rounds_go_on_in_the_precision_they_began_in(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is asked for, another machine's choice is not another configuration."""
    asked = yaml.safe_load(Path(FILE).read_text())
    del asked["train"]["training"]["bf16"]
    Path(FILE).write_text(yaml.safe_dump(asked))
    monkeypatch.setattr(plan, "has_fast_bfloat16", lambda _: True)
    before = stamps(output)
    assert iterate().last_good == 3
    assert stamps(output) == before


@pytest.mark.slow
def test_other_prompts_behind_the_same_name_are_refused(output: Path) -> None:
    """The same file with other rows in it is another source."""
    path = Path("held_out.jsonl")
    path.write_text(path.read_text().replace("rain", "snow"))
    with pytest.raises(InputError, match="what held_out holds"):
        iterate()


def test_a_training_reward_of_other_code_is_another_source(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function that `train.rewards` names decides what rounds learn: with other code they are others."""
    monkeypatch.syspath_prepend(empty)
    function = empty / "reward_in_training.py"
    function.write_text("def own(completions, **_): return [len(c) for c in completions]", encoding="utf-8")
    config = read_iterate_config(
        Path(FILE),
        [
            "train.objective.auxiliary.weight=0.1",
            "train.rewards={own: {measure: 'reward_in_training:own', goal: maximise}}",
        ],
    )
    begun = plan.make_plan(config)
    (empty / "out").mkdir()
    (empty / "out" / "sources.json").write_text(json.dumps(plan.sources(begun)), encoding="utf-8")
    stored = yaml.safe_dump(begun.config.model_dump(mode="json"))
    (empty / "out" / "config.yaml").write_text(stored, encoding="utf-8")
    plan.make_plan(config)
    function.write_text("def own(completions, **_): return [1 for _ in completions]", encoding="utf-8")
    with pytest.raises(InputError, match=r"what train\.rewards holds"):
        plan.make_plan(config)


@pytest.mark.slow
def test_overwrite_keeps_what_does_not_change(output: Path) -> None:
    """With another learning rate the first round's samples stay, and it is trained again."""
    samples, manifest = output / "round-1" / "samples.jsonl", output / "round-1" / "train.manifest.json"
    kept, trained = samples.stat().st_mtime_ns, read(manifest)["outputs"]
    changed = ("train.training.learning_rate=5e-3", "guards.max_drift=1e-9")
    iterate(*changed, overwrite=True)
    assert samples.stat().st_mtime_ns == kept
    assert read(manifest)["outputs"] != trained


@pytest.mark.slow
def test_two_calls_do_not_share_a_folder(output: Path) -> None:
    """While one call holds the folder another is refused."""
    with (output / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="is in use by another preftune iterate"):
            iterate()


# --- guards ---


def test_a_collapsed_reward_stops_the_rounds(
    empty: Path, preftune: CommandLine, caplog: pytest.LogCaptureFixture
) -> None:
    """Where all samples score the same no pair can be made: the log says so, and the exit code is 1."""
    code, errors = preftune("iterate", FILE, "reward=regex:pattern=.", "train.prior.calibration=identity")
    assert code == 1, errors
    assert "stopped in round 1 by reward collapse" in caplog.text
    summary = read(empty / "out" / "summary.json")
    assert summary["stopped"]["round"] == 1
    assert summary["last_good"] == 0
    assert not (empty / "out" / "model").exists()


@pytest.mark.slow
def test_a_bound_stops_the_rounds_and_the_last_good_one_stays(
    output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Drift beyond the bound in round 2 ends there with round 1's model; a higher bound goes on."""
    drift = [read(output / f"round-{number}" / "evaluation.json")["drift"]["mean"] for number in (1, 2, 3)]
    entropy = read(output / "round-1" / "evaluation.json")["entropy"]["mean"]
    worst = max(range(3), key=lambda place: drift[place])
    below = sorted(drift)[-2]
    outcome = iterate(f"guards.max_drift={(drift[worst] + below) / 2}")
    assert outcome.stopped is not None
    assert outcome.stopped["round"] == worst + 1
    assert outcome.last_good == worst
    assert "above guards.max_drift" in caplog.text
    assert read(output / "summary.json")["stopped"] == outcome.stopped
    outcome = iterate(f"guards.min_entropy={entropy + 0.01}")
    assert outcome.stopped is not None
    assert outcome.stopped["round"] == 1
    assert "below guards.min_entropy" in outcome.stopped["reason"]
    assert iterate().last_good == 3
    assert (output / "model").resolve() == output / "round-3" / "model"


# --- other ways to train ---


@pytest.mark.slow
def test_adapters_are_merged_between_rounds(empty: Path, tiny_model_dir: Path) -> None:
    """A round's model computes what its base with its adapter does, and the next round starts from it."""
    iterate("rounds=2", "train.lora.rank=4", "train.training.learning_rate=0.05")
    first, second = empty / "out" / "round-1", empty / "out" / "round-2"
    tokens = torch.tensor([[5, 9, 2, 40]])
    for base, folder in ((str(tiny_model_dir), first), (str(first / "model"), second)):
        assert yaml.safe_load((folder / "training/config.yaml").read_text())["model"] in (
            base,
            "out/round-1/model",
        )
        adapted = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base), folder / "training" / "model"
        )
        merged = AutoModelForCausalLM.from_pretrained(folder / "model")
        plain = AutoModelForCausalLM.from_pretrained(base)
        with torch.no_grad():
            torch.testing.assert_close(merged(tokens).logits, adapted(tokens).logits, rtol=1e-4, atol=1e-5)
            assert (merged(tokens).logits - plain(tokens).logits).abs().max() > 1e-4


@pytest.mark.slow
def test_rounds_start_anew_are_compared_with_the_last_and_replay(empty: Path, tiny_model_dir: Path) -> None:
    """Round 2 starts at the start, is compared with round 1's model, and trains on its pairs too."""
    outcome = iterate("rounds=2", "start_from=initial", "reference=previous", "replay=1")
    config = yaml.safe_load((empty / "out/round-2/training/config.yaml").read_text())
    assert (config["model"], config["reference"]) == (str(tiny_model_dir), "out/round-1/model")
    assert outcome.figures[2]["pairs"]["replayed"] == outcome.figures[1]["pairs"]["groups"]
    first, second = (lines(empty / f"out/round-{number}/pairs.jsonl") for number in (1, 2))
    assert second[-len(first) :] == first


@pytest.mark.slow
def test_auxiliary_rewards_learn_from_all_samples(empty: Path) -> None:
    """With an auxiliary term every usable response of a paired group is kept and learned from."""
    iterate("rounds=1", "train.objective.auxiliary.weight=0.1", "train.rewards.length.target=3")
    folder = empty / "out" / "round-1"
    assert {len(row["responses"]) for row in lines(folder / "pairs.jsonl")} == {3}
    assert "loss/auxiliary" in lines(folder / "training" / "metrics.jsonl")[1]


@pytest.mark.slow
def test_a_policy_that_is_conditioned_on_a_text_is_measured_with_it(
    empty: Path, smollm2_tokenizer: PreTrainedTokenizerBase
) -> None:
    """Held-out prompts of csft end with the text of good responses, as the saved template writes it."""
    iterate("rounds=1", "train.objective={method: csft}", "train.prior={}")
    folder = empty / "out" / "round-1"
    rows = lines(folder / "held_out.jsonl")
    model = AutoModelForCausalLM.from_pretrained(folder / "model")

    def answers(tokenizer: PreTrainedTokenizerBase) -> list[list[str]]:
        prompts = [row["prompt"] for row in rows]
        sampled = sample_responses(model, tokenizer, prompts, n=2, max_new_tokens=6, seed=0)
        return [[response.text for response in group] for group in sampled]

    expected = [row["responses"] for row in rows]
    assert answers(AutoTokenizer.from_pretrained(folder / "model")) == expected
    assert answers(smollm2_tokenizer) != expected


@pytest.mark.slow
def test_launched_processes_sample_score_and_train(output: Path) -> None:
    """Two processes by torchrun give the samples and scores of one, and train a model that is divided."""
    shutil.copy(output / "round-1" / "prompts.jsonl", "four.jsonl")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    settings = ("rounds=1", "prompts=four.jsonl", f"launch={json.dumps(launch)}", "output=two")
    settings = (*settings, "train.fully_sharded=true")
    assert iterate(*settings).last_good == 1
    folder = Path("two") / "round-1"
    assert read(folder / "training" / "environment.json")["processes"] == 2
    one, two = (
        {
            row["prompt"][0]["content"]: (row["responses"], row["scores"])
            for row in lines(path / "scored.jsonl")
        }
        for path in (output / "round-1", folder)
    )
    assert one == two
    # Each process says how much is left to score.
    log = " ".join((folder / "scoring.log").read_text().split())
    assert log.count("responses are already scored") == 2


@pytest.mark.slow
def test_a_launch_that_fails_says_how(output: Path) -> None:
    """The end of what the processes wrote is part of the message."""
    launch = json.dumps([sys.executable, "-c", "import sys; sys.exit('no such machine')"])
    with pytest.raises(InputError, match=r"(?s)round-1, sample: .*no such machine"):
        iterate(f"launch={launch}", "output=other")
