"""How the numbers of a study were got: its file, versions of the code, machines, and what all of it took."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from moce.engine.files import read_json
from moce.engine.progress import clock
from moce.engine.runs import CONFIG
from moce.study.cells import seconds_of
from moce.study.plan import Plan, Stage


def origin(plan: Plan, results: list[dict[str, Any]], file: str | None) -> dict[str, Any]:
    """Of every run and cell that is there: {config, commits, torch, hosts, training_seconds, evaluation_seconds}.

    `file`, and `config`, is the text of the study's file, null for the built-in one. Runs of other places than
    OUT/runs, which the study takes as they are, are among the commits and hosts but not among the seconds.
    """
    lasts = [last for arm in plan.arms for last in arm.models.values()]
    for result in results:
        arm = plan.arm(result["method"])
        if arm is not None and arm.selected_by is not None:
            lasts.append(replace(arm.models[result["seed"]], path=result["model"]))
    stages = {stage.path: stage for last in lasts for stage in last.chain()}
    described = [found for stage in stages.values() if (found := description(stage))]
    hosts = {tuple(sorted(found["host"].items())) for found in described if "host" in found}
    own = [stage.path for stage in stages.values() if stage.verb is not None]
    torches = {found.get("versions", {}).get("torch") for found in described} | {
        r.get("torch") for r in results
    }
    commits = {found.get("commit") for found in described} | {r.get("commit") for r in results}
    return {
        "config": file,
        "commits": sorted(commit for commit in commits if commit),
        "torch": sorted(version for version in torches if version),
        "hosts": [dict(host) for host in sorted(hosts, key=str)],
        "training_seconds": round(sum(seconds_of(path) or 0 for path in own), 1),
        "evaluation_seconds": round(sum(r.get("study", {}).get("seconds") or 0 for r in results), 1),
    }


def description(stage: Stage) -> dict[str, Any]:
    """What a run's config.json says of it; {} for what is no run or does not lie there."""
    path = Path(stage.path) / CONFIG
    content = read_json(path) if path.is_file() else {}
    return content.get("moce", content)


def told(found: dict[str, Any], kind: str) -> str:
    """The end of table.md."""
    hosts = ", ".join(
        f"{host.get('cores')} cores" + (f" and {host['gpu']}" if host.get("gpu") else "")
        for host in found["hosts"]
    )
    lines = [
        "",
        "## How it was got",
        "",
        f"`moce study {kind}`"
        + (" with this file:" if found["config"] is not None else ", the built-in small study."),
    ]
    if found["config"] is not None:  # whose seeds those of the command line replace; the first line has them
        lines += ["", "```toml", found["config"].strip(), "```"]
    lines += [
        "",
        f"Commits {', '.join(commit[:12] for commit in found['commits']) or 'unknown'}; torch "
        f"{', '.join(found['torch']) or 'unknown'}; runs made on {hosts or 'unknown machines'}. The study's own "
        f"training took {clock(found['training_seconds'])}, its evaluations {clock(found['evaluation_seconds'])}.",
        "",
    ]
    return "\n".join(lines)
