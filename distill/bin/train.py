"""Command of :mod:`distill.training.train`."""

from distill.training.train import main

if __name__ == "__main__":
    main()
