"""The study `negative-transfer`: is a model of everything worth less to a task than one of half of the pictures?

For each seed five masked autoencoders, which differ in their pictures and in how long they are trained alone:

    all                                  every picture
    A, equal updates; B, equal updates   the pictures of one half (images/halves.py), as many updates
    A, equal epochs; B, equal epochs     the same, as many passes over them, so fewer updates

Of a half "negative transfer" is said where its model is better on a task than that of all pictures, which include the
half. Both halves are looked at, and the better one of two is rather above than below; so which half stands for a task
is chosen on its validation pictures, and the test pictures say what that is worth.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from moce.config import PretrainConfig, StudyConfig
from moce.engine.files import write_whole
from moce.engine.progress import say
from moce.errors import UserError, did_you_mean
from moce.images.halves import HALVES, halves_of
from moce.images.sampler import Order
from moce.images.sources import Source, open_images
from moce.images.subset import classes_uri, of_classes
from moce.study.bars import write_svg
from moce.study.outcome import finish
from moce.study.pairs import Pair
from moce.study.plan import Arm, Plan, Stage, slug
from moce.study.runner import Progress
from moce.study.settings import KEYS, TEXT, TEXTS, Settings, listed, plan_with, read_settings, seeds_of
from moce.study.summary import Measured
from moce.study.transfer_tables import halves_chart, halves_tables, verdict
from moce.verbs import resolve

ALL = "all"
EQUAL = ("updates", "epochs")
OWN_KEYS = {
    **{name: KEYS[name] for name in ("images", "data_root", "tasks", "protocols", "preset", "seeds")},
    **{name: KEYS[name] for name in ("pretrain", "evaluate")},
    "halves": TEXT,
    "equal": TEXTS,
}
DEFAULTS: dict[str, Any] = {
    "images": "toyworld://all?split=train&size=32&num=1200",
    "preset": "demo",
    "tasks": ["creatures", "plants", "landscapes", "letters", "vehicles", "textures"],
    "data_root": "toyworld://?size=32&num=120",
    "protocols": ["knn", "linear"],
}


def arm_name(half: str, equal: str) -> str:
    """'A, equal updates'."""
    return f"{half}, equal {equal}"


@dataclass(frozen=True)
class Halved:
    """The pictures of a study, and which classes are in which half."""

    source: Source
    by: str
    classes: dict[str, list[str]]

    @property
    def sizes(self) -> dict[str, int]:
        """Pictures of all, and of each half."""
        parts = {half: len(of_classes("", self.source, self.classes[half])) for half in HALVES}
        return {ALL: len(self.source), **parts}

    def to_json(self) -> dict[str, Any]:
        """For result.json."""
        numbers = {half: len(names) for half, names in self.classes.items()}
        return {"by": self.by, "num_images": self.sizes, "classes": numbers}


def halved(settings: Settings) -> Halved:
    """The pictures' halves; UserError where nobody knows them."""
    source = open_images(settings.images)
    by = settings.content.get("halves", "auto")
    return Halved(source, by, halves_of(source, by))


def file_of(out: Path, half: str) -> Path:
    """Where the classes of a half are written down."""
    return out / "halves" / f"{half}.txt"


def plan_of(config: StudyConfig, settings: Settings, pictures: Halved) -> Plan:
    """What to train and measure."""
    out, seeds, sizes = Path(config.out), seeds_of(settings, config), pictures.sizes
    steps = steps_of(settings, pictures.source)

    def arm(name: str, images: str, options: dict[str, Any]) -> Arm:
        own = {**settings.options("pretrain"), **options, "images": images}
        path = str(out / "runs" / slug(name))
        return Arm(
            name, {s: Stage(f"{path}-seed{s}", "pretrain", {**own, "seed": s}) for s in seeds}, options
        )

    arms = [arm(ALL, settings.images, {})]
    for way in equal_of(settings):
        for half in HALVES:
            share = 1.0 if way == "updates" else sizes[half] / sizes[ALL]
            uri = classes_uri(file_of(out, half), settings.images)
            arms.append(arm(arm_name(half, way), uri, {"steps": max(round(steps * share), 1)}))
    return plan_with(config, settings, arms, method="", baseline=ALL)


def equal_of(settings: Settings) -> list[str]:
    """What is kept equal; UserError for anything else."""
    found = listed(settings.content.get("equal", list(EQUAL)))
    for name in found:
        if name not in EQUAL:
            raise UserError(
                f"{settings.where}: 'equal' cannot be '{name}': choose one of {', '.join(EQUAL)}."
                f"{did_you_mean(name, EQUAL)}"
            )
    return found


def steps_of(settings: Settings, source: Source) -> int:
    """Updates of the model of all pictures."""
    given = {**settings.options("pretrain"), "images": settings.images, "out": "-"}
    options: PretrainConfig = resolve(PretrainConfig, given)
    return options.steps or Order(len(source), options.batch_size, 0).steps_for(options.epochs)


