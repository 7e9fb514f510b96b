"""Reference maps: data, files, construction from posed images, export."""
