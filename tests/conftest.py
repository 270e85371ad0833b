"""Settings for all tests."""

import os

# Two test processes share two cores: more threads per process would only compete.
os.environ.setdefault("OMP_NUM_THREADS", "1")
