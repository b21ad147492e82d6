"""Measuring: metrics on pixels, distances of network features, tables over stills, and comparison with other codecs."""
