"""Command of :mod:`distill.scoring.score`."""

from distill.scoring.score import main

if __name__ == "__main__":
    main()
