"""Options: presets, values that do not fit, and the two ways to give them."""

import dataclasses
import inspect
import json
from pathlib import Path

import pytest

import moce
from moce.__main__ import parse, verb_parser
from moce.config import CONFIGS, EvaluateConfig, ExpertsConfig, PretrainConfig
from moce.errors import UserError
from moce.methods import experts_method
from moce.options import changed_method_options
from moce.presets import PRESETS
from moce.verbs import resolve


def test_an_empty_name_is_no_name() -> None:
    """What `--images "$UNSET"` gives; it would stand for the current folder."""
    for option in ("images", "out"):
        with pytest.raises(UserError, match=f"--{option} is empty"):
            resolve(PretrainConfig, {"images": "photos", "out": "runs/mae", option: ""})


def test_an_option_wins_over_the_preset_and_the_preset_over_the_default() -> None:
    config = resolve(PretrainConfig, {"images": "x", "out": "y", "preset": "debug", "epochs": "7"})
    assert config.epochs == 7
    assert config.model == PRESETS["debug"].pretrain["model"]
    assert config.min_crop == 0.2


def test_later_stages_take_the_recipe_of_the_dense_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"verb": "pretrain", "options": {"preset": "debug"}}))
    config = resolve(ExpertsConfig, {"mae": tmp_path, "clusters": "c", "images": "x", "out": "y"})
    assert config.preset == "debug" and config.layers == PRESETS["debug"].experts["layers"] != (9, 11)
    other = {"mae": tmp_path, "clusters": "c", "images": "x", "out": "y", "preset": "tiny-imagenet"}
    assert resolve(ExpertsConfig, other).layers == (9, 11)


def test_lists_and_switches_of_the_command_line() -> None:
    verb, options = parse(
        ["train-experts", "m", "c", "--images", "x", "--out", "y", "--layers", "9,11", "--no-flip"]
    )
    config = resolve(CONFIGS[verb], options)
    assert config.layers == (9, 11) and config.flip is False and config.mae == "m" and config.clusters == "c"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 1.5}, "--epochs must be a whole number"),
        ({"epochs": True}, "--epochs must be a whole number"),
        ({"flip": "yes"}, "--flip is a switch"),
        ({"base_lr": "fast"}, "--base-lr must be a number"),
        ({"order": "globl"}, "Did you mean 'global'"),
        ({"epoch": 3}, "Did you mean 'epochs'"),
        ({"mask_ratio": -0.5}, "--mask-ratio must be above 0"),
        ({"beta2": 1}, "--beta2 must be below 1"),
        ({"base_lr": float("nan")}, "finite"),
        ({"seed": 2**63}, "--seed must be below"),
    ],
)
def test_values_that_do_not_fit(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        resolve(PretrainConfig, {"images": "x", "out": "y", **options})


def test_speed_options_may_change_and_method_options_may_not() -> None:
    before = resolve(PretrainConfig, {"images": "x", "out": "y"})
    recorded = json.loads(json.dumps(before.__dict__))
    faster = resolve(
        PretrainConfig, {"images": "elsewhere", "out": "z", "num_workers": 4, "device": "cpu", "quiet": True}
    )
    assert changed_method_options(recorded, faster) == []
    other = resolve(PretrainConfig, {"images": "x", "out": "y", "mask_ratio": 0.5, "seed": 3})
    assert changed_method_options(recorded, other) == [
        "--seed was 0 and is now 3",
        "--mask-ratio was 0.75 and is now 0.5",
    ]


def test_what_an_earlier_run_does_not_name_was_the_default() -> None:
    given = {"mae": "m", "clusters": "c", "images": "x", "out": "y"}
    recorded = json.loads(json.dumps(resolve(ExpertsConfig, given).__dict__))
    del recorded["shared_gradient"]
    assert changed_method_options(recorded, resolve(ExpertsConfig, given)) == []
    other = resolve(ExpertsConfig, {**given, "shared_gradient": 0.5})
    assert changed_method_options(recorded, other) == ["--shared-gradient was 0.0 and is now 0.5"]


@pytest.mark.parametrize(
    ("gate", "idle", "counts"),
    [
        ("cluster", {}, {"imbalance": 0.5}),
        ("token", {"embedding": "random"}, {"shared_gradient": 0.5}),
        ("sdr", {"top_k": 2, "gate_lr": 1.0, "shared_gradient": 0.5}, {"layers": (1,), "expert_lr": 0.5}),
        (
            "none",
            {"layers": (1,), "num_experts": 3, "balance": 0.5, "shared_gradient": 0.5},
            {"distill": 0.5},
        ),
    ],
)
def test_options_that_a_gate_does_not_use_may_change(gate: str, idle: dict, counts: dict) -> None:
    given = {"mae": "m", "clusters": "c", "images": "x", "out": "y", "gate": gate}
    recorded = json.loads(json.dumps(resolve(ExpertsConfig, given).__dict__))
    assert changed_method_options(recorded, resolve(ExpertsConfig, {**given, **idle})) == []
    changed = changed_method_options(recorded, resolve(ExpertsConfig, {**given, **idle, **counts}))
    assert [sentence.split()[0] for sentence in changed] == [f"--{name.replace('_', '-')}" for name in counts]
    other = resolve(ExpertsConfig, {**given, "gate": "sdr" if gate == "none" else "none"})
    assert changed_method_options(recorded, other) == [f"--gate was {gate} and is now {other.gate}"]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("64", 64),
        (64, 64),
        ("96x64", (96, 64)),
        ("96X64", (96, 64)),
        ((96, 64), (96, 64)),
        ("32x32", 32),
        ([8, 4], (8, 4)),
    ],
)
def test_a_size_is_a_side_or_height_times_width(given: object, wanted: object) -> None:
    config = resolve(PretrainConfig, {"images": "x", "out": "y", "image_size": given})
    assert config.image_size == wanted
    recorded = json.loads(json.dumps(config.__dict__))
    assert changed_method_options(recorded, config) == [], "a run continues"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("0", "at least 1"),
        ("64x0", "at least 1"),
        ("big", "whole number"),
        ("64x", "whole number"),
        ("3x4x5", "HEIGHTxWIDTH, such as 64 or 96x64, not '3x4x5'"),
        ((), "HEIGHTxWIDTH"),
        (1.5, "whole number"),
    ],
)
def test_sizes_that_cannot_be(given: object, words: str) -> None:
    with pytest.raises(UserError, match=f"--image-size .*{words}"):
        resolve(PretrainConfig, {"images": "x", "out": "y", "image_size": given})


