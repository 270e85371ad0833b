"""References: they keep the module path and only add their scope. Also compatibility with stock gin."""

import pickle

import gin
import pytest
import torch
from small_model import values
from torch import nn

from ml.config import child, configurable, load
from ml.config.configurable import ScopedConstructor


def test_a_scope_names_a_variant_of_a_layer(load_model):
    config = load_model(
        "GatedMLP.intermediate_size = 64",
        "wide/GatedMLP.intermediate_size = 128",
        "block_2/DecoderBlock.mlp = @wide/GatedMLP",
        "block_2/up/Linear.bias = False",
    )
    sizes = values(config, "GatedMLP", "intermediate_size")
    assert sizes == {
        **{f"decoder/block_{i}/mlp": "64" for i in (0, 1, 3, 4)},
        "decoder/block_2/mlp/wide": "128",
    }
    biases = values(config, "Linear", "bias")
    assert biases["decoder/block_2/mlp/wide/up"] == "False"
    assert biases["decoder/block_1/mlp/up"] == "True"


def test_a_macro_with_a_reference_keeps_the_module_path(load_model):
    config = load_model(
        "WIDE = @wide/GatedMLP",
        "block_1_to_2/DecoderBlock.mlp = %WIDE",
        "wide/GatedMLP.intermediate_size = 128",
        "block_2/wide/GatedMLP.intermediate_size = 192",
        "block_1/up/Linear.bias = False",
    )
    sizes = values(config, "GatedMLP", "intermediate_size")
    assert sizes["decoder/block_1/mlp/wide"] == "128"
    assert sizes["decoder/block_2/mlp/wide"] == "192"
    assert values(config, "Linear", "bias")["decoder/block_1/mlp/wide/up"] == "False"


def test_one_block_can_have_another_mixer(load_model):
    config = load_model("block_3/DecoderBlock.mixer = @MLP", "block_3/mixer/MLP.intermediate_size = 48")
    assert values(config, "MLP", "intermediate_size") == {"decoder/block_3/mixer": "48"}
    assert "decoder/block_3/mixer" not in values(config, "Attention", "num_heads")


def test_scope_names_match_weight_names(load_model):
    config = load_model("query/Linear.bias = False")
    with torch.device("meta"):
        from small_model import build_on_meta

        model = config.build(build_on_meta)
    modules = {name.replace(".", "/") for name, _ in model.named_modules()}
    parameters = {name.replace(".", "/") for name, _ in model.named_parameters()}
    built = {record.path for record in config.records() if record.configurable not in ("Parameter", *INITIALIZATIONS)}
    assert built - {"decoder/block_0/mlp/activation"} <= modules | {p for p in built if p.endswith("activation")}
    assert {r.path for r in config.records() if r.configurable == "Parameter"} == parameters


INITIALIZATIONS = ("normal", "zeros", "ones")


gin.external_configurable(dict, "dict")


@configurable
class Leaf:
    def __init__(self, size: int, *, sign: int = 1, note: str = "leaf"):
        self.size, self.sign, self.note = size, sign, note


@configurable
class Twig:
    def __init__(self, *, left=Leaf, right=Leaf, extras: list | tuple = (), shared: tuple = ()):
        self.left = child("left", left, 1)
        self.right = child("right", right, 2, defaults={"sign": -1})
        self.extras = extras
        self.shared = shared


@configurable
def total(x: int, *, factor: int = 2) -> int:
    return factor * x


def load_twig(text, **options):
    return load((), text, root=Twig, **options)


def build_twig(text):
    return load_twig(text).build(Twig)


def test_an_evaluated_reference_is_built_again_for_each_use():
    config = load_twig("Twig.extras = [@total(), @big/total()]\ntotal.x = 3\nbig/total.factor = 10")
    assert config.build(Twig).extras == [6, 30]
    assert values(config, "total", "x") == {"": "3", "big": "3"}


def test_a_singleton_is_shared():
    twig = build_twig(
        "Twig.shared = (@one/gin.singleton(), @one/gin.singleton(), @two/gin.singleton())\n"
        "one/gin.singleton.constructor = @dict\ntwo/gin.singleton.constructor = @dict"
    )
    first, second, third = twig.shared
    assert first is second
    assert first is not third


