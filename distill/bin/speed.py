"""Command of :mod:`distill.bench.speed`."""

from distill.bench.speed import main

if __name__ == "__main__":
    main()
