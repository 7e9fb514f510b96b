"""Input: images, videos, streams and data sets as sources of frames."""
