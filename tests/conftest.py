"""What holds for all tests."""

import os

# Two processes of tests share two cores: more threads in each, and in what they start, would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
