"""`python -m ml VERB`, the same as the command `juniper VERB`."""

import sys

from ml.cli.verbs import main

if __name__ == "__main__":
    sys.exit(main(command="python -m ml"))
