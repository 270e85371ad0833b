"""Consistency of package facts that are stated in several files."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import yaml

import ml
from ml.cli import verbs

ROOT = Path(__file__).parents[1]


def metadata(tmp_path):
    """Returns the metadata from setup.py, read in a process that cannot import torch or gin."""
    program = (
        "import runpy, setuptools, sys\n"
        "sys.modules['torch'] = sys.modules['gin'] = None\n"
        "seen = {}\n"
        "setuptools.setup = lambda **arguments: seen.update(arguments)\n"
        f"runpy.run_path({str(ROOT / 'setup.py')!r})\n"
        "import json\n"
        "names = ('version', 'license', 'license_files', 'author', 'entry_points', 'package_data')\n"
        "print(json.dumps({name: seen[name] for name in names}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True, env={}
    )
    return json.loads(done.stdout)


def test_version_and_license_match_the_files(tmp_path):
    found = metadata(tmp_path)
    assert found["version"] == ml.__version__
    assert found["license"] == "Apache-2.0"
    text = (ROOT / found["license_files"][0]).read_text()
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert f"Copyright 2026 {found['author']}" in text


def test_the_command_of_the_package_is_a_function(tmp_path):
    (script,) = metadata(tmp_path)["entry_points"]["console_scripts"]
    command = EntryPoint(*script.split(" = "), group="console_scripts")
    assert command.name == "juniper"
    assert command.load() is verbs.main


def test_the_version_is_defined_once_and_has_a_changelog_section():
    assert re.fullmatch(r"\d+\.\d+\.\d+", ml.__version__)
    stating = [
        path for path in [ROOT / "setup.py", *ROOT.glob("ml/**/*.py")] if f'"{ml.__version__}"' in path.read_text()
    ]
    assert stating == [ROOT / "ml" / "version.py"]
    assert f"\n## {ml.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(("repository", "package"), [("ruff-pre-commit", "ruff"), ("codespell", "codespell")])
def test_hooks_use_the_versions_of_the_constraints(repository, package):
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (revision,) = [hook["rev"] for hook in hooks if hook["repo"].endswith(f"/{repository}")]
    assert f"{package}=={revision.removeprefix('v')}\n" in (ROOT / "constraints.txt").read_text()


def test_the_package_ships_its_types(tmp_path):
    """Without `py.typed` a type checker takes everything in an installed package for untyped (PEP 561)."""
    assert "py.typed" in metadata(tmp_path)["package_data"]["ml"]
    assert (ROOT / "ml" / "py.typed").is_file()


def test_the_package_ships_its_native_sources(tmp_path):
    folder = ROOT / "ml" / "layers" / "native"
    patterns = metadata(tmp_path)["package_data"]["ml.layers.native"]
    sources = {path for path in folder.iterdir() if path.is_file() and path.suffix != ".py"}
    assert sources == {path for pattern in patterns for path in folder.glob(pattern)}
    assert sources


def test_the_workflow_runs_the_ci_script():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    assert ".ci/run" in [step.get("run") for job in jobs.values() for step in job["steps"]]


def test_words_ignored_by_the_spelling_check_occur_in_the_repository():
    ignored = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["codespell"]["ignore-words-list"].split(",")
    files = [ROOT / "README.md", *(ROOT / "tests").rglob("*.py")]
    text = " ".join(path.read_text() for path in files).lower()
    assert [word for word in ignored if not re.search(rf"\b{word}\b", text)] == []
