"""The trainer adds nothing to the hot path and reports what was trained."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers.models.llama.modeling_llama import LlamaAttention

from preftune.models import Policy
from preftune.objectives import Losses, ScoredResponses, Term, build, count_units, responses
from preftune.training.tally import Tally

from ..forks import Forks


def test_tally_weighs_every_item_once() -> None:
    """Batches of 1 and 3 pairs: the mean of 4 and 0, 0, 0 is 1, not 2, and terms follow their own units."""
    tally = Tally()
    for values, tokens in (([4.0], 2), ([0.0, 0.0, 0.0], 6)):
        pairs = torch.tensor(values)
        terms = {"a": Term(pairs, "pairs"), "b": Term(pairs, "chosen_tokens", weight=10.0)}
        counts = {"pairs": torch.tensor(len(values)), "chosen_tokens": torch.tensor(tokens)}
        tally.add(Losses(terms, {"rewards/margins": pairs}), counts)
    means = tally.means(lambda sums: sums)
    # a: 4 / 4 pairs = 1; b: 10 * 4 / 8 tokens = 5.
    assert means == {"loss": 6.0, "rewards/margins": 1.0}
    assert tally.means(lambda sums: sums) == {}


def test_logged_terms_add_up_to_the_logged_loss() -> None:
    """With token_mean `loss` is the weighted sum of `loss/...`, over micro-batches of unlike lengths too.

    The chosen responses have 4 tokens at 1 nat, 1 token at 2 nats and 3 tokens at 1 nat each: 9 nats on 8
    tokens, where the mean over pairs would be 4 / 3. The factors of the auxiliary likelihood are 1, and the
    rejected responses have 1 token at 1 nat each: 12 nats on 11 tokens.
    """
    settings = {"method": "cpo", "likelihood_weight": 0.5, "auxiliary": {"weight": 0.25, "value_weight": 2.0}}
    objective, tally = build({**settings, "router_loss_weight": 0.125}), Tally()
    for logps, lengths, router in (
        ([-4.0, -2.0, -1.0, -1.0], [4, 1, 1, 1], 1.0),
        ([-3.0, -1.0], [3, 1], 2.0),
    ):
        pairs = len(logps) // 2
        responses = ScoredResponses(
            logps=torch.tensor(logps),
            lengths=torch.tensor(lengths),
            chosen=torch.arange(pairs),
            rejected=torch.arange(pairs) + pairs,
            auxiliary=torch.zeros(2 * pairs),
            values=torch.zeros(2 * pairs),
            router_loss=torch.tensor(router),
        )
        tally.add(objective(responses), count_units(responses.lengths, responses.chosen))
    means = tally.means(lambda sums: sums)
    assert means["loss/chosen_likelihood"] == pytest.approx(9 / 8)
    assert means["loss/auxiliary"] == pytest.approx(12 / 11)
    assert means["loss/router"] == pytest.approx((7 * 1 + 4 * 2) / 11)
    weights = {"preference": 1.0, "chosen_likelihood": 0.5, "auxiliary": 0.25, "value": 2.0, "router": 0.125}
    assert means["loss"] == pytest.approx(sum(weight * means[f"loss/{n}"] for n, weight in weights.items()))


def test_csft_logs_nats_per_token_of_all_tokens() -> None:
    """Its term is its loss: 4 nats on 2 tokens and 6 on 4 are 10 / 6, not the mean of 2 and 1.5."""
    none = torch.tensor([], dtype=torch.int64)
    labels = torch.tensor([True, False])
    responses = ScoredResponses(torch.tensor([-4.0, -6.0]), torch.tensor([2, 4]), none, none, labels=labels)
    tally = Tally()
    tally.add(build({"method": "csft"})(responses), count_units(responses.lengths, none))
    means = tally.means(lambda sums: sums)
    assert means["loss/likelihood"] == means["loss"] == pytest.approx(10 / 6)


def test_tally_reduces_over_processes_with_one_call() -> None:
    """All names travel in one tensor; two equal processes leave the means as they are."""
    calls = []

    def both(sums: torch.Tensor) -> torch.Tensor:
        calls.append(sums.shape)
        return 2 * sums

    tally = Tally()
    pairs = torch.tensor([1.0, 3.0])
    counts = {"pairs": torch.tensor(2), "chosen_tokens": torch.tensor(5)}
    tally.add(Losses({"a": Term(pairs, "pairs")}, {"m": pairs, "k": pairs}), counts)
    assert tally.means(both) == {"loss": 2.0, "m": 2.0, "k": 2.0}
    assert calls == [(3, 2)]


@pytest.mark.parametrize("by_tokens", [False, True], ids=["accumulated", "rows"])
def test_reads_and_collectives_do_not_grow_with_micro_batches(
    by_tokens: bool,
    config: dict[str, Any],
    train: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Steps in one row and in many: as many reads of the device, and a collective for a step and a log."""
    config["data"].pop("evaluation")
    config["objective"] = {"method": "cpo"}
    config["training"] |= {"max_steps": 2, "logging_steps": 2, "save_strategy": "no", "max_grad_norm": 0}
    # ScoredResponses looks at values on the CPU alone, where reading them costs nothing.
    monkeypatch.setattr(responses, "_check_values", lambda *_: None)
    monkeypatch.setattr(responses, "_token_count", lambda value, _: value.numel())
    calls = {"reads": 0, "collectives": 0, "rows": 0}
    for owner, name, kind in [
        *((torch.Tensor, name, "reads") for name in ("item", "tolist", "__bool__", "__float__", "__int__")),
        (Accelerator, "reduce", "collectives"),
        (Policy, "forward", "rows"),
    ]:
        original = getattr(owner, name)

        def counted(*arguments: Any, original: Any = original, kind: str = kind, **named: Any) -> Any:
            calls[kind] += 1
            return original(*arguments, **named)

        monkeypatch.setattr(owner, name, counted)
    one_row: list[str] = []
    split = ["training.per_device_train_batch_size=1", "training.gradient_accumulation_steps=8"]
    if by_tokens:
        config["training"].pop("per_device_train_batch_size")
        one_row = ["batches.tokens_per_step=400"]
        split = [*one_row, "batches.tokens_per_row=1"]
    seen = []
    for arguments in (one_row, split):
        calls |= dict.fromkeys(calls, 0)
        train(config, *arguments, f"output={tmp_path / str(len(seen))}")
        seen.append(dict(calls))
    assert seen[0]["rows"] == 2
    assert seen[1]["rows"] >= 13
    assert seen[0]["reads"] == seen[1]["reads"]
    assert seen[0]["collectives"] == seen[1]["collectives"] == 2 + 1


