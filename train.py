"""Trains a language model: python train.py --gin_file=base.gin --gin_bindings='Linear.bias=False'"""

import sys

from ml.cli.train import main

if __name__ == "__main__":
    main(sys.argv[1:])
