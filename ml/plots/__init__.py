"""Runs drawn side by side: what they measured, how they differ, the picture. Imports no torch."""
