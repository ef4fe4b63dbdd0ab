"""What the README claims, measured: run by hand, never by the tests."""
