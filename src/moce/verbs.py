"""A verb: what stands between a stage and those who call it, the command line and `import moce`.

Options that were given become a config here, with those of the preset; the public function is made from both.
"""

import dataclasses
import functools
import inspect
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from moce.config import Distributed, EvaluateConfig
from moce.engine import launch
from moce.errors import UserError, did_you_mean
from moce.options import checked, spelled
from moce.presets import DEFAULT, evaluation_options, preset_options


def resolve(config_class: type, given_options: dict[str, Any]) -> Any:
    """The config of a verb: options given, else the preset's, else the defaults of the fields.

    Raises UserError for an unknown option, a value that does not fit, or a missing one.
    """
    known = {f.name: f for f in fields(config_class)}
    for name in given_options:
        if name not in known:
            raise UserError(f"There is no option '{name}' here.{did_you_mean(name, known)}")
    options = dict(given_options)
    if config_class is EvaluateConfig:
        protocol = str(options.get("protocol", known["protocol"].default))
        options = {**evaluation_options(protocol, options.get("preset")), **options}
    elif "preset" in known:
        preset = options.get("preset", known["preset"].default) or inherited_preset(options)
        options["preset"] = preset
        options = {**preset_options(config_class, preset), **options}
    missing = [n for n, f in known.items() if n not in options and f.default is dataclasses.MISSING]
    if missing:
        raise UserError(f"{', '.join(spelled(known[n]) for n in missing)} must be given.")
    return config_class(**{n: checked(v, known[n], config_class) for n, v in options.items()})


def inherited_preset(options: dict[str, Any]) -> str:
    """The preset of the dense run that a later stage builds on, so that a recipe is named once."""
    for name in ("mae", "enc"):
        if name in options:
            try:
                return json.loads((Path(options[name]) / "config.json").read_text())["options"]["preset"]
            except (OSError, ValueError, KeyError, TypeError):
                break  # the stage itself says what is wrong with that folder
    return DEFAULT


def refuse_devices(config: Any) -> None:
    """UserError when --devices says something else than how many processes there are."""
    asked, there = getattr(config, "devices", 1), launch.local_world_size()
    if asked not in (1, there):
        raise UserError(
            f"--devices {asked} is for the command line alone; start a script with torchrun --nproc-per-node {asked}."
            if there == 1
            else f"--devices {asked} but torchrun started {there} processes here; leave --devices out."
        )


def verb(config_class: type) -> Callable[[Callable[[Any], Any]], Callable[..., Any]]:
    """Turn `def stage(config) -> result` into the public function with the options of `config_class` as arguments.

    `moce.pretrain(images="pictures", out="runs/mae", epochs=3)` and the command line are then the same thing.
    """

    def wrap(stage: Callable[[Any], Any]) -> Callable[..., Any]:
        positional = [f.name for f in fields(config_class) if f.metadata["positional"]]

        def run(config: Any) -> Any:
            if not isinstance(config, Distributed) or launch.world_size() == 1:
                refuse_devices(config)
                return answered(config, lambda do: do())
            from moce.engine.processes import group, together

            with together(config) as own:
                refuse_devices(config)
                return answered(own, group().once)

        def answered(config: Any, once: Callable[[Callable[[], Any]], Any]) -> Any:
            """Run the stage and, if asked for, write what it returns."""
            if config.json is None:
                return stage(config)
            from moce.engine.answers import earlier_answers, replace_answers

            earlier = once(lambda: earlier_answers(config.json, getattr(config, "out", None)))
            result = stage(config)
            once(lambda: replace_answers(config.json, earlier, result, config.quiet))
            return result

        @functools.wraps(stage)
        def public(*args: Any, **options: Any) -> Any:
            if len(args) == 1 and not options and isinstance(args[0], config_class):
                return run(args[0])
            if len(args) > len(positional):
                raise TypeError(
                    f"{stage.__name__} takes {len(positional)} positional arguments, not {len(args)}"
                )
            by_place = dict(zip(positional, args, strict=False))
            if twice := sorted(by_place.keys() & options.keys()):
                raise TypeError(f"{stage.__name__} got several values for argument '{twice[0]}'")
            return run(resolve(config_class, {**by_place, **options}))

        arguments = [
            inspect.Parameter(
                f.name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD
                if f.metadata["positional"]
                else inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if f.default is dataclasses.MISSING else f.default,
            )
            for f in sorted(fields(config_class), key=lambda f: not f.metadata["positional"])
        ]
        public.__signature__ = inspect.Signature(arguments)  # type: ignore[attr-defined]
        public.config_class = config_class  # type: ignore[attr-defined]
        return public

    return wrap
