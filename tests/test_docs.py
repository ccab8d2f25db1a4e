"""What README and docs say of the code is true."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
FOLDERS = ("launch", "trainer", "parallel", "models")  # each may import those after it


def quotes() -> list[tuple[str, str]]:
    """Each file of docs/code.md with the lines of code quoted below it."""
    found, path = [], ""
    for line in (ROOT / "docs" / "code.md").read_text().splitlines():
        if line.startswith("    "):
            found.append((path, line.strip()))
        elif files := re.findall(r"\]\(\.\./([\w/]+\.py)\)", line):
            path = path if line.startswith("[operator") else files[0]
    return found


def test_the_step_passes_five_files():
    text = (ROOT / "docs" / "code.md").read_text()
    assert re.findall(r"^\*\*\d\. \[`([\w/.]+)`\]", text, re.MULTILINE) == [
        "launch/cli.py",
        "trainer/train.py",
        "models/transformer.py",
        "models/mixers/translution.py",
        "models/ops/streamed.py",
    ]


@pytest.mark.parametrize(("path", "line"), quotes())
def test_a_quoted_line_is_in_the_file_above_it(path: str, line: str):
    code = [each.strip() for each in (ROOT / path).read_text().splitlines()]
    assert line in code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path):
    named = re.findall(
        r"`((?:launch|trainer|parallel|models|tests|configs|benchmarks)/[\w/.]+)`", page.read_text()
    )
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_the_library_example_of_the_readme_runs():
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert example
    check = "assert y.shape == (8, 197, 192)"
    subprocess.run([sys.executable, "-c", example[1] + check], cwd=ROOT, check=True, timeout=100)


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_go_one_way(folder: str):
    above = FOLDERS[: FOLDERS.index(folder)]
    pattern = re.compile(rf"^\s*(?:from|import) (?:{'|'.join(above)})\b" if above else r"(?!)", re.MULTILINE)
    wrong = [path for path in (ROOT / folder).rglob("*.py") if pattern.search(path.read_text())]
    assert not wrong


@pytest.mark.parametrize("folder", FOLDERS)
def test_files_and_folders_stay_small(folder: str):
    """300 lines a file; nine modules a folder, besides __init__ and __main__."""
    files = [path for path in (ROOT / folder).rglob("*.py") if not path.name.startswith("__")]
    assert not [path for path in files if len(path.read_text().splitlines()) > 300]
    streets = {path.parent for path in files}
    assert not [street for street in streets if len([f for f in files if f.parent == street]) > 9]


def test_nothing_outside_models_knows_a_mixer_by_name():
    """Not even by isinstance: a new mixer must not need an edit there."""
    names = re.compile(r"(?:import|isinstance).*\b(?:Translution|Attention)(?:Config)?\b")
    benches = ROOT / "launch" / "bench"
    for folder in ("parallel", "trainer", "launch"):
        for path in (path for path in (ROOT / folder).rglob("*.py") if benches not in path.parents):
            code = re.sub(r'"""(?s:.*?)"""|#.*', "", path.read_text())
            assert not names.search(code), path
