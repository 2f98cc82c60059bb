"""Prompt sets as data; see protocols.prompt."""
