"""Recognition over a network: a websocket server with its web page, and a client."""
