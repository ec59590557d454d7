"""The page that people rate on, its key, and the figures of their answers."""

import base64
import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from preftune.errors import InputError
from preftune.evaluation.human.figures import score_page
from preftune.evaluation.human.page import BASELINE, MODEL, Key, key_path, make_page, read_key

CommandLine = Callable[..., tuple[int, str]]
HOSTILE = "</p><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}&amp; \u2028"


def write_outputs(path: Path, name: str, answers: list[str]) -> Path:
    """A `model_outputs.json`: the answers to prompts 0, 1, ..."""
    rows = [
        {"instruction": f"Question {place}?", "output": answer, "generator": name}
        for place, answer in enumerate(answers)
    ]
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.fixture
def outputs(tmp_path: Path) -> tuple[Path, Path]:
    """Twelve answers of two models, named so that a leak would be found."""
    return (
        write_outputs(tmp_path / "a.json", "zebra-tuned", [f"first {place}" for place in range(12)]),
        write_outputs(tmp_path / "b.json", "quokka-base", [f"second {place}" for place in range(12)]),
    )


class Shown(HTMLParser):
    """What a page shows of each item, and everything that could load or run."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.items: dict[str, list[str]] = {}
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.policy = ""
        self.script = ""
        self._item: list[str] | None = None
        self._reading = False
        self._in_script = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An article is an item, and a paragraph in it a text."""
        found = dict(attrs)
        self.tags[tag] += 1
        self.attributes += attrs
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"] or ""
        if tag == "article":
            self._item = self.items.setdefault(found["id"] or "", [])
        if tag == "p" and self._item is not None:
            self._item.append("")
            self._reading = True
        self._in_script = tag == "script"

    def handle_endtag(self, tag: str) -> None:
        """A text or an item ends."""
        self._item = None if tag == "article" else self._item
        self._reading = self._reading and tag != "p"
        self._in_script = False

    def handle_data(self, data: str) -> None:
        """Text of an item, or the script."""
        if self._reading and self._item is not None:
            self._item[-1] += data
        if self._in_script:
            self.script += data


def test_key_tells_whose_answers_stand_where(outputs: tuple[Path, Path], tmp_path: Path) -> None:
    """Every item shows prompt, left and right; the key names whose is left, each model for half of them."""
    key = make_page(*outputs, tmp_path / "page.html")
    shown = Shown(tmp_path / "page.html").items
    assert shown.keys() == key.items.keys()
    for name, (question, left) in key.items.items():
        number = question.removeprefix("Question ").removesuffix("?")
        sides = [f"first {number}", f"second {number}"]
        assert shown[name] == [question, *(sides if left == MODEL else sides[::-1])]
    assert Counter(left for _, left in key.items.values()) == {MODEL: 6, BASELINE: 6}
    assert read_key(key_path(tmp_path / "page.html")) == key
    assert (key.model, key.baseline) == ("zebra-tuned", "quokka-base")


def test_page_is_blind(outputs: tuple[Path, Path], tmp_path: Path) -> None:
    """The page has no name of a model and no word of the key; with the models swapped only texts change."""
    make_page(*outputs, tmp_path / "page.html")
    make_page(*outputs[::-1], tmp_path / "swapped.html")
    page, swapped = ((tmp_path / name).read_text(encoding="utf-8") for name in ("page.html", "swapped.html"))
    body = page.split("</head>")[1].split("<script>")[0]
    for word in ("zebra", "quokka", "baseline", "model", "seed"):
        assert word not in body.lower()
    texts = re.compile(r"(first|second) \d+|data-page=\"\w+\"")
    assert texts.sub("", page) == texts.sub("", swapped)


def test_order_is_shuffled_by_the_seed(outputs: tuple[Path, Path], tmp_path: Path) -> None:
    """One seed gives one page, byte for byte; another draws other prompts or another order."""

    def drawn(seed: int) -> tuple[str, list[str]]:
        path = tmp_path / f"{seed}.html"
        key = make_page(*outputs, path, n=5, seed=seed)
        return path.read_text(encoding="utf-8"), [question for question, _ in key.items.values()]

    assert drawn(0) == drawn(0)
    assert len(drawn(0)[1]) == 5
    assert drawn(0)[1] != drawn(1)[1]
    assert drawn(0)[1] != sorted(drawn(0)[1])


