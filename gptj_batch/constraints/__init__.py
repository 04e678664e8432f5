"""Constraints: what a continuation must look like - one of some choices, a regex, a JSON schema, a part of a text."""
