"""Command of :mod:`distill.plan`."""

from distill.plan import main

if __name__ == "__main__":
    main()