def test_texts_are_shown_and_never_run(tmp_path: Path) -> None:
    """Whatever a model wrote is read back letter by letter, and adds no element to the page."""
    paths = [
        write_outputs(tmp_path / f"{name}.json", name, [text]) for name, text in (("a", HOSTILE), ("b", "b"))
    ]
    make_page(*paths, tmp_path / "page.html")
    shown = Shown(tmp_path / "page.html")
    assert sorted(shown.items["item-1"][1:]) == sorted([HOSTILE, "b"])
    assert shown.tags["script"] == 1
    assert shown.tags["img"] == 0


def test_page_needs_and_allows_no_network(outputs: tuple[Path, Path], tmp_path: Path) -> None:
    """Nothing refers outside, and the policy allows the page's own script by its hash, and no other."""
    make_page(*outputs, tmp_path / "page.html")
    shown = Shown(tmp_path / "page.html")
    references = [value for name, value in shown.attributes if name in ("src", "href", "action")]
    assert references == ["data:,"]
    assert not any(name.startswith("on") for name, _ in shown.attributes)
    digest = base64.b64encode(hashlib.sha256(shown.script.encode()).digest()).decode()
    assert "default-src 'none'" in shown.policy
    assert f"script-src 'sha256-{digest}'" in shown.policy
    assert not re.search(r"fetch\(|XMLHttpRequest|WebSocket|sendBeacon|https?:", shown.script)


def test_every_part_the_script_uses_is_there(outputs: tuple[Path, Path], tmp_path: Path) -> None:
    """Each id the script looks up is on the page, and its choices are those of buttons and scoring."""
    make_page(*outputs, tmp_path / "page.html")
    shown = Shown(tmp_path / "page.html")
    ids = {value for name, value in shown.attributes if name == "id"}
    assert set(re.findall(r'find\("([a-z]+)"\)', shown.script)) == ids - shown.items.keys()
    assert [value for name, value in shown.attributes if name == "data-choice"] == ["left", "tie", "right"]
    assert '["left", "tie", "right"]' in shown.script


def test_equal_answers_are_ties_without_asking(tmp_path: Path) -> None:
    """Of four prompts, two have the same answer twice: two are shown, and both others count as ties.

    One win and three ties: (1 + 3/2 + 0) / 4 = 62.5 where the second shown is a tie too.
    """
    paths = [
        write_outputs(tmp_path / f"{name}.json", name, ["same", "same", f"{name} 2", f"{name} 3"])
        for name in ("a", "b")
    ]
    key = make_page(*paths, tmp_path / "page.html")
    assert len(key.items) == 2
    assert set(key.identical) == {"Question 0?", "Question 1?"}
    choices = dict(zip(key.items, (winning(key, "item-1"), "tie"), strict=True))
    results = score_page(key_path(tmp_path / "page.html"), [answers_file(tmp_path, key, "ann", choices)])
    assert results["win_rate"] == pytest.approx(62.5)
    assert (results["n"], results["ratings"], results["tie_rate"]) == (4, 2, 0.5)


def test_both_turns_are_shown(tmp_path: Path) -> None:
    """Answers named by an id need the questions; an item then shows every turn with both answers."""
    questions = tmp_path / "question.jsonl"
    questions.write_text(json.dumps({"question_id": 81, "category": "writing", "turns": ["One?", "Two?"]}))
    paths = []
    for name in ("a", "b"):
        row = {"question_id": 81, "model_id": name, "choices": [{"turns": [f"{name} one", f"{name} two"]}]}
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_text(json.dumps(row))
    with pytest.raises(InputError, match="--questions"):
        make_page(*paths, tmp_path / "page.html")
    key = make_page(*paths, tmp_path / "page.html", questions=questions)
    left, right = ("a", "b") if key.items["item-1"][1] == MODEL else ("b", "a")
    assert Shown(tmp_path / "page.html").items["item-1"] == [
        "One?",
        f"{left} one",
        f"{right} one",
        "Two?",
        f"{left} two",
        f"{right} two",
    ]


def winning(key: Key, item: str, winner: str = MODEL) -> str:
    """The side on which a winner's answers stand."""
    return "left" if key.items[item][1] == winner else "right"


