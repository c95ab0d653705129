"""--json where a file is already there."""

import json
from pathlib import Path
from typing import Any

import pytest

from moce.config import BenchConfig, DemoConfig, EvaluateConfig, PrepareConfig, PretrainConfig, ReportConfig
from moce.errors import UserError
from moce.verbs import verb

Printed = pytest.CaptureFixture[str]
ANSWER = {
    "schema": 1,
    "model": "runs/mae",
    "model_fingerprint": "f00",
    "method": "MAE",
    "task": "flowers17",
    "protocol": "linear",
    "value": 0.5,
    "seed": 0,
    "settings": {},
}


def said(file: Path, answer: Any, printed: Printed, config: type = EvaluateConfig, **options: Any) -> str:
    """What a verb that gives this answer says while it writes it."""

    @verb(config)
    def stage(config: Any) -> Any:
        return answer

    needed = {"model": "runs/mae", "task": "flowers17"} if config is EvaluateConfig else {}
    stage(**needed, json=file, **options)
    assert json.loads(file.read_text()) == answer
    return printed.readouterr().err


def test_the_same_question_asked_again_is_replaced_silently(tmp_path: Path, capsys: Printed) -> None:
    file = tmp_path / "e.json"
    assert said(file, ANSWER, capsys) == ""
    assert said(file, {**ANSWER, "value": 0.6}, capsys) == ""
    assert said(file, {**ANSWER, "model_fingerprint": "ba5"}, capsys) == ""  # trained anew
    assert said(file, {**ANSWER, "model": "elsewhere/mae", "model_fingerprint": "ba5"}, capsys) == ""
    now = [{**ANSWER, "protocol": protocol, "model_fingerprint": "ba5"} for protocol in ("knn", "linear")]
    assert said(file, now, capsys) == ""  # it is still among them


@pytest.mark.parametrize(
    "other",
    [
        {"model": "timm:test_vit", "model_fingerprint": "ba5", "method": "test_vit.r160_in1k"},
        {"method": "MoCE (oracle)"},
        {"task": "dtd10"},
        {"protocol": "knn"},
        {"settings": {"shots": 5}},
        {"seed": 1},
    ],
)
def test_an_answer_to_another_question_is_named_where_it_is_replaced(
    tmp_path: Path, capsys: Printed, other: dict[str, Any]
) -> None:
    file = tmp_path / "e.json"
    said(file, ANSWER, capsys)
    expected = f"{file} is replaced, which held linear of MAE on flowers17\n"
    assert said(file, {**ANSWER, **other}, capsys) == expected
    said(file, ANSWER, capsys)
    assert said(file, {**ANSWER, **other}, capsys, quiet=True) == ""


def test_shots_seeds_lists_and_other_verbs_are_named_too(tmp_path: Path, capsys: Printed) -> None:
    file = tmp_path / "e.json"
    said(file, [{**ANSWER, "task": task, "settings": {"shots": 5}, "seed": 2} for task in "abcd"], capsys)
    expected = "held linear of MAE on a, 5 shots, seed 2; linear of MAE on b, 5 shots, seed 2 and 2 more\n"
    assert said(file, ANSWER, capsys).endswith(expected)
    bench = {"verb": "bench", "rows": []}
    assert said(file, bench, capsys, BenchConfig).endswith("which held linear of MAE on flowers17\n")
    assert said(file, bench, capsys, BenchConfig) == ""
    assert said(file, ANSWER, capsys).endswith("which held the result of `moce bench`\n")
    said(file, {"verb": "pretrain", "out": "runs/mae", "loss": 0.1}, capsys, BenchConfig)
    assert said(file, ANSWER, capsys).endswith("which held the result of `moce pretrain` on runs/mae\n")


@pytest.mark.parametrize(
    "content",
    ["notes", "{}", "[]", "[1]", '{"images": [], "annotations": []}', '{"verb": "pretrain", "options": {}}'],
)
def test_a_file_of_something_else_is_refused_before_the_work(tmp_path: Path, content: str) -> None:
    file = tmp_path / "e.json"
    file.write_text(content)

    @verb(BenchConfig)
    def stage(config: Any) -> dict[str, Any]:
        raise AssertionError("the work has started")

    with pytest.raises(UserError, match=r"--json .*e.json is there and is no result of moce.*another file"):
        stage(json=file, overwrite=True)
    assert file.read_text() == content


def test_an_empty_file_has_nothing_to_lose_and_a_device_is_no_file(tmp_path: Path, capsys: Printed) -> None:
    file = tmp_path / "e.json"
    file.touch()
    assert said(file, ANSWER, capsys) == ""
    with pytest.raises(UserError, match="/dev/null: it is a device or a pipe; name a file"):
        said(Path("/dev/null"), ANSWER, capsys)


@pytest.mark.parametrize(
    ("config", "given", "name"),
    [
        (PretrainConfig, {"images": "photos"}, "config.json"),
        (PretrainConfig, {"images": "photos"}, "model.safetensors"),
        (PrepareConfig, {"images": "photos", "short_side": 64}, "prepared.json"),
        (DemoConfig, {}, "mae/result.json"),
        (ReportConfig, {"runs": ["runs/mae"]}, ""),
    ],
)
def test_files_that_a_command_will_write_are_not_replaced(
    tmp_path: Path, config: type, given: dict[str, Any], name: str
) -> None:
    @verb(config)
    def stage(config: Any) -> Any:
        pytest.fail("worked")

    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"is what --out .* is, or may hold; name another file"):
        stage(**given, out=out, json=out / name)
    assert not out.exists()


def test_an_answer_may_lie_beside_what_a_run_writes(tmp_path: Path) -> None:
    @verb(PretrainConfig)
    def stage(config: Any) -> Any:
        return {"verb": "pretrain", "out": str(config.out)}

    stage(images="photos", out=tmp_path / "run", json=tmp_path / "run" / "answer.json")
    assert (tmp_path / "run" / "answer.json").is_file()


@pytest.mark.parametrize("beside", ["config.json", "table.md", None])
def test_files_of_runs_and_studies_are_not_replaced(tmp_path: Path, beside: str | None) -> None:
    file = tmp_path / "result.json"
    file.write_text(json.dumps(ANSWER if beside else {**ANSWER, "study": {"arm": "MAE"}}))
    if beside:
        (tmp_path / beside).write_text("{}")
    before = file.read_bytes()

    @verb(EvaluateConfig)
    def stage(config: Any) -> Any:
        pytest.fail("worked")

    with pytest.raises(UserError, match="belongs to the run or study that it lies in; name another file"):
        stage(model="runs/mae", task="flowers17", json=file)
    assert file.read_bytes() == before
