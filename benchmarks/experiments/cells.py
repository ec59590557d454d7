"""The cells of the protocol: what there is to run, in which order, and how long it may take."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from experiments.arms import ALL_OR_PAIR, BASE, HARMLESSNESS, PLAIN_AND_SCORED, ROUNDS, VALUED, VARIED, Arm
from experiments.sizes import Sizes
from experiments.variations import EVERY, OF_VALUES, VARIATIONS, Variation

Phase = Literal["judge", "start", "search", "test", "rounds"]
Table = Literal["main", "rest", "varied"]
TABLES: tuple[Table, ...] = ("main", "rest", "varied")
PARTS = ("a", "b", "c", "d")
SEARCH_SEED = 1000
RESULT_FILE = "result.json"
CONTROL = Arm({})
"""Stands for the judge and the start, which no objective trains."""


@dataclass(frozen=True)
class Setting:
    """Data and arms.

    Attributes:
        name: of its folder.
        data: the part whose splits it takes.
        arms: by name, in the order in which they run.
        main: the arms of the main table.
        tuned_in: the setting in which arms with `tuned_as` are searched.
        tokens: of a training pair with its prompt, a prompt and a sample, about.
    """

    name: str
    data: str
    arms: Mapping[str, Arm]
    main: tuple[str, ...]
    tuned_in: str
    tokens: tuple[int, int, int]

    def root(self, arm: str) -> tuple[str, str]:
        """The setting and the arm whose search decides this arm's point."""
        other = self.arms[arm].tuned_as
        return (self.name, arm) if other is None else (self.tuned_in, other)


DEMO, GRADED, HARMLESS = (150, 61, 45), (337, 55, 60), (330, 100, 50)
MAIN_OF_DEMO = tuple(PLAIN_AND_SCORED)[:9]
MAIN_OF_GRADED = (BASE, "dpo+prior", "dpo+nll", "dpo+prior, bradley_terry")
SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("a", "a", PLAIN_AND_SCORED, MAIN_OF_DEMO, "a", DEMO),
        Setting("b", "b", PLAIN_AND_SCORED, MAIN_OF_GRADED, "b", GRADED),
        Setting("c", "c", HARMLESSNESS, tuple(HARMLESSNESS), "c", HARMLESS),
        Setting("c-groups", "a", ALL_OR_PAIR, tuple(ALL_OR_PAIR), "a", DEMO),
        Setting("d-a", "a", ROUNDS, tuple(ROUNDS), "a", DEMO),
        Setting("d-b", "b", ROUNDS, tuple(ROUNDS), "b", GRADED),
    )
}
VARIED_IN: Mapping[str, tuple[tuple[str, ...], Mapping[str, Variation]]] = {
    "a": (VARIED, VARIATIONS),
    "b": (VARIED, VARIATIONS),
    "c": (VALUED, OF_VALUES),
}
SETTINGS_OF = {"a": ("a",), "b": ("b",), "c": ("c", "c-groups"), "d": ("d-a", "d-b")}


@dataclass(frozen=True)
class Cell:
    """One run, and the folder in which it is finished once `result.json` is there.

    Attributes:
        setting: a name of SETTINGS.
        phase: what is done.
        arm: a name of the setting's arms; empty for the judge and the start.
        seed: of training and samples.
        rate: learning rate of a search; the kept one decides elsewhere.
        variation: a name of VARIATIONS; empty for none.
    """

    setting: str
    phase: Phase
    arm: str = ""
    seed: int = 0
    rate: float | None = None
    variation: str = ""

    @property
    def name(self) -> str:
        """Of its folder, below the sizes'."""
        rate = "" if self.rate is None else f"-{self.rate:g}"
        arm = "/".join(filter(None, [self.setting, _plain(self.variation), _plain(self.arm)]))
        return f"{arm}/{self.phase}{rate}-seed{self.seed}"

    @cached_property
    def definition(self) -> Arm:
        """What is trained."""
        return SETTINGS[self.setting].arms[self.arm] if self.arm else CONTROL


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "+._" else "-" for letter in name)


