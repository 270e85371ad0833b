"""Generate text from a run, or answer questions."""

from __future__ import annotations

import argparse
import io
import json
import sys
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ml.cli.path_argument import to_path
from ml.cli.run_arguments import add_run_argument, add_step_argument
from ml.errors import UserError
from ml.runs.generation import NUM_TOKENS, Generation, chat_of

if TYPE_CHECKING:
    from ml.data.chat.template import Chat


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_argument(parser)
    parser.add_argument(
        "--prompt", action="append", help="text to continue; '' starts a document, - reads standard input; repeatable"
    )
    parser.add_argument("--prompt_file", type=to_path, help="a file with one prompt a line")
    parser.add_argument(
        "--chat",
        nargs="?",
        const="-",
        metavar="QUESTION",
        help="a question to answer, with the chat template of the run; without one, or with -, a conversation in the "
        "terminal, or a question from standard input",
    )
    parser.add_argument(
        "--messages",
        type=to_path,
        metavar="FILE",
        help="a JSON file with a conversation to answer, or a .jsonl of them",
    )
    parser.add_argument("--system", metavar="TEXT", help="the message of the system, before that of --chat")
    add_step_argument(parser)
    parser.add_argument("--average", action="store_true", help="the running average of the weights, not the last ones")
    parser.add_argument("--num_tokens", type=int, help=f"at most (default {NUM_TOKENS}, or what positions allow)")
    parser.add_argument("--num_samples", type=int, default=1, help="texts for each prompt (default 1)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the most likely token (default 0.8)")
    parser.add_argument("--top_k", type=int, help="draw from this many of the most likely tokens")
    parser.add_argument(
        "--top_p", type=float, help="draw from the most likely tokens that have this probability together"
    )
    parser.add_argument("--min_p", type=float, help="skip tokens with less than this part of the highest probability")
    parser.add_argument("--stop", action="append", default=[], help="text to stop before; can be repeated")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default 0)")
    parser.add_argument("--json", action="store_true", help="one JSON object a text instead of the text")


def run(arguments: argparse.Namespace) -> None:
    """Prints the prompts with their continuations, or answers; the speed goes to standard error."""
    settings = Generation(**{field.name: getattr(arguments, field.name) for field in fields(Generation)})
    _check_chat(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may know fewer characters than the model
    if arguments.chat == "-" and sys.stdin.isatty():
        _talk(arguments, settings)
    elif arguments.chat is not None or arguments.messages is not None:
        found = _conversations(arguments)
        _print_texts(
            arguments, settings, [chat_of(value, place) for place, value in found], [value for _, value in found]
        )
    else:
        prompts = _prompts(arguments)
        _print_texts(arguments, settings, prompts, prompts)


def _print_texts(
    arguments: argparse.Namespace,
    settings: Generation,
    given: list[str] | list[Chat],
    described: list[Any],
) -> None:
    """Generates and prints; a single text as it grows. `described` is each prompt as JSON."""
    from ml.api import open_run

    repeated = [prompt for prompt in described for _ in range(settings.num_samples)]  # of each text
    prompts = [prompt if isinstance(prompt, str) else "" for prompt in repeated]
    show = _Stream(prompts[0]) if len(prompts) == 1 and not arguments.json else None
    texts, seconds = open_run(arguments.run, trust_code=arguments.trust_run_code).generate_with(
        settings, given, step=arguments.step, average=arguments.average, show=show
    )
    if show is not None:
        show(0, texts[0].text)
        print()
    elif arguments.json:
        for number, (prompt, text) in enumerate(zip(repeated, texts, strict=True)):
            print(json.dumps({"prompt": prompt, "sample": number % settings.num_samples, **text._asdict()}))
    else:
        whole = [f"{prompt}{text.text}" for prompt, text in zip(prompts, texts, strict=True)]
        print("\n\n".join(f"[{number}] {_printable(text)}" for number, text in enumerate(whole)))
    sys.stdout.flush()
    count = sum(text.num_tokens for text in texts)
    print(f"{count:,} tokens in {seconds:.1f} s, {count / seconds:,.0f} tokens/s", file=sys.stderr)


def _check_chat(arguments: argparse.Namespace) -> None:
    """Checks the flags of conversations.

    Raises:
        UserError: They do not go together, or with others.
    """
    is_chat, is_file = arguments.chat is not None, arguments.messages is not None
    has_prompt = arguments.prompt is not None or arguments.prompt_file is not None
    if is_chat + is_file + has_prompt > 1:
        raise UserError("--chat, --messages and --prompt are different ways to ask: give one of them")
    if arguments.system is not None and not is_chat:
        raise UserError("--system goes with --chat")


def _conversations(arguments: argparse.Namespace) -> list[tuple[str, Any]]:
    """Returns the conversations to answer as JSON values, each with its place."""
    if arguments.messages is None:
        question = _standard_input() if arguments.chat == "-" else arguments.chat
        if not question.strip():
            raise UserError("the question of --chat is empty")
        return [("the conversation", [*_system(arguments), {"role": "user", "content": question}])]
    place = str(arguments.messages)
    try:
        text = arguments.messages.read_text("utf-8-sig")
        if arguments.messages.suffix != ".jsonl":
            return [(place, json.loads(text))]
        found = []
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                place = f"{arguments.messages}, line {number},"
                found.append((place, json.loads(line)))
        return found
    except (OSError, ValueError) as error:
        raise UserError(f"{place} cannot be read: {error}") from error


def _system(arguments: argparse.Namespace) -> list[dict[str, str]]:
    """Returns the message of the system, if there is one."""
    return [] if arguments.system is None else [{"role": "system", "content": arguments.system}]


def _talk(arguments: argparse.Namespace, settings: Generation) -> None:
    """Answers in the terminal, question after question, until the end of the input."""
    from ml.api import open_run

    if arguments.json or settings.num_samples > 1:
        raise UserError("a conversation in the terminal has one answer, as text: drop --json and --num_samples")
    run = open_run(arguments.run, trust_code=arguments.trust_run_code)
    messages = _system(arguments)
    print("an empty line or Ctrl-D ends the conversation", file=sys.stderr)
    while question := _asked():
        messages.append({"role": "user", "content": question})
        show = _Stream("")
        texts, _ = run.generate_with(
            settings, [chat_of(messages)], step=arguments.step, average=arguments.average, show=show
        )
        show(0, texts[0].text)
        print(flush=True)
        messages.append({"role": "assistant", "content": texts[0].text})


def _asked() -> str:
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return ""


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
            "give a text to continue: --prompt='def ' or --prompt_file=FILE; --prompt='' starts a document; or --chat"
        )
    return prompts


def _standard_input() -> str:
    """All of it, without the newline that ends its last line."""
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input cannot be read: {error}") from error


class _Stream:
    """Prints a text as it grows, after its prompt."""

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
