"""Train a language model."""

import sys
from typing import NoReturn

from ml.cli import entry
from ml.cli.memory_size import parse_memory_size
from ml.errors import UserError

_HELP = {"--help", "-help", "--helpshort", "-helpshort", "-h", "-?"}


def main(arguments: list[str], command: str = "train.py") -> NoReturn:
    """Trains, or shows what would be trained, and exits: 0 done, 2 where the user can mend what is wrong, else 1.

    Args:
        arguments: Those after the name of the command.
        command: What the help calls the command.
    """
    from ml.cli.train_flags import FLAGS, help_text

    if _HELP.intersection(argument.removesuffix("=true") for argument in arguments):
        print(f"{__doc__}\n\nusage: {command} --gin_file=base.gin --gin_bindings='Linear.bias=False'\n{help_text()}")
        sys.exit(0)
    FLAGS.unparse_flags()
    entry.run(lambda _: _train(FLAGS), [command, *arguments])


def _train(flags) -> int:
    if flags.explain is not None and not flags.dry_run:
        raise UserError("--explain goes with --dry_run")
    _require_paths(flags)
    device_memory = _device_memory(flags)
    if not flags.gin_file and not flags.gin_bindings and flags.init_from is None:
        raise UserError(f"no configuration: name one with --gin_file=base.gin. There are {', '.join(_shipped())}")
    from ml import api  # torch is imported only once the flags are right

    config = api.load(
        flags.gin_file,
        flags.gin_bindings,
        init_from=flags.init_from,
        init_step=flags.init_step,
        init_state=flags.init_state,
        init_may_differ=flags.init_may_differ,
        run_dir=flags.run_dir,
        search_path=flags.gin_search_path,
        allow_unused_bindings=flags.allow_unused_bindings,
        trust_code=flags.trust_run_code,
    )
    if flags.dry_run:
        from ml.cli import dry_run

        machines = dry_run.Machines(flags.world_size, device_memory)
        dry_run.show(config, flags.run_dir, flags.explain, machines, extend=flags.extend)
    else:
        api.train(config, flags.run_dir, extend=flags.extend)
    return 0


def _require_paths(flags) -> None:
    """Refuses an empty path, as of an unset variable of a shell.

    Raises:
        UserError: A path is empty.
    """
    for name in ("gin_file", "gin_search_path", "run_dir", "init_from"):
        value = flags[name].value
        if value == "" or (isinstance(value, list) and "" in value):
            raise UserError(f"--{name} is empty; it must be a path")


def _device_memory(flags) -> int | None:
    """The bytes of --device_memory; None without it.

    Raises:
        UserError: A flag of plans is wrong or has no effect.
    """
    for name in ("world_size", "device_memory"):
        if flags[name].value is not None and not flags.dry_run:
            raise UserError(f"--{name} goes with --dry_run")
    if flags.device_memory is None:
        return None
    size = parse_memory_size(flags.device_memory)
    if size is None:
        raise UserError(f"--device_memory must be a size such as 80GiB, not {flags.device_memory!r}")
    return size


def _shipped() -> list[str]:
    from ml.api import SHIPPED_CONFIGS

    paths = (path.relative_to(SHIPPED_CONFIGS) for path in SHIPPED_CONFIGS.rglob("*.gin"))
    return sorted(path.as_posix() for path in paths if "tests" not in path.parts)
