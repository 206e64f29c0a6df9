"""Tests of the simulator, in memory: real HTTP through our own Site, with a clock that the test moves."""
