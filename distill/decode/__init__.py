"""From frame-wise outputs to tokens with times, and from tokens to text."""
