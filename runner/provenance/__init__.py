"""What a result is made of: its record, its statement, its card, the text in its header."""
