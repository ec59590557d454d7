"""Online rounds: sample, score, pair, train and evaluate, from wherever an earlier call was stopped."""

import errno
import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.utils.logging import disable_progress_bar

from preftune.errors import InputError
from preftune.measuring.comparison import NO_PAGES, Pages
from preftune.measuring.held_out import HeldOut
from preftune.models import generation_device, generation_dtype, load_tokenizer
from preftune.online import evaluation, progress, stages
from preftune.online.guards import GuardStop, policy_beyond_bounds, reward_collapse
from preftune.online.interleaved import SCALE_FILE, Interleaved
from preftune.online.outcome import Outcome, write_outcome
from preftune.online.plan import CONFIG_FILE, SOURCES_FILE, Model, Plan, sources
from preftune.online.progress import Progress
from preftune.online.training import RECORDS, RUN_FOLDER, WORKS, steps_taken, train_round
from preftune.online.view import View
from preftune.rewards.sources import rewards_content
from preftune.sampling.settings import SamplingSettings
from preftune.storage.files import MODEL_FOLDER, as_lines, read_lines, replaced, write_json, write_whole
from preftune.storage.hashing import hash_file, hash_json
from preftune.storage.locks import locked
from preftune.storage.manifest import Figures, Finished, Stage, finish
from preftune.training.configuration import RunConfig, dump_yaml

logger = logging.getLogger(__name__)

TIMING_FILE = "timing.jsonl"
OF_STAGES = (stages.SAMPLES_FILE, *(f"{name}.manifest.json" for name in ("sample", "score", "pair")))
"""What a round that was begun stage by stage leaves, when it is made batch by batch instead."""
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


def run_rounds(plan: Plan, view: View, pages: Pages = NO_PAGES) -> Outcome:
    """Run every round that is not finished, and leave `summary.json`, `report.html` and `model`.

    Args:
        plan: what is run.
        view: shows it.
        pages: writes the pages of rounds and of their runs.

    Returns:
        What became of the rounds.

    Raises:
        InputError: a stage failed; the message names it, and the same call resumes there.
    """
    # Models load dozens of times, and the view shows how far everything is.
    disable_progress_bar()
    with locked(plan.output, "iterate"), view:
        try:
            for aside in plan.output.glob("*.part"):
                aside.unlink()
            # The configuration last: with it the folder is this call's.
            write_json(plan.output / SOURCES_FILE, sources(plan))
            write_whole(plan.output / CONFIG_FILE, dump_yaml(plan.config.model_dump(mode="json")))
            return _Rounds(plan, view, pages).run()
        except (OSError, SafetensorError, RuntimeError) as error:
            if _is_no_room(error):
                raise InputError(
                    f"{plan.output} cannot be written ({error}); free disk space and run the same command "
                    "again: finished work is kept"
                ) from error
            raise


