"""bench and study: how fast it is, and what people prefer."""
