"""Ends of words at which long text may be cut without changing its tokens.

Byte pair encoding first splits text into words by a pattern, and no token spans two words. Under each pattern listed
here, a word that ends with a letter or digit ends before a space, a line end or the punctuation of `_BREAK`, no match
looks further ahead, and the split of what follows does not depend on the text before it. Text may therefore be cut
there. None of these characters combines with the one before it, so normalization (NFC) does not change the text at a
cut either. Under other patterns, documents are encoded whole.
"""

import hashlib
import re

# Letters and digits in UTF-8. Unicode has more; these suffice to find a cut in text of most languages.
_LETTERS = (
    rb"[0-9A-Za-z]",
    rb"\xc3[\x80-\x96\x98-\xb6\xb8-\xbf]|[\xc4\xc5][\x80-\xbf]",  # Latin
    rb"\xce[\x91-\xa1\xa3-\xbf]|\xcf[\x80-\x8e]",  # Greek
    rb"[\xd0\xd1][\x80-\xbf]",  # Cyrillic
    rb"\xd7[\x90-\xaa]|\xd8[\xa0-\xba]|\xd9[\x81-\x8a]",  # Hebrew, Arabic
    rb"\xe0\xa4[\x84-\xb9]|\xe0\xb8[\x81-\xb0]",  # Devanagari, Thai
    rb"\xe3\x81[\x81-\xbf]|\xe3\x82[\x80-\x96\xa1-\xbf]|\xe3\x83[\x80-\xba]",  # Japanese syllables
    rb"\xe4[\xb8-\xbf][\x80-\xbf]|[\xe5-\xe8][\x80-\xbf][\x80-\xbf]|\xe9[\x80-\xbe][\x80-\xbf]",  # Chinese characters
    rb"\xea[\xb0-\xbf][\x80-\xbf]|[\xeb\xec][\x80-\xbf][\x80-\xbf]|\xed[\x80-\x9d][\x80-\xbf]",  # Korean
)
_BREAK = (
    rb"[ \t\r\n]",
    rb"\xc2\x85|\xe2\x80[\xa8\xa9]",  # line ends of Unicode: U+0085, U+2028, U+2029
    rb"\xe3\x80[\x80-\x82]|\xef\xbc[\x81\x8c\x9f]",  # ideographic space, comma and full stop; wide !,?
)
WORD_END = re.compile(b"(?:%s)(?=%s)" % (b"|".join(_LETTERS), b"|".join(_BREAK)))

# SHA-256 of the regular expression, exactly as in the libraries.
_KNOWN = {
    "eeb55ba74cc544ae7067587b680d16521d9891de9e94c7ba9412c0e0e93b1c36": "GPT-2",
    "bf51d578af57187876ec1c8a34fb0ee2fb3025c50ce663ac154b633ae39de092": "GPT-2, r50k_base, p50k_base in tiktoken",
    "f021c3d976978e62ee64cdad150cc3405c2e3d6e3b40407850bb9e8d9eb65899": "cl100k_base",
    "2d1b8dc11e89af71459b36004f698ab3693f59fd84f63e8ec2b49564ab857420": "o200k_base",
    "d98f9631be1e9607a9848c26c1f9eac1aa9fc21ac6ba82a2fc0741af9780a48f": "Llama 3",
    "1ff7f41064896984db5d1bb6ff64fa4bc29007d08c1b439e505b7392777a319e": "Qwen 2 and 3",
}


def is_cut_at_word_ends(pattern: str) -> bool:
    """Returns True if the pattern splits text at each `WORD_END`, without look-around."""
    return hashlib.sha256(pattern.encode()).hexdigest() in _KNOWN
