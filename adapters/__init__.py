"""What stands outside: LSL, recordings, and later devices."""
