"""Trains a language model: python train.py --gin_file=base.gin --gin_bindings='Linear.bias=False'"""

import sys

from absl import flags

from ml.cli import entry
from ml.errors import UserError

FLAGS = flags.FLAGS
flags.DEFINE_multi_string("gin_file", [], "A gin file; repeatable, later files override earlier ones.")
flags.DEFINE_multi_string("gin_bindings", [], "Gin statements; repeatable. Also written --gin.Linear.bias=False.")
flags.DEFINE_multi_string("gin_search_path", [], "A search folder for gin files; repeatable.")
flags.DEFINE_string("run_dir", None, "The folder of the run; an existing run is resumed.")
flags.DEFINE_bool("dry_run", False, "Check everything, show the model and write the configuration without training.")
flags.DEFINE_string(
    "explain", None, "With --dry_run: show the sources of matching parameters, as in 'query/Linear.bias'."
)
flags.DEFINE_string("init_from", None, "The folder of a run that provides the model and the initial weights.")
flags.DEFINE_multi_string(
    "init_may_differ",
    [],
    "With --init_from: weights that may be missing or have another shape, such as 'head.*'; repeatable.",
)
flags.DEFINE_bool("allow_unused_bindings", False, "Turn bindings without effect into warnings.")
flags.DEFINE_bool("trust_run_code", False, "Execute the code saved with a run in --gin_file or --init_from.")


def main(_: list[str]) -> int:
    """Loads the configuration, then shows it or trains; returns the exit code."""
    if FLAGS.explain is not None and not FLAGS.dry_run:
        raise UserError("--explain goes with --dry_run")
    from ml.cli import training  # imports torch, so the flags are checked first

    job = training.load_job(
        FLAGS.gin_file,
        FLAGS.gin_bindings,
        search_path=FLAGS.gin_search_path,
        init_from=FLAGS.init_from,
        init_may_differ=FLAGS.init_may_differ,
        allow_unused_bindings=FLAGS.allow_unused_bindings,
        trust_code=FLAGS.trust_run_code,
    )
    if FLAGS.dry_run:
        return training.show(job, FLAGS.run_dir, FLAGS.explain)
    return training.run(job, FLAGS.run_dir)


if __name__ == "__main__":
    entry.run(main, sys.argv)
