"""study: what people prefer."""
