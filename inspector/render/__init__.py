"""What records look like: the terminal now; nothing here needs torch."""
