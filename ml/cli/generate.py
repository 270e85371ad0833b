"""Generate text from a run."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ml.cli.run_arguments import add_run_argument
from ml.errors import UserError

_NUM_TOKENS = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_argument(parser)
    parser.add_argument(
        "--prompt", action="append", help="text to go on from; '' starts a document, - reads standard input; repeatable"
    )
    parser.add_argument("--prompt_file", type=Path, help="a file with one prompt a line")
    parser.add_argument("--step", type=int, help="of the checkpoint; the newest if left out")
    parser.add_argument("--average", action="store_true", help="the running average of the weights, not the last ones")
    parser.add_argument("--num_tokens", type=int, help=f"at most (default {_NUM_TOKENS}, or what positions allow)")
    parser.add_argument("--num_samples", type=int, default=1, help="texts for each prompt (default 1)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token (default 0.8)")
    parser.add_argument("--top_k", type=int, help="draw from so many of the likeliest tokens")
    parser.add_argument("--top_p", type=float, help="draw from the likeliest tokens with this probability together")
    parser.add_argument("--min_p", type=float, help="leave out what has less than this part of the likeliest's")
    parser.add_argument("--stop", action="append", default=[], help="text to stop before; can be repeated")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default 0)")
    parser.add_argument("--json", action="store_true", help="one JSON object a text instead of the text")


def run(arguments: argparse.Namespace) -> None:
    """Prints the prompts with what follows them, a single one while it is made; how fast it was goes to stderr."""
    _check(arguments)
    prompts = [prompt for prompt in _prompts(arguments) for _ in range(arguments.num_samples)]
    import torch

    from ml.api import build_trainer, open_run
    from ml.models.generation import reason_for_full_pass
    from ml.models.sampling import Sampler
    from ml.training.evaluation.continuations import continue_texts, encode_prompt

    opened = open_run(arguments.run, trust_code=arguments.trust_run_code)
    data = build_trainer(opened.config).data
    sampler = Sampler(arguments.temperature, arguments.top_k, arguments.top_p, arguments.min_p)
    sys.stdout.reconfigure(errors="replace")  # a terminal may know fewer characters than the model
    try:
        encoded = [encode_prompt(prompt, data.tokenizer, data.separator) for prompt in prompts]
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = opened.build(arguments.step, device, average=arguments.average)
        num_tokens = arguments.num_tokens or _room(model.max_sequence_length, max(map(len, encoded)))
        if reason := reason_for_full_pass(model):
            print(reason, file=sys.stderr)
        show = _Stream(prompts[0]) if len(prompts) == 1 and not arguments.json else None
        begun = time.perf_counter()
        texts = continue_texts(
            model,
            data.tokenizer,
            encoded,
            num_tokens,
            sampler,
            arguments.seed,
            stops=arguments.stop,
            separator=data.separator,
            show=show,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    seconds = time.perf_counter() - begun
    if show is not None:
        show(0, texts[0].text)
        print()
    elif arguments.json:
        for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            sample = number % arguments.num_samples
            print(json.dumps({"prompt": prompt, "sample": sample, **text._asdict()}))
    else:
        whole = [f"{prompt}{text.text}" for prompt, text in zip(prompts, texts, strict=True)]
        print("\n\n".join(f"[{number}] {_printable(text)}" for number, text in enumerate(whole)))
    sys.stdout.flush()
    count = sum(text.num_tokens for text in texts)
    print(f"{count:,} tokens in {seconds:.1f} s, {count / seconds:,.0f} tokens/s", file=sys.stderr)


def _prompts(arguments: argparse.Namespace) -> list[str]:
    prompts = [_standard_input() if prompt == "-" else prompt for prompt in arguments.prompt or []]
    if arguments.prompt_file is not None:
        try:
            lines = arguments.prompt_file.read_text("utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{arguments.prompt_file} cannot be read: {error}") from error
        prompts += [line for line in lines if line]
    if not prompts:
        raise UserError(
            "give a text to go on from: --prompt='def ' or --prompt_file=FILE; --prompt='' starts a document"
        )
    return prompts


def _standard_input() -> str:
    """All of it, without the newline that ends its last line."""
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input cannot be read: {error}") from error


def _room(limit: int | None, longest: int) -> int:
    """How many tokens are made where nobody said how many: what learned positions have room for, one at least."""
    return _NUM_TOKENS if limit is None else max(1, min(_NUM_TOKENS, limit - longest))


def _check(arguments: argparse.Namespace) -> None:
    fits: dict[str, Callable[[float], bool]] = {
        "num_tokens": lambda n: n > 0,
        "num_samples": lambda n: n > 0,
        "temperature": lambda t: t >= 0,
        "top_k": lambda k: k > 0,
        "top_p": lambda p: 0 < p <= 1,
        "min_p": lambda p: 0 <= p <= 1,
        "stop": lambda stops: all(stops),
    }
    for name, is_fine in fits.items():
        value = getattr(arguments, name)
        if value is not None and not is_fine(value):
            raise UserError(f"--{name} cannot be {value}")


class _Stream:
    """Prints a text as it grows, behind its prompt."""

    def __init__(self, prompt: str):
        self.waiting = prompt
        self.num_printed = 0

    def __call__(self, row: int, text: str) -> None:
        """Prints what is new; what was printed once stays as it is."""
        print(_printable(self.waiting + text[self.num_printed :]), end="", flush=True)
        self.waiting, self.num_printed = "", len(text)


def _printable(text: str) -> str:
    """`text` as a terminal may have it, where a model must not move the cursor; elsewhere every character stays."""
    if not sys.stdout.isatty():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
