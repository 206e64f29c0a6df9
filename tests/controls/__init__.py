"""Whether the tests would notice: the product broken on purpose, one way at a time."""
