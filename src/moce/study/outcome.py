"""What every study does with its plan: carry it out, and write result.json, table.md and tried.csv of what is there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from moce.config import StudyConfig
from moce.engine.files import held, read_json, require_writable, write_json, write_whole
from moce.engine.progress import say
from moce.engine.runs import RESULT
from moce.errors import UserError, counted
from moce.study import tried
from moce.study.markdown import markdown
from moce.study.origin import origin, told
from moce.study.plan import Plan
from moce.study.runner import Progress, carry_out, still_left
from moce.study.summary import Measured, summary
from moce.study.table import as_text

More = Callable[[Plan, Progress, dict[str, Any]], tuple[dict[str, Any], str]]


def finish(
    plan: Plan, config: StudyConfig, more: More | None = None, first: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Carry a plan out, write what it gives, and return the content of result.json.

    `more` gives what a study has beyond the tables, which it is shown: further keys of result.json, and a text at the
    end of table.md. `first` writes what must lie in the folder before anything is trained.
    """

    def started() -> None:
        begin(plan.out)
        first()

    file = None if config.config is None else Path(config.config).read_text(encoding="utf-8")  # as it is now
    require_place(plan.out, config)
    worker = carry_out(plan, config, started)
    with held(plan.out / ".locks" / "result"):  # of several processes, who looked last writes last
        progress = worker.progress()
        result = summary(plan, progress)
        further, text = more(plan, progress, result) if more else ({}, "")
        result |= further | {"origin": origin(plan, progress.results, file)}
        write(plan, config, progress, result, text + told(result["origin"], plan.kind))
    if not config.quiet:
        show(plan, progress)
    if progress.left:
        say(f"{still_left(plan, progress)}; the same command continues", config.quiet)
    require_none_failed(progress, plan)
    return result


def require_none_failed(progress: Progress, plan: Plan) -> None:
    """UserError where a verb refused something; what there is was written before."""
    if not progress.failed:
        return
    what, why = next(iter(progress.failed.items()))
    more = f" {counted(len(progress.failed) - 1, 'other')} failed too." if len(progress.failed) > 1 else ""
    raise UserError(f"{what}: {why}{more} {plan.out / RESULT} has what could be made.")


def require_place(out: Path, config: StudyConfig) -> None:
    """UserError where the study's folder cannot be written or is something else; writes nothing."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder.")
    known = {"runs", "cells"}
    if out.is_dir() and (there := {p.name for p in out.iterdir()}) and not there & known:
        raise UserError(f"--out {out} is not empty and holds no study; name an empty or new folder.")
    earlier = read_json(out / RESULT) if (out / RESULT).is_file() else None
    kind = earlier.get("kind") if isinstance(earlier, dict) else None
    if kind not in (None, config.kind):
        raise UserError(f"--out {out} holds a study of another kind, {kind}; name another folder.")
    require_writable(out / RESULT)
    if config.tried is not None:
        require_writable(config.tried)
        tried.read(Path(config.tried))
    tried.read(out / "tried.csv")


def begin(out: Path) -> None:
    """Make the study's folder, by which it is known as one."""
    try:
        (out / "cells").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot write to --out {out}: {error.strerror}; choose another place.") from None


def write(
    plan: Plan, config: StudyConfig, progress: Progress, result: dict[str, Any], text: str = ""
) -> None:
    """result.json, table.md, tried.csv and --tried."""
    write_json(plan.out / RESULT, result)
    with write_whole(plan.out / "table.md") as temporary:
        temporary.write_text(markdown(result) + text, encoding="utf-8", errors="backslashreplace")
    new = list(tried.lines(plan, progress))
    for path in [plan.out / "tried.csv", *([Path(config.tried)] if config.tried else [])]:
        tried.add_to(path, new)


def show(plan: Plan, progress: Progress) -> None:
    """The table of every protocol on stdout, and where more stands on stderr."""
    measured = Measured(plan, progress.results)
    for protocol in plan.protocols:
        table = measured.table(protocol)
        if table.results:
            print(as_text(table))
    say(
        f"{plan.out / 'table.md'} has everything; `moce report {plan.out} --out PAGE.html` makes a page of it"
    )
