"""Sweeps: many runs from one file, one after another, with a table and a picture at the end."""
