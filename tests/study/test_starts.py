"""Dense models and clusters that each seed of a comparison has for itself."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from comparisons import MAE, MAE_STAR, MOCE, again, settings, without

import moce
from moce.config import StudyConfig
from moce.engine.files import read_json
from moce.errors import UserError
from moce.study.compare import SMALL, plan_of
from moce.study.settings import read_settings
from moce.verbs import resolve


@pytest.fixture(scope="module")
def of_each(small_runs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of two seeds with a dense model trained for each; copy it before changing it."""
    folder = tmp_path_factory.mktemp("each")
    more = 'mae_per_seed = true\nseeds = [0, 1]\npreset = "debug"\n[cluster]\nnum_clusters = 4'
    file = settings(small_runs, folder, more, MAE + MAE_STAR + MOCE)
    file.write_text(without(file.read_text(), "mae", "clusters"))
    assert again(folder, quiet=True)["finished"]
    return folder


def test_each_seed_may_have_a_dense_model_of_its_own(of_each: Path) -> None:
    runs = of_each / "study" / "runs"
    assert sorted(run.name for run in runs.iterdir()) == [
        "mae-star-seed0", "mae-star-seed1", "moce-seed0", "moce-seed1",
        "seed0-clusters", "seed0-mae", "seed1-clusters", "seed1-mae",
    ]  # fmt: skip
    for seed in (0, 1):
        dense, clusters = runs / f"seed{seed}-mae", runs / f"seed{seed}-clusters"
        assert read_json(dense / "config.json")["options"]["seed"] == seed
        assert read_json(clusters / "config.json")["options"]["enc"] == str(dense)
        for arm in ("mae-star", "moce"):
            options = read_json(runs / f"{arm}-seed{seed}" / "config.json")["options"]
            assert (options["mae"], options["clusters"]) == (str(dense), str(clusters))


def test_the_dense_models_are_measured_one_by_one(of_each: Path, tmp_path: Path) -> None:
    found = read_json(of_each / "study" / "result.json")
    mae, star = found["arms"][:2]
    assert mae["runs"] == ["seed0-mae", "seed1-mae"]
    assert set(found["tables"]["knn"]["values"]["letters"]["MAE"]["seeds"]) == {"0", "1"}
    cells = [of_each / "study" / "cells" / "mae" / f"letters-knn-seed{seed}.json" for seed in (0, 1)]
    assert len({read_json(cell)["model_fingerprint"] for cell in cells}) == 2
    seconds = [read_json(of_each / "study" / "runs" / run / "result.json")["seconds"] for run in mae["runs"]]
    for arm in (mae, star):
        assert arm["dense_seconds"] == pytest.approx(sum(seconds) / 2)
    assert mae["seconds"] == 0 and mae["as_it_is"] is None
    assert found["alike"] and found["dense_models"] == 2
    moce.report(of_each / "study", out=tmp_path / "page.html", quiet=True)
    page = (tmp_path / "page.html").read_text()
    assert "Each seed has a dense model, from which all its arms start;" in page
    assert "the same dense model" not in page


def test_a_part_of_the_seeds_measures_the_models_of_these(of_each: Path, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text((of_each / "study.toml").read_text())
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "runs").symlink_to(of_each / "study" / "runs")
    found = again(tmp_path, seeds="1", quiet=True)
    assert found["seeds_left_out"] == [0] and found["finished"]
    assert set(found["tables"]["knn"]["values"]["letters"]["MAE"]["seeds"]) == {"1"}
    own = read_json(tmp_path / "study" / "cells" / "mae" / "letters-knn-seed1.json")
    whole = read_json(of_each / "study" / "cells" / "mae" / "letters-knn-seed1.json")
    assert own["model_fingerprint"] == whole["model_fingerprint"] and own["predicted"] == whole["predicted"]


