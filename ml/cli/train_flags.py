"""The flags of training, which are absl's: importing this defines them."""

from absl import flags

FLAGS = flags.FLAGS

flags.DEFINE_multi_string("gin_file", [], "A gin file; repeatable, later files override earlier ones.")
flags.DEFINE_multi_string("gin_bindings", [], "Gin statements; repeatable. Also written --gin.Linear.bias=False.")
flags.DEFINE_multi_string("gin_search_path", [], "A search folder for gin files; repeatable.")
flags.DEFINE_string("run_dir", None, "The folder of the run; an existing run is resumed.")
flags.DEFINE_bool("extend", False, "With --run_dir: change the run that is there from its next step on.")
flags.DEFINE_bool("dry_run", False, "Check everything, show the model and write the configuration without training.")
flags.DEFINE_string(
    "explain", None, "With --dry_run: show the sources of matching parameters, as in 'query/Linear.bias'."
)
flags.DEFINE_integer(
    "world_size", None, "With --dry_run: the number of processes to plan for; no device is needed.", lower_bound=1
)
flags.DEFINE_string(
    "device_memory",
    None,
    "With --dry_run: the memory of a device, such as 80GiB; shows what fits into it.",
)
flags.DEFINE_string(
    "init_from",
    None,
    "The folder of a run that provides the model and the initial weights; without --gin_file all of its configuration.",
)
flags.DEFINE_integer(
    "init_step", None, "With --init_from: the step of the checkpoint; the newest by default.", lower_bound=1
)
flags.DEFINE_enum(
    "init_state",
    None,
    ["weights", "average", "all"],
    "With --init_from: what is taken, by default the weights; all continues the training as a branch.",
)
flags.DEFINE_multi_string(
    "init_may_differ",
    [],
    "With --init_from: weights that may be missing or have another shape, such as 'head.*'; repeatable.",
)
flags.DEFINE_bool("allow_unused_bindings", False, "Turn bindings without effect into warnings.")
flags.DEFINE_bool("trust_run_code", False, "Execute the code saved with a run in --gin_file or --init_from.")


def help_text() -> str:
    """All of them, with their defaults."""
    return FLAGS.module_help(__name__)
