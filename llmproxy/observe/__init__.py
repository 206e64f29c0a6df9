"""What the proxy tells about itself: the log and the access event. Imports nothing else of llmproxy."""
