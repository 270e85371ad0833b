"""Formats of files of records, one module each."""
