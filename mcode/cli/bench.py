"""bench: how fast it is, beside x264 and SVT-AV1."""
