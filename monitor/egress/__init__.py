"""Which addresses the product may call, and the transports that hold to it."""
