"""Command of :mod:`distill.recognition.decode`."""

from distill.recognition.decode import main

if __name__ == "__main__":
    main()
