"""Recognition over a network: a websocket server, its page, and a client."""
