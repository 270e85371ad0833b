"""Whatever number a parameter is given, the configuration is valid or refused by a `ConfigError`."""

import zlib

import pytest

import ml
from ml.config import ConfigError
from ml.config.configurable import candidates
from ml.config.types import mismatch

FILE = "recipes/tiny.gin"
PARTS = """
decoder/Repeat.num_blocks = 1
Trainer.optimizer = @Adafactor
Trainer.skip_step = @SkipStep
Trainer.weight_average = @ExponentialMovingAverage
Trainer.samples = @Samples
Embeddings.position = @PositionEmbedding
DecoderBlock.mlp = @MixtureOfExperts
MixtureOfExperts.num_experts = 4
"""
EVERY = 12  # of all pairs of a parameter and a number one in so many is tried
NOT_FINITE = ["%math.inf", "%math.nan"]
NUMBERS = [*NOT_FINITE, "1e308", str(2**70), str(2**31 - 1), "-1"]


def refusal(*bindings: str) -> str | None:
    try:
        ml.load(FILE, [PARTS, *bindings])
    except ConfigError as error:
        return str(error)
    return None


def numbers() -> list[str]:
    records = {(record.configurable, record.parameter) for record in ml.load(FILE, [PARTS]).records()}
    specs = [(name, candidates(name)[0].spec(parameter)) for name, parameter in sorted(records)]
    return [
        f"{name}.{spec.name} = {text}"
        for name, spec in specs
        for text in NUMBERS
        if spec is not None and mismatch(1.0 if text[0] == "%" or "e" in text else 1, spec.annotation) is None
    ]


def test_any_number_is_valid_or_a_configuration_error():
    tried = [binding for binding in numbers() if zlib.crc32(binding.encode()) % EVERY == 0]
    accepted = [binding for binding in tried if refusal(binding) is None]  # any other error fails the test
    assert len(tried) > 20
    infinite = [binding for binding in accepted if binding.partition(" = ")[2] in NOT_FINITE]
    assert set(infinite) <= {"Trainer.max_grad_norm = %math.inf"}  # clips nothing


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("parameter", ["SkipStep.threshold", "Adafactor.clipping_threshold"])
def test_a_limit_is_finite(parameter, value):
    message = refusal(f"{parameter} = {value}")
    assert f"--gin_bindings[1]: {parameter} must be" in message
    assert "finite, not" in message


def test_the_sequence_length_is_that_of_a_tensor():
    message = refusal(f"Trainer.sequence_length = {2**40}", "Trainer.batch_size = 1")
    assert "--gin_bindings[1]: Trainer.sequence_length must be at most 2,147,483,647" in message