COUNT_COLLECTIVES = """
import collections, json, os, sys
import torch.distributed as dist

calls = collections.Counter()
for name in ("all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_object", "broadcast"):
    def counted(*arguments, original=getattr(dist, name), name=name, **named):
        calls[name] += 1
        return original(*arguments, **named)
    setattr(dist, name, counted)
from preftune.cli import main
sys.argv = ["preftune", "train", *sys.argv[2:], "output=" + sys.argv[1]]
try:
    main()
finally:
    with open(f"{sys.argv[-1].removeprefix('output=')}.{os.environ['RANK']}.json", "w") as file:
        json.dump(calls, file)
"""


def test_two_processes_talk_once_a_step(config: dict[str, Any], forks: Forks, tmp_path: Path) -> None:
    """Of ours there is one small collective for a step, whatever its rows, beside DDP's own of gradients."""
    config["data"].pop("evaluation")
    config["objective"] = {"method": "cpo"}
    config["training"] |= {"logging_steps": 100, "save_strategy": "no"}
    config["training"].pop("per_device_train_batch_size")
    script, file = tmp_path / "count.py", tmp_path / "config.yaml"
    script.write_text(COUNT_COLLECTIVES, encoding="utf-8")
    file.write_text(yaml.safe_dump(config | {"batches": {"tokens_per_step": 300}}), encoding="utf-8")

    def collectives(name: str, *arguments: str) -> list[dict[str, int]]:
        done = forks.run([str(script), str(tmp_path / name), str(file), *arguments], processes=2)
        assert done.status == 0, done.errors
        return [json.loads((tmp_path / f"{name}.{rank}.json").read_text()) for rank in (0, 1)]

    few = collectives("few", "training.max_steps=1")
    many = collectives("many", "training.max_steps=3", "batches.tokens_per_row=1")
    for before, after in zip(few, many, strict=True):
        assert after == before | {"all_reduce": before["all_reduce"] + 2}


def test_resuming_a_finished_run_changes_nothing(config: dict[str, Any], train: Callable[..., Path]) -> None:
    """A finished run is left as it is, to the byte."""
    config["training"]["max_steps"] = 1
    run = train(config)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    train(config, "--resume")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_resuming_with_another_configuration_is_refused(
    config: dict[str, Any], train: Callable[..., Path]
) -> None:
    """A resumed run must be the same run; the keys that differ are named."""
    config["training"]["max_steps"] = 1
    train(config)
    with pytest.raises(AssertionError, match="objective differ from"):
        train(config, "--resume", "objective.beta=0.7")


def unfinish(run: Path) -> None:
    """Leave what a run has before its model is saved."""
    (run / "summary.json").unlink()
    shutil.rmtree(run / "model")


def test_resuming_before_the_first_checkpoint_starts_over(
    config: dict[str, Any], train: Callable[..., Path]
) -> None:
    """A run killed early is simply run; half a line in metrics.jsonl is no obstacle."""
    run = train(config)
    unfinish(run)
    shutil.rmtree(run / "checkpoints")
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 4, "lo')
    train(config, "--resume")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines if "grad_norm" in line] == [1, 2, 3, 4]


