"""The measurements: who takes turns with whom, what is compared with what, and every row once at tiny sizes."""

import json
import os
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

import moce
from moce.config import RowName
from moce.errors import UserError
from moce.study.bench import bench as verb
from moce.study.bench.peers import peers_of, require_same_loss, twin
from moce.study.bench.rows import rows_of, sentences, table
from moce.study.bench.settings import KEYS
from moce.study.bench.timing import LeftOut, Timed, Variant, peak_memory, take_turns

CPU = torch.device("cpu")
SETTING = {"model": "vit-ti/8", "image_size": 64, "batch_size": 4, "precision": "fp32", "device": "cpu"}


@dataclass
class Fake:
    """A job that takes the times it is told and notes when it ran."""

    name: str
    times: list[float]
    ran: list[str]
    flops_per_image: float = 0.0
    done: int = field(default=0)

    def seconds(self) -> float:
        self.ran.append(self.name)
        self.done += 1
        return self.times[self.done - 1]


def timed(name: str, seconds: list[float], against: str | None = None, **setting: object) -> Timed:
    variant = Variant(name, {**SETTING, **setting}, 4, lambda: None, against)
    return Timed(variant, 1, seconds)


def test_variants_take_turns_and_the_first_run_does_not_count() -> None:
    ran: list[str] = []
    ticks: list[str] = []
    jobs = {name: Fake(name, [9.0, i + 1, i + 2, i + 6], ran) for i, name in enumerate("ab")}
    warm = [Fake("w", [9.0], ran)]  # the first is built once more, before anybody's memory is looked at
    variants = [Variant(name, SETTING, 4, lambda name=name: jobs[name]) for name in "ab"]
    variants[0] = replace(variants[0], build=lambda: warm.pop() if warm else jobs["a"])
    found = take_turns(variants, 3, CPU, ticks.append)
    assert ran == ["w", *"abababab"] and ticks == list("abababab")
    assert [t.seconds for t in found] == [[1, 2, 6], [2, 3, 7]]
    assert [t.median for t in found] == [2, 3]


def test_what_cannot_be_built_is_left_out_with_the_reason() -> None:
    def refuse() -> Fake:
        raise LeftOut("no compiler")

    reasons: list[str] = []
    good = Variant("b", SETTING, 4, lambda: Fake("b", [1.0, 1.0], []))
    found = take_turns([Variant("a", SETTING, 4, refuse), good], 1, CPU, left_out=reasons.append)
    assert [t.variant.name for t in found] == ["b"] and reasons == ["no compiler"]


def test_a_row_is_compared_with_the_fastest_of_its_setting() -> None:
    found = [
        timed("step-dense", [2.0, 1.0, 4.0], "step-hf-vitmae"),
        timed("step-hf-vitmae", [8.0]),
        timed("step-hf-vitmae", [4.0]),
        timed("step-hf-vitmae", [1.0], precision="bf16"),  # another setting
        timed("step-mae-star", [4.0], "step-dense"),
        timed("step-token", [4.0], "step-experts"),  # which was not measured
        timed("loader", [1.0], "loader", recipe="moce"),
        timed("loader", [2.0], recipe="plain"),
    ]
    rows = rows_of(found, CPU)
    assert [row["against_row"] for row in rows] == [2, 1, 2, 3, 0, 5, 7, 7]
    assert [row["ratio"] for row in rows] == [2.0, 1.0, 1.0, 1.0, 0.5, 1.0, 2.0, 1.0]
    assert rows[0] | {"peak_bytes": 1} == rows[0] and rows[0]["images_per_second"] == 2.0
    assert [rows[0][f"seconds_{what}"] for what in ("min", "median", "max")] == [1.0, 2.0, 4.0]
    said = sentences(rows)
    assert len(said) == 3 and "step-dense" in said[0] and "2.000 times" in said[0] and "step-hf" in said[0]
    assert len(table(rows).splitlines()) == 1 + len(rows)


def test_utilisation_is_a_share_of_the_measured_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moce.study.bench.rows.peak_flops", lambda device, bf16: 100.0 if bf16 else 10.0)
    plain, half = timed("features", [2.0]), timed("features", [2.0], precision="bf16")
    plain.flops_per_image = half.flops_per_image = 2.0
    assert [row["utilisation"] for row in rows_of([plain, half], CPU)] == [0.4, 0.04]


def test_memory_is_what_a_block_added() -> None:
    with peak_memory(CPU) as memory:
        held = np.ones(64 * 2**17)  # 64 MiB
        del held
    with peak_memory(CPU) as nothing:
        pass
    assert 60 * 2**20 < memory.peak_bytes < 90 * 2**20 and nothing.peak_bytes < 16 * 2**20