def test_a_list_in_a_binding_is_not_shared_between_builds():
    config = load_twig("Twig.extras = [1, 2]")
    config.build(Twig).extras.append(3)
    assert config.build(Twig).extras == [1, 2]


def test_a_class_registered_with_stock_gin_follows_the_same_rules():
    @gin.configurable(module="tests")
    class Stock:
        def __init__(self, size: int, colour: str = "red"):
            self.size, self.colour = size, colour

    config = load_twig("Twig.left = @Stock\nleft/Stock.colour = 'blue'")
    assert config.build(Twig).left.colour == "blue"
    with pytest.raises(ValueError, match=r"Stock.colour must be str, not 3"):
        load_twig("Twig.left = @Stock\nleft/Stock.colour = 3")


def test_a_scope_opened_with_gin_itself_counts():
    @gin.configurable(module="tests")
    def opened():
        with gin.config_scope("inner"):
            return Leaf(5)

    config = load_twig("Twig.extras = [@opened()]\ninner/Leaf.note = 'inside'")
    assert config.build(Twig).extras[0].note == "inside"
    assert config.build(Twig).left.note == "leaf"


def test_a_subclass_with_an_inherited_constructor_is_a_separate_configurable():
    @configurable(module="tests")
    class Big(Leaf):
        pass

    twig = build_twig("Twig.left = @Big\nBig.sign = 7\nLeaf.note = 'plain'")
    assert (twig.left.sign, twig.left.note) == (7, "leaf")
    assert (twig.right.sign, twig.right.note) == (-1, "plain")


def test_a_decorator_around_a_constructor_is_kept():
    import functools

    def doubled(init):
        @functools.wraps(init)
        def wrapper(self, *args, **kwargs):
            init(self, *args, **kwargs)
            self.size *= 2

        return wrapper

    @configurable(module="tests")
    class Doubled:
        @doubled
        def __init__(self, size: int, *, note: str = ""):
            self.size, self.note = size, note

    twig = build_twig("Twig.left = @Doubled\nDoubled.note = 'x'")
    assert (twig.left.size, twig.left.note) == (2, "x")


def test_a_parameter_on_the_denylist_of_gin_cannot_be_bound():
    @configurable(module="tests", denylist=["secret"])
    class Guarded:
        def __init__(self, size: int, *, secret: int = 1):
            self.secret = secret

    with pytest.raises(ValueError, match="Guarded has no parameter 'secret'"):
        load_twig("Twig.left = @Guarded\nGuarded.secret = 2")


def test_an_ambiguous_name_needs_its_module():
    for module in ("red", "blue"):

        @configurable("Twin", module=module)
        class Twin:
            def __init__(self, size: int, *, tone: int = 0):
                self.tone = tone

    with pytest.raises(ValueError, match=r"'Twin' is ambiguous: blue.Twin, red.Twin"):
        load_twig("Twig.left = @Twin")
    assert build_twig("Twig.left = @red.Twin\nred.Twin.tone = 4").left.tone == 4


def test_modules_can_be_pickled_and_keep_scoped_references():
    twig = build_twig("Twig.left = @far/Leaf\nfar/Leaf.note = 'x'")
    assert pickle.loads(pickle.dumps(twig)).left.note == "x"
    reference = ScopedConstructor(("far",), "test_references.Leaf")
    assert pickle.loads(pickle.dumps(reference)) == reference


def test_a_built_module_is_an_ordinary_torch_module(load_model):
    import copy

    from small_model import build_on_meta

    model = load_model("Linear.bias = False").build(build_on_meta)
    assert isinstance(model, nn.Module)
    assert copy.deepcopy(model).state_dict().keys() == model.state_dict().keys()


def test_stock_gin_still_configures_layers_outside_of_a_build():
    from ml.layers import Linear

    try:
        gin.parse_config("ml.layers.linear.Linear.bias = False")
        assert Linear(3, 4).bias is None
    finally:
        gin.clear_config()
    assert Linear(3, 4).bias is not None
