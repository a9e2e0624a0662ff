"""A recipe written by a form: a text interface, in a terminal or a browser. job=compose."""
