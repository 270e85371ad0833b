"""Generate text from a run."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from ml.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="the folder of a run")
    parser.add_argument("--prompt", action="append", help="text to go on from; repeat it for several at once")
    parser.add_argument("--prompt_file", type=Path, help="a file with one prompt a line")
    parser.add_argument("--step", type=int, help="of the checkpoint; the newest if left out")
    parser.add_argument("--num_tokens", type=int, default=256, help="at most so many (default 256)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token (default 0.8)")
    parser.add_argument("--top_k", type=int, help="draw from so many of the likeliest tokens")
    parser.add_argument("--top_p", type=float, help="draw from the likeliest tokens with this probability together")
    parser.add_argument("--min_p", type=float, help="leave out what has less than this part of the likeliest's")
    parser.add_argument("--stop", action="append", default=[], help="text to stop before; can be repeated")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default 0)")


def run(arguments: argparse.Namespace) -> None:
    """Prints the prompts with what follows them; a single one while it is made."""
    import torch

    from ml.api import build_trainer, open_run
    from ml.models.generation import generate

    prompts, sampler = _prompts(arguments), _sampler(arguments)
    opened = open_run(arguments.run)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = opened.build(arguments.step, device)
    data = build_trainer(opened.config).data
    tokenizer = data.tokenizer
    stops = [*arguments.stop, *([data.separator] if data.separator else [])]
    encoded = [tokenizer.encode(prompt).tolist() for prompt in prompts]
    show = _Stream(prompts[0], max(map(len, stops), default=1) - 1) if len(prompts) == 1 else None
    made: list[list[int]] = [[] for _ in prompts]
    texts: list[str | None] = [None] * len(prompts)  # of those that have come to a stop
    try:
        for tokens in generate(model, encoded, arguments.num_tokens, sampler, arguments.seed):
            for row, token in enumerate(tokens.tolist()):
                made[row].append(token)
                if texts[row] is None:
                    texts[row] = _until(stops, tokenizer.decode(made[row]))
            if show is not None:
                show(tokenizer.decode(made[0]) if texts[0] is None else texts[0], is_whole=texts[0] is not None)
            if None not in texts:
                break
    except ValueError as error:
        raise UserError(str(error)) from error
    whole = [tokenizer.decode(tokens) if text is None else text for tokens, text in zip(made, texts, strict=True)]
    if show is not None:
        show(whole[0], is_whole=True)
        print()
    else:
        print("\n\n".join(f"[{n}] {prompt}{text}" for n, (prompt, text) in enumerate(zip(prompts, whole, strict=True))))


def _prompts(arguments: argparse.Namespace) -> list[str]:
    prompts = list(arguments.prompt or [])
    if arguments.prompt_file is not None:
        try:
            prompts += [line for line in arguments.prompt_file.read_text("utf-8").splitlines() if line]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{arguments.prompt_file} cannot be read: {error}") from error
    if not prompts or not all(prompts):
        raise UserError("give a text to go on from: --prompt='def ' or --prompt_file=FILE")
    return prompts


def _sampler(arguments: argparse.Namespace):
    from ml.models.generation import Sampler

    fits: dict[str, Callable[[float], bool]] = {
        "num_tokens": lambda n: n > 0,
        "temperature": lambda t: t >= 0,
        "top_k": lambda k: k > 0,
        "top_p": lambda p: 0 < p <= 1,
        "min_p": lambda p: 0 <= p <= 1,
    }
    for name, is_fine in fits.items():
        value = getattr(arguments, name)
        if value is not None and not is_fine(value):
            raise UserError(f"--{name} cannot be {value}")
    return Sampler(arguments.temperature, arguments.top_k, arguments.top_p, arguments.min_p)


def _until(stops: list[str], text: str) -> str | None:
    """The text before the first of `stops` in it; None where there is none."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else None


class _Stream:
    """Prints a text as it grows."""

    def __init__(self, prompt: str, held_back: int):
        """`held_back`: how many characters wait because they may begin what the text is to stop before."""
        self.printed = ""
        self.held_back = held_back
        print(prompt, end="", flush=True)

    def __call__(self, text: str, is_whole: bool) -> None:
        """Prints what is new; a character that is not whole yet waits too."""
        shown = text if is_whole else text.rstrip("\ufffd")[: max(len(text) - self.held_back, 0)]
        if shown.startswith(self.printed):
            sys.stdout.write(shown[len(self.printed) :])
            sys.stdout.flush()
            self.printed = shown
