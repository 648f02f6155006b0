"""``python -m distill`` is the command ``distill``."""

from distill.bin.main import main

main()
