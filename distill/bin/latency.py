"""Command of :mod:`distill.bench.latency`."""

from distill.bench.latency import main

if __name__ == "__main__":
    main()
