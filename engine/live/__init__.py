"""A run as it goes, for people and for monitoring."""
