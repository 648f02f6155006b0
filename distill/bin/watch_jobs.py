"""Command of :mod:`distill.jobs`."""

from distill.jobs import main

if __name__ == "__main__":
    main()
