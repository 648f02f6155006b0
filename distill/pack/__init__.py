"""A trained model in one file: written, described by a model card, and loaded without trust."""
