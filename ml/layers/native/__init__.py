"""Functions in C++ that torch has no equal of on a CPU, each beside a form in plain torch."""

from ml.layers.native.compiling import MULTIPLIES_BFLOAT16, MULTIPLIES_FLOAT32, library

__all__ = ["MULTIPLIES_BFLOAT16", "MULTIPLIES_FLOAT32", "library"]