def carry_out(config: StudyConfig) -> dict[str, Any]:
    """Train and measure as much as the budget allows; leaves result.json, table.md and a chart per protocol in OUT."""
    settings = read_settings(config.config, DEFAULTS, OWN_KEYS)
    pictures, equal = halved(settings), equal_of(settings)
    plan = plan_of(config, settings, pictures)
    require_same_halves(plan.out, pictures)

    def more(plan: Plan, progress: Progress, result: dict[str, Any]) -> tuple[dict[str, Any], str]:
        found = transfer(plan, Measured(plan, progress.results), equal)
        for part in found:
            chart = plan.out / f"improvement-{part['protocol']}-equal-{part['equal']}.svg"
            write_svg(chart, halves_chart(part))
        return {"halves": pictures.to_json(), "transfer": found}, halves_tables(found)

    result = finish(plan, config, more, partial(write_halves, plan.out, pictures))
    for part in result["transfer"]:
        say(f"{part['protocol']}, equal {part['equal']}: {verdict(part)}", config.quiet)
    return result


def require_same_halves(out: Path, pictures: Halved) -> None:
    """UserError where other halves are written down, which runs may have been made of."""
    for half, text in listed_halves(pictures).items():
        file = file_of(out, half)
        if file.is_file() and file.read_text(encoding="utf-8") != text:
            raise UserError(
                f"{file} names other classes than half {half} has by '{pictures.by}'; choose another --out for other "
                "halves."
            )


def write_halves(out: Path, pictures: Halved) -> None:
    """Write down the classes of both halves; UserError where another process has written down others."""
    require_same_halves(out, pictures)
    for half, text in listed_halves(pictures).items():
        with write_whole(file_of(out, half)) as temporary:
            temporary.write_text(text, encoding="utf-8")


def listed_halves(pictures: Halved) -> dict[str, str]:
    """The content of the file of each half: a class a line."""
    return {half: "".join(f"{name}\n" for name in pictures.classes[half]) for half in HALVES}


def transfer(plan: Plan, measured: Measured, equal: list[str]) -> list[dict[str, Any]]:
    """For each protocol, and what is kept equal: what both halves gain on every task, and what the better one does."""
    found = []
    for protocol in plan.protocols:
        for way in equal:
            pairs = {}
            for half in HALVES:
                own, other = plan.arm(arm_name(half, way)), plan.arm(ALL)
                assert own is not None and other is not None
                pairs[half] = measured.pair(own, other, protocol)
            if (row := of_halves(plan, measured, protocol, way, pairs)) is not None:
                found.append(row)
    return found


def of_halves(
    plan: Plan, measured: Measured, protocol: str, way: str, pairs: dict[str, Pair | None]
) -> dict[str, Any] | None:
    """One entry of `transfer`, over the tasks that both halves and the whole were measured on."""
    there = {half: pair for half, pair in pairs.items() if pair is not None}
    if len(there) < len(HALVES):
        return None
    by_task = {half: {d.task: d for d in pair.differences} for half, pair in there.items()}
    shared = [task for task in by_task["A"] if task in by_task["B"]]
    if not shared:
        return None
    chosen = {task: better_half(plan, measured, task, protocol, way) for task in shared}
    halves = {task: half for task, half in chosen.items() if half is not None}
    whole = len(halves) == len(shared)
    best = (
        Pair("the better half", ALL, [by_task[half][task] for task, half in halves.items()])
        if halves
        else None
    )
    said = {half: pair.summary()["per_task"] for half, pair in there.items()}
    of_best = best.summary() if best is not None else {"per_task": {}}
    tasks = [
        {
            "task": task,
            **{half: said[half][task] for half in HALVES},
            "better": chosen[task],
            "chosen_on": "val" if chosen[task] else None,
            "improvement": of_best["per_task"].get(task),
        }
        for task in shared
    ]
    return {
        "protocol": protocol,
        "equal": way,
        "tasks": tasks,
        "better_half": {name: value for name, value in of_best.items() if name != "per_task"}
        if whole
        else None,
        "improved": sum(row["improvement"]["value"] > 0 for row in tasks) if whole else None,
        "separable": {
            "better": sum(above(row["improvement"]["pictures"]) for row in tasks),
            "worse": sum(below(row["improvement"]["pictures"]) for row in tasks),
        }
        if whole
        else None,
        "either": sum(max(row[half]["value"] for half in HALVES) > 0 for row in tasks),
    }


def better_half(plan: Plan, measured: Measured, task: str, protocol: str, way: str) -> str | None:
    """The half whose model validation prefers; None where nothing was chosen on validation."""
    scores: dict[str, list[float]] = {}
    for half in HALVES:
        own = plan.arm(arm_name(half, way))
        assert own is not None
        cells = list(measured.seeds(own, task, protocol).values())
        scores[half] = [
            c["settings"]["val_score"] for c in cells if c["settings"].get("val_score") is not None
        ]
    if not all(scores.values()):
        return None  # by the test pictures the better of two would seem better than it is
    means = {half: sum(own) / len(own) for half, own in scores.items()}
    return max(HALVES, key=lambda half: means[half])


def above(interval: Any) -> bool:
    """Whether all of an interval lies above 0."""
    return interval is not None and interval[0] > 0


def below(interval: Any) -> bool:
    """Whether all of an interval lies below 0."""
    return interval is not None and interval[1] < 0
