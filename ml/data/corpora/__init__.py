"""Corpora: sources of raw text, conversations and captioned images."""