def test_the_models_may_lie_there_one_for_each_seed(of_each: Path, tmp_path: Path) -> None:
    runs = of_each / "study" / "runs"
    listed = f'mae = ["{runs / "seed1-mae"}", "{runs / "seed0-mae"}", "{runs / "seed1-mae"}"]'
    text = (of_each / "study.toml").read_text().replace("mae_per_seed = true", listed)
    (tmp_path / "study.toml").write_text(text.replace("[0, 1]", "[3, 4, 5]"))
    found = again(tmp_path, quiet=True, budget_minutes=0)
    assert set(found["arms"][0]["runs"]) == {"seed0-mae", "seed1-mae"}
    assert again(tmp_path, quiet=True, seeds="4")["finished"]
    made = tmp_path / "study" / "runs"
    assert sorted(run.name for run in made.iterdir()) == ["mae-star-seed4", "moce-seed4", "seed4-clusters"]
    assert read_json(made / "moce-seed4" / "config.json")["options"]["mae"] == str(runs / "seed0-mae")
    own = read_json(tmp_path / "study" / "cells" / "mae" / "letters-knn-seed4.json")
    same = moce.evaluate(
        runs / "seed0-mae", task="letters", data_root="toyworld://?size=32&num=24", quiet=True
    )
    assert own["predicted"] == same["predicted"]
    with pytest.raises(UserError, match="--seeds 7: .* lists no run for it; give some of 3, 4, 5"):
        again(tmp_path, quiet=True, seeds="7")


def test_machines_that_share_the_seeds_need_their_own_models_alone(of_each: Path, tmp_path: Path) -> None:
    runs = of_each / "study" / "runs"
    listed = [
        f"{key} = ['{runs / f'seed0-{name}'}', 'elsewhere']"
        for key, name in (("mae", "mae"), ("clusters", "clusters"))
    ]
    text = (of_each / "study.toml").read_text().replace("mae_per_seed = true", "\n".join(listed))
    (tmp_path / "study.toml").write_text(text)
    assert again(tmp_path, quiet=True, seeds="0")["finished"]
    made = tmp_path / "study" / "runs"
    assert sorted(run.name for run in made.iterdir()) == ["mae-star-seed0", "moce-seed0"]
    options = read_json(made / "moce-seed0" / "config.json")["options"]
    assert options["clusters"] == str(runs / "seed0-clusters")
    assert (
        read_json(made / "moce-seed0" / "result.json")["fingerprint"]
        == (read_json(runs / "moce-seed0" / "result.json")["fingerprint"])
    )
    with pytest.raises(UserError, match="There is no folder elsewhere"):
        again(tmp_path, quiet=True)


def test_a_run_may_be_listed_twice(of_each: Path, tmp_path: Path) -> None:
    runs = of_each / "study" / "runs"
    listed = ", ".join(f"'{runs / name}'" for name in ("seed0-mae", "seed0-mae", "seed1-mae"))
    text = (of_each / "study.toml").read_text().replace("mae_per_seed = true", f"mae = [{listed}]")
    (tmp_path / "study.toml").write_text(text.replace("[0, 1]", "[0, 1, 2]").partition("[[arms]]")[0] + MAE)
    found = again(tmp_path, quiet=True, seeds="0,1")
    assert set(found["tables"]["knn"]["values"]["letters"]["MAE"]["seeds"]) == {"0", "1"}
    found = again(tmp_path, quiet=True)
    seconds = [read_json(runs / f"seed{seed}-mae" / "result.json")["seconds"] for seed in (0, 0, 1)]
    assert found["arms"][0]["dense_seconds"] == pytest.approx(sum(seconds) / 3)


