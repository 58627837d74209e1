"""Tables, charts and findings of retrieval."""
