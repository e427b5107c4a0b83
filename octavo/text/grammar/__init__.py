"""Outputs that follow a grammar: JSON schemas, regular expressions, choices, Lark.

The library is llguidance (see docs/decisions/0012); nothing here imports it before it is needed.
"""
