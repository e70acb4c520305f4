"""Labelled vectors, on disk and in memory."""
