"""A verb: what stands between a stage and those who call it, the command line and `import moce`."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from moce.config import Distributed, resolve
from moce.engine import launch
from moce.errors import UserError


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

            earlier = once(lambda: earlier_answers(config.json))
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
            return run(resolve(config_class, {**dict(zip(positional, args, strict=False)), **options}))

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
