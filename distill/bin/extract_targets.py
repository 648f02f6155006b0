"""Command of :mod:`distill.targets.extract`."""

from distill.targets.extract import main

if __name__ == "__main__":
    main()