def cells_of(parts: Sequence[str], tables: Sequence[str], sizes: Sizes) -> list[Cell]:
    """Everything to run, in order; each cell once."""
    found: dict[Cell, None] = {}
    for table in TABLES:
        for part in parts:
            for name in SETTINGS_OF[part] if table in tables else ():
                found |= dict.fromkeys(_of_table(SETTINGS[name], table, sizes))
    return list(found)


def _of_table(setting: Setting, table: Table, sizes: Sizes) -> Iterator[Cell]:
    names = list(setting.arms)
    varied, variations = VARIED_IN.get(setting.name, ((), {}))
    chosen = {
        "main": list(setting.main),
        "rest": [name for name in names if name not in setting.main],
        "varied": list(varied),
    }[table]
    if not chosen:
        return
    if setting.data == "b":
        yield Cell("b", "judge")
    seeds = range(sizes.seeds)
    if setting.name.startswith("d-"):
        yield from (Cell(setting.tuned_in, "start", seed=seed) for seed in seeds)
    else:
        yield from (Cell(setting.name, "start", seed=seed) for seed in seeds)
    for name in dict.fromkeys(setting.root(arm)[0] for arm in chosen):
        searching = range(SEARCH_SEED, SEARCH_SEED + sizes.search_seeds)
        yield from (Cell(name, "start", seed=seed) for seed in searching if SETTINGS[name].data != "c")
    for root in dict.fromkeys(map(setting.root, chosen)):
        yield from search_cells(*root, sizes)
    phase: Phase = "rounds" if setting.name.startswith("d-") else "test"
    for seed in seeds:
        for variation in variations if table == "varied" else ("",):
            yield from (Cell(setting.name, phase, arm, seed, variation=variation) for arm in chosen)


def search_cells(setting: str, arm: str, sizes: Sizes) -> list[Cell]:
    """The grid of an arm; all its steps are in one cell."""
    seeds = range(SEARCH_SEED, SEARCH_SEED + sizes.search_seeds)
    return [Cell(setting, "search", arm, seed, rate) for seed in seeds for rate in sizes.rates]


def needed_by(cell: Cell, sizes: Sizes) -> list[Cell]:
    """The search that decides a cell's point."""
    if cell.phase not in ("test", "rounds"):
        return []
    return search_cells(*SETTINGS[cell.setting].root(cell.arm), sizes)


def share_of(cells: Sequence[Cell], number: int, count: int) -> list[Cell]:
    """Every `count`-th cell, from the `number`-th on, counted from 1."""
    return list(cells[number - 1 :: count])


# --- what is finished ---


def result_of(cell: Cell, sizes: Sizes) -> dict[str, Any] | None:
    """What a finished cell has found; None where it is not finished."""
    path = sizes.folder / cell.name / RESULT_FILE
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


Grid = dict[tuple[float, int], float]
"""What the search has found by learning rate and steps."""


def grid_of(setting: str, arm: str, sizes: Sizes) -> Grid | None:
    """Mean worth over seeds and prompts of every point of an arm's grid; None until all are there."""
    cells = search_cells(setting, arm, sizes)
    results = [result_of(cell, sizes) for cell in cells]
    if any(result is None for result in results):
        return None
    worths: dict[tuple[float, int], list[float]] = {}
    for cell, result in zip(cells, results, strict=True):
        for steps in sizes.steps:
            assert result is not None
            assert cell.rate is not None
            worths.setdefault((cell.rate, steps), []).append(fmean(result["worth"][str(steps)]))
    return {point: fmean(values) for point, values in worths.items()}


def kept_point(grid: Grid) -> tuple[float, int]:
    """The best learning rate and steps; of equal ones fewer steps, then the smaller rate."""
    return min(grid, key=lambda point: (-grid[point], point[1], point[0]))


# --- how long it takes ---

TRAINING_TOKENS, SAMPLING_TOKENS, READING_TOKENS = 170.0, 156.0, 450.0
"""A second on one core without AMX; `docs/experiments/protocol.md` says where they come from."""
LOADING_SECONDS, TRAINING_OVERHEAD, POINT_OVERHEAD = 5.0, 40.0, 11.0
"""Of a cell, a training run, and every model that is sampled: seconds of CPU, in cells of two steps."""
LOADING_ON_CUDA, ON_CUDA = 4.0, 40.0
"""Seconds, and times as fast as one such core for each of PROCESSES_ON_CUDA: guesses until cells have run."""
PROCESSES_ON_CUDA = 8
"""Small models leave most of a GPU idle."""