def answers_file(folder: Path, key: Key, rater: str, choices: dict[str, str]) -> Path:
    """A file as the page saves it."""
    path = folder / f"answers-{rater}.json"
    path.write_text(json.dumps({"page": key.page, "rater": rater, "answers": choices}))
    return path


@pytest.fixture
def four(tmp_path: Path) -> Key:
    """A page of four pairs."""
    paths = [
        write_outputs(tmp_path / f"{name}.json", name, [f"{name} {place}" for place in range(4)])
        for name in ("a", "b")
    ]
    return make_page(*paths, tmp_path / "page.html")


def choose(key: Key, winners: str) -> dict[str, str]:
    """Choices by which a (model), b (baseline) or t (tie) wins the items, in order."""
    return {
        item: "tie" if winner == "t" else winning(key, item, MODEL if winner == "a" else BASELINE)
        for item, winner in zip(key.items, winners, strict=False)
    }


def test_figures_of_two_raters(preftune: CommandLine, four: Key, tmp_path: Path) -> None:
    """Figures by hand, through the command line: the choices are unblinded, and a prompt counts once.

    Ann: a a b t, Bo: a b b t. By prompt: 1, 1/2, 0, 1/2, so 1 win, 2 ties, 1 loss and 50%.
    They agree on 3 of 4.
    By chance: a 2/4 · 1/4, b 1/4 · 2/4, t 1/4 · 1/4, together 5/16; kappa (3/4 - 5/16) / (11/16) = 7/11.
    Ann alone has (1 + 1 + 0 + 1/2) / 4 = 62.5%. 2 of 8 ratings are ties.
    """
    files = [
        answers_file(tmp_path, four, rater, choose(four, winners))
        for rater, winners in (("ann", "aabt"), ("bo", "abbt"))
    ]
    output = tmp_path / "results.json"
    code, errors = preftune(
        "evaluate",
        "human",
        "score",
        str(key_path(tmp_path / "page.html")),
        *map(str, files),
        "--output",
        str(output),
    )
    assert code == 0, errors
    (results,) = json.loads(output.read_text())
    assert (results["model"], results["baseline"]) == ("a", "b")
    assert (results["wins"], results["ties"], results["losses"], results["n"]) == (1, 2, 1, 4)
    assert results["win_rate"] == pytest.approx(50)
    assert results["interval"][0] < 50 < results["interval"][1]
    assert results["agreement"] == {
        "n": 4,
        "share": pytest.approx(0.75),
        "cohen_kappa": pytest.approx(7 / 11),
    }
    assert results["tie_rate"] == pytest.approx(0.25)
    assert results["raters"]["ann"]["win_rate"] == pytest.approx(62.5)
    assert results["warnings"] == []


def test_a_rater_who_only_goes_left_is_seen(four: Key, tmp_path: Path) -> None:
    """Who always says left gives each model half, a left share of 1, and p = 2 / 2^4 = 0.125 for no lean."""
    file = answers_file(tmp_path, four, "lefty", dict.fromkeys(four.items, "left"))
    results = score_page(key_path(tmp_path / "page.html"), [file])
    assert results["win_rate"] == pytest.approx(50)
    assert results["raters"]["lefty"]["left_share"] == 1
    assert results["raters"]["lefty"]["left_p"] == pytest.approx(0.125)
    assert results["agreement"] is None


def test_three_raters_get_fleiss_and_gaps_a_warning(four: Key, tmp_path: Path) -> None:
    """Kappa of three is Fleiss', over the prompts that all rated; who rated less is named.

    On the first three items: aaa, aab, bbb. Agreement (1 + 1/3 + 1) / 3 = 7/9; rates 5/9 and 4/9, by chance
    41/81; kappa (63/81 - 41/81) / (40/81) = 22/40.
    """
    raters = {"ann": "aabt", "bo": "aabt", "cy": "abb"}
    files = [answers_file(tmp_path, four, name, choose(four, said)) for name, said in raters.items()]
    results = score_page(key_path(tmp_path / "page.html"), files)
    assert results["agreement"]["n"] == 3
    assert results["agreement"]["fleiss_kappa"] == pytest.approx(22 / 40)
    assert results["warnings"] == ["cy rated 3 of 4 pairs"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"page": "another"}, "page another"),
        ({"answers": {"item-9": "left"}}, "item-9 = 'left'"),
        ({"answers": {"item-1": "a"}}, "one of left, tie, right"),
        ({"answers": {"item-1": ["left"]}}, "one of left, tie, right"),
        ({"answers": {}}, "has no ratings"),
        ({"answers": None}, "holds no answers"),
    ],
)
def test_answers_of_something_else_are_refused(
    four: Key, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    """A file of another page, with other items or other words, is named and not counted."""
    file = answers_file(tmp_path, four, "ann", {"item-1": "left"})
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=message):
        score_page(key_path(tmp_path / "page.html"), [file])


