"""Targets of the loss, shared by the data that makes them and the layers that read them."""

IGNORED = -100
"""The target of a token that has no loss, as in `torch.nn.functional.cross_entropy`."""
