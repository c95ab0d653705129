"""The verb `report`: one self-contained page of some runs, what was trained, what came out, and what it is worth.

A section is there when its input is there. contents.py reads, page/ says what a section shows, the templates lay it out
and escape all text.
"""

from pathlib import Path
from typing import Any

import jinja2

from moce import __version__
from moce.config import ReportConfig
from moce.engine.files import write_whole
from moce.engine.progress import clock, say
from moce.errors import UserError
from moce.study.charts import colour
from moce.study.contents import Contents, gather
from moce.study.figures import PIXEL_BUDGET, scale_for
from moce.study.markdown import signed
from moce.study.page.colours import colour_section
from moce.study.page.costs import cost_sections
from moce.study.page.curves import gates, learning
from moce.study.page.factors import factor_sections
from moce.study.page.gallery import PER_EXPERT, cluster_section, expert_section, reconstruction_rows
from moce.study.page.halves import halves_sections
from moce.study.page.predictions import prediction_rows
from moce.study.page.results import result_section
from moce.study.page.runs import run_row
from moce.study.page.study import study_section
from moce.study.page.tasks import task_section
from moce.study.plan import corpus
from moce.study.table import percent, tables
from moce.verbs import verb

GENERATOR = '<meta name="generator" content="moce">'  # in the template; says that a file is a page of ours
LARGEST = 14_000_000  # characters of a page
TITLE_LENGTH, MOST_TITLES = 60, 6  # of the page: characters of a name, names


@verb(ReportConfig)
def report(config: ReportConfig) -> dict[str, Any]:
    """Write one self-contained HTML page of run folders, customised models and evaluations, given in any order.

    Returns {verb, out, bytes, sections, runs, tasks, evaluations}. Raises UserError for a path that is none of these,
    and for an --out that is somebody else's file.
    """
    out = Path(config.out)
    if out.is_dir() or out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {out} is {'a folder' if out.is_dir() else 'no page'}; name an .html file.")
    if out.exists() and not config.overwrite and GENERATOR not in out.read_text("utf-8", "replace")[:2000]:
        raise UserError(
            f"--out {out} is there and is no page of moce; choose another name, or give --overwrite."
        )
    contents = gather(config.runs)
    budget = float(PIXEL_BUDGET)
    sections = page_sections(contents, config.seed, budget)
    while len(text := render(contents, sections)) > LARGEST and budget > PIXEL_BUDGET / 64:
        budget /= 2  # pictures that hardly compress, such as noise
        sections = page_sections(contents, config.seed, budget)
    if not sections:
        raise UserError(
            f"There is nothing to show in {', '.join(config.runs)} yet; finish what was interrupted there."
        )
    with write_whole(out) as temporary:
        # A file name may hold bytes that are no UTF-8; they are shown as \udc.. like in JSON.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    size = out.stat().st_size
    say(f"{out}: {', '.join(sections)} ({size / 2**20:.1f} MiB)", config.quiet)
    return {
        "verb": "report",
        "out": str(out),
        "bytes": size,
        "sections": list(sections),
        "runs": len(contents.runs),
        "tasks": len(contents.tasks),
        "evaluations": len(contents.results),
    }


def render(contents: Contents, sections: dict[str, Any]) -> str:
    """The page as text."""
    template = environment().get_template("report.html.j2")
    return template.render(
        contents=contents, sections=sections, titles=page_titles(contents), colour=colour, version=__version__
    )


def in_points(value: float, digits: int = 1) -> str:
    """A difference as the page has it: means with two digits, single tasks with one."""
    return signed(value, digits)


def environment() -> jinja2.Environment:
    """Templates that escape everything and refuse a name that is not there."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "page")
    made = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {
        "percent": percent,
        "clock": clock,
        "gib": lambda n: f"{n / 2**30:.1f} GiB",
        "signed": in_points,
    }
    return made


def page_titles(contents: Contents) -> list[str]:
    """What the page is of: the pictures of its runs, or the tasks of its models; some of them where there are many."""
    if contents.built_in:
        return ["The built-in toy world"]
    images = [run.info.config["images"] for run in contents.runs]
    images += [study["corpus"] for study in contents.studies if study["corpus"]]
    names = [corpus(uri) for uri in images] or [task.name for task in contents.tasks] or ["Evaluations"]
    names = [n if len(n) <= TITLE_LENGTH else n[: TITLE_LENGTH - 1] + "…" for n in dict.fromkeys(names)]
    return names if len(names) <= MOST_TITLES else [*names[:MOST_TITLES], f"{len(names) - MOST_TITLES} more"]


def page_sections(contents: Contents, seed: int, budget: float = PIXEL_BUDGET) -> dict[str, Any]:
    """What each section shows, by its name; empty ones left out. All small pictures have `budget` pixels at most."""
    scale = common_scale(contents, budget)
    made = {
        "study": [study_section(study) for study in contents.studies if study["kind"] == "compare"],
        "halves": halves_sections(contents.studies),
        "factors": factor_sections(contents.studies),
        "costs": cost_sections(contents.studies),
        "results": [result_section(table) for table in tables(contents.results)],
        "predictions": prediction_rows(contents.results, budget),
        "tasks": [task_section(task) for task in contents.tasks],
        "runs": [run_row(run) for run in contents.runs],
        "learning": learning(contents),
        "reconstructions": reconstruction_rows(contents, seed),
        "clusters": [cluster_section(c, scale) for c in contents.cluster_sets],
        "gates": gates(contents),
        "experts": [expert_section(run, scale) for run in contents.of("train-experts") if run.routing],
        "colours": colour_section(contents),
    }
    return {name: content for name, content in made.items() if content}


def common_scale(contents: Contents, budget: float) -> float:
    """How much small pictures are shrunk so that all of them fit the page."""
    numbers = [c.images.shape[0] * (c.images.shape[1] + 1) for c in contents.cluster_sets]
    routed = [run for run in contents.runs if run.routing and run.clusters]
    numbers += [PER_EXPERT * len(t["gate"][0]) for run in routed if run.routing for t in run.routing.values()]
    height, width = (
        max((c.images.shape[side] for c in contents.cluster_sets), default=1) for side in (-2, -1)
    )
    return scale_for(sum(numbers), height, width, budget)
