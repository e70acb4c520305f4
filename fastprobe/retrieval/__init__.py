"""A trained probe in use: projecting, ranking, indexing a gallery, answering queries."""
