"""Conversations: their forms in files, the templates that render them, and their tokens."""