def test_one_rater_counts_once(four: Key, tmp_path: Path) -> None:
    """Two files of one name are refused, since they would count as two raters who agree."""
    file = answers_file(tmp_path, four, "ann", {"item-1": "left"})
    with pytest.raises(InputError, match="ann rated twice"):
        score_page(key_path(tmp_path / "page.html"), [file, shutil.copy(file, tmp_path / "again.json")])


def test_pages_that_could_not_be_scored_are_refused(tmp_path: Path) -> None:
    """Two models of one name, or with the same answers throughout, are refused before a page is written."""
    a = write_outputs(tmp_path / "a.json", "a", ["x"])
    b = write_outputs(tmp_path / "b.json", "b", ["x"])
    with pytest.raises(InputError, match="rename one"):
        make_page(a, write_outputs(tmp_path / "c.json", "a", ["y"]), tmp_path / "page.html")
    with pytest.raises(InputError, match="same answers to all"):
        make_page(a, b, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.slow
def test_a_person_can_rate_with_the_keyboard(outputs: tuple[Path, Path], tmp_path: Path) -> None:
    """In a real browser: keys rate and go on, back changes an answer, a reload keeps all, and saving scores.

    The three items are rated left, tie, right; going back, the second becomes left. Down rates nothing.
    """
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium and Chromium")
    waiting = pytest.importorskip("selenium.webdriver.support.wait")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver_path = shutil.which("chromedriver")
    if browser is None or driver_path is None:
        pytest.skip("needs Chromium and chromedriver")
    key = make_page(*outputs, tmp_path / "page.html", n=3)
    downloads = tmp_path / "downloads"
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=driver_path)
    driver = webdriver.Chrome(options=options, service=service)
    keys = webdriver.Keys
    try:
        driver.get((tmp_path / "page.html").as_uri())

        def visible() -> list[str]:
            return [
                item.get_attribute("id")
                for item in driver.find_elements("css selector", "article:not([hidden])")
            ]

        def press(*pressed: str) -> None:
            for one in pressed:
                webdriver.ActionChains(driver).send_keys(one).perform()

        def progress() -> str:
            return str(driver.find_element("id", "progress").text)

        assert visible() == ["item-1"]
        assert progress() == "Pair 1 of 3, 0 rated"
        press(keys.ARROW_LEFT, keys.ARROW_DOWN, "2")
        assert visible() == ["item-3"]
        assert progress() == "Pair 3 of 3, 2 rated"
        press("3", keys.BACKSPACE)
        pressed = driver.find_elements("css selector", "[aria-pressed=true]")
        assert [button.get_attribute("data-choice") for button in pressed] == ["tie"]
        press("1", "n")
        driver.find_element("id", "save").click()
        assert "name first" in driver.find_element("id", "note").text
        driver.find_element("id", "rater").send_keys("Ann 1-2-3")
        assert progress() == "Pair 3 of 3, 3 rated"  # typing digits into the name rates nothing
        driver.refresh()
        assert progress() == "Pair 3 of 3, 3 rated"
        assert driver.find_element("id", "rater").get_attribute("value") == "Ann 1-2-3"
        driver.find_element("id", "save").click()
        waiting.WebDriverWait(driver, 10).until(lambda _: list(downloads.glob("*.json")))
        assert [line for line in driver.get_log("browser") if line["level"] == "SEVERE"] == []
    finally:
        driver.quit()
    (file,) = downloads.glob("*.json")
    assert json.loads(file.read_text()) == {
        "page": key.page,
        "rater": "Ann 1-2-3",
        "answers": {"item-1": "left", "item-2": "left", "item-3": "right"},
    }
    assert score_page(key_path(tmp_path / "page.html"), [file])["ratings"] == 3
