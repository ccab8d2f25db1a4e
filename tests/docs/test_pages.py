"""The code on the pages of docs/ runs, block after block, and the configs on them load."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from parallel.code_folder import CODE_FOLDER
from trainer.config.run import parse_config

PAGES = {page.stem: page.read_text() for page in sorted((CODE_FOLDER / "docs").glob("*.md"))}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_the_code_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": page}
    for block in blocks(page, "python"):
        before = PAGES[page][: PAGES[page].index(block)].count("\n")  # so that errors name the page's line
        exec(compile("\n" * before + block, str(CODE_FOLDER / "docs" / f"{page}.md"), "exec"), names)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")])
def test_the_configs_of_a_page_load_and_their_nets_compute(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for block in blocks(page, "python"):  # a module of the user's own has its name in the first line
        if module := re.match(r"# (\w+\.py)\n", block):
            (tmp_path / module[1]).write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    for block in blocks(page, "yaml"):
        config = parse_config(yaml.safe_load(block) | {"name": page})
        from models import build_model

        net = build_model(config.model)
        inputs = next(config.build_source().train_batches(0, 2))
        with torch.no_grad():
            assert torch.isfinite(
                net(inputs.inputs.float() if config.model.kind == "vit" else inputs.inputs)
            ).all()


def test_the_site_builds_without_a_network(tmp_path: Path):
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    config = load_config(str(CODE_FOLDER / ".mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True)
    build(config)
    built = {page.stem for page in (tmp_path / "site").glob("*.html")} - {"404", "search"}
    assert built == {"index" if page == "README" else page for page in PAGES}
    sources = [page.read_text() for page in (tmp_path / "site").glob("*.html")]
    assert not [
        found for source in sources for found in re.findall(r'<(?:script|link)[^>]*"(https?:[^"]*)"', source)
    ]
