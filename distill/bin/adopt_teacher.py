"""Command of :mod:`distill.checkpoints.adopt`."""

from distill.checkpoints.adopt import main

if __name__ == "__main__":
    main()
