"""Line ends at which long text may be cut without changing its tokens.

Byte pair encoding first splits text into words by a pattern, and no token spans two words. Under each pattern listed
here, a word with a letter ends before a line end, no match looks further ahead, and the split after the line end does
not depend on the text before it. Text may therefore be cut between a letter and a line end. Under other patterns,
documents are encoded whole.
"""

import hashlib
import re

LETTER_BEFORE_LINE_END = re.compile(rb"[A-Za-z](?=[\r\n])")

# SHA-256 of the regular expression, exactly as in the libraries.
_KNOWN = {
    "eeb55ba74cc544ae7067587b680d16521d9891de9e94c7ba9412c0e0e93b1c36": "GPT-2",
    "bf51d578af57187876ec1c8a34fb0ee2fb3025c50ce663ac154b633ae39de092": "GPT-2, r50k_base, p50k_base in tiktoken",
    "f021c3d976978e62ee64cdad150cc3405c2e3d6e3b40407850bb9e8d9eb65899": "cl100k_base",
    "2d1b8dc11e89af71459b36004f698ab3693f59fd84f63e8ec2b49564ab857420": "o200k_base",
    "d98f9631be1e9607a9848c26c1f9eac1aa9fc21ac6ba82a2fc0741af9780a48f": "Llama 3",
    "1ff7f41064896984db5d1bb6ff64fa4bc29007d08c1b439e505b7392777a319e": "Qwen 2 and 3",
}


def is_cut_at_line_ends(pattern: str) -> bool:
    """Returns True if the pattern always splits between an ASCII letter and CR or LF, without look-around."""
    return hashlib.sha256(pattern.encode()).hexdigest() in _KNOWN
