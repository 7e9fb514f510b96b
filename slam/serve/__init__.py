"""A map as an HTTP service: an uploaded image is answered by its pose, or by the reason why it has none."""
