"""Command of :mod:`distill.data.import_data`."""

from distill.data.import_data import main

if __name__ == "__main__":
    main()
