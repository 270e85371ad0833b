"""Bindings that make the tiny recipe a run of four steps."""

SMALL = [
    "Trainer.num_steps = 4",
    "Trainer.log_every = 1",
    "CosineSchedule.warmup_steps = 1",
    "Checkpoints.every = 2",
    "Validation.num_tokens = 64",
    "TextData.validation_fraction = 0.1",
    "DecoderBlock.dropout = 0.3",
    "Trainer.weight_average = @ExponentialMovingAverage",
]