def estimated_seconds(cell: Cell, sizes: Sizes) -> float:
    """From measured rates of one core."""
    seconds = _phase_seconds(cell, sizes, SETTINGS[cell.setting])
    if sizes.name.startswith("cuda"):
        return LOADING_ON_CUDA + seconds / ON_CUDA
    points = {"search": len(sizes.steps), "test": 2, "rounds": sizes.rounds + 1}.get(cell.phase, 1)
    runs = {"start": 0, "rounds": sizes.rounds}.get(cell.phase, 1)
    return LOADING_SECONDS + runs * TRAINING_OVERHEAD + points * POINT_OVERHEAD + seconds


def _phase_seconds(cell: Cell, sizes: Sizes, setting: Setting) -> float:
    pair, prompt, sample = setting.tokens
    step = sizes.pairs_per_step * pair / TRAINING_TOKENS
    point = _samples_seconds(sizes.test_prompts, sizes.test_samples, setting, readers=1)
    tried = _samples_seconds(sizes.validation_prompts, sizes.validation_samples, setting, readers=0)
    if setting.data == "c":
        tried = sizes.validation_prompts * pair / READING_TOKENS
    if cell.phase == "judge":
        # All weights are trained: a third more work than with adapters.
        return 4 / 3 * sizes.judge_prompts * (prompt + 4 * sizes.max_new_tokens) / TRAINING_TOKENS
    if cell.phase == "start":
        return tried if cell.seed >= SEARCH_SEED else point
    if cell.phase == "search":
        return max(sizes.steps) * step + len(sizes.steps) * tried
    if cell.phase == "rounds":
        prompts = sizes.rounds * sizes.round_prompts
        return prompts * (8 * sample / SAMPLING_TOKENS + pair / TRAINING_TOKENS) + (sizes.rounds + 1) * point
    read = sizes.test_prompts if setting.data == "c" else sizes.evaluation_pairs
    evaluation = read * pair / READING_TOKENS
    varied = EVERY.get(cell.variation)
    if varied and varied.epochs:
        return varied.pairs * varied.epochs / sizes.pairs_per_step * step + point + 2 * evaluation
    middle = sizes.steps[len(sizes.steps) // 2]
    return sizes.too_long * middle * step + 2 * point + (sizes.too_long + 1) * evaluation


def _samples_seconds(prompts: int, samples: int, setting: Setting, readers: int) -> float:
    """Samples drawn, and read by so many models and by the judge where it is one."""
    _, prompt, sample = setting.tokens
    drawn = prompts * samples * sample
    models = readers + (setting.data == "b")
    return drawn / SAMPLING_TOKENS + models * (drawn + prompts * prompt) / READING_TOKENS


def expected_seconds(cells: Sequence[Cell], sizes: Sizes) -> dict[Cell, float]:
    """Each cell's time: its own, else the mean of finished ones of its kind, else an estimate."""
    own = {cell: result["seconds"] for cell in cells if (result := result_of(cell, sizes))}
    kinds: dict[tuple[str, str], list[float]] = {}
    for cell, seconds in own.items():
        kinds.setdefault((cell.setting, cell.phase), []).append(seconds)
    found = {}
    for cell in cells:
        alike = kinds.get((cell.setting, cell.phase))
        found[cell] = own.get(cell) or (fmean(alike) if alike else estimated_seconds(cell, sizes))
    return found


def kept_of(cell: Cell, sizes: Sizes) -> tuple[float, int] | None:
    """The point that a test cell is trained at; None until the search has ended."""
    grid = grid_of(*SETTINGS[cell.setting].root(cell.arm), sizes)
    return None if grid is None else kept_point(grid)


def result_path(cell: Cell, sizes: Sizes) -> Path:
    """Where a cell leaves its result."""
    return sizes.folder / cell.name / RESULT_FILE
