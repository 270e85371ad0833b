"""Every family in and out: logits, loss and all gradients against transformers, then the same folder again."""

import copy
import json
from pathlib import Path

import pytest
import torch
import transformers
from hub_cases import CASES
from hub_models import batch, imported, load_into, oracle_of, saved
from safetensors.torch import load_file

from ml.interop.exporting import export_folder
from ml.interop.expressing import model_of
from ml.interop.folder import Folder
from ml.interop.importing import imported_values
from ml.layers import Cache
from ml.models import materialize

# Both sides round in float32 with different summation orders. Errors of logits and gradients of order one are near
# 1e-6, and ten times that leaves room for the deepest sums.
CLOSE = {"rtol": 1e-4, "atol": 2e-5}
NOT_COMPARED = {"transformers_version", "architectures", "dtype"}


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def pair(request, tmp_path_factory):
    """A model of transformers, its folder, and the imported model."""
    oracle = oracle_of(*request.param)
    folder = saved(oracle, tmp_path_factory.mktemp("hub"))
    return oracle, folder, imported(folder)


def assert_same_gradients(oracle, model, folder: Path) -> None:
    """Compares the gradients of two models: those of transformers pass through a folder, as weights do."""
    carrier = copy.deepcopy(oracle)
    with torch.no_grad():
        for parameter, source in zip(carrier.parameters(), oracle.parameters(), strict=True):
            parameter.copy_(torch.zeros_like(parameter) if source.grad is None else source.grad)
    opened = Folder(saved(carrier, folder))
    expected = materialize(model_of(imported_values(opened)))
    load_into(expected, opened)
    for (name, parameter), gradient in zip(model.named_parameters(), expected.parameters(), strict=True):
        found = torch.zeros_like(gradient) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found, gradient.detach(), **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


def test_import_has_the_same_logits_loss_and_gradients(pair, tmp_path):
    oracle, _, model = pair
    tokens, targets = batch(oracle.config.vocab_size, (2, 19))
    expected = oracle(tokens).logits
    loss = torch.nn.functional.cross_entropy(expected.flatten(0, 1), targets.flatten())
    loss.backward()
    torch.testing.assert_close(model(tokens), expected, **CLOSE)
    sums = model.loss(tokens, targets)
    sums.mean.backward()
    torch.testing.assert_close(sums.mean, loss, **CLOSE)
    assert_same_gradients(oracle, model, tmp_path)


def test_export_is_the_same_folder_and_transformers_loads_it(pair, tmp_path):
    oracle, folder, model = pair
    kept = Folder(folder).kept_files()
    export_folder(model, tmp_path / "again", kept=kept)
    first, again = (load_file(where / "model.safetensors") for where in (folder, tmp_path / "again"))
    assert first.keys() == again.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name]), name
    config, exported = (json.loads((where / "config.json").read_text()) for where in (folder, tmp_path / "again"))
    assert exported == config
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again", attn_implementation="eager")
    tokens, _ = batch(oracle.config.vocab_size, (2, 9))
    assert torch.equal(loaded(tokens).logits, oracle(tokens).logits)


def test_export_without_the_imported_config_describes_the_same_model(pair, tmp_path):
    oracle, _, model = pair
    export_folder(model, tmp_path / "again", sequence_length=64)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again", attn_implementation="eager")
    tokens, _ = batch(oracle.config.vocab_size, (2, 9))
    torch.testing.assert_close(loaded(tokens).logits, oracle(tokens).logits, **CLOSE)


def test_greedy_generation_is_the_same_token_by_token(pair):
    oracle, _, model = pair
    tokens, _ = batch(oracle.config.vocab_size, (2, 5))
    cache = None if model.obstacle_to_decoding else Cache()
    new = tokens
    with torch.no_grad():
        for _ in range(8):
            following = oracle(tokens).logits[:, -1].argmax(-1, keepdim=True)
            logits = model(tokens) if cache is None else model(new, cache=cache)
            assert torch.equal(logits[:, -1].argmax(-1, keepdim=True), following)
            new, tokens = following, torch.cat((tokens, following), dim=1)
