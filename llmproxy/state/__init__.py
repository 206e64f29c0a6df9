"""Where things that outlive a process are kept."""
