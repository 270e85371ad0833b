"""Command line flags that configure a tokenizer."""

import argparse

from ml.cli.path_argument import path_text
from ml.errors import UserError


def add_tokenizer_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds flags for the tokenizer, and for gin files and bindings that configure it."""
    parser.add_argument(
        "--tokenizer",
        default="ByteTokenizer",
        help="ByteTokenizer (default), TiktokenTokenizer, HuggingFaceTokenizer, SentencePieceTokenizer, or custom",
    )
    parser.add_argument(
        "--gin_file", type=path_text, action="append", default=[], help="gin file for the tokenizer; repeatable"
    )
    parser.add_argument(
        "--gin_bindings",
        action="append",
        default=[],
        help="""such as "HuggingFaceTokenizer.path = 'tokenizer.json'", which can also be written """
        """--gin.HuggingFaceTokenizer.path="'tokenizer.json'"; repeatable""",
    )


def chosen_tokenizer(arguments: argparse.Namespace):
    """Builds the tokenizer that the flags select.

    Raises:
        UserError: The tokenizer is unknown, or its configuration is invalid.
    """
    import ml
    from ml.config import load
    from ml.config.configurable import candidates, known_names
    from ml.config.errors import did_you_mean
    from ml.data.tokenizers.saved import is_tokenizer

    def named(name: str) -> list:
        return [info.target for info in candidates(name) if is_tokenizer(info.target)]

    def root():
        found = named(arguments.tokenizer)
        if len(found) != 1:
            hint = did_you_mean(arguments.tokenizer, (name for name in known_names() if named(name)))
            raise UserError(f"--tokenizer: there is no tokenizer {arguments.tokenizer!r}{hint}")
        return found[0]()

    return load(arguments.gin_file, arguments.gin_bindings, root=root, shipped=ml.SHIPPED_CONFIGS).build(root)
