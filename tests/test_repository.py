"""What may not be in the repository: registries' hosts, large files, paths of one machine, a second lock."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

# Put together from pieces, so that this file does not hold what it looks for.
HOSTS = [
    ".".join(name)
    for name in [
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("download", "pytorch", "org"),
        ("pypi", "nvidia", "com"),
        ("registry", "npmjs", "org"),
        ("deb", "debian", "org"),
        ("anaconda", "org"),
    ]
]
MACHINE_PATHS = [
    "/" + name for name in ("work/", "tmp/bash_jobs", "root/", "opt/wheels", "opt/pypi", "home/")
]
LARGEST = 2 * 1024 * 1024
STUDIES = ("compare", "ablate", "negative-transfer")


@pytest.fixture(scope="module")
def files() -> list[Path]:
    """Every file that git tracks here and that exists."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True)
    if listing.returncode != 0:
        pytest.skip("not a git checkout, so there is no list of its files")
    return [path for name in listing.stdout.split("\0") if name and (path := REPOSITORY / name).is_file()]


def lines_with(files: list[Path], pattern: str) -> list[str]:
    """'file:line: text' of each line that the pattern is found in."""
    found = []
    for path in files:
        text = path.read_bytes().decode("utf-8", errors="ignore")
        for number, line in enumerate(text.splitlines(), start=1):
            if re.search(pattern, line):
                found.append(f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()[:120]}")
    return found


def test_no_file_names_a_registry_host(files: list[Path]) -> None:
    assert lines_with(files, "|".join(map(re.escape, HOSTS))) == []


def test_no_file_holds_a_path_of_one_machine(files: list[Path]) -> None:
    # Not inside a longer path or an address, where such a name is nobody's machine.
    assert lines_with(files, r"(?<![\w.~-])(" + "|".join(map(re.escape, MACHINE_PATHS)) + ")") == []


def test_nothing_is_left_to_be_filled_in(files: list[Path]) -> None:
    assert lines_with(files, r"@@\w+@@|\bTO" + r"DO\b|\bFIX" + r"ME\b") == []


def test_every_file_is_small(files: list[Path]) -> None:
    assert [
        f"{path.name}: {path.stat().st_size} bytes" for path in files if path.stat().st_size > LARGEST
    ] == []


def test_there_is_one_lock(files: list[Path]) -> None:
    names = {path.relative_to(REPOSITORY).as_posix() for path in files}
    assert "requirements.lock" in names
    assert not {name for name in names if name.endswith(("uv.lock", "poetry.lock", "Pipfile.lock"))}


def test_the_lock_pins_every_package_by_hash() -> None:
    text = (REPOSITORY / "requirements.lock").read_text()
    blocks = re.split(r"\n(?=[A-Za-z0-9])", text)
    packages = [block for block in blocks if re.match(r"[A-Za-z0-9]", block)]
    assert len(packages) > 20
    assert [
        block.split("\n")[0] for block in packages if "==" not in block or "--hash=sha256:" not in block
    ] == []


def test_the_lock_holds_the_declared_dependencies() -> None:
    import tomllib

    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    wanted = list(declared["project"]["dependencies"]) + list(declared["dependency-groups"]["dev"])
    for extra in declared["project"].get("optional-dependencies", {}).values():
        wanted += extra
    names = {re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-") for requirement in wanted}  # type: ignore[index]
    pinned = set(re.findall(r"^([a-z0-9.-]+)==", (REPOSITORY / "requirements.lock").read_text(), flags=re.M))
    assert names - pinned == set()


def test_nothing_but_the_command_line_knows_the_studies() -> None:
    source = REPOSITORY / "src" / "moce"
    others = [p for p in source.rglob("*.py") if "study" not in p.parts and p != source / "__init__.py"]
    assert [path for path in others if "moce.study" in path.read_text()] == []
    every = [path for path in source.rglob("*.py") if "moce.__main__" in path.read_text()]
    assert every == []


def test_the_design_page_names_every_module() -> None:
    picture = (REPOSITORY / "docs" / "design.md").read_text().partition("<!-- modules -->")[2]
    named: set[str] = set()
    folder = inner = ""
    for line in picture.partition("    tests/")[0].splitlines():
        if match := re.match(r" {6}(?:(\w+)/|(\w+\.py)) ", line + " "):
            folder = match[1] or ""
            if match[2]:
                named.add(match[2])
        elif match := re.match(r" {8}(\w+\.py|\w+/) ", line):
            named.add(inner := f"{folder}/{match[1]}")
        elif match := re.match(r" {10}(\w+\.py) ", line):  # a package inside is named by its modules
            named.discard(inner)
            named.add(inner + match[1])
    source = REPOSITORY / "src" / "moce"
    modules = {path.relative_to(source).as_posix() for path in source.rglob("*.py")}
    modules = {"images/toyworld/" if "toyworld" in name else name for name in modules}
    modules -= {name for name in modules if name.endswith("/__init__.py")}
    assert named - modules == set(), "the page names modules that do not exist"
    assert modules - named == set(), "modules that the page does not name"


def test_commands_in_the_documentation_exist() -> None:
    from moce.__main__ import LATER, parse

    commands = []
    for page in [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]:
        blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.S)
        for block in blocks:
            commands += re.findall(r"^(?:\.venv/bin/)?moce (.+)$", block.replace("\\\n", " "), flags=re.M)
    assert len(commands) >= 5
    for command in commands:
        words = command.partition("#")[0].split()
        if words[0] not in LATER and "--help" not in words:
            parse(words)


def test_links_of_the_documentation_lead_somewhere(files: list[Path]) -> None:
    lost = []
    for page in (path for path in files if path.suffix == ".md"):
        links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S))
        targets = {link.partition("#")[0] for link in links if "://" not in link}
        lost += [
            f"{page.name}: {name}" for name in sorted(targets) if name and not (page.parent / name).exists()
        ]
    assert not lost, "no such files"


def test_every_study_of_the_results_has_its_file(files: list[Path]) -> None:
    kept = {path.stem: path.read_text() for path in files if path.parent.name == "studies"}
    made = {}
    for path in files:
        if path.parent.name == "results" and path.suffix == ".json":
            content = json.loads(path.read_text())
            if isinstance(content, dict) and content.get("kind") in STUDIES:
                made[path.stem] = content["origin"]["config"].strip() + "\n"
    assert made and kept == made
