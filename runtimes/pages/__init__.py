"""What a person reads: the report of a bundle and its charts."""