def test_models_of_other_recipes_are_named(
    of_each: Path, small_runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = f"mae = ['{of_each / 'study' / 'runs' / 'seed0-mae'}', '{tmp_path / 'other'}']"
    moce.pretrain(images=small_runs.images, out=tmp_path / "other", preset="debug", epochs=1, quiet=True)
    text = (of_each / "study.toml").read_text().replace("mae_per_seed = true", listed)
    (tmp_path / "study.toml").write_text(text)
    again(tmp_path, budget_minutes=0)
    assert (
        "the dense models of seeds 0 and 1 differ in epochs; the spread over seeds" in capsys.readouterr().err
    )


@pytest.mark.parametrize("renamed", [False, True])
def test_a_study_goes_on_as_it_began(of_each: Path, tmp_path: Path, renamed: bool) -> None:
    """A model for all seeds in place of one for each is refused before it is trained."""
    shutil.copytree(of_each / "study", tmp_path / "study")
    if renamed:  # what the runs name lies there no more
        for file in (tmp_path / "study" / "runs").glob("*/config.json"):
            assert str(of_each) in file.read_text() or file.parent.name.endswith("-mae")
            file.write_text(file.read_text().replace(str(of_each), str(tmp_path / "earlier")))
    text = (of_each / "study.toml").read_text()
    (tmp_path / "study.toml").write_text(text)
    assert again(tmp_path, quiet=True, budget_minutes=0)["finished"]  # the same study
    (tmp_path / "study.toml").write_text(text.replace("mae_per_seed = true", ""))
    with pytest.raises(UserError, match=r"was made from .*seed0-mae, and this study would make mae.* for it"):
        again(tmp_path, quiet=True)
    assert not (tmp_path / "study" / "runs" / "mae").exists()


def test_a_copy_without_its_dense_models_is_the_same_study(of_each: Path, tmp_path: Path) -> None:
    shutil.copytree(of_each / "study", tmp_path / "study")
    for seed in (0, 1):
        shutil.rmtree(tmp_path / "study" / "runs" / f"seed{seed}-mae")
    (tmp_path / "study.toml").write_text((of_each / "study.toml").read_text())
    assert again(tmp_path, quiet=True, budget_minutes=0)["finished"]


def test_a_named_model_of_the_same_name_is_another_one(study: Path, tmp_path: Path) -> None:
    """The file named runs/mae elsewhere; without that line the study's own would be called so."""
    shutil.copytree(study / "study", tmp_path / "study")
    (tmp_path / "study.toml").write_text(without((study / "study.toml").read_text(), "mae", "clusters"))
    with pytest.raises(UserError, match=r"was made from .*, and this study would make mae, clusters for it"):
        again(tmp_path, quiet=True)
    assert not (tmp_path / "study" / "runs" / "mae").exists()


def test_clusters_are_listed_beside_their_own_models(of_each: Path, tmp_path: Path) -> None:
    runs = of_each / "study" / "runs"
    models = ", ".join(f"'{runs / f'seed{seed}-mae'}'" for seed in (0, 1))
    clusters = ", ".join(f"'{runs / f'seed{seed}-clusters'}'" for seed in (1, 0))
    listed = f"mae = [{models}]\nclusters = [{clusters}]"
    text = (of_each / "study.toml").read_text().replace("mae_per_seed = true", listed)
    (tmp_path / "study.toml").write_text(text)
    with pytest.raises(
        UserError, match="seed 0 has the dense model .*seed0-mae and the clusters .*seed1-clusters, wh"
    ):
        again(tmp_path, quiet=True)


def test_who_chooses_a_learning_rate_does_so_with_the_first_seed_of_the_file(tmp_path: Path) -> None:
    more = {"mae_per_seed": True, "seeds": [0, 1], "protocols": ["finetune"], "lr_from": "MAE"}
    read = read_settings(None, {**SMALL, **more})
    chosen = plan_of(resolve(StudyConfig, {"kind": "compare", "out": str(tmp_path), "seeds": "1"}), read)
    assert [Path(stage.path).name for stage in chosen.dense] == ["seed0-mae", "seed1-mae"]
    mae = [cell for cell in chosen.cells() if cell.arm.name == "MAE" and cell.task == "letters"]
    assert [cell.seed for cell in mae] == [1]
    assert str(chosen.chooser(mae[0])) == "MAE, letters, finetune, seed 0"


def test_another_list_makes_what_came_from_it_stale(of_each: Path, tmp_path: Path) -> None:
    runs = of_each / "study" / "runs"
    text = (of_each / "study.toml").read_text()
    given = "mae = [{}]".format(", ".join(f'"{runs / name}"' for name in ("seed0-mae", "seed1-mae")))
    (tmp_path / "study.toml").write_text(text.replace("mae_per_seed = true", given))
    assert again(tmp_path, quiet=True, seeds="0")["finished"]
    turned = "mae = [{}]".format(", ".join(f'"{runs / name}"' for name in ("seed1-mae", "seed0-mae")))
    (tmp_path / "study.toml").write_text(text.replace("mae_per_seed = true", turned))
    with pytest.raises(UserError, match="seed0-clusters holds .*: not the same dense model;"):
        again(tmp_path, quiet=True, seeds="0")