def test_a_checkpoint_cut_short_is_passed_over(config: dict[str, Any], train: Callable[..., Path]) -> None:
    """Killed while the second checkpoint was written, a run goes on from the first."""
    run = train(config)
    tokens = json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-3])["tokens"]
    unfinish(run)
    (run / "checkpoints" / "checkpoint-4" / "trainer_state.json").unlink()
    train(config, "--resume")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[-3]["tokens"] == tokens  # counted over both processes, once
    assert (run / "model").is_dir()


@pytest.mark.parametrize(("key", "what"), [("data", "the data"), ("processes", "the number of processes")])
def test_resuming_under_other_conditions_is_refused(
    config: dict[str, Any], train: Callable[..., Path], key: str, what: str
) -> None:
    """Other data, or another number of processes, would be another run."""
    config["training"]["max_steps"] = 1
    run = train(config)
    unfinish(run)
    record = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    record[key] = "other"
    (run / "environment.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(AssertionError, match=f"{what} changed"):
        train(config, "--resume")


def test_an_old_run_goes_only_when_the_new_one_starts(
    config: dict[str, Any], train: Callable[..., Path]
) -> None:
    """`--overwrite` with a mistake that shows late, or with the old model as the start, keeps the old run."""
    config["training"]["max_steps"] = 1
    run = train(config)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(AssertionError, match=r"lora\.target_modules"):
        train(config, "--overwrite", "lora.target_modules=[nothing]")
    with pytest.raises(AssertionError, match="which --overwrite replaces"):
        train(config, "--overwrite", f"model={run / 'model'}")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def summary(run: Path) -> dict[str, Any]:
    """The run's summary."""
    content: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return content


def test_a_change_needs_the_untrained_policys_figures(
    config: dict[str, Any], train: Callable[..., Path], tmp_path: Path
) -> None:
    """Without an evaluation at step 0 there is no change to report; the end is always evaluated."""
    config["training"]["max_steps"] = 1
    run = train(config, "training.eval_strategy=no", "training.eval_on_start=false")
    assert summary(run)["chosen_logp_change"] is None
    assert summary(run)["evaluation_end"]["step"] == 1
    both = train(config, "training.eval_strategy=no", "training.max_steps=2", f"output={tmp_path / 'both'}")
    assert summary(both)["chosen_logp_change"] == pytest.approx(
        summary(both)["evaluation_end"]["eval_logps/chosen"]
        - summary(both)["evaluation_start"]["eval_logps/chosen"]
    )
    assert summary(both)["chosen_logp_change"] != 0


def test_the_same_seed_gives_the_same_adapter(
    config: dict[str, Any], train: Callable[..., Path], tmp_path: Path
) -> None:
    """Adapters start at random numbers that the seed decides: two runs agree bit for bit."""
    config["training"]["max_steps"] = 2
    adapters = []
    for name in ("first", "second"):
        torch.rand(7)  # whatever ran before
        run = train(config, "lora.rank=4", f"output={tmp_path / name}")
        adapters.append(load_file(run / "model" / "adapter_model.safetensors"))
    assert all(torch.equal(weight, adapters[1][name]) for name, weight in adapters[0].items())


@pytest.mark.parametrize("lora", [[], ["lora.rank=4"]], ids=["full", "lora"])
def test_gradient_checkpointing_recomputes_layers_and_changes_nothing(
    lora: list[str],
    config: dict[str, Any],
    train: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every layer runs a second time in training, and the losses stay what they are."""
    config["training"]["max_steps"] = 2
    config["data"].pop("evaluation")
    calls = {"count": 0}
    forward = LlamaAttention.forward

    def counted(self: LlamaAttention, *arguments: Any, **named: Any) -> Any:
        calls["count"] += self.training
        return forward(self, *arguments, **named)

    monkeypatch.setattr(LlamaAttention, "forward", counted)
    losses = []
    for extra in ([], ["training.gradient_checkpointing=true"]):
        calls["count"] = 0
        run = train(config, *lora, *extra, f"output={tmp_path / str(len(losses))}")
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        losses.append([json.loads(line).get("loss") for line in lines])
        assert calls["count"] == (2 * 2 if not extra else 2 * 2 * 2)  # steps x layers, and again
    assert losses[0][:2] == pytest.approx(losses[1][:2], rel=1e-5)


@pytest.mark.parametrize("extra", [[], ["training.bf16=true"], ["lora.rank=4"]], ids=["fp32", "bf16", "lora"])
def test_the_untrained_policy_is_its_own_reference(
    extra: list[str], config: dict[str, Any], train: Callable[..., Path]
) -> None:
    """At step 0 every log-ratio is 0, so the loss is log 2, and so is the first training loss."""
    run = train(config, *extra, "training.max_steps=1", "training.logging_steps=1")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0]["step"] == 0
    assert lines[0]["eval_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert lines[0]["eval_rewards/chosen"] == pytest.approx(0, abs=2e-4)
    assert lines[0]["eval_rewards/rejected"] == pytest.approx(0, abs=2e-4)
    assert lines[1]["loss"] == pytest.approx(math.log(2), abs=1e-4)
