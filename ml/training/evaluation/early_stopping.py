"""The end of a run whose validation no longer improves."""

from ml.config import configurable, require
from ml.layers.checks import non_negative
from ml.training.evaluation.lowest import Lowest


@configurable
class EarlyStopping:
    """Ends a run once a validation metric has not become lower for some validations.

    The learning rate follows the schedule of all `Trainer.num_steps` until then. The run ends with a checkpoint and is
    finished. `Checkpoints.keep_best` keeps the checkpoint of the best validation.

    Args:
        metric: Name of the metric in `metrics.jsonl`, such as "validation_loss", "validation_books_bits_per_byte" or
            "average_validation_loss".
        patience: Number of consecutive validations without an improvement that ends the run.
        min_improvement: A smaller decrease of the metric counts as none.
    """

    def __init__(self, metric: str = "validation_loss", patience: int = 3, min_improvement: float = 0.0):
        require(patience > 0, "patience", f"must be positive, not {patience}")
        self.metric = metric
        self.patience = patience
        self.min_improvement = non_negative("min_improvement", min_improvement)

    def start(self) -> Lowest:
        """Returns the lowest value before the first step."""
        return Lowest(self.metric, self.min_improvement)

    def is_reached(self, lowest: Lowest) -> bool:
        """Returns True once the run has to end."""
        return lowest.num_since >= self.patience
