"""Command of :mod:`distill.progress`."""

from distill.progress import main

if __name__ == "__main__":
    main()
