"""`python -m ml VERB`: everything that is not training."""

import sys

from ml.cli.verbs import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