def test_a_verb_is_a_function_with_the_options_as_arguments() -> None:
    for verb, config_class in CONFIGS.items():
        function = getattr(moce, verb.replace("-", "_"))
        assert set(inspect.signature(function).parameters) == set(config_class.__dataclass_fields__)
        assert function.__doc__


def test_every_preset_resolves_for_every_stage() -> None:
    for name in PRESETS:
        for verb in ("pretrain", "cluster", "train-experts"):
            needed = {"enc": "e", "mae": "m", "clusters": "c", "images": "x", "out": "y", "preset": name}
            known = CONFIGS[verb].__dataclass_fields__
            resolve(CONFIGS[verb], {n: v for n, v in needed.items() if n in known})


def test_seeds_are_whole_numbers_of_any_size() -> None:
    large = 2**53 + 1  # which a float cannot hold
    for given in (large, str(large)):
        assert resolve(PretrainConfig, {"images": "x", "out": "y", "seed": given}).seed == large


def test_an_argument_is_given_once() -> None:
    with pytest.raises(TypeError, match="several values for argument 'path'"):
        moce.inspect("runs/mae", path="runs/moce")


def test_help_shows_what_is_taken_where_nothing_is_given() -> None:
    def shown(verb: str, option: str) -> str:
        (action,) = (a for a in verb_parser(verb)._actions if f"--{option}" in a.option_strings)
        return (action.help or "").rpartition(" [")[2].rstrip("]")

    given = {"mae": "m", "clusters": "c", "images": "x", "out": "y"}
    assert shown("pretrain", "epochs") == str(resolve(PretrainConfig, {"images": "x", "out": "y"}).epochs)
    assert shown("train-experts", "base-lr") == str(resolve(ExpertsConfig, given).base_lr)
    for protocol in ("detect", "segment"):
        config = resolve(EvaluateConfig, {"model": "m", "task": "t", "protocol": protocol})
        assert f"{protocol}: {config.batch_size}" in shown("evaluate", "batch-size").split("; ")
    assert "or the dense run's" in " ".join(verb_parser("cluster").format_help().split())


def test_help_is_quick_and_needs_no_torch(cli) -> None:
    done = cli("--help", env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert done.code == 0 and "train-experts" in done.stdout and "tiny-imagenet-gpu" in done.stdout
    imported = {
        line.rsplit("|", 1)[-1].strip()
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert "moce.config" in imported and not imported & {"torch", "numpy", "timm"}


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "MoCE"),
        ({"shared_gradient": 0.25}, "MoCE, shared gradient"),
        ({"gate": "token", "shared_gradient": 0.25}, "TokenMoE, shared gradient"),
        ({"shuffle_clusters": True, "shared_gradient": 0.25}, "random clusters, shared gradient"),
        ({"gate": "none", "shared_gradient": 0.25}, "MAE*"),  # which does not use it
        ({"gate": "none", "only_mlps": True}, "MAE*, MLPs alone"),
        ({"gate": "none", "only_clusters": (1, 2)}, "data selection"),
    ],
)
def test_what_changes_a_method_is_in_its_name(options: dict, name: str) -> None:
    config = resolve(ExpertsConfig, {"mae": "m", "clusters": "c", "images": "x", "out": "y", **options})
    assert experts_method(dataclasses.asdict(config)) == name
