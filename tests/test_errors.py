"""Parts of sentences for people."""

from pathlib import Path

import pytest

from moce.errors import UserError, counted, did_you_mean, run_script

MODELS = ["gcvit_tiny", "vit_base_patch16_224", "vit_tiny_patch16_224", "vit_tiny_patch16_384_long"]


@pytest.mark.parametrize(
    ("word", "choices", "meant"),
    [
        ("vit_tinny", MODELS, "vit_tiny_patch16_224"),  # and not gcvit_tiny, of which more is the same
        ("gcvit_tinny", MODELS, "gcvit_tiny"),
        ("vit_tinny_patch16_384_long", MODELS, "vit_tiny_patch16_384_long"),
        ("--epoch", ["--epochs-later", "--epochs", "--seed"], "--epochs"),
        ("Capcity", ["capacity", "argmax"], "capacity"),
        ("nothing", ["capacity", "argmax"], None),
        ("", ["capacity"], None),
    ],
)
def test_what_was_meant_is_like_the_word_or_begins_like_it(
    word: str, choices: list[str], meant: str | None
) -> None:
    assert did_you_mean(word, choices) == (f" Did you mean '{meant}'?" if meant else "")


def test_one_is_not_several() -> None:
    assert [counted(n, "picture") for n in (0, 1, 2000)] == ["0 pictures", "1 picture", "2,000 pictures"]
    assert [counted(n, "box", "boxes") for n in (1, 2)] == ["1 box", "2 boxes"]


def test_a_script_ends_as_moce_does(capsys: pytest.CaptureFixture[str]) -> None:
    def wrong() -> None:
        raise UserError("There is no folder 'x'.")

    with pytest.raises(SystemExit) as ended:
        run_script(wrong)
    assert ended.value.code == 2 and capsys.readouterr().err == "There is no folder 'x'.\n"

    def broken() -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError):
        run_script(broken)
    called: list[int] = []
    run_script(lambda: called.append(1))
    assert called == [1]


def test_every_script_of_benchmarks_ends_so() -> None:
    scripts = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))
    assert len(scripts) > 10
    ends = 'if __name__ == "__main__":\n    run_script(main)\n'
    assert [script.name for script in scripts if not script.read_text().endswith(ends)] == []
