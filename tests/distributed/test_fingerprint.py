"""Settings of a mesh that change no result are saved, and are no part of the fingerprint."""

import re

import pytest

import ml
from ml.config import difference

NEUTRAL = ["Mesh.tensor = 2", "Mesh.data_shard = 4", "Mesh.timeout = 60.0", "FullyShard.offload = True"]
CHANGING = ["FullyShard.gather_dtype = %bfloat16", "FullyShard.reduce_dtype = %bfloat16"]


def tiny(*bindings):
    return ml.load("recipes/tiny.gin", bindings=list(bindings))


@pytest.mark.parametrize("binding", NEUTRAL)
def test_a_neutral_setting_is_saved_and_the_run_is_the_same(binding):
    plain, changed = tiny(), tiny(binding)
    assert re.search(rf"^{re.escape(binding)}(  # neutral)?$", changed.operative, re.M)
    assert changed.fingerprint == plain.fingerprint
    assert difference(plain.operative, changed.operative) == []


@pytest.mark.parametrize("binding", CHANGING)
def test_a_dtype_that_rounds_makes_another_run(binding):
    plain, changed = tiny(), tiny(binding)
    assert changed.fingerprint != plain.fingerprint
    key, _, _ = binding.partition(" = ")
    removed, added = difference(plain.operative, changed.operative)
    assert removed.startswith(f"- {key} = None")
    assert added.startswith(f"+ {key} = ")


def test_the_cluster_of_a_plan_is_no_part_of_the_run():
    plain, changed = tiny(), tiny("Cluster.devices_per_node = 4")
    assert changed.fingerprint == plain.fingerprint
    assert not any("cluster" in line.lower() for line in difference("", changed.operative))
