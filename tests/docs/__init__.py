"""The documentation, held against the program: commands are run, names are looked up."""
