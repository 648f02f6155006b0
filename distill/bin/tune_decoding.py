"""Command of :mod:`distill.recognition.tune`."""

from distill.recognition.tune import main

if __name__ == "__main__":
    main()
