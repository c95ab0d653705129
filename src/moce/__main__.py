"""The command line: one verb per stage, nothing else.

Options come from the dataclasses in config.py; the verb's module (and with it torch) is imported only when it runs.
Exit codes: 0; 1 a fault of ours; 2 the user's input, one sentence on stderr; 130 and 143 interrupted.
"""

import argparse
import dataclasses
import os
import signal
import sys
import traceback
import typing
from importlib import import_module
from typing import Any, NoReturn

from moce import VERBS, __version__, config, presets
from moce.engine import launch
from moce.errors import ProcessLost, UserError, did_you_mean, require_there
from moce.options import SOURCES, Size, kind_of, spelled
from moce.verbs import resolve

LATER = ("export", "explore")


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one sentence with a suggestion."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; `{self.prog} --help` lists what there is.")


def verb_parser(verb: str) -> Parser:
    """The options of one verb, made from its dataclass."""
    config_class = config.CONFIGS[verb]
    parser = Parser(
        prog=f"moce {verb}",
        description=config_class.__doc__,
        epilog=explanation(config_class),
        allow_abbrev=False,
    )
    for field in dataclasses.fields(config_class):
        element, many, _ = kind_of(field, config_class)
        text = field.metadata["help"].replace("%", "%%")
        if values := default_of(field, config_class):
            text += f" [{values}]"
        if field.metadata["positional"]:
            parser.add_argument(
                field.name, help=text, metavar=field.name.upper(), nargs="+" if many else None
            )
        elif element is bool:
            parser.add_argument(
                spelled(field),
                action=argparse.BooleanOptionalAction,
                default=None,
                help=text,
            )
        else:
            # Values stay text here: resolve converts them, so Python and the command line complain alike.
            choices = typing.get_args(element)
            name = "N|HxW" if element == Size else "|".join(choices) or element.__name__.upper()
            parser.add_argument(spelled(field), help=text, metavar=name, default=None)
    return parser


def default_of(field: dataclasses.Field, config_class: type) -> str:
    """What an option is where it is not given, as the help shows it; "" where there is nothing to show.

    An evaluation has several such values where the preset of a protocol sets one, for example "64; detect: 4".
    """

    def shown(value: Any) -> str:
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    values = [] if field.default in (dataclasses.MISSING, None) else [shown(field.default)]
    if config_class is config.EvaluateConfig:
        for protocol in presets.EVALUATIONS:
            options = presets.evaluation_options(protocol, None)
            if options.get(field.name, field.default) != field.default:
                values.append(f"{protocol}: {shown(options[field.name])}")
    return "; ".join(values)


def explanation(config_class: type) -> str:
    """What the brackets and letters in the help of a verb mean."""
    known = [field.name for field in dataclasses.fields(config_class)]
    inherited = " or the dense run's" if config_class in (config.ClusterConfig, config.ExpertsConfig) else ""
    by_preset = f" (where --preset{inherited} is another recipe, that one's)" if "preset" in known else ""
    return f"In square brackets: what is taken where an option is not given{by_preset}. {SOURCES}."


def overview() -> str:
    """The text of `moce --help`."""
    lines = [
        "usage: moce VERB [options]",
        "",
        (import_module("moce").__doc__ or "").splitlines()[0],
        "",
        "verbs:",
    ]
    lines += [f"  {verb:<14} {(c.__doc__ or '').splitlines()[0]}" for verb, c in config.CONFIGS.items()]
    lines += ["", "presets (--preset):"]
    lines += [f"  {name:<18} {recipe.about}" for name, recipe in presets.PRESETS.items()]
    lines += ["", "`moce VERB --help` lists the options of a verb. The same command again continues a run."]
    return "\n".join(lines)


def parse(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """(verb, options given) of a command line."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        raise SystemExit(0)
    if arguments[0] == "--version":
        print(f"moce {__version__}")
        raise SystemExit(0)
    verb, *rest = arguments
    if verb in LATER:
        raise UserError(f"`moce {verb}` is not there yet in version {__version__}.")
    if verb not in config.CONFIGS:
        raise UserError(
            f"There is no verb '{verb}'; `moce --help` lists them.{did_you_mean(verb, config.CONFIGS)}"
        )
    parser = verb_parser(verb)
    namespace, unknown = parser.parse_known_args(rest)
    if unknown:
        known = [o for action in parser._actions for o in action.option_strings]
        word = unknown[0].split("=")[0]
        raise UserError(
            f"`moce {verb}` has no option '{word}'.{did_you_mean(word, known)}"
            if word.startswith("-")
            else f"`moce {verb}` does not know what to do with '{word}'."
        )
    return verb, {name: value for name, value in vars(namespace).items() if value is not None}


def run(arguments: list[str]) -> None:
    """Run one command; raises what goes wrong."""
    verb, options = parse(arguments)
    resolved = resolve(config.CONFIGS[verb], options)
    if images := getattr(resolved, "images", None):
        require_there(images)  # at once, and not after the seconds that torch takes to import
    several = isinstance(resolved, config.Distributed)
    if launch.world_size() > 1 and not several:
        raise UserError(f"`moce {verb}` runs in one process; start it without torchrun.")
    if launch.world_size() == 1 and several and resolved.devices > 1:
        raise SystemExit(launch.launch(resolved.devices, arguments))
    name = verb.replace("-", "_")
    getattr(import_module(VERBS[name]), name)(resolved)


def terminated(*_: object) -> NoReturn:
    """SIGTERM outside of training, which handles it itself: unwind, so that no half-written file stays."""
    raise SystemExit(128 + signal.SIGTERM)


def main() -> None:
    """Entry point: turns what went wrong into an exit code."""
    code, sentence = 0, ""
    one_of_several = os.environ.get("WORLD_SIZE", "1") != "1"
    if one_of_several:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost connection is told in our words
    signal.signal(signal.SIGTERM, terminated)
    try:
        run(sys.argv[1:])
    except UserError as error:
        code, sentence = 2, f"moce: {error}"
    except ProcessLost as error:
        code, sentence = 1, f"moce: {error}"
    except KeyboardInterrupt:
        code, sentence = 130, "moce: interrupted; the same command continues."
    except BrokenPipeError:
        code = 1
    except Exception:
        if not one_of_several:
            raise
        # A fault of ours; the usual way out would wait for the other processes.
        traceback.print_exc()
        code = 1
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0
    if one_of_several:
        end_one_of_several(code, sentence)
    if sentence:
        print(sentence, file=sys.stderr, flush=True)
    if code == 130:
        os._exit(code)  # DataLoader workers and pending threads must not turn a clean stop into a traceback
    if code:
        sys.exit(code)


def end_one_of_several(code: int, sentence: str) -> None:
    """The end of a process that torchrun started: one of them speaks for all."""
    from moce.engine import endings, processes

    if code:
        endings.last_words(code, sentence)
    processes.leave()


if __name__ == "__main__":
    main()
