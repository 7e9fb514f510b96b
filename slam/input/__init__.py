"""Images in: folders, data sets, videos, live streams, masks and cameras."""
