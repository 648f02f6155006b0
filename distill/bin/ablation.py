"""Command of :mod:`distill.scoring.ablation`."""

from distill.scoring.ablation import main

if __name__ == "__main__":
    main()
