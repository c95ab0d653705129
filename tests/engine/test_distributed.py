"""One run by two processes: the same as by one, written once, and ended together. Real processes, gloo."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file
from same_numbers import assert_same_numbers, lines, weights
from shared import made_once
from started import run_both
from two_processes import CLUSTERS, EXPERTS, OPTIONS, SHARDED, copy_of

import moce
from moce.engine.runs import BYTES
from moce.engine.shards import dimension
from moce.errors import UserError

WORKER = Path(__file__).parent.parent / "two_processes.py"


class Two(NamedTuple):
    """The runs of one process; those of two, what each of them saw, their exit codes, and what they said."""

    one: Path
    folder: Path
    seen: list[dict[str, Any]]
    codes: list[int]
    said: list[str]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Two:
    """Both kinds of runs once, shared by all processes of a test session."""

    def make(folder: Path) -> None:
        one, two = folder / "one", folder / "two"
        two.mkdir(exist_ok=True)
        moce.pretrain(out=one / "mae", **OPTIONS)
        moce.cluster(one / "mae", out=one / "clusters", **CLUSTERS)
        for name, options in EXPERTS.items():
            moce.train_experts(one / "mae", one / "clusters", out=one / name, **OPTIONS, **options)
        codes, said = run_both(WORKER, one, two, cwd=two)
        assert (two / "rank-0.json").is_file() and (two / "rank-1.json").is_file(), said
        (folder / "ended.json").write_text(json.dumps([codes, said]))

    folder = made_once(tmp_path_factory, "distributed", make)
    one, two = folder / "one", folder / "two"
    seen = [json.loads((two / f"rank-{rank}.json").read_text()) for rank in range(2)]
    return Two(one, two, seen, *json.loads((folder / "ended.json").read_text()))


@pytest.mark.parametrize("name", ["mae", *EXPERTS])
def test_two_processes_train_what_one_trains(two: Two, name: str) -> None:
    assert len(lines(two.one / name)) == 10
    assert_same_numbers(two.one / name, two.folder / name)
    one, both = (json.loads((folder / name / "config.json").read_text()) for folder in (two.one, two.folder))
    assert one["inputs"] == both["inputs"] and (BYTES in one["inputs"]) == (name == "star")


def test_two_processes_find_the_same_clusters(two: Two) -> None:
    np.testing.assert_array_equal(
        np.load(two.one / "clusters/labels.npy"), np.load(two.folder / "clusters/labels.npy")
    )
    for name in ("centroids", "potentials", "mean", "sizes", "cosine_quantiles"):
        found = [
            load_file(folder / "clusters/clusters.safetensors")[name] for folder in (two.one, two.folder)
        ]
        np.testing.assert_allclose(*found, atol=2e-5, err_msg=name)
    thumbs = [
        load_file(folder / "clusters/thumbs/thumbs.safetensors")["indices"]
        for folder in (two.one, two.folder)
    ]
    np.testing.assert_array_equal(*thumbs)


def test_the_same_number_of_processes_continues_to_the_bit(two: Two) -> None:
    model, continued = (two.folder / name / "model.safetensors" for name in ("mae", "continued"))
    assert model.read_bytes() == continued.read_bytes()
    assert [line["loss"] for line in lines(two.folder / "mae")][4:] == [
        line["loss"] for line in lines(two.folder / "continued")
    ]


def test_one_process_then_two_then_one(two: Two, tmp_path: Path) -> None:
    """Checkpoints of four steps by one process, four by two, and the last two by one again."""
    last = copy_of(two.folder / "from-one", tmp_path / "last", 8)
    moce.pretrain(out=last, **OPTIONS)
    model, other = weights(two.one / "mae"), weights(last)
    for name in model:
        np.testing.assert_allclose(model[name], other[name], atol=1e-5, err_msg=name)
    wanted = [line["loss"] for line in lines(two.one / "mae")][8:]
    np.testing.assert_allclose([line["loss"] for line in lines(last)], wanted, atol=1e-5)


@pytest.mark.parametrize("name", ["mae", *SHARDED])
def test_spread_weights_train_what_whole_ones_train(two: Two, name: str) -> None:
    assert len(lines(two.folder / f"sharded-{name}")) == 10
    assert_same_numbers(two.one / name, two.folder / f"sharded-{name}")


def test_spread_weights_in_bf16_train_what_whole_ones_train(two: Two) -> None:
    """Both in two processes, so that sums have the same order; parts arrive in bf16, as autocast makes them."""
    losses, spread = (
        [line["loss"] for line in lines(two.folder / name)] for name in ("bf16", "sharded-bf16")
    )
    assert losses != [line["loss"] for line in lines(two.folder / "mae")]
    np.testing.assert_allclose(spread, losses, atol=1e-5)
    model = weights(two.folder / "sharded-bf16")
    assert all(tensor.dtype == np.float32 for tensor in model.values())


def test_spread_weights_continue_to_the_bit(two: Two) -> None:
    model, continued = (
        two.folder / name / "model.safetensors" for name in ("sharded-mae", "sharded-continued")
    )
    assert model.read_bytes() == continued.read_bytes()


def test_whole_weights_then_spread_then_whole(two: Two, tmp_path: Path) -> None:
    """Checkpoints of four steps by one process, four by two with spread weights, and the last two by one again."""
    last = copy_of(two.folder / "sharded-from-one", tmp_path / "last", 8)
    moce.pretrain(out=last, **OPTIONS)
    model, other = weights(two.one / "mae"), weights(last)
    for name in model:
        np.testing.assert_allclose(model[name], other[name], atol=1e-5, err_msg=name)


def test_each_process_keeps_half_of_weights_and_moments(two: Two) -> None:
    for seen in two.seen:
        whole, spread = (seen["kept"][name] for name in ("moce", "sharded-moce"))
        assert whole["weights"] == whole["all"] == spread["all"] > 0
        assert whole["moments"] == whole["of"] == spread["of"] > 0
        assert spread["weights"] == pytest.approx(spread["all"] / 2, rel=0.01)
        assert spread["moments"] == pytest.approx(spread["of"] / 2, rel=0.01)


def test_checkpoints_of_spread_weights_hold_whole_tensors(two: Two) -> None:
    found = [
        {name: tensor.shape for name, tensor in load_file(path).items()}
        for path in (
            two.folder / folder / "checkpoints" / "step-000000008.safetensors"
            for folder in ("moce", "sharded-moce")
        )
    ]
    assert found[0] == found[1]


def test_tensors_are_spread_along_what_divides_evenly() -> None:
    assert dimension((8, 64, 256), 4) == 0
    assert dimension((8, 64, 256), 16) == 1  # eight experts over sixteen processes: their width
    assert dimension((1, 1, 32), 2) == 2
    assert dimension((6, 10), 7) == 0


def test_nothing_to_spread_over_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"--shard spreads the weights over several processes and this is one"
    ):
        moce.pretrain(**OPTIONS, out=tmp_path / "x", shard=True)
    assert not (tmp_path / "x").exists()


def test_what_processes_put_together(two: Two) -> None:
    first, second = (seen["group"] for seen in two.seen)
    assert first.pop("span") == [0, 3] and second.pop("span") == [1, 3]
    assert first == second == {
        "sum": [3.0],
        "gradient": 36.0,  # of (w + 2 w)^2 at w = 2
        "gather": [[1, 2], [3, 4], [5, 6]],
        "take": [[5, 6], [1, 2], [3, 4]],
        "union": [0, 1, 7],
        "averages": {"a": [2.0, 3.0], "b": 1.0},
        "once": 0,
    }  # fmt: skip


def test_a_finished_run_is_left_alone(two: Two) -> None:
    result = json.loads((two.folder / "mae" / "result.json").read_text())
    assert [seen["again"] for seen in two.seen] == [result, result]
    assert result["processes"] == 2 and len(lines(two.folder / "mae")) == 10


def test_a_signal_to_one_ends_both_after_the_same_step(two: Two) -> None:
    run = two.folder / "stopped"
    assert [seen["stopped"] for seen in two.seen] == [143, 143]
    assert len(list((run / "checkpoints").glob("step-*.safetensors"))) == 1
    assert two.seen[0]["stopped at"] == two.seen[1]["stopped at"] < 1000


def test_what_one_process_finds_wrong_all_say(two: Two) -> None:
    first, second = (seen["errors"] for seen in two.seen)
    assert first == second
    assert "holds a run with other options: --epochs was 2 and is now 3" in first[0]
    assert first[1] == "--batch-size 1 is less than the 2 processes; each needs a picture."
    assert first[2].startswith("There is no folder or file 'no-such-folder'")
    assert first[3] == "--devices 3 but torchrun started 2 processes here; leave --devices out."
    assert first[4] == "--shard does not go with --compile; leave one of them out."
    assert not (two.folder / "x" / "metrics.jsonl").exists()


def test_a_killed_process_ends_the_other_with_a_sentence(two: Two) -> None:
    assert two.codes == [1, -9]
    sentence = [line for line in two.said[0].splitlines() if line.startswith("moce: ")]
    assert len(sentence) == 1 and "Another process of this run has ended or does not answer" in sentence[0]
    assert "Traceback" not in two.said[0]
    assert lines(two.folder / "killed")


def test_devices_starts_processes_that_say_one_sentence(two: Two, cli) -> None:
    words = [w for n, v in OPTIONS.items() if n != "quiet" for w in ("--" + n.replace("_", "-"), str(v))]
    wrong = cli("pretrain", "--devices", 2, "--out", two.one / "mae", *words, "--seed", 3)
    assert wrong.code == 2, wrong
    assert wrong.stderr.startswith("moce: ") and wrong.stderr.count("\n") == 1, wrong.stderr
    assert "--seed was 0 and is now 3" in wrong.stderr


@pytest.mark.gpu
def test_two_gpus_train_what_one_trains(tmp_path: Path, cli) -> None:
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("gpu: needs two CUDA devices")
    used = {name: value for name, value in OPTIONS.items() if name not in ("quiet", "device")}
    words = [w for n, v in used.items() for w in ("--" + n.replace("_", "-"), str(v))]
    for devices, out in (1, "one"), (2, "two"):
        assert (
            cli("pretrain", "--device", "cuda", "--devices", devices, "--out", tmp_path / out, *words).code
            == 0
        )
    assert_same_numbers(tmp_path / "one", tmp_path / "two")
