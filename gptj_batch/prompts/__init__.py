"""Prompts: a record becomes text by a template, text becomes token ids, and token ids are made to fit."""
