"""Token files on disk: written by `python -m ml prepare`, read by position."""
