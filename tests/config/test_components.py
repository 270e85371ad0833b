"""Modules imported by a configuration: search path, names, visibility."""

import hashlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from small_model import SMALL, build_on_meta
from warm_python import run_python

from ml.config import ConfigError, configurable, load

TESTS = str(Path(__file__).parent)
LAYER = """
from torch import nn
from ml.config import configurable

@configurable
class {name}(nn.Module):
    def __init__(self, hidden_size: int, *, size: int = {size}):
        super().__init__()
        self.size = size
"""
USE = SMALL + "import my_layers\nDecoderBlock.mlp = @MyMLP\n"


def write(folder, **modules: str):
    """Writes `name="source"` to `name.py`, a name with `__` to a package, and returns the folder."""
    for name, source in modules.items():
        path = folder / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return folder


def layer(name: str = "MyMLP", size: int = 1) -> str:
    return LAYER.format(name=name, size=size)


def gin(folder, text: str = USE, name: str = "main.gin"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def load_small(*files, **options):
    return load(list(files), root=build_on_meta, **options)


def mlp_of(config):
    return config.build(build_on_meta).decoder.blocks[0].mlp


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    """Runs each test in a separate folder and restores Python's search path and modules."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = list(sys.path), list(sys.meta_path)
    yield tmp_path / "here"
    assert (sys.path, sys.meta_path) == before


def test_a_module_is_found_in_the_file_folder_then_here_then_on_the_search_path(tmp_path):
    main = gin(tmp_path / "exp")
    places = [tmp_path / "exp", tmp_path / "here", tmp_path / "search"]
    for size, place in enumerate(places):
        write(place, my_layers=layer(size=size))
    found = []
    for place in places:
        found.append(mlp_of(load_small(main, search_path=[tmp_path / "search"])).size)
        (place / "my_layers.py").unlink()
    assert found == [0, 1, 2]


def test_an_include_imports_from_its_folder(tmp_path):
    write(tmp_path / "exp" / "part", my_layers=layer(size=7))
    gin(tmp_path / "exp" / "part", "import my_layers\nDecoderBlock.mlp = @MyMLP\n", "part.gin")
    assert mlp_of(load_small(gin(tmp_path / "exp", SMALL + "include 'part/part.gin'\n"))).size == 7


@pytest.mark.parametrize(
    "statement", ["import my.layers", "from my import layers", "import my.layers as m", "import my"]
)
def test_packages_and_their_modules_are_imported(tmp_path, statement):
    init = "from my import layers\n" if statement == "import my" else ""
    write(tmp_path / "exp", my____init__=init, my__layers="from .sizes import SIZE\n" + layer(), my__sizes="SIZE = 1\n")
    (tmp_path / "exp" / "my" / "__init__.py").write_text(init)
    config = load_small(gin(tmp_path / "exp", USE.replace("import my_layers", statement)))
    assert type(mlp_of(config)).__name__ == "MyMLP"
    assert {c.file for c in config.components} == {"my/__init__.py", "my/layers.py", "my/sizes.py"}


def test_the_operative_config_has_the_hash_of_each_module_and_no_path(tmp_path):
    helper = "SIZE = 3\n"
    write(tmp_path / "a", my_layers="import my_helper\n" + layer(), my_helper=helper)
    write(tmp_path / "b", my_layers="import my_helper\n" + layer(), my_helper=helper)
    first, second = (load_small(gin(tmp_path / name)) for name in "ab")
    assert f"'my_helper.py': '{hashlib.sha256(helper.encode()).hexdigest()}'" in first.operative
    assert str(tmp_path) not in first.operative
    assert first.fingerprint == second.fingerprint
    write(tmp_path / "b", my_helper=helper + "# changed\n")
    assert load_small(tmp_path / "b" / "main.gin").fingerprint != first.fingerprint


def test_two_configurations_may_have_different_modules_with_one_name(tmp_path):
    for size, name in enumerate("ab"):
        write(
            tmp_path / name, my_layers="from my_helper import SIZE\n" + layer(size="SIZE"), my_helper=f"SIZE = {size}\n"
        )
    a, b, again = (load_small(gin(tmp_path / name)) for name in "aba")
    assert [mlp_of(config).size for config in (a, b, again, b, a)] == [0, 1, 0, 1, 0]


def test_a_shared_module_uses_the_sibling_of_each_configuration(tmp_path):
    shared = write(tmp_path / "shared", my_layers="from my_helper import SIZE\n" + layer(size="SIZE"))
    configs = []
    for size, name in enumerate("ab"):
        write(tmp_path / name, my_helper=f"SIZE = {size}\n")
        configs.append(load_small(gin(tmp_path / name), search_path=[shared]))
    assert [mlp_of(config).size for config in configs] == [0, 1]


def test_an_unchanged_module_is_executed_once(tmp_path):
    count = "import os\nos.environ['EXECUTED'] = os.environ.get('EXECUTED', '') + 'x'\n"
    write(tmp_path / "exp", my_layers=count + layer())
    main = gin(tmp_path / "exp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXECUTED", "")
        import os

        assert type(mlp_of(load_small(main))) is type(mlp_of(load_small(main)))
        assert os.environ["EXECUTED"] == "x"


def test_an_edited_module_is_reloaded(tmp_path):
    main = gin(write(tmp_path / "exp", my_layers=layer(size=1)))
    first = load_small(main)
    write(tmp_path / "exp", my_layers=layer(size=2))
    second = load_small(main)
    assert [mlp_of(config).size for config in (first, second)] == [1, 2]


def test_a_sibling_does_not_replace_a_module_of_python(tmp_path, monkeypatch):
    write(
        tmp_path / "exp", random="raise ValueError\n", torch="raise ValueError\n", my_layers="import random\n" + layer()
    )
    assert mlp_of(load_small(gin(tmp_path / "exp"))).size == 1


def test_a_missing_module_is_an_error_with_the_searched_folders(tmp_path):
    main = gin(write(tmp_path / "exp", my_layer=layer()))
    with pytest.raises(ConfigError) as caught:
        load_small(main, search_path=[tmp_path / "search"])
    (problem,) = caught.value.problems
    assert "there is no module 'my_layers'; did you mean 'my_layer'?" in problem.message
    assert f"searched {tmp_path}/exp, ., {tmp_path}/search, and the path of Python" in problem.message
    assert problem.location.line == SMALL.count("\n") + 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_library\n", "cannot import my_layers: No module named 'no_such_library'"),
        ("1 / 0\n", "cannot import my_layers: ZeroDivisionError"),
        ("def\n", "cannot import my_layers: SyntaxError"),
    ],
)
def test_a_module_that_fails_is_one_error(tmp_path, source, message):
    main = gin(write(tmp_path / "exp", my_layers=source))
    with pytest.raises(ConfigError) as caught:
        load_small(main)
    (problem,) = caught.value.problems
    assert message in problem.message


def test_imports_are_not_visible_to_other_configurations(tmp_path):
    write(
        tmp_path / "exp",
        my_layers="import my_parts\n" + layer(),
        my_parts=layer("MyPart"),
        my_other="import my_parts\n",
    )
    load_small(gin(tmp_path / "exp"))
    for name in ("MyMLP", "MyPart"):
        with pytest.raises(ConfigError, match=f"there is no configurable '{name}'.*add `import my"):
            load_small(bindings=[SMALL, f"DecoderBlock.mlp = @{name}"])
    text = USE.replace("my_layers", "my_other").replace("MyMLP", "MyPart")
    assert type(mlp_of(load_small(gin(tmp_path / "exp", text)))).__name__ == "MyPart"


def test_a_class_with_a_built_in_name_affects_only_its_importers(tmp_path):
    before = load_small(bindings=[SMALL, "Linear.bias = True"])
    load_small(gin(write(tmp_path / "exp", my_layers=layer("Linear")), SMALL + "import my_layers\n"))
    assert load_small(bindings=[SMALL, "Linear.bias = True"]).operative == before.operative


def test_an_ambiguous_name_is_an_error_with_the_qualified_names(tmp_path):
    write(tmp_path / "exp", my_layers=layer("Linear"))
    main = gin(tmp_path / "exp", SMALL + "import my_layers\nLinear.bias = True\nDecoderBlock.mlp = @Linear\n")
    with pytest.raises(ConfigError) as caught:
        load_small(main)
    assert len(caught.value.problems) == 2
    for problem in caught.value.problems:
        assert problem.message.endswith("write linear.Linear or my_layers.Linear")


def test_a_name_in_a_shipped_file_is_the_built_in(tmp_path):
    write(tmp_path / "exp", my_layers=layer("Linear"))
    gin(tmp_path / "shipped", "PART = @Linear\nLinear.bias = True\n", "base.gin")
    text = SMALL + "import my_layers\ninclude 'base.gin'\nDecoderBlock.mlp = @my_layers.Linear\n"
    config = load_small(gin(tmp_path / "exp", text), shipped=tmp_path / "shipped", allow_unused_bindings=True)
    model = config.build(build_on_meta)
    assert model.decoder.blocks[0].mixer.query.bias is not None
    assert type(model.decoder.blocks[0].mlp).__module__ == "my_layers"


def test_two_classes_with_one_name_are_saved_and_loaded(tmp_path):
    holder = layer("Linear") + LAYER.format(name="Holder", size=1).replace("self.size = size", HOLDS).replace(
        "from ml.config import configurable", "from ml.config import child, configurable"
    )
    write(tmp_path / "exp", my_layers=holder)
    text = (
        SMALL + "import my_layers\nlinear.Linear.bias = True\nmy_layers.Linear.size = 5\nDecoderBlock.mlp = @Holder\n"
    )
    config = load_small(gin(tmp_path / "exp", text))
    again = load_small(gin(tmp_path / "exp", config.operative, "operative.gin"))
    assert again.operative == config.operative
    assert mlp_of(again).held.size == 5
    assert {r.configurable for r in config.records() if r.path.endswith("/held")} == {"my_layers.Linear"}


HOLDS = """self.held = child("held", Linear, hidden_size)
        self.other = child("other", Linear, hidden_size, defaults={"size": 9})
        from ml.layers import Linear as BuiltIn
        self.built_in = child("built_in", BuiltIn, hidden_size, 4, defaults={"lr_scale": 2.0})"""


def test_a_parent_with_an_ambiguous_name_keeps_its_suggestions(tmp_path):
    parent = LAYER.format(name="RMSNorm", size=1).replace("self.size = size", HOLDS)
    parent = parent.replace("from ml.config import configurable", "from ml.config import child, configurable")
    write(tmp_path / "exp", my_layers=layer("Linear") + parent)
    text = SMALL + "import my_layers\nDecoderBlock.mlp = @my_layers.RMSNorm\n"
    config = load_small(gin(tmp_path / "exp", text))
    assert "my_layers__RMSNorm/other/my_layers.Linear.size = 9\n" in config.operative
    again = load_small(gin(tmp_path / "exp", config.operative, "operative.gin"))
    assert again.operative == config.operative
    assert mlp_of(again).other.size == 9


NOTEBOOK = """
import sys
from small_model import SMALL, build_on_meta
from ml.config import configurable, load

@configurable
class RMSNorm:
    def __init__(self, size: int = 1):
        self.size = size

@configurable
class OnlyHere:
    def __init__(self, size: int = 1):
        self.size = size

assert load(bindings="OnlyHere.size = 2", root=OnlyHere).build(OnlyHere).size == 2
config = load(bindings="__main__.RMSNorm.size = 3", root=RMSNorm)
assert config.build(RMSNorm).size == 3
assert load(bindings=config.operative, root=RMSNorm).operative == config.operative
assert "\\nRMSNorm.epsilon = 0.5" in load(bindings=[SMALL, "RMSNorm.epsilon = 0.5"], root=build_on_meta).operative
"""


def test_a_notebook_class_is_found_and_yields_to_a_built_in_with_its_name(working_folder):
    folder = write(working_folder, notebook=NOTEBOOK.replace("import sys", f"import sys; sys.path.append({TESTS!r})"))
    done = subprocess.run([sys.executable, folder / "notebook.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Thing:
    """A class of which no default is None."""


@configurable
class Bookcase:
    def __init__(self, thing: Thing = None, name: str = "x", width: float = 1):
        self.thing = thing


def test_a_default_that_violates_its_annotation_is_an_error_before_the_run():
    with pytest.raises(ConfigError) as caught:
        load(bindings="Bookcase.name = 'y'", root=Bookcase)
    (problem,) = caught.value.problems
    assert problem.message.startswith("Bookcase.thing, its default, must be Thing, not None")


def test_show_finds_a_module_in_the_working_folder(working_folder):
    write(working_folder, my_layers=layer())
    shown = run_python("-m", "ml", "show", "MyMLP", "--module=my_layers", cwd=working_folder)
    assert "MyMLP (my_layers.MyMLP)" in shown.stdout, shown.stderr


def test_a_configuration_with_custom_modules_can_be_pickled(tmp_path):
    main = gin(write(tmp_path / "exp", my_layers=layer(size=4)))
    script = (
        f"import sys; sys.path.append({TESTS!r}); import pickle; from pathlib import Path\n"
        "config = pickle.loads(Path(sys.argv[1]).read_bytes()); from small_model import build_on_meta\n"
        "print(config.fingerprint, config.build(build_on_meta).decoder.blocks[0].mlp.size)\n"
    )
    config = load_small(main)
    (tmp_path / "config").write_bytes(pickle.dumps(config))
    command = [sys.executable, "-c", script, tmp_path / "config"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [config.fingerprint, "4"], done.stderr
