"""Keys are sent in every place where keys are sent, and looked for in everything that is written."""
