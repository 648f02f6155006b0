"""Pack a trained model into one file, with a model card."""
