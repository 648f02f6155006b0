"""The report page of an experiment: one HTML file with its figures, losses, layers and errors."""
