"""The TOML file of a study: read, checked, and turned into what a plan needs.

Every table of options takes the options of a verb under their own names, so a mistake in one is found here, before
anything is trained.
"""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from moce.config import ClusterConfig, EvaluateConfig, ExpertsConfig, PretrainConfig, StudyConfig
from moce.errors import UserError, did_you_mean
from moce.study.plan import Arm, Plan, slug, task_name
from moce.verbs import resolve

TEXT, TEXTS, NUMBERS, FLAG, TABLE, TABLES = (
    "a text",
    "a text or a list of texts",
    "a list of whole numbers",
    "true or false",
    "a table",
    "[[...]]",
)
LEVELS = "a list of names or a table of levels"
KEYS = {
    "images": TEXT, "data_root": TEXT, "tasks": TEXTS, "protocols": TEXTS, "preset": TEXT, "seeds": NUMBERS,
    "mae": TEXTS, "mae_per_seed": FLAG, "clusters": TEXTS, "clusters_per_seed": FLAG,
    "method": TEXT, "baseline": TEXT, "lr_from": TEXT,
    "pretrain": TABLE, "cluster": TABLE, "experts": TABLE, "evaluate": TABLE, "arms": TABLES,
}  # fmt: skip
ARM_KEYS = {
    "name": TEXT,
    "options": TABLE,
    "strategy": TEXT,
    "protocols": TEXTS,
    "model": TEXT,
    "selected_by": TEXT,
}
IS: dict[str, Callable[[Any], bool]] = {
    TEXT: lambda value: isinstance(value, str),
    TEXTS: lambda value: isinstance(value, str) or _list_of(value, str),
    NUMBERS: lambda value: _list_of(value, int),
    FLAG: lambda value: isinstance(value, bool),
    TABLE: lambda value: isinstance(value, dict),
    TABLES: lambda value: _list_of(value, dict),
    LEVELS: lambda value: isinstance(value, (str, list, dict)),
}
CLASSES: dict[str, type] = {
    "pretrain": PretrainConfig,
    "cluster": ClusterConfig,
    "experts": ExpertsConfig,
    "evaluate": EvaluateConfig,
}
# What the study itself says.
SAID = ("out", "images", "mae", "enc", "clusters", "model", "task", "json", "overwrite", "seed")


def _list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is kind for item in value)


@dataclass
class Settings:
    """The content of the file, checked."""

    where: str  # what sentences about it begin with
    content: dict[str, Any]
    images: str = ""
    protocols: list[str] = field(default_factory=list)
    evaluate: dict[str, dict[str, Any]] = field(default_factory=dict)

    def options(self, table: str) -> dict[str, Any]:
        """The options of a stage."""
        preset = {"preset": self.content["preset"]} if "preset" in self.content else {}
        return {**preset, **self.content.get(table, {})}


def read_settings(file: str | None, defaults: Mapping[str, Any], keys: Mapping[str, str] = KEYS) -> Settings:
    """The file, or `defaults` where none is given; a file without `arms` or `protocols` gets those of the defaults.

    Raises UserError for a file that is not there or no TOML, a key that does not exist, a value of another kind, and an
    option that its verb would refuse.
    """
    if file is None:
        content, where = dict(defaults), "the study's defaults"
    else:
        content, where = read_toml(Path(file)), file
        require_keys(content, keys, where)
        kept = ("arms", "protocols")
        content = {**{name: defaults[name] for name in kept if name in defaults}, **content}
        missing = [name for name in ("images", "tasks") if name not in content]
        if missing:
            raise UserError(f"{where}: '{missing[0]}' must be given.")
    protocols = listed(content.get("protocols", ["knn", "linear"]))
    require_protocols(protocols, where)
    settings = Settings(where, content, content["images"], protocols)
    for table in ("pretrain", "cluster", "experts"):
        require_options(settings, table, content.get(table, {}))
    settings.evaluate = evaluation_options(settings)
    return settings


def require_protocols(names: list[str], where: str) -> None:
    """UserError for a protocol that does not exist."""
    from moce.transfer.evaluate import PROTOCOLS  # torch

    for name in names:
        if name not in PROTOCOLS:
            hint = did_you_mean(name, PROTOCOLS)
            raise UserError(
                f"{where}: there is no protocol '{name}': choose some of {', '.join(PROTOCOLS)}.{hint}"
            )


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file; UserError when it is missing or broken."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"There is no file {path} (--config).{did_you_mean(path.name, beside)}") from None
    except (ValueError, OSError) as error:
        raise UserError(f"--config {path} cannot be read as TOML: {error}.") from None


def require_keys(content: Mapping[str, Any], keys: Mapping[str, str], where: str) -> None:
    """UserError for a key that does not exist or holds another kind of value."""
    for name, value in content.items():
        if name not in keys:
            raise UserError(f"{where}: there is no key '{name}'.{did_you_mean(name, keys)}")
        if not IS[keys[name]](value):
            raise UserError(f"{where}: '{name}' must be {keys[name]}, not {value!r}.")