def test_peers_include_the_best_way_to_run_them() -> None:
    plain = [(p.precision, p.attention, p.fused, p.compiled) for p in peers_of(True, False)]
    assert plain == [
        ("fp32", "eager", False, False),
        ("bf16", "eager", True, False),
        ("bf16", "sdpa", True, False),
    ]
    compiled = peers_of(False, True)[-1]
    assert compiled.compiled and compiled.precision == "fp32" and compiled.attention == "sdpa"


def test_a_peer_with_other_weights_is_refused() -> None:
    from moce.model.autoencoder import AutoencoderShape, MaskedAutoencoder

    shape = AutoencoderShape("test_vit", (16, 16), (8, 8), decoder_depth=1, decoder_width=16, decoder_heads=2)
    model = MaskedAutoencoder(shape)
    peer, images = twin(model)[0], torch.randn(2, 3, 16, 16)
    require_same_loss(model, peer, images)
    with torch.no_grad():
        model.decoder_pred.weight.mul_(3)
    with pytest.raises(RuntimeError, match="not the same arithmetic"):
        require_same_loss(model, peer, images)


def test_without_transformers_the_peer_is_left_out_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "there_is_transformers", lambda: False)
    resolve = lambda **options: verb.BenchConfig(**options)  # noqa: E731
    assert "moce[bench]" in verb.missing_peers(resolve())[0]
    assert verb.missing_peers(resolve(only=("loader",))) == []
    with pytest.raises(UserError, match=r"moce\[bench\]"):
        verb.missing_peers(resolve(only=("step-hf-vitmae",)))


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """Every row once, and the folder that temporary files were in."""
    place = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(place))
        moce.bench(quick=True, quiet=True, json=str(place.parent / "bench.json"))
    return json.loads((place.parent / "bench.json").read_text()), place


def test_every_row_is_there_and_consistent(quick: tuple[dict, Path]) -> None:
    content = quick[0]
    rows = content["rows"]
    assert {row["name"] for row in rows} == set(get_args(RowName))
    for row in rows:
        assert {*KEYS} <= row["setting"].keys() and row["setting"]["model"] == "vit-ti/8"
        assert 0 < row["seconds_min"] <= row["seconds_median"] <= row["seconds_max"]
        assert row["images_per_second"] == pytest.approx(row["images"] / row["seconds_median"])
        assert isinstance(row["peak_bytes"], int) and row["peak_bytes"] >= 0
        assert row["utilisation"] >= 0 and (row["utilisation"] > 0) == (row["name"] != "loader")
        other = rows[row["against_row"]]
        assert other["name"] == row["against"]
        assert row["ratio"] == pytest.approx(row["images_per_second"] / other["images_per_second"])
        assert all(row["setting"][key] == other["setting"][key] for key in KEYS)
    against = {row["name"]: row["against"] for row in rows}
    assert against["step-dense"] == "step-hf-vitmae" and against["step-mae-star"] == "step-dense"
    assert against["step-experts"] == against["step-token"] == "step-mae-star"
    assert against["train-with-loader"] == "step-dense" and against["customize"] == "features"


def test_the_machine_is_described(quick: tuple[dict, Path]) -> None:
    machine = quick[0]["machine"]
    assert machine["cores"] == os.cpu_count() and machine["gpu"] is None
    assert machine["torch"] == torch.__version__
    assert min(machine["matmul_gflops"][name] for name in ("fp32", "bf16")) > 0


def test_nothing_is_left_behind(quick: tuple[dict, Path]) -> None:
    assert list(quick[1].iterdir()) == []


def test_what_is_compiled_goes_with_the_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.compiler.reset", lambda: None)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    with verb.compiling_in(tmp_path, True):
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == os.environ["TRITON_CACHE_DIR"] == str(tmp_path)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere" and "TRITON_CACHE_DIR" not in os.environ


def test_only_some_rows_from_own_pictures_with_a_table_for_people(
    command, tmp_path: Path, tiny_folder: Path
) -> None:
    arguments = ("bench", "--quick", "--only", "loader", "--images", tiny_folder, "--num-workers", 0)
    done = command(*arguments, "--json", tmp_path / "b.json")
    assert done.code == 0 and done.stdout == ""
    content = json.loads((tmp_path / "b.json").read_text())
    assert [row["name"] for row in content["rows"]] == ["loader", "loader"]
    assert content["rows"][0]["setting"]["recipe"] == "moce" and content["rows"][0]["against_row"] == 1
    assert "images/s" in done.stderr and "times the images per second of loader" in done.stderr
    assert "--quick" in done.stderr


def test_features_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moce.study.bench.passes import refuse_too_large

    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Disk", (), {"free": 2**20}))
    refuse_too_large(1000, 192, tmp_path)  # in memory
    with pytest.raises(UserError, match="--cluster-images 2000000 needs .* TMPDIR"):
        refuse_too_large(2_000_000, 192, tmp_path)
