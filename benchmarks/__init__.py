"""Measurements behind the claims of the documentation. Run by hand, never by the tests."""