def listed(value: str | list[str]) -> list[str]:
    """A list of texts, or one text with commas."""
    names = value.split(",") if isinstance(value, str) else value
    return list(dict.fromkeys(name.strip() for name in names))


def require_options(settings: Settings, table: str, options: Mapping[str, Any], within: str = "") -> Any:
    """The config of a verb with a table's options; UserError for one that it has not, or a value that it refuses."""
    where = f"{settings.where} [{within or table}]"
    for name in SAID:
        if name in options and (table, name) != ("pretrain", "model"):  # there it is the architecture
            raise UserError(f"{where}: '{name}' is said by the study itself; leave it out.")
    if options.get("devices", 1) != 1:
        raise UserError(
            f"{where}: a study runs in one process; leave 'devices' out, or train a run by itself."
        )
    some = dict.fromkeys(("images", "out", "mae", "enc", "clusters", "model", "task"), "x")
    known = [f.name for f in fields(CLASSES[table])]
    # An evaluation's presets are others, of some protocols.
    has_preset = "preset" in settings.content and table != "evaluate"
    preset = {"preset": settings.content["preset"]} if has_preset else {}
    given = {name: value for name, value in {**some, **preset}.items() if name in known}
    try:
        return resolve(CLASSES[table], {**given, **options})
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def require_trainable(settings: Settings, options: Mapping[str, Any], within: str) -> ExpertsConfig:
    """The config of experts with these options beside those of [experts].

    UserError where train-experts would refuse them, or nothing could be measured of what it makes.
    """
    from moce.stages.experts import require_sense  # torch

    options = {**settings.content.get("experts", {}), **options}
    config: ExpertsConfig = require_options(settings, "experts", options, within)
    try:
        require_sense(replace(config, quiet=True))
    except UserError as error:
        raise UserError(f"{settings.where} [{within}]: {error}") from None
    if config.gate == "cluster" and config.top_k > 1:
        raise UserError(
            f"{settings.where} [{within}]: with top_k {config.top_k} no sub-model of the dense size can be sliced out, "
            "so none could be measured; leave top_k at 1, or give gate 'token'."
        )
    return config


def evaluation_options(settings: Settings) -> dict[str, dict[str, Any]]:
    """Options of `moce evaluate` by protocol: those of [evaluate], then those of [evaluate.PROTOCOL]."""
    table = settings.content.get("evaluate", {})
    own = {name: value for name, value in table.items() if isinstance(value, dict)}
    common = {name: value for name, value in table.items() if name not in own}
    for name in own:
        if name not in settings.protocols:
            hint = did_you_mean(name, settings.protocols)
            raise UserError(
                f"{settings.where}: [evaluate.{name}] is for none of the protocols "
                f"{', '.join(settings.protocols)}.{hint}"
            )
    found = {protocol: {**common, **own.get(protocol, {})} for protocol in settings.protocols}
    for protocol, options in found.items():
        within = f"evaluate.{protocol}" if protocol in own else "evaluate"
        for name in ("protocol", "strategy", "data_root"):
            if name in options:
                raise UserError(
                    f"{settings.where} [{within}]: '{name}' is said by the study itself; leave it out."
                )
        require_options(settings, "evaluate", {**options, "protocol": protocol}, within)
    return found


def tasks_of(settings: Settings) -> list[str]:
    """The tasks; UserError for two of one name."""
    from moce.images.tasks import all_names

    spelled = listed(settings.content["tasks"])
    tasks = all_names(settings.content.get("data_root")) if spelled == ["all"] else spelled
    if "all" in tasks:
        raise UserError(f"{settings.where}: 'all' stands for every task of data_root; give it alone.")
    names = [slug(task_name(task)) for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{settings.where}: two tasks are called '{name}'; give each a name of its own.")
    return tasks


def seeds_of(settings: Settings, config: StudyConfig) -> list[int]:
    """Those of the command line, else of the file, else --seed. UserError for a negative one."""
    if (lowest := min(settings.content.get("seeds", [0]))) < 0:
        raise UserError(f"{settings.where}: seeds must be at least 0, not {lowest}.")
    return list(dict.fromkeys(config.seeds or settings.content.get("seeds") or (config.seed,)))


def plan_with(config: StudyConfig, settings: Settings, arms: list[Arm], **more: Any) -> Plan:
    """A plan of these arms, with what the file of every study says; `more` are further fields of it."""
    return Plan(
        kind=config.kind,
        out=Path(config.out),
        arms=arms,
        tasks=tasks_of(settings),
        data_root=settings.content.get("data_root"),
        protocols=settings.protocols,
        seeds=seeds_of(settings, config),
        all_seeds=tuple(settings.content.get("seeds", ())),
        images=settings.images,
        evaluate=settings.evaluate,
        **more,
    )
