"""Checks of the guide: gin blocks load, Python blocks run, links resolve, generated pages are current."""

import importlib.util
import re
from pathlib import Path

import pytest
from warm_python import run_python

import ml

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "benchmarks").glob("*.md"))]


def blocks(language: str) -> list:
    """Returns the fenced blocks of a language on all pages, named after page and number."""
    return [
        pytest.param(text, id=f"{page.stem}-{number}")
        for page in PAGES
        for number, text in enumerate(re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.M | re.S))
    ]


@pytest.mark.parametrize("text", blocks("gin"))
def test_gin_blocks_load_over_the_tiny_recipe(text):
    ml.load("recipes/tiny.gin", bindings=[text])


@pytest.mark.parametrize("text", blocks("python"))
def test_python_blocks_run(text, tmp_path):
    (tmp_path / "block.py").write_text(text)
    assert run_python(tmp_path / "block.py", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_page_of_layers_is_current():
    spec = importlib.util.spec_from_file_location("generate_layers", ROOT / "docs" / "generate_layers.py")
    generate_layers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate_layers)
    assert generate_layers.PAGE.read_text(encoding="utf-8") == generate_layers.page(), "run docs/generate_layers.py"
