"""Command of :mod:`distill.recognition.transcribe`."""

from distill.recognition.transcribe import main

if __name__ == "__main__":
    main()
