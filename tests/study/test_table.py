"""Tables of evaluations, against numbers worked out by hand."""

from typing import Any

import pytest

from moce.study.table import Table, as_text, distinct, is_evaluation, tables


def result(task: str, method: str, value: float, protocol: str = "linear", **more: Any) -> dict[str, Any]:
    fixed = {"schema": 1, "metric": "top1", "num_test": 100, "model": f"runs/{method}", "seed": 0}
    return {**fixed, "task": task, "method": method, "value": value, "protocol": protocol, **more}


def test_methods_come_in_the_order_of_the_argument_and_tasks_as_they_come() -> None:
    names = ["MoCE", "rival", "MAE", "TokenMoE", "MAE*"]
    table = Table("linear", [result("b", name, 0.5) for name in names] + [result("a", "MAE", 0.5)])
    assert table.methods == ["MAE", "MAE*", "TokenMoE", "MoCE", "rival"]
    assert table.tasks == ["b", "a"]


def test_the_mean_is_over_tasks_that_every_method_has() -> None:
    rows = [
        result("a", "MAE*", 0.4),
        result("a", "MoCE", 0.6),
        result("b", "MAE*", 0.2),
        result("b", "MoCE", 0.1),
    ]
    table = Table("linear", [*rows, result("only one", "MoCE", 1.0)])
    assert table.shared == ["a", "b"]
    assert table.mean("MAE*") == pytest.approx(0.3)
    assert table.mean("MoCE") == pytest.approx(0.35)
    assert table.value("only one", "MAE*") is None


def test_several_seeds_are_averaged_and_a_file_given_twice_counts_once() -> None:
    rows = [result("a", "MoCE", 0.6), result("a", "MoCE", 0.8, seed=1)]
    (table,) = tables([*rows, rows[0]])
    assert len(table.of("a", "MoCE")) == 2
    assert table.value("a", "MoCE") == pytest.approx(0.7)


def test_an_evaluation_repeated_into_another_file_counts_once() -> None:
    first = result(
        "a", "MoCE", 0.6, model_fingerprint="f", settings={"C": 1.0}, seconds=8.1, file="a.json", commit="1"
    )
    again = {**first, "seconds": 3.9, "file": "b.json", "commit": "2", "model": "copy/of/it"}
    others = [
        {**first, **change}
        for change in (
            {"seed": 1}, {"settings": {"C": 10.0}}, {"value": 0.61}, {"model_fingerprint": "g"}, {"task": "b"},
            {"method": "MoCE oracle"}, {"protocol": "knn"}, {"num_train": 5},
        )
    ]  # fmt: skip
    assert distinct([first, *others, again]) == [first, *others]
    (table,) = tables([first, again])
    assert table.results == [first] and table.spread("a", "MoCE") is None
    # What has no fingerprint may be of other weights: it is the same only when all of it is.
    old = {**first, "model_fingerprint": None}
    assert distinct([old, {**old, "file": "b.json"}, {**old, "seconds": 1}]) == [old, {**old, "seconds": 1}]


def test_the_best_is_judged_as_printed_and_needs_a_rival() -> None:
    rows = [result("a", "MAE", 0.71201), result("a", "MoCE", 0.71199), result("a", "MAE*", 0.7)]
    table = Table("linear", [*rows, result("b", "MoCE", 0.9)])
    assert table.best("a") == {"MAE", "MoCE"}
    assert table.best("b") == set()
    assert Table("linear", [result("a", "MAE", 0.5), result("a", "MoCE", 0.5)]).best("a") == set()


def test_differences_are_to_the_dense_model_that_trained_as_long() -> None:
    rows = [result("a", "MAE", 0.5), result("a", "MAE*", 0.6), result("a", "MoCE", 0.65)]
    table = Table("linear", rows)
    assert table.baseline == "MAE*"
    assert table.difference("a", "MoCE") == pytest.approx(0.05)
    assert table.difference("a", "MAE*") is None
    assert Table("linear", [rows[0], rows[2]]).baseline == "MAE"
    assert Table("linear", [rows[2]]).baseline is None


def test_a_mean_of_tasks_is_surer_than_a_task() -> None:
    rows = [result(task, m, v) for task in "abcd" for m, v in (("MAE*", 0.5), ("MoCE", 0.6))]
    table = Table("linear", rows)
    low, high = table.interval("a", "MAE*")
    assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert table.mean_interval("MAE*") == pytest.approx((0.5 - 0.0962 / 2, 0.5 + 0.0962 / 2), abs=1e-4)
    single, mean = table.difference_interval("a", "MoCE"), table.difference_interval(None, "MoCE")
    assert mean[1] - mean[0] == pytest.approx((single[1] - single[0]) / 2)
    assert not table.significant("a", "MoCE")  # 50 of 100 against 60 of 100
    assert table.significant(None, "MoCE")  # 200 of 400 against 240 of 400
    assert table.difference_interval("a", "MAE*") is None


def test_seeds_are_tested_on_the_same_pictures_and_do_not_narrow_the_interval() -> None:
    one = Table("linear", [result("a", "MoCE", 0.5)])
    three = Table("linear", [result("a", "MoCE", v, seed=s) for s, v in enumerate((0.4, 0.5, 0.6))])
    narrow, wide = one.interval("a", "MoCE"), three.interval("a", "MoCE")
    assert wide[1] - wide[0] == pytest.approx(narrow[1] - narrow[0], rel=0.03)
    assert three.spread("a", "MoCE") == (0.4, 0.6)
    assert one.spread("a", "MoCE") is None


def test_a_metric_without_a_known_interval_has_none() -> None:
    rows = [result("a", "MAE*", 0.5), result("a", "MoCE", 0.6, metric="map11")]
    table = Table("linear", rows)
    assert table.interval("a", "MoCE") is None
    assert table.difference_interval("a", "MoCE") is None
    assert not table.significant("a", "MoCE")


def test_one_table_per_protocol() -> None:
    found = tables([result("a", "MAE", 0.5, "knn"), result("a", "MAE", 0.6, "linear")])
    assert [t.protocol for t in found] == ["knn", "linear"]


def test_the_table_of_the_terminal() -> None:
    rows = [result("a", "MAE*", 0.4), result("a", "MoCE", 0.6), result("b", "MAE*", 0.25)]
    lines = as_text(Table("linear", rows)).splitlines()
    assert lines[0].split() == ["linear", "MAE*", "MoCE"]
    assert lines[1].split() == ["a", "40.0", "60.0*"]
    assert lines[2].split() == ["b", "25.0", "-"]
    assert len(lines) == 3  # a mean of one shared task says nothing new
    both = as_text(Table("linear", [*rows, result("b", "MoCE", 0.35)])).splitlines()
    assert both[3].split() == ["mean", "of", "2", "tasks", "32.5", "47.5"]


def test_long_names_of_methods_stay_apart() -> None:
    names = ["vit_base_patch16_224.mae", "vit_base_patch16_224.dino"]
    lines = as_text(Table("knn", [result("a", name, 0.5) for name in names])).splitlines()
    assert lines[0].split() == ["knn", *sorted(names)]
    assert len(lines[0]) == len(lines[1].rstrip()) + 1


def test_what_counts_as_an_evaluation() -> None:
    assert is_evaluation(result("a", "MAE", 0.5))
    assert not is_evaluation({"verb": "pretrain"})
    assert not is_evaluation([1])
