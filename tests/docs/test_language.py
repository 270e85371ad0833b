"""Checks the vocabulary of docstrings, comments, names and pages.

The words are those of the field, as torch's own documentation uses them, in American spelling. `WORDS` lists the
expressions that have a better word, with that word.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COVERED = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "setup.py",
    "train.py",
    "benchmarks",
    "ml",
    "configs",
    "docs",
    "tests",
]
GENERATED = {ROOT / "docs" / "layers.md", *(ROOT / "tests" / "golden").glob("*.gin")}

OPENING = re.compile(r"(What|How|Which|Those|That|Who|Whose|Whether|Where|Why|Nobody|Somebody|Anybody)\b")
WORDS = {
    r"behind": "after",
    r"(go|goes|going|gone|went) on(?! top)": "resume, continue",
    r"(tells?|told|telling|keeps?|kept|keeping|sets?) (\w+ ){0,3}apart": "separate, mask",
    r"fill(s|ed|ing)? up": "pad",
    r"(take|takes|taken|taking) off": "subtract",
    r"turn(s|ed|ing)? a?round|other way a?round": "rearrange; conversely",
    r"(leave|leaves|leaving|left) (it |them )?out": "skip, omit",
    r"device is waited for|waits? for the device": "synchronize",
    r"says|said": "report, log, state",
    r"of (its|their|your|one's|our|my) own": "own, separate, custom",
    r"likeliest|likelier": "most likely",
    r"what [^.;:]{0,30}(is|was|are|hold|holds|held) (held )?out": "the held-out split",
    r"spread loads?|load is spread|spreads? (the|its) tokens": "load balancing",
    r"(places|numbers) of (the )?tokens": "positions, indices",
    r"nobody|anybody|somebody|everybody|no one": "name the part, or use the passive",
    r"(?<!people )(?<!person )(?<!user )(?<!users )(?<!reader )who": "name the source",
    r"wholly|anew|lest|whereof|thereof|whilst|oneself": "entirely, again, ...",
    r"bit by bit|to the last bit": "bitwise, bit for bit",
}
AMERICAN = {
    r"(centre|centred|centres)": "center",
    r"(colour|flavour|favour|behaviour|neighbour|honour)\w*": "-or",
    r"grey\w*": "gray",
    r"(optim|initial|normal|serial|token|material|summar|recogn|organ|regular|quant|parallel|general|minim|maxim)is"
    r"(e|es|ed|er|ers|ing|ation)": "-ize",
    r"(analyse|analysed|catalogue|licence|artefact|modelling|labelled|travelling|learnt|spelt)": "American spelling",
}
RULES = [(re.compile(rf"\b(?:{pattern})\b", re.I), better) for pattern, better in {**WORDS, **AMERICAN}.items()]


def python_prose(text: str) -> Iterator[tuple[int, str, bool]]:
    """Yields (line, text, opening) of docstrings, comments and test names; `opening` marks the first line of one."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False):
                literal = node.body[0].value
                lines = literal.value.splitlines()
                yield from ((literal.lineno + index, line, index == 0) for index, line in enumerate(lines))
            if not isinstance(node, ast.Module) and node.name.startswith("test_"):
                yield node.lineno, node.name.replace("_", " "), False
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# "), False


def page_prose(text: str) -> Iterator[tuple[int, str, bool]]:
    """Yields (line, text, opening) of a Markdown page without fenced code; a heading is an opening."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield number, line.lstrip("# "), line.startswith("#")


def config_prose(text: str) -> Iterator[tuple[int, str, bool]]:
    """Yields (line, text, opening) of the comments of a gin or TOML file."""
    for number, line in enumerate(text.splitlines(), 1):
        if "#" in line:
            yield number, line.split("#", 1)[1].strip(), number == 1


PROSE = {".py": python_prose, ".md": page_prose, ".gin": config_prose, ".toml": config_prose}


def findings(path: Path, text: str) -> list[str]:
    """Returns `file:line: 'expression' (better word)` for each violation in one file."""
    found = []
    for number, line, opening in PROSE[path.suffix](text):
        plain = re.sub(r"`[^`]*`|\"[^\"]*\"|https?://\S+|\]\([^)]*\)", "", line)
        matches = [(match.group(), better) for rule, better in RULES for match in rule.finditer(plain)]
        if opening and OPENING.match(plain):
            matches.append((plain.split()[0], "open with a noun phrase or a verb"))
        found += [f"{path}:{number}: {words!r} ({better})" for words, better in matches]
    return found


def covered_files(roots: list[str]) -> list[Path]:
    """Returns the files below `roots` that have prose and are written by hand."""
    paths = [ROOT / root for root in roots]
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    return [file for file in files if file.suffix in PROSE and file not in GENERATED]


def test_prose_uses_the_words_of_the_field():
    found = []
    for file in covered_files(COVERED):
        found += findings(file.relative_to(ROOT), file.read_text(encoding="utf-8"))
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.py", '"""How a step is taken."""'),
        ("a.py", 'def f():\n    """Step.\n\n    It goes on.\n    """'),
        ("a.py", "x = 1  # the behaviour"),
        ("a.py", "def test_the_log_says_it(): ..."),
        ("a.md", "# What it does"),
        ("a.md", "The run goes on."),
        ("a.gin", "A.b = 1  # a layer of its own"),
        ("a.toml", "# left out"),
    ],
)
def test_each_kind_of_prose_is_checked(name, text):
    assert len(findings(Path(name), text)) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.py", "message = 'how it goes on'"),
        ("a.md", "```\nhow it goes on\n```"),
        ("a.md", "Prints `left out`, on top of a loss."),
        ("a.gin", "A.colour = 1"),
    ],
)
def test_code_and_quotations_are_not_checked(name, text):
    assert findings(Path(name), text) == []
