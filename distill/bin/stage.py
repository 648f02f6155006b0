"""Command of :mod:`distill.stages`."""

from distill.stages import main

if __name__ == "__main__":
    main()
