"""Command of :mod:`distill.export.export`."""

from distill.export.export import main

if __name__ == "__main__":
    main()
