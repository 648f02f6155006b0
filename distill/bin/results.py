"""Command of :mod:`distill.scoring.results`."""

from distill.scoring.results import main

if __name__ == "__main__":
    main()
