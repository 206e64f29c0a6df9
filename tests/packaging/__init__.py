"""What is shipped: wheel, source archive, editable install; each is built and tried for real."""