class _Rounds:
    """The rounds in order; what is finished of them is kept."""

    def __init__(self, plan: Plan, view: View, pages: Pages) -> None:
        self._plan, self._view, self._pages = plan, view, pages
        self._outcome = Outcome(rounds=plan.config.rounds)
        self._made = False

    def run(self) -> Outcome:
        plan, outcome = self._plan, self._outcome
        start = self._measure_start()
        outcome.start = start.figures
        self._view.measured(0, {"evaluation": start.figures})
        before = plan.start
        for number in range(1, plan.config.rounds + 1):
            outcome.figures[number] = {}
            try:
                before = self._round(number, before, start)
                outcome.last_good = number
            except GuardStop as reason:
                outcome.stopped = {"round": number, "reason": str(reason)}
            self._view.measured(number, outcome.figures[number])
            # A round that was only checked is not shown again.
            if self._made:
                self._name_model()
            # Drawing the page takes a second, and kept rounds change nothing in it.
            if self._made or outcome.stopped or number == plan.config.rounds:
                folders = {number: plan.folder(number) for number in outcome.figures}
                write_outcome(plan.output, outcome, folders, plan.folder(0), self._pages)
                self._made = False
            if outcome.stopped:
                logger.warning("stopped in round %(round)d by %(reason)s", outcome.stopped)
                break
        self._name_model()
        return outcome

    def _name_model(self) -> None:
        """Let `model` name the last good round's; where no round was good, nothing."""
        link, last = self._plan.output / MODEL_FOLDER, self._outcome.last_good
        if last:
            _point(link, self._plan.folder(last) / MODEL_FOLDER)
        else:
            link.unlink(missing_ok=True)

    def _round(self, number: int, before: Model, start: Finished) -> Model:
        """One round; its policy."""
        plan, figures = self._plan, self._outcome.figures[number]
        folder = plan.folder(number)
        train = self._train_by_batch if plan.config.update_every == "batch" else self._train_by_stage
        trained = train(number, before, start)
        model = Model(str(folder / MODEL_FOLDER), trained.content)
        evaluated = self._evaluate(number, model, start)
        figures["evaluation"] = evaluated.figures
        if reason := policy_beyond_bounds(plan.config.guards, evaluated.figures):
            raise GuardStop(reason)
        return model

    def _train_by_stage(self, number: int, before: Model, start: Finished) -> Finished:
        """Sample, score, pair and train, one after another."""
        folder, figures = self._plan.folder(number), self._outcome.figures[number]
        sampled = self._sample(number, before)
        scored = self._score(number, sampled)
        figures["samples"] = scored.figures["reward"]
        rows = read_lines(folder / stages.SCORED_FILE)
        if reason := reward_collapse(stages.usable_scores(rows, self._plan.pair_settings)):
            raise GuardStop(reason)
        paired = self._pair(number, scored)
        figures["pairs"] = paired.figures
        trained = self._train(number, before, paired, start)
        figures["training"] = trained.figures
        return trained

    # --- stages ---

    def _sample(self, number: int, before: Model) -> Finished:
        plan, sampling = self._plan, self._plan.config.sampling
        folder, seed = plan.folder(number), plan.seed(number)
        prompts = plan.prompts.parts[number - 1]
        stage = Stage(
            folder=folder,
            name="sample",
            inputs={"model": before.content, "prompts": hash_json(prompts)},
            settings=sampling.model_dump(exclude={"rows"}) | {"seed": seed},
            outputs=(stages.PROMPTS_FILE, stages.SAMPLES_FILE),
            records=(stages.SAMPLE_LOG_FILE,),
        )
        return self._finish(
            number,
            stage,
            lambda: stages.sample_round(folder, before.path, prompts, sampling, seed, plan.config.launch),
            progress.of_rows(folder / stages.SAMPLES_FILE, len(prompts)),
        )

    def _score(self, number: int, sampled: Finished) -> Finished:
        plan, folder = self._plan, self._plan.folder(number)
        stage = Stage(
            folder=folder,
            name="score",
            inputs={"samples": sampled.content, "reward": plan.reward.identity},
            settings={"reward": plan.config.reward},
            outputs=(stages.SCORED_FILE,),
            records=(stages.SCORE_LOG_FILE,),
        )
        return self._finish(
            number,
            stage,
            lambda: stages.score_round(folder, plan.reward, plan.start.path, plan.config.launch),
            progress.of_rows(folder / stages.SCORED_FILE, sampled.figures["responses"]),
        )

    def _pair(self, number: int, scored: Finished) -> Finished:
        plan, settings = self._plan, self._plan.pair_settings
        own, *earlier = [
            plan.folder(other) / stages.SCORED_FILE
            for other in range(number, max(0, number - plan.config.replay - 1), -1)
        ]
        stage = Stage(
            folder=plan.folder(number),
            name="pair",
            inputs={"scored": scored.content, **{file.parent.name: hash_file(file) for file in earlier}},
            settings=asdict(settings),
            outputs=(stages.PAIRS_FILE,),
        )
        return self._finish(number, stage, lambda: stages.pair_round(stage.folder, own, earlier, settings))

    def _train(self, number: int, before: Model, paired: Finished, start: Finished) -> Finished:
        plan, folder = self._plan, self._plan.folder(number)
        config = plan.run_config(number, before, folder / stages.PAIRS_FILE)
        stage = self._training(number, config, before, start)
        stage = replace(stage, inputs={**stage.inputs, "pairs": paired.content})
        return self._finish(
            number,
            stage,
            lambda: train_round(
                config, folder / MODEL_FOLDER, plan.config.launch, write_page=self._pages.run
            ),
            progress.of_training(folder / RUN_FOLDER, config.training),
        )

    def _training(self, number: int, config: RunConfig, before: Model, start: Finished) -> Stage:
        """What every training stage is made from and leaves, whatever it trains on."""
        plan = self._plan
        return Stage(
            folder=plan.folder(number),
            name="train",
            inputs={
                "start": plan.start.content,
                "before": before.content,
                "held_out": start.content,
                **{
                    f"rewards.{name}": hash_json(content)
                    for name, content in rewards_content(config.rewards, plan.tokenizer).items()
                },
            },
            settings={
                "start_from": plan.config.start_from,
                "reference": plan.config.reference,
                **_without_places(config),
            },
            outputs=(MODEL_FOLDER,),
            works=(*WORKS, SCALE_FILE),
            records=RECORDS,
        )

    def _train_by_batch(self, number: int, before: Model, start: Finished) -> Finished:
        """One stage in which the policy answers and learns by turns."""
        plan, sampling = self._plan, self._plan.config.sampling
        folder, seed, prompts = plan.folder(number), plan.seed(number), plan.prompts.parts[number - 1]
        config = plan.run_config(number, before, folder / SCALE_FILE)
        stage = self._training(number, config, before, start)
        stage = replace(
            stage,
            inputs={**stage.inputs, "prompts": hash_json(prompts), "reward": plan.reward.identity},
            settings={
                "sampling": sampling.model_dump(exclude={"rows"}) | {"seed": seed},
                "pairs": asdict(plan.pair_settings),
                **stage.settings,
            },
            outputs=(stages.PROMPTS_FILE, stages.SCORED_FILE, stages.PAIRS_FILE, *stage.outputs),
            works=(*stage.works, *OF_STAGES),
        )

        def work() -> Figures:
            held_out = (plan.folder(0) / stages.PAIRS_FILE).read_text(encoding="utf-8")
            if not held_out:
                raise InputError(
                    "the starting model's answers to the held-out prompts make no pair, and "
                    "update_every=batch fits its scales to pairs of them; give more prompts in held_out, "
                    "or a larger evaluation.n"
                )
            write_whole(folder / SCALE_FILE, held_out)
            write_whole(folder / stages.PROMPTS_FILE, as_lines(prompts))
            live = Interleaved(folder, prompts, sampling, seed, plan.pair_settings, plan.reward)
            with plan.reward.loaded():
                if live.missing(steps_taken(folder / RUN_FOLDER)):
                    # Training begins anew, and comes by the steps that are missing.
                    shutil.rmtree(folder / RUN_FOLDER, ignore_errors=True)
                training = train_round(config, folder / MODEL_FOLDER, (), live, self._pages.run)
            return live.figures() | {"training": training}

        trained = self._finish(
            number, stage, work, progress.of_training(folder / RUN_FOLDER, config.training)
        )
        self._outcome.figures[number] |= trained.figures
        return trained

    def _measure_start(self) -> Finished:
        """Evaluate the starting policy; pairs of its answers are what every training is evaluated on."""
        plan, settings = self._plan, self._plan.pair_settings
        held_out, stage = self._evaluation(0, plan.start)
        stage = replace(
            stage,
            settings={**stage.settings, "pairs": asdict(settings)},
            outputs=(*stage.outputs, stages.PAIRS_FILE),
        )
        folder = stage.folder

        def work() -> Figures:
            start = plan.start.path
            figures = evaluation.evaluate_policy(folder, start, start, held_out, plan.reward, None)
            pairs = stages.paired_groups(read_lines(folder / evaluation.ANSWERS_FILE), settings)
            write_whole(folder / stages.PAIRS_FILE, as_lines(pairs))
            return figures

        return self._finish(0, stage, work, self._evaluated(folder))

    def _evaluate(self, number: int, model: Model, start: Finished) -> Finished:
        plan = self._plan
        held_out, stage = self._evaluation(number, model)
        stage = replace(stage, inputs={**stage.inputs, "start": start.content})

        def work() -> Figures:
            answers = read_lines(plan.folder(0) / evaluation.ANSWERS_FILE)
            return evaluation.evaluate_policy(
                stage.folder,
                model.path,
                plan.start.path,
                # Not the start's: a method that is conditioned on a text has left that in the template.
                replace(held_out, tokenizer=load_tokenizer(model.path)),
                plan.reward,
                [row["scores"] for row in answers],
            )

        return self._finish(number, stage, work, self._evaluated(stage.folder))

    def _evaluated(self, folder: Path) -> Progress:
        """Of the held-out prompts: each is answered once, and each of its responses is scored."""
        plan = self._plan
        total = len(plan.prompts.held_out) * (1 + plan.config.evaluation.n)
        return progress.of_rows(folder / evaluation.ANSWERS_FILE, total)

    def _evaluation(self, number: int, model: Model) -> tuple[HeldOut, Stage]:
        """What a policy is asked, and the stage of its answers."""
        plan, config = self._plan, self._plan.config
        device = generation_device()
        settings = SamplingSettings(
            n=config.evaluation.n,
            max_new_tokens=config.evaluation.max_new_tokens or config.sampling.max_new_tokens,
            seed=plan.seed(0),
        )
        held_out = HeldOut(
            plan.prompts.held_out,
            plan.tokenizer,
            settings,
            dtype=plan.dtype,
            device=device,
            rows=config.sampling.rows,
            decoding_dtype=generation_dtype(device),
        )
        stage = Stage(
            folder=plan.folder(number),
            name="evaluate",
            inputs={
                "model": model.content,
                "prompts": hash_json(held_out.prompts),
                "reward": plan.reward.identity,
            },
            settings={
                "n": settings.n,
                "max_new_tokens": settings.max_new_tokens,
                "seed": settings.seed,
                "dtype": str(held_out.dtype),
            },
            outputs=(evaluation.ANSWERS_FILE, evaluation.EVALUATION_FILE),
        )
        return held_out, stage

    def _finish(
        self, number: int, stage: Stage, work: Callable[[], Figures], share: Progress | None = None
    ) -> Finished:
        """Keep or make a stage's outputs, show it, and note its seconds."""
        stage.folder.mkdir(parents=True, exist_ok=True)
        self._view.begin(number, stage.name, share)
        began = time.perf_counter()
        try:
            finished = finish(stage, work)
        except InputError as error:
            raise InputError(
                f"{stage.folder.name}, {stage.name}: {error}\nFinished work is kept: run the same command "
                "again to resume."
            ) from error
        seconds = time.perf_counter() - began
        tokens = None if finished.is_continued else finished.figures.get("tokens")
        self._view.end(
            number,
            stage.name,
            seconds if finished.is_new else None,
            tokens if stage.name == "sample" else None,
        )
        if finished.is_new:
            self._made = True
            line = {
                "round": number,
                "stage": stage.name,
                "seconds": round(seconds, 2),
                "is_continued": finished.is_continued,
            }
            with (self._plan.output / TIMING_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        return finished


def _without_places(config: RunConfig) -> dict[str, Any]:
    """A training run but for where things are; hashes say what they are."""
    tree = config.model_dump(mode="json", exclude={"model", "reference", "output", "cache"})
    tree["data"] = {key: value for key, value in tree["data"].items() if key not in ("train", "evaluation")}
    return tree


def _point(link: Path, model: Path) -> None:
    """Make `link` name a model's folder, at once."""
    with replaced(link) as aside:
        aside.symlink_to(model.relative_to(link.parent), target_is_directory=True)


def _is_no_room(error: Exception) -> bool:
    """Whether a write failed for lack of space or permission; safetensors and torch say so only in text."""
    if isinstance(error, OSError):
        return error.errno in NO_ROOM
    words = str(error)
    return any(f"os error {number}" in words for number in NO_ROOM) or "PytorchStreamWriter" in words
