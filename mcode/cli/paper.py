"""evaluate paper: every table and figure of the Generative Compression paper, made anew."""
